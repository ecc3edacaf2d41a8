"""Training examples in memory: images as the model takes them, captions as ids, in length-sorted batches."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
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
    pairs: Sequence[tuple[int, list[int]]], batch_size: int, rng: np.random.Generator, batch_tokens: int = 0
) -> Iterator[list[int]]:
    """Each pair once an epoch: batches of similar length, in random order; the last may be short.

    batch_tokens: ids of a batch at most, padding included, in place of `batch_size`; 0: batches of `batch_size`.
    """
    lengths = np.array([len(ids) for _, ids in pairs])
    order = np.argsort(lengths + rng.uniform(-4, 4, len(pairs)), kind="stable")
    if batch_tokens:
        batches = cut_by_tokens(order, lengths, batch_tokens)
    else:
        batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    for number in rng.permutation(len(batches)):
        yield batches[number].tolist()


def cut_by_tokens(
    order: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64], batch_tokens: int
) -> list[npt.NDArray[np.int64]]:
    """`order` cut into runs of which each, padded to its longest, has at most `batch_tokens` ids; one that is longer
    is a run of its own."""
    starts, widest = [0], 0
    for place, index in enumerate(order):
        widest = max(widest, int(lengths[index]))
        if place > starts[-1] and widest * (place + 1 - starts[-1]) > batch_tokens:
            starts.append(place)
            widest = int(lengths[index])
    return [order[start:end] for start, end in zip(starts, [*starts[1:], len(order)], strict=True)]


def collate(
    examples: Examples, pairs: Sequence[tuple[int, list[int]]], chosen: Sequence[int], pad: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """(images [B, ...], ids int64 [B, T] padded behind) of the chosen pairs."""
    width = max(len(pairs[i][1]) for i in chosen)
    ids = torch.full((len(chosen), width), pad)
    for row, i in zip(ids, chosen, strict=True):
        row[: len(pairs[i][1])] = torch.tensor(pairs[i][1])
    return examples.images[[pairs[i][0] for i in chosen]], ids
