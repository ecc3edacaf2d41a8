"""contents.json: what a set of token shards is made of, so that a copy of it can be checked to the last byte.

The split indexes hold the hashes of their tars; this file, in the set's root and written last, holds the hashes of
the indexes and of everything else but the card, which people edit. Its fingerprint names the set.
"""

from pathlib import Path
from typing import Any

from pipeline.errors import InputError
from pipeline.files import fingerprint, read_json, sha256_file, write_json
from pipeline.tokens.index import INDEX_NAME, read_index, split_names, stays_inside

CONTENTS_NAME, CARD_NAME = "contents.json", "README.md"
VERSION = 1


def write_contents(shards_dir: Path) -> dict[str, Any]:
    """Make contents.json of a folder whose indexes are written; returns it."""
    shards_dir = Path(shards_dir)
    indexes = {split: read_index(shards_dir, split) for split in split_names(shards_dir)}
    shards = {f"{split}/{shard['url']}" for split, index in indexes.items() for shard in index["shards"]}
    files = []
    for path in sorted(p for p in shards_dir.rglob("*") if p.is_file()):
        url = path.relative_to(shards_dir).as_posix()
        if url not in shards | {CONTENTS_NAME, CARD_NAME} and not any(part.startswith(".") for part in url.split("/")):
            files.append({"filesize": path.stat().st_size, "sha256": sha256_file(path), "url": url})
    splits = {split: index["fingerprint"] for split, index in indexes.items()}
    contents = {"files": files, "fingerprint": set_fingerprint(splits), "splits": splits, "version": VERSION}
    write_json(shards_dir / CONTENTS_NAME, contents)
    return contents


def set_fingerprint(splits: dict[str, str]) -> str:
    """16 hex characters naming a set by the fingerprints of its splits' indexes."""
    return fingerprint({"splits": splits, "version": VERSION})


def read_contents(shards_dir: Path) -> dict[str, Any] | None:
    """contents.json of a folder, its shape checked; None where there is none (sets made before it existed)."""
    path = Path(shards_dir) / CONTENTS_NAME
    return check_contents(read_json(path), path) if path.is_file() else None


def check_contents(contents: Any, path: Path | str) -> dict[str, Any]:
    """`contents` if it has the shape; else InputError naming `path` and the field."""
    if not isinstance(contents, dict) or contents.get("version") != VERSION:
        raise InputError(f"{path}: a contents file of version {VERSION} was expected")
    files, splits = contents.get("files"), contents.get("splits")
    if not isinstance(files, list) or not isinstance(splits, dict):
        raise InputError(f"{path}: 'files' must be a list and 'splits' an object")
    for entry in files:
        found = entry if isinstance(entry, dict) else {}
        kinds = [isinstance(found.get(name), kind) for name, kind in (("url", str), ("filesize", int), ("sha256", str))]
        if not all(kinds):
            raise InputError(f"{path}: a file's url, filesize or sha256 is missing: {entry!r}")
        if not stays_inside(found["url"]):
            raise InputError(f"{path}: the file url {found['url']!r} leads out of its folder")
    for split in splits:
        if not stays_inside(split) or "/" in split:
            raise InputError(f"{path}: {split!r} cannot be the name of a split")
        if f"{split}/{INDEX_NAME}" not in {entry["url"] for entry in files}:
            raise InputError(f"{path}: the split '{split}' has no {split}/{INDEX_NAME} among the files")
    return contents


def contents_problems(shards_dir: Path, contents: dict[str, Any], splits: list[str]) -> list[tuple[str, str]]:
    """(file, what is wrong with it) for everything that contents.json names, tars apart."""
    problems: list[tuple[str, str]] = []
    if contents.get("fingerprint") != set_fingerprint(contents["splits"]):
        problems.append((CONTENTS_NAME, "its fingerprint does not fit its splits"))
    for split in sorted(set(splits) - set(contents["splits"])):
        problems.append((f"{split}/{INDEX_NAME}", f"is not listed in {CONTENTS_NAME}"))
    for entry in contents["files"]:
        path = Path(shards_dir) / entry["url"]
        if not path.is_file():
            problems.append((entry["url"], f"listed in {CONTENTS_NAME}, but there is no such file"))
        elif path.stat().st_size != entry["filesize"]:
            problem = f"{path.stat().st_size:,} bytes, {CONTENTS_NAME} says {entry['filesize']:,}"
            problems.append((entry["url"], problem))
        elif sha256_file(path) != entry["sha256"]:
            problems.append((entry["url"], f"its SHA-256 is not the one in {CONTENTS_NAME}: bytes were changed"))
    return problems
