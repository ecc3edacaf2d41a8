"""The registry of models and corpora that others have published: where they are, their hashes and licences.

Reads manifests/models.yaml. An entry is a name with `kind`, `about`, `licence`, and `files` (an address each, or a
repository of the Hugging Face Hub, with the sha256 where one is published) or `by_hand` (why and how a person
has to get it). `then` is the next command; `facts` and `belongs_with` say what fits together.
"""

from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from pipeline.errors import InputError

HUB = "https://huggingface.co"
KINDS = ("hubert", "kmeans", "vocoder", "vqgan", "captioner", "recogniser", "corpus")


@dataclass(frozen=True)
class RemoteFile:
    """One file: its name on disk, its address, its sha256 (empty: nobody has published one)."""

    name: str
    url: str
    sha256: str = ""


@dataclass(frozen=True)
class Entry:
    """One entry of the registry; see the module."""

    name: str
    kind: str
    about: str
    licence: str
    files: tuple[RemoteFile, ...] = ()
    by_hand: str = ""
    then: str = ""
    size: str = ""
    facts: dict[str, Any] = field(default_factory=dict)
    belongs_with: tuple[str, ...] = ()


def read_registry(path: Path) -> dict[str, Entry]:
    """All entries by name. InputError names the entry and the field that is wrong."""
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; run inside the repository or give --registry FILE") from error
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not readable as YAML ({error})") from error
    if not isinstance(document, dict):
        raise InputError(f"{path}: a mapping from names to entries was expected")
    entries = {str(name): _entry(str(name), values, f"{path}: {name}") for name, values in document.items()}
    for entry in entries.values():
        for other in entry.belongs_with:
            if other not in entries:
                raise InputError(f"{path}: {entry.name}: belongs_with names {other!r}, which is no entry")
    return entries


def _entry(name: str, values: Any, where: str) -> Entry:
    if not isinstance(values, dict):
        raise InputError(f"{where}: a mapping was expected")
    unknown = sorted(set(values) - {"name", *Entry.__dataclass_fields__})
    if unknown:
        raise InputError(f"{where}: unknown field {unknown[0]!r}")
    for key in ("kind", "about", "licence"):
        if not isinstance(values.get(key), str) or not values[key]:
            raise InputError(f"{where}: the field {key!r} (text) is missing")
    if values["kind"] not in KINDS:
        raise InputError(f"{where}: kind {values['kind']!r}; known are {', '.join(KINDS)}")
    files = tuple(_file(item, f"{where}: files[{number}]") for number, item in enumerate(values.get("files") or ()))
    if not files and not values.get("by_hand"):
        raise InputError(f"{where}: neither files nor by_hand")
    given = {key: value for key, value in values.items() if key not in ("files", "belongs_with")}
    return Entry(name=name, files=files, belongs_with=tuple(values.get("belongs_with") or ()), **given)


def _file(item: Any, where: str) -> RemoteFile:
    if not isinstance(item, dict) or not ({"url", "hub"} & set(item)):
        raise InputError(f"{where}: a url, or a hub repository and a name, was expected")
    name = str(item.get("name") or PurePosixPath(str(item.get("url", "")).split("?")[0]).name)
    if not name or name in (".", "..") or "/" in name:
        raise InputError(f"{where}: the name {name!r} is not a file's name")
    if "url" in item:
        url = str(item["url"])
    else:
        url = f"{HUB}/{item['hub']}/resolve/{item.get('revision', 'main')}/{item.get('path', name)}"
    if not url.startswith(("https://", "http://")):
        raise InputError(f"{where}: {url} is not a web address")
    sha256 = str(item.get("sha256") or "")
    if sha256 and (len(sha256) != 64 or set(sha256) - set("0123456789abcdef")):
        raise InputError(f"{where}: sha256 {sha256!r} is not 64 hexadecimal digits")
    return RemoteFile(name, url, sha256)
