"""What a corpus reader yields: rows as published, with safe keys, no file of which has been opened yet.

A reader turns one published layout into `UncheckedRow`s; `pipeline.corpora.check` opens the files. What a
reader leaves out it says with a `Reject`; an unreadable layout is an InputError that says what was looked
for.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.errors import InputError
from pipeline.manifest import Reject, is_key


@dataclass(frozen=True)
class UncheckedCaption:
    """A spoken caption as published; ``audio`` relative to the corpus root."""

    id: str
    audio: str
    speaker: str
    text: str


@dataclass(frozen=True)
class UncheckedRow:
    """An image as published, relative to the corpus root (None: speech alone), with its spoken captions."""

    split: str
    key: str
    image: str | None
    captions: tuple[UncheckedCaption, ...]


@dataclass(frozen=True)
class Options:
    """What a reader may be told; each reader uses those it has a use for.

    restval: where Karpathy's `restval` images go: `train`, `separate` (a split of that name) or `drop`.
    karpathy: the Karpathy split file, relative to the root; empty: looked for under its usual names.
    table: the CSV or JSONL file of a table corpus, relative to the root.
    split: the split of table rows that name none; empty: cut by `val_fraction`, `test_fraction` and `seed`.
    """

    restval: str = "train"
    karpathy: str = ""
    table: str = "table.jsonl"
    split: str = ""
    val_fraction: float = 0.1
    test_fraction: float = 0.1
    seed: int = 0


Reader = Callable[[Path, Options], Iterator[UncheckedRow | Reject]]


def reader_reject(key: str, reason: str, id: str = "") -> Reject:
    """A reject of the reading itself; every corpus reader is part of the stage `manifest`."""
    return Reject(key=key, id=id, stage="manifest", reason=reason)


def safe_key(name: str) -> str:
    """``name`` with every run of characters that a key may not hold turned into one dash."""
    parts = (re.sub(r"[^A-Za-z0-9_-]+", "-", part) for part in name.split("/"))
    return "/".join(part for part in parts if part) or "-"


def derive_keys(paths: Iterable[str]) -> dict[str, str]:
    """A key for each distinct file path: its stem made safe, the same for any order of the paths.

    Where stems collide, all concerned take the whole path without its ending; where those collide too
    (``a.b`` and ``a-b``, ``a.jpg`` and ``a.png``), the start of the path's sha256 is appended.
    """
    keys: dict[str, str] = {}
    taken: set[str] = set()
    todo = sorted(set(paths))
    for name in (_stem, _whole, _hashed):
        named: dict[str, list[str]] = {}
        for path in todo:
            named.setdefault(name(path), []).append(path)
        for key, owners in named.items():
            if len(owners) == 1 and key not in taken:
                keys[owners[0]] = key
        taken.update(keys.values())
        todo = [path for path in todo if path not in keys]
    return keys


def _stem(path: str) -> str:
    return safe_key(PurePosixPath(path).stem)


def _whole(path: str) -> str:
    return safe_key(re.sub(r"\.[^./]*$", "", path))


def _hashed(path: str) -> str:
    return f"{_whole(path)}-{hashlib.sha256(path.encode()).hexdigest()[:12]}"


def given_key(name: str) -> str:
    """A key or id that the corpus itself gives: as it is where that is allowed, else made safe."""
    return name if is_key(name) else safe_key(name)


def read_document(path: Path, field: str) -> list[Any]:
    """The list in ``field`` of a JSON document. InputError names the file and what was expected."""
    try:
        with path.open(encoding="utf-8") as file:
            document = json.load(file)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not readable as JSON ({error}); is the download complete?") from error
    items = document.get(field) if isinstance(document, dict) else None
    if not isinstance(items, list):
        raise InputError(f"{path}: a JSON object with a list '{field}' was expected")
    return items


def find_file(root: Path, candidates: Sequence[str], what: str, remedy: str) -> Path:
    """The first of ``candidates`` (relative to ``root``) that is a file; InputError lists them if none is."""
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; it must be the root of the corpus")
    for candidate in candidates:
        if (root / candidate).is_file():
            return root / candidate
    raise InputError(f"{root}: {what} not found; looked for {', '.join(candidates)}. {remedy}")


def find_folder(root: Path, candidates: Sequence[str], what: str, remedy: str) -> str:
    """The first of ``candidates`` that is a folder, as a prefix of paths; InputError lists them if none is."""
    for candidate in candidates:
        if (root / candidate).is_dir():
            return f"{candidate}/" if candidate else ""
    raise InputError(f"{root}: {what} not found; looked for {', '.join(c or '.' for c in candidates)}. {remedy}")


def text_of(record: Any, field: str, where: str) -> str:
    """A required string of a published record; InputError names place and field."""
    if not isinstance(record, dict) or not isinstance(record.get(field), str):
        raise InputError(f"{where}: the field '{field}' (text) is missing")
    return str(record[field])
