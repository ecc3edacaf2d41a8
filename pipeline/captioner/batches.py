"""What each training step learns from: this process's share of a batch, from memory or streamed from token shards.

A batch is that of all processes together, so its size, and with it the result, does not depend on how many there are.
From memory every process knows the whole batch and takes its share; streamed, every process reads a part of the shards
of its own. Either can go on at the step where an earlier run stopped.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch

from pipeline.captioner.data import Examples, collate, encode_captions, epoch_batches
from pipeline.captioner.vocabulary import UnitVocabulary
from pipeline.errors import InputError
from pipeline.tokens.loader import Batch, Example, Position, Share, TokenSource


@dataclass(frozen=True)
class Sharing:
    """How a batch is shared out: this is `rank` of `count` processes, which takes its share in `num_parts` turns."""

    rank: int = 0
    count: int = 1
    num_parts: int = 1


@dataclass(frozen=True)
class Part:
    """Images and ids as `collate` gives them, and how many ids are to be predicted: 0 for a part that is there only
    to keep this process in step with the others. numbers: of the captions, each another in the whole batch."""

    images: torch.Tensor
    ids: torch.Tensor
    num_tokens: int
    numbers: list[int]


@dataclass(frozen=True)
class Turn:
    """A step's parts for this process; num_tokens: of the whole batch, None where this process does not know."""

    parts: list[Part]
    num_tokens: int | None


class Feed(Protocol):
    """Turns without end."""

    num_too_long: int

    @property
    def num_captions(self) -> int:
        """Captions of an epoch, of all processes."""
        ...

    def __next__(self) -> Turn: ...

    def position(self) -> list[int]:
        """Where it stands, for a checkpoint of this process."""
        ...

    def go_on(self, num_steps: int, position: Sequence[int]) -> None:
        """Stand where a run stood after `num_steps` steps, when `position` was taken."""
        ...


class MemoryFeed:
    """Batches of examples in memory. Raises InputError when no caption fits `max_length`."""

    def __init__(
        self,
        examples: Examples,
        vocabulary: UnitVocabulary,
        *,
        batch_size: int,
        batch_tokens: int,
        max_length: int,
        seed: int,
        sharing: Sharing,
    ) -> None:
        self._examples, self._pad, self._sharing = examples, vocabulary.pad, sharing
        self._pairs, self.num_too_long = encode_captions(examples, vocabulary, max_length)
        if not self._pairs:
            raise _nothing_fits(self.num_too_long, max_length)
        self._batches = self._endless(batch_size, batch_tokens, seed)

    @property
    def num_captions(self) -> int:
        return len(self._pairs)

    def __next__(self) -> Turn:
        chosen = next(self._batches)
        sharing = self._sharing
        mine = chosen[sharing.rank :: sharing.count]
        num_parts = min(sharing.num_parts, -(-len(chosen) // sharing.count))  # of the process that has most
        cuts = [mine[number::num_parts] for number in range(num_parts)]
        parts = [make_part(self._examples, self._pairs, cut, self._pad, idle=chosen[0]) for cut in cuts]
        return Turn(parts, sum(len(self._pairs[i][1]) - 1 for i in chosen))

    def position(self) -> list[int]:
        return []

    def go_on(self, num_steps: int, position: Sequence[int]) -> None:
        for _ in range(num_steps):
            next(self._batches)

    def _endless(self, batch_size: int, batch_tokens: int, seed: int) -> Iterator[list[int]]:
        rng = np.random.default_rng([seed, 0])
        while True:
            yield from epoch_batches(self._pairs, batch_size, rng, batch_tokens)


@dataclass(frozen=True)
class Stream:
    """A split of token shards, and what makes an example's image as the captioner takes it."""

    source: TokenSource
    image: Callable[[Example], torch.Tensor]


class StreamFeed:
    """Batches read from token shards as they are needed; memory holds one block of samples.

    Captions longer than `max_length` ids are left out as they are met, and counted. batch_tokens counts units here,
    pieces or not. Raises InputError when an epoch has no caption for this process.
    """

    def __init__(
        self,
        stream: Stream,
        vocabulary: UnitVocabulary,
        *,
        batch_size: int,
        batch_tokens: int,
        max_length: int,
        sharing: Sharing,
    ) -> None:
        self._stream, self._vocabulary, self._sharing = stream, vocabulary, sharing
        self._max_length = max_length
        self._share = Share(sharing.rank, sharing.count)
        self._size = batch_size // sharing.count + (sharing.rank < batch_size % sharing.count)
        if self._size < 1:
            raise InputError(f"train.batch_size: {batch_size} captions for {sharing.count} processes; give one each")
        self._max_units = -(-batch_tokens // sharing.count)
        self._at = Position(0, self._share.number, self._share.count)
        self.num_too_long = 0
        self._turns = self._endless()

    @property
    def num_captions(self) -> int:
        return int(self._stream.source.index["totals"]["captions"])

    def __next__(self) -> Turn:
        return next(self._turns)

    def position(self) -> list[int]:
        at = self._at
        return [at.epoch, at.share, at.num_shares, at.start, at.taken, self.num_too_long]

    def go_on(self, num_steps: int, position: Sequence[int]) -> None:
        *at, self.num_too_long = position
        self._at = Position(*at)
        self._turns = self._endless()

    def _endless(self) -> Iterator[Turn]:
        while True:
            at, found = self._at, False
            batches = self._stream.source.batches(self._size, at.epoch, self._share, at, max_units=self._max_units)
            for batch in batches:
                self._at = batch.after
                parts = self._parts(batch)
                if parts:
                    found = True
                    yield Turn(parts, None if self._sharing.count > 1 else sum(part.num_tokens for part in parts))
            if not found and (at.start, at.taken) == (0, 0):
                raise _nothing_fits(self.num_too_long, self._max_length)
            self._at = Position(at.epoch + 1, self._share.number, self._share.count)

    def _parts(self, batch: Batch) -> list[Part]:
        images: list[torch.Tensor] = []
        pairs: list[tuple[int, list[int]]] = []
        for example in batch.examples:
            ids = [self._vocabulary.bos, *self._vocabulary.encode(example.caption.units.tolist()), self._vocabulary.eos]
            if len(ids) <= self._max_length:
                pairs.append((len(images), ids))
                images.append(self._stream.image(example))
        self.num_too_long += len(batch.examples) - len(images)
        if not images:
            return []
        examples = Examples(torch.stack(images), [])
        rank, count, num_parts = self._sharing.rank, self._sharing.count, self._sharing.num_parts
        if count == 1:  # else how many the others have is not known here
            num_parts = min(num_parts, len(pairs))
        cuts = (range(len(pairs))[n::num_parts] for n in range(num_parts))
        parts = [make_part(examples, pairs, cut, self._vocabulary.pad, idle=0) for cut in cuts]
        return [replace(part, numbers=[rank + count * number for number in part.numbers]) for part in parts]


def make_part(
    examples: Examples, pairs: Sequence[tuple[int, list[int]]], chosen: Sequence[int], pad: int, *, idle: int
) -> Part:
    """The chosen pairs as a part; of none, the pair `idle` that counts for nothing.

    All processes make as many parts, since a batch norm over all of them waits for each at every one.
    """
    images, ids = collate(examples, pairs, chosen or [idle], pad)
    return Part(images, ids, sum(len(pairs[i][1]) - 1 for i in chosen), list(chosen or [idle]))


def _nothing_fits(num_too_long: int, max_length: int) -> InputError:
    return InputError(f"train: none of {num_too_long} captions has at most {max_length} ids (max_length)")
