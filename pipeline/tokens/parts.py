"""Parts: the numbered npz files between the tokenizers and the shards.

`data/units/<split>/NNNNN.npz` holds the speech units of a shard's utterances and
`data/images/<split>/NNNNN.npz` the image tokens of its images. Both are plain npz archives (no objects,
nothing pickled) whose bytes depend on the arrays alone: members are stored uncompressed, in a fixed order,
with a fixed time stamp.
"""

import io
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.errors import InputError
from pipeline.files import atomic_path

MAX_ID = 65_535
"""Largest token id and longest run in frames: both are stored as uint16."""

_ZIP_TIME = (1980, 1, 1, 0, 0, 0)


def deduplicate(frames: ArrayLike) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
    """Frame-level units [num_frames] -> (units uint16 [n], durations uint16 [n] in frames).

    Raises InputError when an id or a run does not fit uint16. `restore` is the exact inverse.
    """
    frames = np.asarray(frames)
    if frames.ndim != 1:
        raise InputError(f"frame-level units must be one row of ids, got shape {frames.shape}")
    if frames.size == 0:
        return np.zeros(0, np.uint16), np.zeros(0, np.uint16)
    starts = np.flatnonzero(np.concatenate([[True], frames[1:] != frames[:-1]]))
    durations = np.diff(np.concatenate([starts, [frames.size]]))
    return as_uint16(frames[starts], "units"), as_uint16(durations, "durations")


def restore(units: NDArray[np.uint16], durations: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """(units [n], durations [n] in frames) -> frame-level units uint16 [sum of durations]."""
    return np.repeat(np.asarray(units, dtype=np.uint16), durations)


def as_uint16(values: ArrayLike, what: str) -> NDArray[np.uint16]:
    """`values` as uint16, refusing (InputError) what is not a whole number from 0 to 65,535."""
    values = np.asarray(values)
    if values.size == 0:
        return np.zeros(values.shape, np.uint16)
    if values.dtype.kind not in "iu":
        raise InputError(f"{what}: ids must be integers, got {values.dtype}")
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > MAX_ID:
        raise InputError(
            f"{what}: values from {low} to {high} do not fit uint16 (0 to {MAX_ID}); "
            f"use a vocabulary of at most {MAX_ID + 1:,} entries"
        )
    return values.astype(np.uint16)


@dataclass(frozen=True)
class UnitsPart:
    """Speech units of N utterances, one after the other.

    ids: unicode [N], the caption ids, unique. offsets: int64 [N+1], where each utterance starts in the flat
    arrays. units: uint16 [total], neighbouring repeats removed. durations: uint16 [total], frames of each
    unit.
    """

    ids: NDArray[np.str_]
    offsets: NDArray[np.int64]
    units: NDArray[np.uint16]
    durations: NDArray[np.uint16]

    @staticmethod
    def from_utterances(ids: Sequence[str], units: Sequence[ArrayLike], durations: Sequence[ArrayLike]) -> "UnitsPart":
        """Join per-utterance arrays; InputError when something does not fit uint16 or line up."""
        if not len(ids) == len(units) == len(durations):
            raise InputError(f"{len(ids)} ids, {len(units)} unit and {len(durations)} duration sequences")
        rows = [as_uint16(u, f"units of {i}") for i, u in zip(ids, units, strict=True)]
        runs = [as_uint16(d, f"durations of {i}") for i, d in zip(ids, durations, strict=True)]
        lengths = np.array([len(row) for row in rows], dtype=np.int64)
        part = UnitsPart(
            ids=np.array(list(ids), dtype=np.str_),
            offsets=np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)]),
            units=np.concatenate([np.zeros(0, np.uint16), *rows]),
            durations=np.concatenate([np.zeros(0, np.uint16), *runs]),
        )
        for i, row, run in zip(ids, rows, runs, strict=True):
            if len(row) != len(run):
                raise InputError(f"{i}: {len(row)} units but {len(run)} durations")
        part.check("units part")
        return part

    def __len__(self) -> int:
        return len(self.ids)

    def utterance(self, i: int) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
        """Units and durations of the i-th utterance."""
        span = slice(int(self.offsets[i]), int(self.offsets[i + 1]))
        return self.units[span], self.durations[span]

    def index(self) -> dict[str, int]:
        """Caption id -> its place in this part."""
        return {str(id_): i for i, id_ in enumerate(self.ids)}

    def check(self, where: str) -> None:
        """Raise InputError, naming `where` and the array, unless the arrays keep the contract."""
        _check_array(where, "ids", self.ids, "U", 1)
        _check_array(where, "offsets", self.offsets, "i8", 1)
        _check_array(where, "units", self.units, "u2", 1)
        _check_array(where, "durations", self.durations, "u2", 1)
        _check_unique(where, "ids", self.ids)
        if len(self.offsets) != len(self.ids) + 1:
            raise InputError(f"{where}: offsets has {len(self.offsets)} entries for {len(self.ids)} ids")
        if self.offsets[0] != 0 or self.offsets[-1] != len(self.units) or np.any(np.diff(self.offsets) < 0):
            raise InputError(f"{where}: offsets do not rise from 0 to the {len(self.units)} units")
        if len(self.durations) != len(self.units):
            raise InputError(f"{where}: {len(self.durations)} durations for {len(self.units)} units")
        if np.any(self.durations == 0):
            raise InputError(f"{where}: durations holds a zero; every unit lasts at least one frame")


@dataclass(frozen=True)
class ImagesPart:
    """Image tokens of N images. keys: unicode [N], unique; tokens: uint16 [N, H, W]."""

    keys: NDArray[np.str_]
    tokens: NDArray[np.uint16]

    def __len__(self) -> int:
        return len(self.keys)

    def index(self) -> dict[str, int]:
        """Image key -> its place in this part."""
        return {str(key): i for i, key in enumerate(self.keys)}

    def check(self, where: str) -> None:
        """Raise InputError, naming `where` and the array, unless the arrays keep the contract."""
        _check_array(where, "keys", self.keys, "U", 1)
        _check_array(where, "tokens", self.tokens, "u2", 3)
        _check_unique(where, "keys", self.keys)
        if len(self.keys) != len(self.tokens):
            raise InputError(f"{where}: {len(self.keys)} keys for {len(self.tokens)} token grids")


def write_units_part(path: Path, part: UnitsPart) -> None:
    """Write a units part, atomically and with bytes that depend on the arrays alone."""
    part.check(str(path))
    write_npz(path, {"ids": part.ids, "offsets": part.offsets, "units": part.units, "durations": part.durations})


def read_units_part(path: Path) -> UnitsPart:
    """Read a units part; InputError names file and array when it is missing, torn or inconsistent."""
    arrays = read_npz(path, ("ids", "offsets", "units", "durations"))
    part = UnitsPart(arrays["ids"], arrays["offsets"], arrays["units"], arrays["durations"])
    part.check(str(path))
    return part


def write_images_part(path: Path, part: ImagesPart) -> None:
    """Write an images part, atomically and with bytes that depend on the arrays alone."""
    part.check(str(path))
    write_npz(path, {"keys": part.keys, "tokens": part.tokens})


def read_images_part(path: Path) -> ImagesPart:
    """Read an images part; InputError names file and array when it is missing, torn or inconsistent."""
    arrays = read_npz(path, ("keys", "tokens"))
    part = ImagesPart(arrays["keys"], arrays["tokens"])
    part.check(str(path))
    return part


def write_npz(path: Path, arrays: dict[str, NDArray]) -> None:
    """Write arrays as an npz in the given order, without time stamps and without objects."""
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            member = zipfile.ZipInfo(f"{name}.npy", date_time=_ZIP_TIME)
            member.create_system, member.external_attr = 3, 0o644 << 16
            archive.writestr(member, npy_bytes(array))


def npy_bytes(array: NDArray) -> bytes:
    """The array as an npy file (format version 1.0, C order, little endian, no objects)."""
    array = np.ascontiguousarray(array)
    buffer = io.BytesIO()
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    np.lib.format.write_array(buffer, little, version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def read_npz(path: Path, names: Iterable[str]) -> dict[str, NDArray]:
    """Read the named arrays of an npz; InputError when the file or one of them cannot be read."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; run the stage that writes it")
    if not zipfile.is_zipfile(path):
        raise InputError(f"{path}: not an npz archive, or cut short; delete it and run its stage again")
    arrays: dict[str, NDArray] = {}
    name = "archive"
    try:
        with np.load(path, allow_pickle=False) as archive:
            for name in names:
                if name not in archive:
                    raise InputError(f"{path}: has no array '{name}'")
                arrays[name] = archive[name]
    except InputError:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        problem = f"{path}: cannot read '{name}' ({error})"
        raise InputError(f"{problem}; delete it and run its stage again") from error
    return arrays


def _check_array(where: str, name: str, array: NDArray, kind: str, num_dims: int) -> None:
    """Refuse an array of another type or number of dimensions."""
    found = array.dtype.kind if kind == "U" else array.dtype.str[1:]
    if found != kind or array.ndim != num_dims:
        wanted = {"U": "unicode", "i8": "int64", "u2": "uint16"}[kind]
        raise InputError(
            f"{where}: array '{name}' must be {wanted} with {num_dims} dimension(s), "
            f"got {array.dtype} with shape {array.shape}"
        )


def _check_unique(where: str, name: str, values: NDArray[np.str_]) -> None:
    """Refuse an id that stands twice, naming it."""
    unique, counts = np.unique(values, return_counts=True)
    if np.any(counts > 1):
        raise InputError(f"{where}: array '{name}' holds '{unique[counts > 1][0]}' more than once")
