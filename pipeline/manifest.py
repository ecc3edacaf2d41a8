"""Rows of a corpus: one image with all its spoken captions, kept in numbered JSONL shards for each split.

Reads and writes ``<manifest>/<split>/NNNNN.jsonl`` (one row a line, keys sorted, paths relative to
the corpus root) and ``rejects.jsonl`` files. The number of a shard is the number of its units, its image
tokens and its tar, so that work can be resumed, spread over workers and debugged by number. Needs no torch.

A row is checked whenever it is read: a manifest may be written by hand or by another program.
"""

import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import InputError
from pipeline.files import read_jsonl, write_jsonl

# No dots: webdataset cuts the key of a tar member at the first dot of its name.
KEY_PATTERN = re.compile(r"[A-Za-z0-9_/-]+")
SPLIT_PATTERN = re.compile(r"[A-Za-z0-9_-]+")
SHARD_PATTERN = re.compile(r"\d{5,}\.jsonl")
SHA256_PATTERN = re.compile(r"[0-9a-f]{64}")


def is_key(text: str) -> bool:
    """Whether ``text`` may be a key or a caption id: ``[A-Za-z0-9_/-]+``, no empty part between slashes."""
    return KEY_PATTERN.fullmatch(text) is not None and all(text.split("/"))


@dataclass(frozen=True)
class Image:
    """A picture: path relative to the corpus root, size in pixels after EXIF rotation, sha256 of the file."""

    path: str
    width: int
    height: int
    sha256: str


@dataclass(frozen=True)
class Caption:
    """One spoken caption; ``num_samples`` at the file's own ``sample_rate`` in Hz.

    ``speaker`` and ``text`` are empty strings where the corpus does not know them; ``text`` is as published
    (SpokenCOCO writes upper case): normalising it is the business of whoever compares texts.
    """

    id: str
    audio: str
    num_samples: int
    sample_rate: int
    sha256: str
    speaker: str
    text: str

    @property
    def seconds(self) -> float:
        return self.num_samples / self.sample_rate


@dataclass(frozen=True)
class Row:
    """An image with its captions (at least one); ``image`` is None for a row of speech alone."""

    key: str
    image: Image | None
    captions: tuple[Caption, ...]


@dataclass(frozen=True)
class Reject:
    """What was left out: a whole row (``id`` empty) or one caption, by which stage and why."""

    key: str
    id: str
    stage: str
    reason: str


@dataclass(frozen=True)
class Leak:
    """One image file (by sha256) that stands in more than one split; ``places`` are ``split:key``, sorted."""

    sha256: str
    places: tuple[str, ...]


# ----------------------------------------------------------------------------------------------------
# one line of JSON <-> dataclass


def _field(record: Mapping[str, Any], name: str, kind: type, where: str) -> Any:
    if name not in record:
        raise InputError(f"{where}: the field '{name}' is missing")
    value = record[name]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise InputError(f"{where}: the field '{name}' must be {kind.__name__}, not {value!r}")
    return value


def _only(record: Mapping[str, Any], names: Sequence[str], where: str) -> None:
    unknown = sorted(set(record) - set(names))
    if unknown:
        raise InputError(f"{where}: unknown field '{unknown[0]}'; known are {', '.join(names)}")


def _positive(record: Mapping[str, Any], name: str, where: str) -> int:
    value: int = _field(record, name, int, where)
    if value < 1:
        raise InputError(f"{where}: the field '{name}' must be at least 1, not {value}")
    return value


def _path(record: Mapping[str, Any], name: str, where: str) -> str:
    value: str = _field(record, name, str, where)
    if not value or value.startswith("/") or ".." in Path(value).parts:
        raise InputError(f"{where}: the field '{name}' must be a path inside the corpus root, not {value!r}")
    return value


def _digest(record: Mapping[str, Any], where: str) -> str:
    value: str = _field(record, "sha256", str, where)
    if SHA256_PATTERN.fullmatch(value) is None:
        raise InputError(f"{where}: the field 'sha256' must be 64 hexadecimal digits, not {value!r}")
    return value


def _key(record: Mapping[str, Any], name: str, where: str) -> str:
    value: str = _field(record, name, str, where)
    if not is_key(value):
        rule = f"must match {KEY_PATTERN.pattern} (no dots)"
        raise InputError(f"{where}: the field '{name}' {rule}, not {value!r}")
    return value


def _image_from(record: Mapping[str, Any], where: str) -> Image:
    _only(record, ("path", "width", "height", "sha256"), where)
    return Image(
        path=_path(record, "path", where),
        width=_positive(record, "width", where),
        height=_positive(record, "height", where),
        sha256=_digest(record, where),
    )


def _caption_from(record: Mapping[str, Any], where: str) -> Caption:
    _only(record, ("id", "audio", "num_samples", "sample_rate", "sha256", "speaker", "text"), where)
    return Caption(
        id=_key(record, "id", where),
        audio=_path(record, "audio", where),
        num_samples=_positive(record, "num_samples", where),
        sample_rate=_positive(record, "sample_rate", where),
        sha256=_digest(record, where),
        speaker=_field(record, "speaker", str, where),
        text=_field(record, "text", str, where),
    )


def row_from_dict(record: Mapping[str, Any], where: str) -> Row:
    """Check one decoded line and build the row; ``where`` (``file:line``) begins every error message.

    Raises InputError naming the field that is missing, unknown or wrong.
    """
    _only(record, ("key", "image", "captions"), where)
    key = _key(record, "key", where)
    where = f"{where}: row '{key}'"
    if "image" not in record:
        raise InputError(f"{where}: the field 'image' is missing (null for speech without a picture)")
    image = record["image"]
    if image is not None:
        image = _image_from(_field(record, "image", dict, where), f"{where}: image")
    captions = _field(record, "captions", list, where)
    if not captions:
        raise InputError(f"{where}: the field 'captions' is empty; a row needs a spoken caption")
    checked = []
    for number, caption in enumerate(captions):
        place = f"{where}: captions[{number}]"
        if not isinstance(caption, dict):
            raise InputError(f"{place}: must be an object, not {caption!r}")
        checked.append(_caption_from(caption, place))
    return Row(key=key, image=image, captions=tuple(checked))


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(``file:line``, decoded object) of every line of a JSONL file."""
    for number, record in enumerate(read_jsonl(path), start=1):
        yield f"{path}:{number}", record


# ----------------------------------------------------------------------------------------------------
# files


def read_rows(path: Path) -> list[Row]:
    """Rows of one shard, in order. InputError names file:line and field of a bad or truncated line."""
    return [row_from_dict(record, where) for where, record in _lines(path)]


def count_items(path: Path, limit: int | None = None) -> tuple[int, int]:
    """(images, captions) of one shard, or of its first `limit` rows, counted without building the rows."""
    records = [record for _, record in _lines(path)][:limit]
    return sum(r["image"] is not None for r in records), sum(len(r["captions"]) for r in records)


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write one shard atomically; the bytes depend on the rows only."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_jsonl(path, (asdict(row) for row in rows))


def read_rejects(path: Path) -> list[Reject]:
    """Rejects of a run, in order; an empty list for an empty file."""
    names = ("key", "id", "stage", "reason")
    return [Reject(**{name: _field(record, name, str, where) for name in names}) for where, record in _lines(path)]


def write_rejects(path: Path, rejects: Iterable[Reject]) -> None:
    """Write rejects atomically, sorted, so that the order of work does not show."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ordered = sorted(rejects, key=lambda reject: (reject.key, reject.id, reject.stage, reject.reason))
    write_jsonl(path, (asdict(reject) for reject in ordered))


def shard_name(number: int) -> str:
    """``00007`` for 7: the name without an ending that every stage uses for this shard."""
    return f"{number:05d}"


def shard_paths(manifest_dir: Path, split: str) -> list[Path]:
    """The numbered shards of a split in numeric order; empty when there is no such split."""
    folder = manifest_dir / split
    if not folder.is_dir():
        return []
    paths = (path for path in folder.iterdir() if SHARD_PATTERN.fullmatch(path.name))
    return sorted(paths, key=lambda path: int(path.stem))


def split_names(manifest_dir: Path) -> list[str]:
    """Splits (folders holding numbered shards), sorted. Raises InputError when there is none."""
    folders = manifest_dir.iterdir() if manifest_dir.is_dir() else iter(())
    names = sorted(folder.name for folder in folders if shard_paths(manifest_dir, folder.name))
    if not names:
        raise InputError(f"{manifest_dir}: no <split>/NNNNN.jsonl in it; run `im2speech manifest` first")
    return names


def read_split(manifest_dir: Path, split: str) -> list[Row]:
    """All rows of a split in shard order. InputError lists the splits when there is no such one."""
    paths = shard_paths(manifest_dir, split)
    if not paths:
        known = ", ".join(split_names(manifest_dir))
        raise InputError(f"{manifest_dir}: no split '{split}'; there are {known}")
    return [row for path in paths for row in read_rows(path)]


# ----------------------------------------------------------------------------------------------------
# whole manifests


def partition(rows: Sequence[Row], rows_per_shard: int, seed: int) -> list[list[Row]]:
    """Shuffle once and cut into shards.

    Rows are sorted by key before the shuffle, so that the outcome depends on the set of rows and the seed,
    not on the order in which a corpus lists them.
    """
    if rows_per_shard < 1:
        raise InputError(f"rows_per_shard must be at least 1, not {rows_per_shard}")
    ordered = sorted(rows, key=lambda row: row.key)
    shuffled = [ordered[index] for index in np.random.default_rng(seed).permutation(len(ordered))]
    return [shuffled[start : start + rows_per_shard] for start in range(0, len(shuffled), rows_per_shard)]


def check_unique(splits: Mapping[str, Sequence[Row]]) -> None:
    """Raise InputError naming the first key or caption id that occurs twice in or over splits."""
    keys: dict[str, str] = {}
    ids: dict[str, str] = {}
    for split, rows in splits.items():
        for row in rows:
            if row.key in keys:
                raise InputError(f"the key '{row.key}' occurs twice (in '{keys[row.key]}' and in '{split}')")
            keys[row.key] = split
            for caption in row.captions:
                if caption.id in ids:
                    places = f"in '{ids[caption.id]}' and in '{row.key}'"
                    raise InputError(f"the caption id '{caption.id}' occurs twice ({places})")
                ids[caption.id] = row.key


def find_leaks(splits: Mapping[str, Sequence[Row]]) -> list[Leak]:
    """Images that stand, byte for byte, in more than one split, sorted by sha256."""
    places: dict[str, list[tuple[str, str]]] = {}
    for split, rows in splits.items():
        for row in rows:
            if row.image is not None:
                places.setdefault(row.image.sha256, []).append((split, row.key))
    return [
        Leak(digest, tuple(sorted(f"{split}:{key}" for split, key in found)))
        for digest, found in sorted(places.items())
        if len({split for split, _ in found}) > 1
    ]


def write_splits(
    manifest_dir: Path, splits: Mapping[str, Sequence[Row]], *, rows_per_shard: int, seed: int
) -> dict[str, int]:
    """Write every split as numbered shards; returns the number of shards of each.

    Shards and split folders of an earlier run are removed; other files in ``manifest_dir`` (README.md, the
    model registry) are left alone. Raises InputError for a split name that cannot be a folder and for
    repeated keys.
    """
    for split in splits:
        if SPLIT_PATTERN.fullmatch(split) is None:
            raise InputError(f"the split name {split!r} must match {SPLIT_PATTERN.pattern}")
    check_unique(splits)
    _remove_shards(manifest_dir)
    counts = {}
    for split, rows in splits.items():
        shards = partition(rows, rows_per_shard, seed)
        for number, shard in enumerate(shards):
            write_rows(manifest_dir / split / f"{shard_name(number)}.jsonl", shard)
        counts[split] = len(shards)
    return counts


def _remove_shards(manifest_dir: Path) -> None:
    folders = list(manifest_dir.iterdir()) if manifest_dir.is_dir() else []
    for folder in folders:
        if not folder.is_dir():
            continue
        for path in shard_paths(manifest_dir, folder.name):
            path.unlink()
        if not any(folder.iterdir()):
            shutil.rmtree(folder)
