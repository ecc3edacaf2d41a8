"""Checks token shards against their index and against the contract; every fault names its shard and key."""

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import InputError
from pipeline.files import sha256_file
from pipeline.manifest import is_key
from pipeline.tokens.index import COUNTED, index_fingerprint, read_index, split_names, wids_list
from pipeline.tokens.read import read_members
from pipeline.tokens.sample import Sample, from_members


@dataclass(frozen=True)
class Fault:
    """A thing that is wrong. shard: "<split>/NNNNN.tar" or the index; key: empty when about no sample."""

    shard: str
    key: str
    problem: str

    def __str__(self) -> str:
        return f"{self.shard}{': ' + self.key if self.key else ''}: {self.problem}"


def verify(shards_dir: Path, splits: list[str] | None = None, *, codebook: str | None = None) -> list[Fault]:
    """Everything wrong with the splits (default: all): hashes, counts, keys, ids, offsets, durations.

    codebook: fingerprint that the units must have been made with. An empty list means that all is well.
    """
    shards_dir = Path(shards_dir)
    known = split_names(shards_dir)
    if not known:
        return [Fault(str(shards_dir), "", "no <split>/index.json in it")]
    keys: dict[str, str] = {}
    ids: dict[str, str] = {}
    faults: list[Fault] = []
    for split in splits or known:
        try:
            index = read_index(shards_dir, split)
        except InputError as error:
            faults.append(Fault(f"{split}/index.json", "", str(error)))
            continue
        faults += _index_faults(shards_dir / split, split, index, codebook)
        faults += _split_faults(shards_dir / split, split, index, keys, ids)
    return faults


def _index_faults(folder: Path, split: str, index: dict[str, Any], codebook: str | None) -> list[Fault]:
    """What can be said without opening a shard."""
    where, faults = f"{split}/index.json", []
    if index.get("fingerprint") != index_fingerprint(index):
        faults.append(Fault(where, "", "its fingerprint does not fit its content"))
    if index.get("shardlist") != wids_list(index["shards"]):
        faults.append(Fault(where, "", "'shardlist' (for wids) and 'shards' do not agree"))
    found = index["tokenizers"].get("units") or {}
    if codebook is not None and found.get("fingerprint") != codebook:
        problem = f"units of codebook {found.get('fingerprint')}, expected codebook {codebook}"
        faults.append(Fault(where, "", problem))
    listed = {shard["url"] for shard in index["shards"]}
    strangers = sorted(path.name for path in folder.glob("*.tar") if path.name not in listed)
    faults += [Fault(f"{split}/{name}", "", "not listed in the index") for name in strangers]
    return faults


def _split_faults(
    folder: Path, split: str, index: dict[str, Any], keys: dict[str, str], ids: dict[str, str]
) -> list[Fault]:
    """Opens every shard. `keys` and `ids` carry what earlier shards and splits held."""
    faults: list[Fault] = []
    totals: Counter[str] = Counter()
    for shard in index["shards"]:
        where, path = f"{split}/{shard['url']}", folder / shard["url"]
        if not path.is_file():
            faults.append(Fault(where, "", "listed in the index, but there is no such file"))
            continue
        faults += _file_faults(where, path, shard)
        faults += _sample_faults(where, path, shard["nsamples"], index, keys, ids, totals)
    stated = {name: index["totals"].get(name) for name in COUNTED}
    for name, count in stated.items():
        if count != totals[name]:
            faults.append(Fault(f"{split}/index.json", "", f"totals say {count} {name}, there are {totals[name]}"))
    return faults


def _file_faults(where: str, path: Path, shard: dict[str, Any]) -> list[Fault]:
    size = path.stat().st_size
    if size != shard["filesize"]:
        return [Fault(where, "", f"{size:,} bytes, the index says {shard['filesize']:,}")]
    if sha256_file(path) != shard["sha256"]:
        return [Fault(where, "", "its SHA-256 is not the one in the index: bytes were changed")]
    return []


def _sample_faults(
    where: str,
    path: Path,
    num_samples: int,
    index: dict[str, Any],
    keys: dict[str, str],
    ids: dict[str, str],
    totals: Counter[str],
) -> list[Fault]:
    """Every sample of a shard, decoded; goes on after a bad sample, stops where the tar itself breaks."""
    faults: list[Fault] = []
    found = 0
    try:
        for key, members in read_members(path):
            found += 1
            try:
                sample = from_members(key, members)
            except InputError as error:
                faults.append(Fault(where, key, re.sub(rf"^{re.escape(key)}(: |\.)", "", str(error))))
                continue
            faults += [Fault(where, key, problem) for problem in _problems(sample, index)]
            names = [(keys, key, "key"), *((ids, caption.id, "caption id") for caption in sample.captions)]
            for seen, name, kind in names:
                if name in seen:
                    faults.append(Fault(where, key, f"the {kind} '{name}' is also in {seen[name]}"))
                seen[name] = where
            totals.update(samples=1, images=int(sample.image is not None), captions=len(sample.captions))
            totals.update(
                units=sum(len(c.units) for c in sample.captions),
                frames=int(sum(c.durations.sum(dtype=np.int64) for c in sample.captions)),
            )
    except InputError as error:
        faults.append(Fault(where, "", str(error).removeprefix(f"{path}: ")))
    if found != num_samples:
        faults.append(Fault(where, "", f"holds {found} samples, the index says {num_samples}"))
    return faults


def _problems(sample: Sample, index: dict[str, Any]) -> list[str]:
    """What is wrong with a sample that could be decoded."""
    problems = [] if is_key(sample.key) else ["the key has characters that are not allowed"]
    if not sample.captions:
        problems.append("has no caption")
    if sample.image is not None:
        about = index["tokenizers"].get("image") or {}
        grid = tuple(about.get("grid") or sample.image.shape)
        if sample.image.shape != grid:
            problems.append(f"image tokens of shape {sample.image.shape}, the tokenizer makes {grid}")
        problems += _out_of_range("image token", sample.image, index["vocab"].get("image", 0))
    for caption in sample.captions:
        problems += _out_of_range(f"caption {caption.id}: unit", caption.units, index["vocab"].get("units", 0))
    return problems


def _out_of_range(what: str, ids: np.ndarray, vocab: int) -> list[str]:
    if ids.size and int(ids.max()) >= vocab:
        return [f"{what} {int(ids.max())} is out of range (vocabulary of {vocab})"]
    return []
