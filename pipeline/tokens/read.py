"""Reads token shards with tarfile and numpy alone: exact, checked, and safe on a stranger's files.

Nothing is unpickled, members are bounded in size, and a sample that breaks the contract is an InputError
naming shard and key. `read_samples` goes through a split in the order of its index.
"""

import tarfile
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import InputError
from pipeline.tokens.index import read_index, split_names
from pipeline.tokens.sample import Sample, TokenCaption, from_members

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


def read_shard(path: Path) -> Iterator[Sample]:
    """The samples of one tar. InputError names the file and the key."""
    for key, members in read_members(path):
        try:
            yield from_members(key, members)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error


def read_members(path: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    """(key, members by what follows `<key>.`) of one tar, grouped as webdataset does: neighbours by key."""
    key: str | None = None
    members: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for info in tar:
                if not info.isfile():
                    raise InputError(f"{path}: member '{info.name}' is not a plain file")
                if info.size > MAX_MEMBER_BYTES:
                    raise InputError(f"{path}: member '{info.name}' of {info.size:,} bytes is too large")
                folder, _, base = info.name.rpartition("/")
                stem, _, name = base.partition(".")
                member_key = f"{folder}/{stem}" if folder else stem
                if member_key != key:
                    if key is not None:
                        yield key, members
                    key, members = member_key, {}
                if name in members:
                    raise InputError(f"{path}: member '{info.name}' occurs twice")
                stream = tar.extractfile(info)
                members[name] = stream.read() if stream is not None else b""
                # tarfile remembers every member it passed; memory must not grow with the shard.
                tar.members = []  # type: ignore[attr-defined]
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file, although the index lists it") from error
    except tarfile.TarError as error:
        last = f" after key '{key}'" if key is not None else ""
        raise InputError(f"{path}: not readable as a tar{last} ({error}); copy or build it again") from error
    if key is not None:
        yield key, members
