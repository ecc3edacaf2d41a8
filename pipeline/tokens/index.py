"""The index of a split: what the shards are, which tokenizers made them, and how to trust them.

`<shards>/<split>/index.json` is written last, so a folder without one is not finished. It is a superset of
the index of the `wids` package, which reads its `shardlist` (that name and no other); `shards` is our own
list with the hashes, kept under a name of ours so that a later wids may change without changing the format.
`verify` holds the two against each other.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import InputError
from pipeline.files import fingerprint, read_json, write_json
from pipeline.runner import ShardResult, count_reasons

VERSION = 1
INDEX_NAME = "index.json"
COUNTED = ("samples", "images", "captions", "units", "frames")
"""What `totals` counts, beside `seconds` of speech."""

_FIELDS: dict[str, type] = {
    "fingerprint": str,
    "shards": list,
    "totals": dict,
    "vocab": dict,
    "tokenizers": dict,
    "rejects": dict,
}
_SHARD_FIELDS: dict[str, type] = {"url": str, "nsamples": int, "filesize": int, "sha256": str}


@dataclass(frozen=True)
class ShardEntry:
    """One tar: url relative to the index, number of samples, size in bytes, hex SHA-256 of the file."""

    url: str
    nsamples: int
    filesize: int
    sha256: str


@dataclass(frozen=True)
class Tokenizers:
    """Who made the tokens: metadata of the image tokenizer (None where there are no images) and codebook.

    Each carries its `fingerprint` (16 hex characters) and its `vocab` (number of ids) beside whatever else
    its maker says about it (encoder, layer, sample_rate and hop of the codebook; grid of the image
    tokenizer).
    """

    image: dict[str, Any] | None
    units: dict[str, Any]

    def vocab(self) -> dict[str, int]:
        """Vocabulary sizes: ids run from 0 to one less."""
        image = {} if self.image is None else {"image": int(self.image["vocab"])}
        return {**image, "units": int(self.units["vocab"])}


def build_index(
    split: str,
    tokenizers: Tokenizers,
    shards: Sequence[ShardEntry],
    totals: dict[str, int | float],
    rejects: dict[str, int],
) -> dict[str, Any]:
    """The index as a JSON-able dict. totals: samples, images, captions, units, frames, seconds."""
    body = {
        "rejects": rejects,
        "shards": [asdict(shard) for shard in shards],
        "split": split,
        "tokenizers": {"image": tokenizers.image, "units": tokenizers.units},
        "totals": totals,
        "version": VERSION,
        "vocab": tokenizers.vocab(),
    }
    return {
        **body,
        "__kind__": "wids-shard-index-v1",
        "fingerprint": index_fingerprint(body),
        "name": split,
        "shardlist": wids_list(body["shards"]),
        "wids_version": 1,
    }


def wids_list(shards: Any) -> list[dict[str, Any]]:
    """The part of the shard list that wids reads."""
    return [{"filesize": s["filesize"], "nsamples": s["nsamples"], "url": s["url"]} for s in shards]


def index_fingerprint(index: dict[str, Any]) -> str:
    """16 hex characters naming the content: tokenizers, vocabularies and the hash of every shard."""
    return fingerprint({key: index[key] for key in ("shards", "split", "tokenizers", "version", "vocab")})


def read_index(shards_dir: Path, split: str) -> dict[str, Any]:
    """The index of a split, its shape checked. InputError names the file, the field and the remedy."""
    path = Path(shards_dir) / split / INDEX_NAME
    if not path.is_file():
        known = ", ".join(split_names(shards_dir)) or "none"
        raise InputError(f"{path}: no such file; splits with an index: {known} (the shards stage writes it last)")
    return check_index(read_json(path), path)


def check_index(index: Any, path: Path | str) -> dict[str, Any]:
    """`index` if it has the shape of one; else InputError naming `path` and the field."""
    if not isinstance(index, dict):
        raise InputError(f"{path}: a JSON object was expected")
    if index.get("version") != VERSION:
        raise InputError(f"{path}: version {index.get('version')!r}; this program reads version {VERSION}")
    for name, kind in _FIELDS.items():
        if not isinstance(index.get(name), kind):
            raise InputError(f"{path}: the field '{name}' is missing or is no {kind.__name__}")
    for name in (*COUNTED, "seconds"):
        if not isinstance(index["totals"].get(name), int | float):
            raise InputError(f"{path}: the total '{name}' is missing or is no number")
    for name in ("units", "image"):
        about, vocab = index["tokenizers"].get(name), index["vocab"].get(name, None if name == "units" else 0)
        if about is None and name == "image":
            continue
        if not isinstance(about, dict) or not isinstance(about.get("fingerprint"), str) or not isinstance(vocab, int):
            raise InputError(f"{path}: 'tokenizers.{name}' has no fingerprint, or 'vocab.{name}' is no number")
    for shard in index["shards"]:
        for name, kind in _SHARD_FIELDS.items():
            if not isinstance(shard, dict) or not isinstance(shard.get(name), kind):
                raise InputError(f"{path}: a shard's '{name}' is missing or is no {kind.__name__}: {shard!r}")
        if not stays_inside(shard["url"]):
            raise InputError(f"{path}: the shard url {shard['url']!r} leads out of its folder")
    return index


def stays_inside(url: str) -> bool:
    """Whether a relative url of a stranger's set stays in the folder it is relative to."""
    parts = url.replace("\\", "/").split("/")
    return bool(url) and ":" not in url and not url.startswith("/") and not {"", ".", ".."} & set(parts)


def split_names(shards_dir: Path) -> list[str]:
    """Splits (folders with an index), sorted."""
    folders = Path(shards_dir).iterdir() if Path(shards_dir).is_dir() else iter(())
    return sorted(folder.name for folder in folders if (folder / INDEX_NAME).is_file())


def write_indexes(
    folder: Path, shards: Mapping[str, ShardResult], tokenizers: Tokenizers, suffix: str = ".tar"
) -> dict[str, dict[str, Any]]:
    """Write `<split>/index.json` of every split; returns them.

    shards: "<split>/<number>" -> its result; suffix: of the files, .tar or .tar.gz.
    """
    indexes: dict[str, dict[str, Any]] = {}
    for split in sorted({name.split("/")[0] for name in shards}):
        results = {name.split("/")[1]: shards[name] for name in shards if name.split("/")[0] == split}
        entries = [
            ShardEntry(f"{number}{suffix}", result.counts["samples"], **result.facts)
            for number, result in results.items()
        ]
        totals: dict[str, int | float] = {
            name: sum(result.counts[name] for result in results.values()) for name in COUNTED
        }
        totals["seconds"] = sum(result.counts["milliseconds"] for result in results.values()) / 1000
        rejects = count_reasons(reject for result in results.values() for reject in result.rejects)
        indexes[split] = build_index(split, tokenizers, entries, totals, rejects)
        write_json(folder / split / INDEX_NAME, indexes[split])
    return indexes
