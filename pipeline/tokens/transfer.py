"""Copies whole sets of token shards: `pull` from a url, `push` to a folder or a url.

A pull is parallel and goes on where it stopped. Every byte is held against the hashes of contents.json and of the
indexes. An index is written when all its shards are there, contents.json last, so a half-copied set is never taken
for a whole one.
"""

import fcntl
import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

from pipeline.errors import InputError
from pipeline.files import atomic_path, sha256_file
from pipeline.tokens.contents import (
    CARD_NAME,
    CONTENTS_NAME,
    check_contents,
    read_contents,
    set_fingerprint,
    write_contents,
)
from pipeline.tokens.index import INDEX_NAME, check_index, index_fingerprint
from pipeline.tokens.remote import Remote
from pipeline.tokens.statistics import STATISTICS_NAME


@dataclass(frozen=True)
class Copied:
    """What a pull or a push did. fingerprint: of the set, "" where it has none; splits: what was asked for."""

    fingerprint: str
    splits: list[str]
    num_files: int
    num_copied: int
    num_bytes: int


def pull(
    url: str,
    folder: Path,
    *,
    splits: Sequence[str] = (),
    num_workers: int = 8,
    fingerprint: str | None = None,
    replace: bool = False,
    retries: int = 5,
) -> Copied:
    """Copy a set of token shards from `url` into `folder`, or finish a copy that was interrupted.

    splits: only these (default: all); fingerprint: the set must be this one; replace: `folder` may hold another set,
    whose files of the same names are replaced. Raises InputError, naming the file, when something is missing, does
    not have the hash that it should have, or cannot be had after `retries` faults in a row.
    """
    remote, folder = Remote(url, retries=retries), Path(folder)
    contents, contents_bytes = _contents(remote)
    if fingerprint is not None and (contents or {}).get("fingerprint") != fingerprint:
        raise InputError(f"{url}: this is set {(contents or {}).get('fingerprint')}, expected set {fingerprint}")
    known = sorted(contents["splits"]) if contents else _splits_of_card(remote)
    chosen = list(splits) or known
    if not chosen:
        raise InputError(f"{url}: no {CONTENTS_NAME} and no {CARD_NAME} that names the splits; give --split")
    if contents and (unknown := sorted(set(chosen) - set(known))):
        raise InputError(f"{url}: no split {unknown[0]!r}; it has {', '.join(known)}")
    hashes = {entry["url"]: entry for entry in contents["files"]} if contents else {}
    indexes = {split: _index(remote, split, hashes.get(f"{split}/{INDEX_NAME}"), contents) for split in chosen}
    _make_way(folder, {split: data for split, (_, data) in indexes.items()}, replace)
    files = [
        {**shard, "url": f"{split}/{shard['url']}"}
        for split, (index, _) in indexes.items()
        for shard in index["shards"]
    ]
    files += [entry for name, entry in hashes.items() if _is_wanted(name, chosen, known)]
    with _locked(folder):
        num_copied = _fetch_all(remote, files, folder, num_workers)
    if (card := remote.read(CARD_NAME)) is not None:
        _write(folder / CARD_NAME, card)
    for split, (_, data) in indexes.items():
        _write(folder / split / INDEX_NAME, data)
    if contents_bytes and chosen == known:
        _write(folder / CONTENTS_NAME, contents_bytes)
        made = contents
    else:
        made = write_contents(folder)
    size = sum(entry["filesize"] for entry in files)
    return Copied(str((made or {}).get("fingerprint", "")), chosen, len(files), num_copied, size)


def preview(url: str) -> tuple[str, dict[str, dict[str, Any]], dict[str, Any] | None]:
    """(fingerprint, indexes by split, statistics or None) of a set at `url`, without its shards; hashes are checked.

    Raises InputError as `pull` does.
    """
    remote = Remote(url)
    contents, _ = _contents(remote)
    hashes = {entry["url"]: entry for entry in contents["files"]} if contents else {}
    splits = sorted(contents["splits"]) if contents else _splits_of_card(remote)
    if not splits:
        raise InputError(f"{url}: no {CONTENTS_NAME} and no {CARD_NAME} that names the splits")
    indexes = {split: _index(remote, split, hashes.get(f"{split}/{INDEX_NAME}"), contents)[0] for split in splits}
    entry, statistics = hashes.get(STATISTICS_NAME), None
    data = remote.read(STATISTICS_NAME) if entry else None
    if entry and data is not None and hashlib.sha256(data).hexdigest() == entry["sha256"]:
        statistics = _json(data, f"{url}/{STATISTICS_NAME}")
    return str((contents or {}).get("fingerprint", "")), indexes, statistics


def push(folder: Path, url: str) -> Copied:
    """Copy a set to a folder, or to a url that fsspec can write to; what is there already is left alone.

    The layout is the Hub's own as it is: the card names the data files. Check the set with `verify` before.
    """
    folder = Path(folder)
    if url.startswith("hf://"):
        name = url.removeprefix("hf://").removeprefix("datasets/")
        raise InputError(f"{url}: let the Hub's tool do it: hf upload {name} {folder} --repo-type dataset")
    contents = read_contents(folder) or write_contents(folder)
    last = [f"{split}/{INDEX_NAME}" for split in contents["splits"]] + [CONTENTS_NAME]
    names = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
    names = [name for name in names if not any(part.startswith(".") for part in name.split("/"))]
    names = [name for name in names if name not in last] + last
    num_copied = 0
    target = Remote(url)
    for name in tqdm(names, desc="push", unit="file", disable=None):
        num_copied += _put(target, folder / name, name)
    size = sum((folder / name).stat().st_size for name in names)
    return Copied(contents["fingerprint"], sorted(contents["splits"]), len(names), num_copied, size)


def _contents(remote: Remote) -> tuple[dict[str, Any] | None, bytes]:
    data = remote.read(CONTENTS_NAME)
    if data is None:
        return None, b""
    where = f"{remote.url}/{CONTENTS_NAME}"
    contents = check_contents(_json(data, where), where)
    if contents.get("fingerprint") != set_fingerprint(contents["splits"]):
        raise InputError(f"{where}: its fingerprint does not fit its splits")
    return contents, data


def _splits_of_card(remote: Remote) -> list[str]:
    """The splits that a card's metadata names: what sets without a contents.json have."""
    card = (remote.read(CARD_NAME) or b"").decode("utf-8", "replace")
    front = card.partition("---\n")[2].partition("\n---\n")[0]
    try:
        values = yaml.safe_load(front)
        return [str(entry["split"]) for config in values["configs"] for entry in config["data_files"]]
    except (yaml.YAMLError, KeyError, TypeError):
        return []


def _index(
    remote: Remote, split: str, entry: dict[str, Any] | None, contents: dict[str, Any] | None
) -> tuple[dict[str, Any], bytes]:
    """(index, its bytes), held against contents.json and against its own fingerprint."""
    where = f"{remote.url}/{split}/{INDEX_NAME}"
    data = remote.read(f"{split}/{INDEX_NAME}")
    if data is None:
        raise InputError(f"{where}: no such file; is {remote.url} a set of token shards?")
    if entry is not None and hashlib.sha256(data).hexdigest() != entry["sha256"]:
        raise InputError(f"{where}: its SHA-256 is not the one in {CONTENTS_NAME}")
    index = check_index(_json(data, where), where)
    named = index.get("fingerprint") if contents is None else contents["splits"][split]
    if not index_fingerprint(index) == index.get("fingerprint") == named:
        raise InputError(f"{where}: its fingerprint does not fit its content")
    return index, data


def _is_wanted(name: str, chosen: list[str], known: list[str]) -> bool:
    """Files beside the shards: those of the set and of the chosen splits, without the indexes, which come last."""
    top = name.split("/")[0]
    return not name.endswith(f"/{INDEX_NAME}") and (top in chosen or top not in known)


def _make_way(folder: Path, indexes: dict[str, bytes], replace: bool) -> None:
    """Refuse to mix two sets. An index that will be replaced goes first, so nothing half done looks finished."""
    for split, data in indexes.items():
        path = folder / split / INDEX_NAME
        if path.is_file() and path.read_bytes() != data:
            if not replace:
                raise InputError(f"{path}: is of another set; give another folder, or --replace to overwrite it")
            (folder / CONTENTS_NAME).unlink(missing_ok=True)
            path.unlink()


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep a second pull out of the folder: two would write into the same unfinished files."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ".pull.lock"
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{folder}: another pull is at work in it; wait for it or end it") from None
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _fetch_all(remote: Remote, files: list[dict[str, Any]], folder: Path, num_workers: int) -> int:
    """Bring all files; returns how many were not there yet. InputError lists what could not be had."""
    num_bytes = sum(entry["filesize"] for entry in files)
    num_copied, faults = 0, []
    bar = tqdm(total=num_bytes, desc="pull", unit="B", unit_scale=True, disable=None)
    with bar, ThreadPoolExecutor(max(1, num_workers)) as pool:

        def fetch(entry: dict[str, Any]) -> bool:
            name = entry["url"]
            return remote.fetch(name, entry["filesize"], entry["sha256"], folder / name, bar.update)

        try:
            for done in as_completed([pool.submit(fetch, entry) for entry in files]):
                try:
                    num_copied += done.result()
                except InputError as error:
                    faults.append(str(error))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    if faults:
        more = f"\n  and {len(faults) - 5} more" if len(faults) > 5 else ""
        listed = "\n  ".join(sorted(faults)[:5])
        raise InputError(f"{len(faults)} of {len(files)} files did not come:\n  {listed}{more}")
    return num_copied


def _put(target: Remote, path: Path, name: str) -> bool:
    """Write one file unless an equal one is there; whole or not at all in a folder."""
    if "file" in _protocols(target):
        there = Path(target.root) / name
        if there.is_file() and there.stat().st_size == path.stat().st_size and sha256_file(there) == sha256_file(path):
            return False
        with atomic_path(there) as temporary:
            shutil.copyfile(path, temporary)
        return True
    try:
        target.fs.put_file(str(path), f"{target.root}/{name}")
    except target.transient + (NotImplementedError,) as error:
        raise InputError(f"{target.url}/{name}: cannot be written ({error}); run the same command to go on") from error
    return True


def _protocols(target: Remote) -> Iterator[str]:
    found = target.fs.protocol
    yield from (found,) if isinstance(found, str) else found


def _write(path: Path, data: bytes) -> None:
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def _json(data: bytes, where: str) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not readable as JSON ({error})") from error
