"""Writes one token shard: samples -> an uncompressed tar that stock webdataset reads.

The bytes depend on the samples alone: no times, owners or groups, members sorted within a sample, samples
in the order given. Names of up to 100 bytes make a plain USTAR archive; longer ones get a PAX header.
"""

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path

from pipeline.errors import InputError
from pipeline.files import atomic_path
from pipeline.tokens.sample import Sample, to_members


def write_shard(path: Path, samples: Iterable[Sample]) -> int:
    """Write the samples atomically; returns how many. InputError for a repeated key or an id above 65,535."""
    keys: set[str] = set()
    with atomic_path(path) as temporary, tarfile.open(temporary, "w", format=tarfile.PAX_FORMAT) as tar:
        for sample in samples:
            if sample.key in keys:
                raise InputError(f"{path}: the key '{sample.key}' occurs twice")
            keys.add(sample.key)
            for name, data in to_members(sample).items():
                member = tarfile.TarInfo(f"{sample.key}.{name}")
                member.size, member.mode, member.mtime = len(data), 0o644, 0
                tar.addfile(member, io.BytesIO(data))
    return len(keys)
