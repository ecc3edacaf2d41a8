"""Writes one token shard: samples -> a tar that stock webdataset reads, as it is or in gzip.

The bytes depend on the samples alone: no times, owners or groups, members sorted within a sample, samples
in the order given. Names of up to 100 bytes make a plain USTAR archive; longer ones get a PAX header.

A path that ends in .gz is compressed. Headers and padding outweigh the tokens in a plain tar, so this saves most of
the bytes; the price is random access (wids), which cannot seek in gzip. Equal samples give equal bytes with
the same zlib; another zlib may compress otherwise, to the same content.
"""

import gzip
import io
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from pipeline.errors import InputError
from pipeline.files import atomic_path
from pipeline.tokens.sample import Sample, to_members


def write_shard(path: Path, samples: Iterable[Sample]) -> int:
    """Write the samples atomically; returns how many. InputError for a repeated key or an id above 65,535."""
    keys: set[str] = set()
    with _open(path) as tar:
        for sample in samples:
            if sample.key in keys:
                raise InputError(f"{path}: the key '{sample.key}' occurs twice")
            keys.add(sample.key)
            for name, data in to_members(sample).items():
                member = tarfile.TarInfo(f"{sample.key}.{name}")
                member.size, member.mode, member.mtime = len(data), 0o644, 0
                tar.addfile(member, io.BytesIO(data))
    return len(keys)


@contextmanager
def _open(path: Path) -> Iterator[tarfile.TarFile]:
    """The tar to write to; it gets its name when all is written."""
    with atomic_path(path) as temporary, ExitStack() as open_files:
        stream: io.BufferedIOBase = open_files.enter_context(temporary.open("wb"))
        if path.name.endswith(".gz"):
            stream = open_files.enter_context(gzip.GzipFile("", "wb", 9, stream, mtime=0))
        yield open_files.enter_context(tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT))
