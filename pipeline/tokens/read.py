"""Reads token shards with numpy alone: exact, checked, and safe on a stranger's files.

Nothing is unpickled, members are bounded in size, and a sample that breaks the contract is an InputError
naming shard and key. `read_samples` goes through a split in the order of its index.
"""

from collections.abc import Collection, Iterator
from pathlib import Path

from pipeline.errors import InputError
from pipeline.tokens.index import read_index, split_names
from pipeline.tokens.sample import KNOWN, TOKENS, Sample, TokenCaption, from_members
from pipeline.tokens.tar import walk

__all__ = [
    "Sample",
    "TokenCaption",
    "read_index",
    "read_members",
    "read_samples",
    "read_shard",
    "split_names",
]

MAX_MEMBER_BYTES = 64 * 2**20
"""No member of a shard may be larger: a picture of 64 MiB or the units of some thousand hours."""


def read_samples(shards_dir: Path, split: str) -> Iterator[Sample]:
    """Every sample of a split, in shard order and in the order of each tar.

    Raises InputError when the index, a shard or a sample cannot be used, also for a tar that holds fewer or
    more samples than its index says (a truncated copy).
    """
    folder = Path(shards_dir) / split
    for shard in read_index(shards_dir, split)["shards"]:
        num_samples = 0
        for sample in read_shard(folder / shard["url"]):
            num_samples += 1
            yield sample
        if num_samples != shard["nsamples"]:
            raise InputError(
                f"{folder / shard['url']}: holds {num_samples} samples, its index says {shard['nsamples']}; "
                "the file is cut short or not the one that was published"
            )


def read_shard(path: Path, *, pixels: bool = True, skip: int = 0) -> Iterator[Sample]:
    """The samples of one tar, without their pictures unless `pixels`. InputError names the file and the key.

    skip: leave out so many at the beginning, without reading them.
    """
    for key, members in read_members(path, KNOWN if pixels else TOKENS, skip=skip):
        try:
            yield from_members(key, members)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error


def read_members(
    path: Path, names: Collection[str] | None = None, *, skip: int = 0
) -> Iterator[tuple[str, dict[str, bytes]]]:
    """(key, members by what follows `<key>.`) of one tar, grouped as webdataset does: neighbours by key.

    names: only these members are read, None means all; skip: leave out so many keys at the beginning.
    """
    key: str | None = None
    members: dict[str, bytes] = {}
    seen: set[str] = set()
    number, last = -1, None

    def wanted(full: str) -> bool:
        nonlocal number, last
        found, name = _split(full)
        if found != last:
            number, last = number + 1, found
        return number >= skip and (names is None or name in names)

    for full, data in walk(path, MAX_MEMBER_BYTES, wanted):
        if number < skip:
            continue
        member_key, name = _split(full)
        if member_key != key:
            if key is not None:
                yield key, members
            key, members, seen = member_key, {}, set()
        if name in seen:
            raise InputError(f"{path}: member '{full}' occurs twice")
        seen.add(name)
        if names is None or name in names:
            members[name] = data
    if key is not None:
        yield key, members


def _split(full: str) -> tuple[str, str]:
    """(key, the rest) of a member's name: the key ends at the first dot of the base name."""
    slash = full.rfind("/") + 1
    dot = full.find(".", slash)
    return (full, "") if dot < 0 else (full[:dot], full[dot + 1 :])
