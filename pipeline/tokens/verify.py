"""Checks token shards against their index and against the contract; every fault names its shard and key."""

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from pipeline.errors import InputError
from pipeline.files import sha256_file
from pipeline.manifest import is_key
from pipeline.tokens.carried import carried_problems
from pipeline.tokens.contents import CONTENTS_NAME, contents_problems, read_contents
from pipeline.tokens.index import COUNTED, index_fingerprint, read_index, split_names, wids_list
from pipeline.tokens.read import read_members
from pipeline.tokens.sample import Sample, from_members

UNPICKLED = frozenset({"pickle", "pkl", "pth", "pt", "pyd"})
"""Parts of names that other loaders hand to a pickle decoder; ours reads none of them."""


@dataclass(frozen=True)
class Fault:
    """A thing that is wrong. shard: "<split>/NNNNN.tar" or the index; key: empty when about no sample."""

    shard: str
    key: str
    problem: str

    def __str__(self) -> str:
        text = f"{self.shard}{': ' + self.key if self.key else ''}: {self.problem}"
        # A stranger's names must not steer the terminal.
        return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def verify(
    shards_dir: Path,
    splits: list[str] | None = None,
    *,
    codebook: str | None = None,
    image_tokenizer: str | None = None,
    fingerprint: str | None = None,
) -> list[Fault]:
    """Everything wrong with the splits (default: all): hashes, counts, keys, ids, offsets, durations, codebooks.

    codebook, image_tokenizer: fingerprints that the tokens must have been made with; fingerprint: of the set, as its
    publisher gave it. An empty list means that all is well.
    """
    shards_dir = Path(shards_dir)
    known = split_names(shards_dir)
    if not known:
        return [Fault(str(shards_dir), "", "no <split>/index.json in it")]
    keys: dict[str, str] = {}
    ids: dict[str, str] = {}
    faults = [Fault(where, "", problem) for where, problem in _set_problems(shards_dir, known, fingerprint)]
    indexes: dict[str, dict[str, Any]] = {}
    for split in splits or known:
        try:
            indexes[split] = read_index(shards_dir, split)
        except InputError as error:
            faults.append(
                Fault(f"{split}/index.json", "", str(error).removeprefix(f"{shards_dir}/{split}/index.json: "))
            )
    expected = {"units": codebook, "image": image_tokenizer}
    for index in list(indexes.values())[:1]:
        faults += [Fault(where, "", problem) for where, problem in carried_problems(shards_dir, index)]
    for split, index in indexes.items():
        faults += _index_faults(shards_dir / split, split, index, expected)
        faults += _between_splits(split, index, indexes)
        faults += _split_faults(shards_dir / split, split, index, keys, ids)
    return faults


def _set_problems(shards_dir: Path, splits: list[str], fingerprint: str | None) -> list[tuple[str, str]]:
    """What contents.json says against the folder, and against the fingerprint that the publisher gave."""
    try:
        contents = read_contents(shards_dir)
    except InputError as error:
        return [(CONTENTS_NAME, str(error).removeprefix(f"{shards_dir / CONTENTS_NAME}: "))]
    if contents is None:
        return [] if fingerprint is None else [(CONTENTS_NAME, f"no such file, so this cannot be set {fingerprint}")]
    problems = contents_problems(shards_dir, contents, splits)
    if fingerprint not in (None, contents.get("fingerprint")):
        problems.append((CONTENTS_NAME, f"this is set {contents.get('fingerprint')}, expected set {fingerprint}"))
    return problems


def _index_faults(folder: Path, split: str, index: dict[str, Any], expected: dict[str, str | None]) -> list[Fault]:
    """What can be said without opening a shard. expected: tokenizer -> fingerprint that it must have, or None."""
    where, faults = f"{split}/index.json", []
    if index.get("fingerprint") != index_fingerprint(index):
        faults.append(Fault(where, "", "its fingerprint does not fit its content"))
    if index.get("shardlist") != wids_list(index["shards"]):
        faults.append(Fault(where, "", "'shardlist' (for wids) and 'shards' do not agree"))
    if index.get("split") != split:
        faults.append(Fault(where, "", f"says that it is of split {index.get('split')!r}"))
    for name, wanted in expected.items():
        found = (index["tokenizers"].get(name) or {}).get("fingerprint")
        if wanted not in (None, found):
            problem = {"units": f"units of codebook {found}, expected codebook {wanted}"}
            other = f"image tokens of tokenizer {found}, expected tokenizer {wanted}"
            faults.append(Fault(where, "", problem.get(name, other)))
    for name, vocab in index["vocab"].items():
        stated = (index["tokenizers"].get(name) or {}).get("vocab")
        if stated != vocab:
            faults.append(Fault(where, "", f"vocab says {vocab} {name} ids, its tokenizer {stated}"))
    urls = Counter(shard["url"] for shard in index["shards"])
    faults += [Fault(f"{split}/{url}", "", "listed more than once") for url, count in urls.items() if count > 1]
    strangers = sorted(path.name for path in folder.glob("*.tar*") if path.name not in urls)
    faults += [Fault(f"{split}/{name}", "", "not listed in the index") for name in strangers]
    return faults


def _between_splits(split: str, index: dict[str, Any], indexes: dict[str, dict[str, Any]]) -> list[Fault]:
    """Splits of one set must be tokens of the same tokenizers; the first split is what the others are held against."""
    first = next(iter(indexes))
    faults = []
    for name, word in (("units", "codebook"), ("image", "image tokenizer")):
        ours, theirs = ((i["tokenizers"].get(name) or {}).get("fingerprint") for i in (index, indexes[first]))
        if ours != theirs:
            faults.append(Fault(f"{split}/index.json", "", f"{word} {ours}, but split '{first}' has {word} {theirs}"))
    return faults


def _split_faults(
    folder: Path, split: str, index: dict[str, Any], keys: dict[str, str], ids: dict[str, str]
) -> list[Fault]:
    """Opens every shard. `keys` and `ids` carry what earlier shards and splits held."""
    faults: list[Fault] = []
    totals: Counter[str] = Counter()
    for shard in tqdm(index["shards"], desc=f"verify {split}", unit="shard", disable=None):
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
            for name in sorted(members):
                if UNPICKLED & set(name.split(".")):
                    problem = f"the member '{key}.{name}' would be unpickled by stock webdataset, and so could run code"
                    faults.append(Fault(where, key, problem))
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
