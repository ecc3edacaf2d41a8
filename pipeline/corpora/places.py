"""Places Audio 400k, in the layouts as published: one spoken caption an image, transcribed by a recogniser.

    <root>/metadata/{train,val,...}.json   {"image_base_path", "audio_base_path", "data": [{"wav", "image", ...}]}
    <root>/metadata/utt2{wav,image,spk,ASR} and <root>/lists/*_{train,val,...}_uttids   the first distribution
    <root>/wavs/...                        where the entries' `wav` says
    <root>/images/... (or images256/, ...) pictures of Places205, where the entries' `image` says

The base paths in the JSON are of the machine that wrote them and are not believed; the files are looked for
under the root. A split is named by its file (`dev` is called val). Texts are a recogniser's, with its errors.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.corpora.unchecked import (
    Options,
    UncheckedCaption,
    UncheckedRow,
    derive_keys,
    given_key,
    read_document,
    reader_reject,
    text_of,
)
from pipeline.errors import InputError
from pipeline.manifest import Reject

_AUDIO = ("", "placesaudio", "placesaudio_distro_part_1", "PlacesAudio400k", "audio")
_IMAGES = (
    *("images", "", "images256", "places205", "places205/images256", "data/vision/torralba/deeplearning/images256"),
    *("vision/torralba/deeplearning/images256", "places205/images"),
)
_LOOK_AT = 200  # entries tried when a base folder is looked for

Entry = dict[str, str]  # wav, image, id, speaker, text


def read(root: Path, options: Options) -> Iterator[UncheckedRow | Reject]:
    """Rows in the files' order, an image with all its captions of one split.

    Raises InputError when there is no metadata, or neither recordings nor pictures are where they are looked for.
    """
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; it must be the root of the corpus")
    splits = _read_json(root) or _read_lists(root)
    if not splits:
        raise InputError(
            f"{root}: Places Audio's metadata not found; looked for metadata/*.json and *.json with a list 'data', "
            "and for metadata/utt2wav with lists/*_uttids. Unpack placesaudio there."
        )
    entries = [entry for listed in splits.values() for entry in listed]
    audio = _base(root, _AUDIO, (entry["wav"] for entry in entries), "recordings", "Unpack the wavs there.")
    remedy = "Pictures of Places205 are got from its own site; link their folder as images/."
    images = _base(root, _IMAGES, (entry["image"] for entry in entries), "pictures", remedy)
    keys = derive_keys(entry["image"] for entry in entries)
    seen: dict[str, str] = {}
    for split, listed in splits.items():
        grouped: dict[str, list[Entry]] = {}
        for entry in listed:
            grouped.setdefault(entry["image"], []).append(entry)
        for image, group in grouped.items():
            captions = [
                UncheckedCaption(given_key(entry["id"]), f"{audio}{entry['wav']}", entry["speaker"], entry["text"])
                for entry in group
            ]
            other = seen.setdefault(image, split)
            if other == split:
                yield UncheckedRow(split, keys[image], f"{images}{image}", tuple(captions))
                continue
            reason = f"the image is already in the split '{other}'"
            yield from (reader_reject(keys[image], reason, caption.id) for caption in captions)
            yield reader_reject(keys[image], reason)


def _split_name(stem: str) -> str:
    """`train`, `val`, `test_seen`, ... from a file's name; a year behind it is not part of the split."""
    name = re.sub(r"_?20\d\d$", "", stem)
    return re.sub(r"^dev", "val", name)


def _read_json(root: Path) -> dict[str, list[Entry]]:
    splits: dict[str, list[Entry]] = {}
    for folder in (root / "metadata", root):
        for path in sorted(folder.glob("*.json")):
            if re.match(r"(train|val|dev|test)", path.stem):
                found = enumerate(read_document(path, "data"))
                splits[_split_name(path.stem)] = [_entry(item, f"{path}: data[{number}]") for number, item in found]
        if splits:
            return splits
    return splits


def _entry(item: Any, where: str) -> Entry:
    wav, image = text_of(item, "wav", where), text_of(item, "image", where)
    return {
        "wav": wav,
        "image": image,
        "id": str(item.get("uttid") or PurePosixPath(wav).stem),
        "speaker": str(item.get("speaker") or ""),
        "text": str(item.get("asr_text") or item.get("text") or ""),
    }


def _read_lists(root: Path) -> dict[str, list[Entry]]:
    """The first distribution: tables by utterance, and lists of utterances for splits."""
    if not (root / "metadata/utt2wav").is_file():
        return {}
    tables = {}
    for name in ("wav", "image", "spk", "ASR"):
        path = root / f"metadata/utt2{name}"
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        tables[name] = {line.split(maxsplit=1)[0]: line.split(maxsplit=1)[-1] for line in lines if line.strip()}
    splits: dict[str, list[Entry]] = {}
    for path in sorted(root.glob("lists/*_uttids")):
        split = _split_name(path.stem.removesuffix("_uttids").rsplit("_", 1)[-1])
        entries = splits.setdefault(split, [])
        for utterance in path.read_text(encoding="utf-8").split():
            if utterance not in tables["wav"] or utterance not in tables["image"]:
                raise InputError(f"{path}: {utterance} is not in metadata/utt2wav and metadata/utt2image")
            entries.append(
                {
                    "wav": tables["wav"][utterance],
                    "image": tables["image"][utterance],
                    "id": utterance,
                    "speaker": tables["spk"].get(utterance, ""),
                    "text": tables["ASR"].get(utterance, ""),
                }
            )
    return splits


def _base(root: Path, folders: Sequence[str], files: Iterable[str], what: str, remedy: str) -> str:
    """The folder under which most of the first files lie, as a prefix of paths relative to the root."""
    listed = [file for file, _ in zip(files, range(_LOOK_AT), strict=False)]
    found = {folder: sum((root / folder / file).is_file() for file in listed) for folder in folders}
    best = max(folders, key=lambda folder: found[folder])
    if not found[best]:
        looked = ", ".join(str(PurePosixPath(folder, listed[0])) for folder in folders)
        raise InputError(f"{root}: Places Audio's {what} not found; looked for {looked}. {remedy}")
    return f"{best}/" if best else ""
