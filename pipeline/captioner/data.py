"""Training examples in memory: images as the model takes them, captions as ids, in length-sorted batches."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from pipeline.captioner.vocabulary import UnitVocabulary


@dataclass(frozen=True)
class Examples:
    """`images` [N, ...] as `Captioner` takes them; `captions[i]` are the unit sequences spoken of image i."""

    images: torch.Tensor
    captions: list[list[list[int]]]

    def __len__(self) -> int:
        return len(self.captions)


def encode_captions(
    examples: Examples, vocabulary: UnitVocabulary, max_length: int
) -> tuple[list[tuple[int, list[int]]], int]:
    """(image index, BOS + ids + EOS) of every caption that fits `max_length` ids, and how many did not."""
    pairs, num_too_long = [], 0
    for index, captions in enumerate(examples.captions):
        for units in captions:
            ids = [vocabulary.bos, *vocabulary.encode(units), vocabulary.eos]
            if len(ids) <= max_length:
                pairs.append((index, ids))
            else:
                num_too_long += 1
    return pairs, num_too_long


def epoch_batches(
    pairs: Sequence[tuple[int, list[int]]], batch_size: int, rng: np.random.Generator
) -> Iterator[list[int]]:
    """Each pair once an epoch: batches of similar length, in random order; the last may be short."""
    noisy = np.array([len(ids) for _, ids in pairs]) + rng.uniform(-4, 4, len(pairs))
    order = np.argsort(noisy, kind="stable")
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    for number in rng.permutation(len(batches)):
        yield batches[number].tolist()


def collate(
    examples: Examples, pairs: Sequence[tuple[int, list[int]]], chosen: Sequence[int], pad: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """(images [B, ...], ids int64 [B, T] padded behind) of the chosen pairs."""
    width = max(len(pairs[i][1]) for i in chosen)
    ids = torch.full((len(chosen), width), pad)
    for row, i in zip(ids, chosen, strict=True):
        row[: len(pairs[i][1])] = torch.tensor(pairs[i][1])
    return examples.images[[pairs[i][0] for i in chosen]], ids
