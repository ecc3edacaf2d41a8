"""One sample of a token shard: an image as tokens with the speech units of all its captions.

Turns a sample into the members of a tar and back. Everything read here may come from a stranger: arrays are
taken from the bytes by a strict npy reader (no objects, no allocation that the bytes do not cover), and
whatever does not keep the contract of docs/formats.md is an InputError that names the member.
"""

import ast
import functools
import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.manifest import is_key
from pipeline.tokens.parts import as_uint16, npy_bytes

IMAGE, UNITS, DURATIONS, META, PIXELS = "image.npy", "units.npy", "durations.npy", "json", "jpg"
TOKENS = frozenset({IMAGE, UNITS, DURATIONS, META})
KNOWN = TOKENS | {PIXELS}

_MAGIC = b"\x93NUMPY"
_ZERO = np.zeros(1, np.int64)
_CAPTION_FIELDS = {"id": str, "speaker": str, "text": str, "offset": int, "num_units": int, "num_frames": int}


@dataclass(frozen=True)
class TokenCaption:
    """A spoken caption. units: uint16 [n], neighbouring repeats removed; durations: uint16 [n], in frames."""

    id: str
    speaker: str
    text: str
    units: NDArray[np.uint16]
    durations: NDArray[np.uint16]


@dataclass(frozen=True)
class Sample:
    """An image with its captions.

    image: tokens uint16 [H, W], None for a row of speech alone; jpg: the picture's JPEG bytes where the
    shards hold pixels.
    """

    key: str
    image: NDArray[np.uint16] | None
    captions: list[TokenCaption]
    jpg: bytes | None = None


def to_members(sample: Sample) -> dict[str, bytes]:
    """The sample's files by what follows `<key>.`, sorted. InputError for what does not fit the contract."""
    if not is_key(sample.key):
        raise InputError(f"key {sample.key!r}: letters, digits, '_', '-' and '/' only (webdataset cuts keys at dots)")
    captions, offset = [], 0
    for caption in sample.captions:
        if len(caption.units) != len(caption.durations):
            counts = f"{len(caption.units)} units, {len(caption.durations)} durations"
            raise InputError(f"{sample.key}: caption {caption.id}: {counts}")
        captions.append(
            {
                "id": caption.id,
                "num_frames": int(np.sum(caption.durations, dtype=np.int64)),
                "num_units": len(caption.units),
                "offset": offset,
                "speaker": caption.speaker,
                "text": caption.text,
            }
        )
        offset += len(caption.units)
    none = np.zeros(0, np.uint16)
    units = np.concatenate([none, *(as_uint16(c.units, f"{sample.key}: units") for c in sample.captions)])
    durations = np.concatenate([none, *(as_uint16(c.durations, f"{sample.key}: durations") for c in sample.captions)])
    meta = {"captions": captions, "key": sample.key}
    members = {
        UNITS: npy_bytes(units),
        DURATIONS: npy_bytes(durations),
        META: json.dumps(meta, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode(),
    }
    if sample.image is not None:
        members[IMAGE] = npy_bytes(as_uint16(sample.image, f"{sample.key}: image tokens"))
    if sample.jpg is not None:
        members[PIXELS] = sample.jpg
    return dict(sorted(members.items()))


def from_members(key: str, members: Mapping[str, bytes]) -> Sample:
    """The inverse of `to_members`, checking everything. Members that it does not know are left alone."""
    for name in (UNITS, DURATIONS, META):
        if name not in members:
            raise InputError(f"{key}: has no member '{key}.{name}'")
    meta = _meta(key, members[META])
    units = npy_array(members[UNITS], f"{key}.{UNITS}", num_dims=1)
    durations = npy_array(members[DURATIONS], f"{key}.{DURATIONS}", num_dims=1)
    image = npy_array(members[IMAGE], f"{key}.{IMAGE}", num_dims=2) if IMAGE in members else None
    if len(units) != len(durations):
        raise InputError(f"{key}: {len(units)} units but {len(durations)} durations")
    if durations.size and not durations.all():
        raise InputError(f"{key}.{DURATIONS}: holds a zero; every unit lasts at least one frame")
    # frames[i]: frames before unit i, so that a caption's frames are a difference and not a sum each.
    frames = np.concatenate([_ZERO, np.cumsum(durations, dtype=np.int64)]).tolist()
    captions, offset = [], 0
    for record in meta["captions"]:
        id_, start, count = record["id"], record["offset"], record["num_units"]
        if start != offset or count < 0 or start + count > len(units):
            raise InputError(
                f"{key}: caption {id_}: offset {start} with {count} units does not follow on {offset} "
                f"within {len(units)} units"
            )
        offset += count
        if frames[offset] - frames[start] != record["num_frames"]:
            raise InputError(f"{key}: caption {id_}: durations do not add up to {record['num_frames']} frames")
        captions.append(
            TokenCaption(id_, record["speaker"], record["text"], units[start:offset], durations[start:offset])
        )
    if offset != len(units):
        raise InputError(f"{key}: captions cover {offset} of {len(units)} units")
    return Sample(key, image, captions, members.get(PIXELS))


def _meta(key: str, data: bytes) -> dict[str, Any]:
    """The decoded `<key>.json`, with its fields checked for type."""
    try:
        meta = json.loads(data)
        if b"\\ud" in data.lower():  # half a surrogate pair is no text: it could be neither printed nor written
            json.dumps(meta, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise InputError(f"{key}.{META}: not readable as JSON ({error})") from error
    if not isinstance(meta, dict) or meta.get("key") != key:
        raise InputError(f"{key}.{META}: does not carry the key '{key}'")
    if not isinstance(meta.get("captions"), list):
        raise InputError(f"{key}.{META}: has no list 'captions'")
    for record in meta["captions"]:
        for name, kind in _CAPTION_FIELDS.items():
            value = record.get(name) if isinstance(record, dict) else None
            if type(value) is not kind:
                raise InputError(f"{key}.{META}: a caption's '{name}' must be {kind.__name__}, not {value!r}")
    return meta


def npy_array(data: bytes, where: str, *, num_dims: int) -> NDArray[np.uint16]:
    """A uint16 array out of npy bytes (versions 1 to 3).

    Only little-endian uint16 in C order is accepted, and only when the bytes hold exactly the array: a
    header can neither name an object type nor make us allocate memory.
    """
    if data[:6] != _MAGIC or len(data) < 12:
        raise InputError(f"{where}: not an npy file")
    start = 10 if data[6] == 1 else 12
    (size,) = struct.unpack("<H" if start == 10 else "<I", data[8:start])
    end = start + size
    descr, c_order, shape = _header(data[start:end]) if size < 10_000 else (None, False, None)
    if shape is None:
        raise InputError(f"{where}: the npy header cannot be read")
    if descr != "<u2" or (not c_order and len(shape) > 1):
        raise InputError(f"{where}: must be uint16 in C order, got {descr!r}")
    if len(shape) != num_dims:
        raise InputError(f"{where}: must have {num_dims} dimension(s), got shape {shape}")
    count = math.prod(shape)
    if len(data) - end != 2 * count:
        raise InputError(f"{where}: holds {len(data) - end} bytes for shape {shape}")
    return np.frombuffer(data, dtype="<u2", count=count, offset=end).astype(np.uint16).reshape(shape)


@functools.lru_cache(maxsize=4096)
def _header(header: bytes) -> tuple[str | None, bool, tuple[int, ...] | None]:
    """(descr, C order?, shape) of an npy header; the shape is None for what cannot be read."""
    try:
        values = ast.literal_eval(header.decode("latin1"))
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None, False, None
    shape = values.get("shape") if isinstance(values, dict) else None
    if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape):
        return None, False, None
    return values.get("descr"), values.get("fortran_order") is False, shape
