"""A table of one's own: CSV or JSONL with a line for each image or for each spoken caption.

Columns: ``audio`` (needed), ``image``, ``text``, ``speaker``, ``split``, ``key``, ``id``; JSONL lines may
hold a list ``captions`` of ``{audio, text, speaker, id}`` instead of ``audio``. Paths are relative to the
corpus root. Lines that name the same image are one row. A line without an image is a row of speech alone.
Lines without a split go to the split asked for, or are cut into train, val and test by a seed.
"""

import csv
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pipeline.corpora.unchecked import (
    Options,
    UncheckedCaption,
    UncheckedRow,
    derive_keys,
    find_file,
    given_key,
    reader_reject,
)
from pipeline.errors import InputError
from pipeline.files import read_jsonl
from pipeline.manifest import Reject, is_key

_COLUMNS = ("audio", "image", "text", "speaker", "split", "key", "id", "captions")


@dataclass
class _Group:
    """Lines of one row, before it has a key."""

    name: str  # the file that the key derives from, or the key that was given
    keyed: bool
    image: str | None
    split: str
    captions: list[UncheckedCaption] = field(default_factory=list)


def read(root: Path, options: Options) -> Iterator[UncheckedRow | Reject]:
    """Rows in the order of their first line. A line that cannot be used is a reject that names the line.

    Raises InputError when the table is missing, is not CSV or JSONL, or has no column ``audio``.
    """
    remedy = "Name it with manifest.table; README.md in manifests/ shows the columns."
    table = find_file(root, [options.table], "the table", remedy)
    groups: dict[str, _Group] = {}
    for number, line in _read_lines(table):
        reason = _add(groups, line, options)
        if reason:
            yield reader_reject(f"line/{number}", f"{table.name}:{number}: {reason}", id=f"line/{number}")
            yield reader_reject(f"line/{number}", f"{table.name}:{number}: {reason}")
    keys = derive_keys(group.name for group in groups.values() if not group.keyed)
    used = {group.name for group in groups.values() if group.keyed}
    rows = []
    for group in groups.values():
        key = group.name if group.keyed else keys[group.name]
        if not group.keyed and key in used:
            key = f"{key}-{hashlib.sha256(group.name.encode()).hexdigest()[:12]}"
        rows.append(UncheckedRow(group.split, key, group.image, _with_ids(group, key)))
    yield from _with_splits(rows, options)


def _read_lines(table: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, record) of each line of the table, empty cells left out."""
    if table.suffix.lower() in (".jsonl", ".json"):
        yield from enumerate(read_jsonl(table), start=1)
        return
    if table.suffix.lower() not in (".csv", ".tsv"):
        raise InputError(f"{table}: a table ends in .csv, .tsv or .jsonl")
    try:
        yield from _read_cells(table)
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{table}: not readable as a table of text in UTF-8 ({error})") from error


def _read_cells(table: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with table.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, delimiter="\t" if table.suffix.lower() == ".tsv" else ",")
        names = reader.fieldnames or []
        unknown = [name for name in names if name not in _COLUMNS]
        if "audio" not in names or unknown:
            found = ", ".join(names) or "nothing"
            wanted = f"audio and any of {', '.join(_COLUMNS[1:-1])}"
            raise InputError(f"{table}:1: the columns are {wanted}; found {found}")
        for record in reader:
            yield reader.line_num, {name: cell for name, cell in record.items() if cell not in (None, "")}


def _add(groups: dict[str, _Group], line: dict[str, Any], options: Options) -> str:
    """Put a line into its group. Returns why it cannot be used, or an empty string."""
    unknown = sorted(str(name) for name in set(line) - set(_COLUMNS))
    if unknown:
        return f"unknown field '{unknown[0]}'; known are {', '.join(_COLUMNS)}"
    listed = line.get("captions")
    records = [line] if listed is None else listed
    if not isinstance(records, list) or not records:
        return "'captions' must be a list of at least one caption"
    captions = []
    for record in records:
        if not isinstance(record, dict) or not isinstance(record.get("audio"), str) or not record["audio"]:
            return "the field 'audio' is missing"
        fields = {name: str(record.get(name) or "") for name in ("id", "audio", "speaker", "text")}
        captions.append(UncheckedCaption(**fields))
    image = line.get("image")
    if image is not None and not isinstance(image, str):
        return "the field 'image' must be a path"
    key = str(line.get("key") or "")
    if key and not is_key(key):
        key = given_key(key)
    split = str(line.get("split") or options.split)
    # Without an image each line is a row of its own, unless a key says that lines belong together.
    place = image or key or captions[0].audio
    group = groups.setdefault(place, _Group(key or place, bool(key), image, split))
    if group.split != split:
        return f"the image is already in the split '{group.split}', this line says '{split}'"
    if key and group.keyed and group.name != key:
        return f"the image already has the key '{group.name}', this line says '{key}'"
    group.captions += captions
    return ""


def _with_ids(group: _Group, key: str) -> tuple[UncheckedCaption, ...]:
    named = []
    for number, caption in enumerate(group.captions):
        named.append(replace(caption, id=given_key(caption.id) if caption.id else f"{key}_{number}"))
    return tuple(named)


def _with_splits(rows: list[UncheckedRow], options: Options) -> list[UncheckedRow]:
    """Cut the rows without a split: exact shares, chosen by a hash of seed and key, whatever the order."""
    if not 0 <= options.val_fraction + options.test_fraction < 1:
        raise InputError("val_fraction + test_fraction must be at least 0 and below 1")
    open_keys = sorted(
        (row.key for row in rows if not row.split),
        key=lambda key: hashlib.sha256(f"{options.seed}:{key}".encode()).digest(),
    )
    num_test = round(len(open_keys) * options.test_fraction)
    num_val = round(len(open_keys) * options.val_fraction)
    splits = dict.fromkeys(open_keys, "train")
    splits.update(dict.fromkeys(open_keys[:num_test], "test"))
    splits.update(dict.fromkeys(open_keys[num_test : num_test + num_val], "val"))
    return [row if row.split else replace(row, split=splits[row.key]) for row in rows]
