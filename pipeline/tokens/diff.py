"""What differs between two sets of token shards: tokenizers, splits, keys and, sample by sample, the tokens.

Order and packing do not count: the same samples in other tars, compressed or not, are no difference.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.tokens.index import read_index, split_names
from pipeline.tokens.read import read_samples
from pipeline.tokens.sample import Sample

_ASPECTS = ("image tokens", "caption ids", "units", "durations", "texts", "speakers", "picture")
_SHOWN = 5


def diff(first: Path, second: Path) -> Iterator[str]:
    """Lines that say what differs, none when the two sets hold the same. Reads both; a digest a sample in memory.

    Raises InputError when a set cannot be read.
    """
    first, second = Path(first), Path(second)
    a, b = split_names(first), split_names(second)
    for split in sorted(set(a) ^ set(b)):
        yield f"{split}: only in {first if split in a else second}"
    for split in sorted(set(a) & set(b)):
        one, other = read_index(first, split), read_index(second, split)
        if one["fingerprint"] == other["fingerprint"]:
            continue
        yield from _tokenizers(split, one, other)
        yield from _samples(split, first, second)


def _tokenizers(split: str, one: dict[str, Any], other: dict[str, Any]) -> Iterator[str]:
    for name in sorted(set(one["tokenizers"]) | set(other["tokenizers"])):
        a, b = one["tokenizers"].get(name) or {}, other["tokenizers"].get(name) or {}
        for field in sorted(set(a) | set(b)):
            if a.get(field) != b.get(field):
                yield f"{split}: {name} tokenizer: {field}: {a.get(field)} | {b.get(field)}"


def _samples(split: str, first: Path, second: Path) -> Iterator[str]:
    known = {sample.key: _digests(sample) for sample in read_samples(first, split)}
    only_second: list[str] = []
    changed: dict[str, list[str]] = {aspect: [] for aspect in _ASPECTS}
    for sample in read_samples(second, split):
        before = known.pop(sample.key, None)
        if before is None:
            only_second.append(sample.key)
            continue
        for aspect, a, b in zip(_ASPECTS, before, _digests(sample), strict=True):
            if a != b:
                changed[aspect].append(sample.key)
    yield from _listed(f"{split}: keys only in {first}", list(known))
    yield from _listed(f"{split}: keys only in {second}", only_second)
    for aspect, keys in changed.items():
        yield from _listed(f"{split}: other {aspect}", keys)


def _listed(what: str, keys: list[str]) -> Iterator[str]:
    if keys:
        more = f", and {len(keys) - _SHOWN:,} more" if len(keys) > _SHOWN else ""
        yield f"{what}: {len(keys):,} ({', '.join(sorted(keys)[:_SHOWN])}{more})"


def _digests(sample: Sample) -> tuple[bytes, ...]:
    """A digest for each of _ASPECTS."""
    captions = sample.captions
    return (
        _digest() if sample.image is None else _digest(np.array(sample.image.shape), sample.image),
        _digest("\n".join(c.id for c in captions)),
        _digest(*(part for c in captions for part in (len(c.units), c.units))),
        _digest(*(part for c in captions for part in (len(c.durations), c.durations))),
        _digest(*(c.text for c in captions)),
        _digest("\n".join(c.speaker for c in captions)),
        _digest() if sample.jpg is None else _digest(sample.jpg),
    )


def _digest(*parts: Any) -> bytes:
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        data = part.tobytes() if isinstance(part, np.ndarray) else part if isinstance(part, bytes) else None
        digest.update(b"|" + (f"{part}".encode() if data is None else data))
    return digest.digest()
