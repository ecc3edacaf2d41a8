"""Flickr8k with the Flickr Audio Caption Corpus, in the layouts as published.

    <root>/flickr_audio/wav2capt.txt       `<wav> <jpg> #<n>` a line
    <root>/flickr_audio/wav2spk.txt        `<wav> <speaker>` a line
    <root>/flickr_audio/wavs/<image>_<n>.wav
    <root>/Flicker8k_Dataset/<image>.jpg   (spelt so in the original; also Flickr8k_Dataset/, Images/, images/)
    texts: Flickr8k.token.txt (`img.jpg#0<TAB>text`), or captions.txt (CSV with a header), or Karpathy's sentences
    splits: dataset_flickr8k.json (Karpathy), or Flickr_8k.{train,dev,test}Images.txt; dev is called val

Texts and speakers may be missing; they are then empty. Recordings that are known to be unusable (empty, cut
short, listed under another ending) cost their caption when files are checked, never their image.
"""

import csv
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from pipeline.corpora.karpathy import find_karpathy, read_karpathy
from pipeline.corpora.unchecked import (
    Options,
    UncheckedCaption,
    UncheckedRow,
    find_file,
    find_folder,
    read_document,
    reader_reject,
    safe_key,
)
from pipeline.errors import InputError
from pipeline.manifest import Reject

_AUDIO = ("flickr_audio", "Flickr8k_audio", "flickr8k_audio", "")
_IMAGES = (
    *("Flicker8k_Dataset", "Flickr8k_Dataset", "Flickr8k_Dataset/Flicker8k_Dataset", "Images", "images"),
    *("flickr8k/Images", "Flickr8k/Images"),
)
_TEXTS = ("Flickr8k_text/", "", "flickr8k/", "text/")
_SPLITS = {"train": "train", "val": "dev", "test": "test"}

Captions = dict[str, list[tuple[int, str]]]  # image file -> (number, wav)


def read(root: Path, options: Options) -> Iterator[UncheckedRow | Reject]:
    """Rows of the images in the split lists, in their order, then rejects for recordings of other images.

    Raises InputError when a file of the layout is missing, saying what was looked for, and for a malformed line.
    """
    places = [str(PurePosixPath(folder, "wav2capt.txt")) for folder in _AUDIO]
    wav2capt = find_file(root, places, "the list of recordings", "Unpack flickr_audio.tar.gz there.")
    base = wav2capt.parent.relative_to(root)
    captions, rejects = _read_captions(wav2capt)
    speakers = _read_speakers(wav2capt.with_name("wav2spk.txt"))
    splits, sentences = _read_splits(root, options)
    texts = _read_texts(root) or sentences
    images = find_folder(root, _IMAGES, "Flickr8k's pictures", "Unpack Flickr8k_Dataset.zip there.")
    for filename, split in splits:
        key = safe_key(PurePosixPath(filename).stem)
        spoken = captions.pop(filename, [])
        if not spoken:
            yield reader_reject(key, "no spoken caption: the image is in the split list only")
            continue
        listed = [
            UncheckedCaption(
                id=safe_key(PurePosixPath(wav).stem),
                audio=(base / "wavs" / wav).as_posix(),
                speaker=speakers.get(wav, ""),
                text=texts.get((filename, number), ""),
            )
            for number, wav in sorted(spoken)
        ]
        yield UncheckedRow(split, key, f"{images}{filename}", tuple(listed))
    yield from rejects
    dropped = _restval(root, options)
    for filename, spoken in captions.items():
        if filename not in dropped:
            key = safe_key(PurePosixPath(filename).stem)
            reason = "no split: the image is not in the split list"
            yield from (reader_reject(key, reason, safe_key(PurePosixPath(wav).stem)) for _, wav in spoken)
            yield reader_reject(key, reason)


def _read_captions(path: Path) -> tuple[Captions, list[Reject]]:
    """Recordings by image, and rejects for entries that name no wav file (the published list has some)."""
    captions: Captions = {}
    rejects = []
    for where, fields in _lines(path, 3):
        wav, image, number = fields
        if not re.fullmatch(r"#\d+", number):
            raise InputError(f"{where}: '<wav> <jpg> #<number>' was expected, found {' '.join(fields)!r}")
        if not wav.lower().endswith(".wav"):
            rejects.append(reader_reject(safe_key(PurePosixPath(image).stem), f"not a wav file [{wav}]", safe_key(wav)))
        else:
            captions.setdefault(image, []).append((int(number[1:]), wav))
    return captions, rejects


def _read_speakers(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    return {wav: speaker for _, (wav, speaker) in _lines(path, 2)}


def _lines(path: Path, num_fields: int) -> Iterator[tuple[str, list[str]]]:
    """(file:line, fields between white space) of every line that is not empty."""
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), start=1):
        fields = line.split()
        if len(fields) not in (0, num_fields):
            raise InputError(f"{path}:{number}: {num_fields} fields were expected, found {line!r}")
        if fields:
            yield f"{path}:{number}", fields


def _read_splits(root: Path, options: Options) -> tuple[list[tuple[str, str]], dict[tuple[str, int], str]]:
    """((image, split) in order, sentences by image and number); Karpathy's file where there is one."""
    lists = {
        split: next((root / f"{folder}Flickr_8k.{name}Images.txt" for folder in _TEXTS
                     if (root / f"{folder}Flickr_8k.{name}Images.txt").is_file()), None)
        for split, name in _SPLITS.items()
    }  # fmt: skip
    found = [path for path in lists.values() if path is not None]
    try:
        karpathy = find_karpathy(root, options, "flickr8k")
    except InputError as error:
        if options.karpathy or len(found) < len(lists):
            names = ", ".join(f"Flickr_8k.{name}Images.txt" for name in _SPLITS.values())
            raise InputError(f"{error} Or put the official lists there: {names} (also in Flickr8k_text/).") from error
        named = []
        for split, path in lists.items():
            named += [(image, split) for image in path.read_text(encoding="utf-8-sig").split()] if path else []
        return named, {}
    sentences = {}
    for record in read_document(karpathy, "images"):
        for number, sentence in enumerate(record.get("sentences") or []):
            sentences[record["filename"], number] = str(sentence.get("raw", ""))
    return [(image.filename, image.split) for image in read_karpathy(karpathy, options.restval)], sentences


def _restval(root: Path, options: Options) -> set[str]:
    """Images that `restval: drop` left out on purpose."""
    if options.restval != "drop":
        return set()
    try:
        path = find_karpathy(root, options, "flickr8k")
    except InputError:
        return set()
    return {image.filename for image in read_karpathy(path, "separate") if image.split == "restval"}


def _read_texts(root: Path) -> dict[tuple[str, int], str]:
    """Text by image and number, from whichever file of texts there is; empty without one."""
    for folder in _TEXTS:
        tokens, table = root / f"{folder}Flickr8k.token.txt", root / f"{folder}captions.txt"
        if tokens.is_file():
            return dict(_from_tokens(tokens))
        if table.is_file():
            return _from_table(table)
    return {}


def _from_tokens(path: Path) -> Iterator[tuple[tuple[str, int], str]]:
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), start=1):
        # One image of the published file is called `….jpg.1`, so the name ends at the last #.
        found = re.fullmatch(r"(.+)#(\d+)\t(.*)", line)
        if found is None:
            if line.strip():
                raise InputError(f"{path}:{number}: '<image>#<number><tab><text>' was expected, found {line[:60]!r}")
            continue
        yield (found[1], int(found[2])), found[3].strip()


def _from_table(path: Path) -> dict[tuple[str, int], str]:
    """The CSV in circulation (`image,caption`): the captions of an image are numbered in their order."""
    texts: dict[tuple[str, int], str] = {}
    counts: dict[str, int] = {}
    with path.open(encoding="utf-8-sig", newline="") as file:
        for record in csv.reader(file):
            if len(record) < 2 or record[0] == "image":
                continue
            number = counts.get(record[0], 0)
            counts[record[0]] = number + 1
            texts[record[0], number] = ",".join(record[1:]).strip()
    return texts
