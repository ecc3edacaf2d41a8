"""Streams token shards to training: shuffled, split exactly over ranks and workers, resumable, batched by length.

The samples of a split stand in one line, shard after shard, in an order that the seed and the epoch decide. A share
(one of rank x worker) takes a contiguous stretch of that line, so every sample is taken once an epoch by somebody,
however many share and whatever the shards' sizes. A stretch is read in blocks; a block is shuffled whole, and it is
also what batches of like length are cut from. Where a share stands is therefore two numbers: the start of its block
and how much of the block is taken, and going on costs no reading of what was before.

Nothing here unpickles; a member's size is bounded and a sample is checked as `tokens.read` does.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.tokens.index import read_index
from pipeline.tokens.parts import restore
from pipeline.tokens.read import read_shard
from pipeline.tokens.sample import Sample, TokenCaption

_SHARDS, _BLOCKS, _CAPTIONS, _BATCHES = range(4)  # what a random stream is for


@dataclass(frozen=True)
class Share:
    """Which part of an epoch is ours: that of `worker` of `num_workers` of `rank` of `world_size`."""

    rank: int = 0
    world_size: int = 1
    worker: int = 0
    num_workers: int = 1

    def __post_init__(self) -> None:
        if not (0 <= self.rank < self.world_size and 0 <= self.worker < self.num_workers):
            raise InputError(f"loader: {self} is not a share: rank and worker count from 0")

    @property
    def number(self) -> int:
        """The share's number, from 0."""
        return self.rank * self.num_workers + self.worker

    @property
    def count(self) -> int:
        """How many shares there are."""
        return self.world_size * self.num_workers


@dataclass(frozen=True)
class Position:
    """How far a share has come: `taken` samples or batches of the block that starts at its sample `start`."""

    epoch: int
    share: int
    num_shares: int
    start: int = 0
    taken: int = 0

    def to_dict(self) -> dict[str, int]:
        """For a checkpoint; `Position(**values)` reads it."""
        return asdict(self)


@dataclass(frozen=True)
class Example:
    """One caption of one image. image: tokens uint16 [H, W] or None; jpg: the picture where the source has it."""

    key: str
    image: NDArray[np.uint16] | None
    caption: TokenCaption
    jpg: bytes | None = None


@dataclass(frozen=True)
class Batch:
    """Examples of like length; `after` is the position behind this batch: keep it to go on from there."""

    examples: list[Example]
    after: Position


@dataclass(frozen=True)
class TokenSource:
    """A split of a set of shards, and how its samples are wanted.

    seed: of every choice made here. shuffle: False keeps the order of the index. block: samples that are shuffled
    and bucketed together, and held in memory. captions: `all` of an image, or `one` by seed and epoch, such that as
    many epochs as an image has captions take each of them once. restored: units repeated by their durations, one a
    frame, with durations of 1. pixels: read the pictures too. even: leave out as many samples an epoch as it takes
    for all shares to have equally many.
    """

    shards_dir: Path
    split: str
    seed: int = 0
    shuffle: bool = True
    block: int = 2048
    captions: Literal["all", "one"] = "all"
    restored: bool = False
    pixels: bool = False
    even: bool = False

    def __post_init__(self) -> None:
        if self.block < 1:
            raise InputError(f"loader: a block of {self.block} samples")

    @cached_property
    def index(self) -> dict[str, Any]:
        """The split's index, read once."""
        return read_index(self.shards_dir, self.split)

    @cached_property
    def sizes(self) -> list[int]:
        """Samples of each shard."""
        return [shard["nsamples"] for shard in self.index["shards"]]

    def num_samples(self, share: Share | None = None) -> int:
        """Samples an epoch, of all or of one share."""
        if share is None:
            return sum(self.sizes)
        first, last = self._stretch(share)
        return last - first

    def samples(
        self, epoch: int = 0, share: Share | None = None, after: Position | None = None
    ) -> Iterator[tuple[Sample, Position]]:
        """(sample, the position behind it) of a share's part of an epoch; from `after` on, if given.

        Raises InputError for a sample or shard that breaks the contract, and for a position of other shares.
        """
        share = share or Share()
        for block, position in self._blocks(epoch, share, after):
            for number, sample in enumerate(block[position.taken :], start=position.taken + 1):
                yield sample, replace(position, taken=number)

    def batches(
        self,
        size: int,
        epoch: int = 0,
        share: Share | None = None,
        after: Position | None = None,
        *,
        max_units: int = 0,
    ) -> Iterator[Batch]:
        """Batches of at most `size` captions of like length; every caption once (`captions`: one: an image's once).

        max_units: units of a batch at most, padding included, in place of `size`; 0: no such bound. The batches of
        a block come in random order. A block that does not divide ends in a shorter batch.
        """
        if size < 1:
            raise InputError(f"loader: a batch of {size} captions")
        share = share or Share()
        for block, position in self._blocks(epoch, share, after):
            examples = [Example(s.key, s.image, caption, s.jpg) for s in block for caption in s.captions]
            lengths = [len(example.caption.units) for example in examples]
            cut = bucket_by_units(lengths, max_units) if max_units else bucket(lengths, size)
            order: Sequence[int] = range(len(cut))
            if self.shuffle:
                order = self._rng(epoch, _BATCHES, share.number, position.start).permutation(len(cut)).tolist()
            for number, place in enumerate(order[position.taken :], start=position.taken + 1):
                yield Batch([examples[i] for i in cut[place]], replace(position, taken=number))

    def _blocks(self, epoch: int, share: Share, after: Position | None) -> Iterator[tuple[list[Sample], Position]]:
        """(samples of a block in the order in which they are given out, position in it)."""
        first, last = self._stretch(share)
        position = after or Position(epoch, share.number, share.count)
        if (position.epoch, position.share, position.num_shares) != (epoch, share.number, share.count):
            raise InputError(
                f"loader: the position is of epoch {position.epoch}, share {position.share} of {position.num_shares}, "
                f"but this is epoch {epoch}, share {share.number} of {share.count}; go on with as many ranks and "
                "workers as before, or begin an epoch"
            )
        while position.start < last - first:
            begin = first + position.start
            end = min(last, begin + self.block)
            block = list(self._read(epoch, begin, end))
            if self.shuffle:
                order = self._rng(epoch, _BLOCKS, share.number, position.start).permutation(len(block))
                block = [block[i] for i in order]
            yield block, position
            position = replace(position, start=end - first, taken=0)

    def _stretch(self, share: Share) -> tuple[int, int]:
        """Where a share's part of the line begins and ends."""
        total = sum(self.sizes)
        if self.even:
            total -= total % share.count
        return total * share.number // share.count, total * (share.number + 1) // share.count

    def _read(self, epoch: int, begin: int, end: int) -> Iterator[Sample]:
        """The samples from place `begin` to before `end` of the epoch's line."""
        order = range(len(self.sizes))
        passed = 0
        for shard in self._rng(epoch, _SHARDS).permutation(len(order)).tolist() if self.shuffle else order:
            size = self.sizes[shard]
            skip, stop = max(0, begin - passed), min(size, end - passed)
            passed += size
            if skip < stop:
                yield from self._read_shard(epoch, shard, skip, stop)
            if passed >= end:
                return

    def _read_shard(self, epoch: int, shard: int, skip: int, stop: int) -> Iterator[Sample]:
        path = Path(self.shards_dir) / self.split / self.index["shards"][shard]["url"]
        turns = self._rng(0, _CAPTIONS, shard).integers(0, 2**31, self.sizes[shard]) if self.captions == "one" else None
        number = skip
        for sample in read_shard(path, pixels=self.pixels, skip=skip):
            spoken = sample.captions
            if turns is not None and spoken:
                spoken = [spoken[(int(turns[number]) + epoch) % len(spoken)]]
            if self.restored:
                spoken = [_restored(caption) for caption in spoken]
            yield replace(sample, captions=spoken)
            number += 1
            if number == stop:
                return
        raise InputError(
            f"{path}: holds {number} samples, its index says {self.sizes[shard]}; "
            "the file is cut short or not the one that was published"
        )

    def _rng(self, epoch: int, *purpose: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, epoch, *purpose])


def bucket(lengths: Sequence[int], size: int) -> list[list[int]]:
    """The places of `lengths` in groups of at most `size`, sorted so that a group holds like lengths."""
    order = np.argsort(np.asarray(lengths, np.int64), kind="stable").tolist()
    return [order[start : start + size] for start in range(0, len(order), size)]


def bucket_by_units(lengths: Sequence[int], max_units: int) -> list[list[int]]:
    """As `bucket`, in groups that have at most `max_units` units when padded; one that is longer is alone."""
    groups: list[list[int]] = []
    for place in np.argsort(np.asarray(lengths, np.int64), kind="stable").tolist():
        # Sorted: the one that comes is the longest so far.
        if groups and lengths[place] * (len(groups[-1]) + 1) <= max_units:
            groups[-1].append(place)
        else:
            groups.append([place])
    return groups


def pad_units(examples: Sequence[Example], pad: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(units int64 [B, T], filled with `pad` behind; lengths int64 [B])."""
    lengths = np.array([len(example.caption.units) for example in examples], np.int64)
    units = np.full((len(examples), int(lengths.max(initial=0))), pad, np.int64)
    for row, example in zip(units, examples, strict=True):
        row[: len(example.caption.units)] = example.caption.units
    return units, lengths


def _restored(caption: TokenCaption) -> TokenCaption:
    frames = restore(caption.units, caption.durations)
    return replace(caption, units=frames, durations=np.ones(len(frames), np.uint16))
