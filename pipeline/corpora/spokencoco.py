"""SpokenCOCO with Karpathy's splits, in the layout as published.

    <root>/dataset_coco.json                       Karpathy's splits (or in karpathy/, annotations/, ...)
    <root>/SpokenCOCO/SpokenCOCO_{train,val}.json  {"data": [{"image", "captions": [...]}]}
    <root>/SpokenCOCO/wavs/...                     named by the captions: {"text", "speaker", "uttid", "wav"}
    <root>/{train,val}2014/*.jpg                   COCO's pictures (or in images/, coco/)

Both JSON files are read whatever the splits: Karpathy's val, test and restval all come from val2014. Texts
stay upper case as published. An image keeps all its captions, which in SpokenCOCO can be more than five.

Variants in circulation are read as well where the two files are not there: one file a split
(`SpokenCOCO_val_unrolled_karpathy.json`, `<prefix>_test.json`), with one caption an item (`caption`) or several.
Their splits are Karpathy's file's where it is there, else those of their names.
"""

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.corpora.karpathy import find_karpathy, read_karpathy
from pipeline.corpora.unchecked import (
    Options,
    UncheckedCaption,
    UncheckedRow,
    find_file,
    given_key,
    read_document,
    reader_reject,
    safe_key,
    text_of,
)
from pipeline.errors import InputError
from pipeline.manifest import Reject

_IMAGE_FOLDERS = ("", "images", "coco", "COCO", "mscoco")
_SPEECH_FOLDERS = ("SpokenCOCO", "")


def read(root: Path, options: Options) -> Iterator[UncheckedRow | Reject]:
    """Rows of the images in Karpathy's file, in its order, then rejects for those only SpokenCOCO knows.

    Raises InputError when a file of the layout is missing, saying what was looked for.
    """
    variants = _variants(root)
    if variants and not options.karpathy and not _has_karpathy(root, options):
        yield from _read_variants(root, variants, options.restval)
        return
    karpathy = find_karpathy(root, options, "coco")
    spoken = _read_spoken(root, variants)
    images = _image_base(root)
    for image in read_karpathy(karpathy, options.restval):
        key = safe_key(PurePosixPath(image.filename).stem)
        captions = spoken.pop(image.filename, None)
        if captions is None:
            yield reader_reject(key, "no spoken caption: the image is in the split file only")
        else:
            yield UncheckedRow(image.split, key, f"{images}{image.path}", tuple(captions))
    known = _restval_names(karpathy) if options.restval == "drop" else set()
    for filename, captions in spoken.items():
        if filename not in known:
            key = safe_key(PurePosixPath(filename).stem)
            yield from (
                reader_reject(key, "no split: the image is not in the split file", caption.id) for caption in captions
            )
            yield reader_reject(key, "no split: the image is not in the split file")


def _restval_names(karpathy: Path) -> set[str]:
    return {image.filename for image in read_karpathy(karpathy, "separate") if image.split == "restval"}


def _variants(root: Path) -> list[tuple[str, Path]]:
    """(split, file) of the files a split, where SpokenCOCO's own two are not there."""
    for folder in _SPEECH_FOLDERS:
        if any((root / folder / f"SpokenCOCO_{part}.json").is_file() for part in ("train", "val")):
            return []
    for folder in _SPEECH_FOLDERS:
        found = []
        for path in sorted((root / folder).glob("*.json")):
            named = re.fullmatch(r".+?_(train|restval|val|dev|test)(?:_unrolled)?(?:_karpathy)?", path.stem)
            if named is not None and not path.stem.startswith(("dataset_", "captions_", "instances_")):
                found.append(("val" if named[1] == "dev" else named[1], path))
        if found:
            return found
    return []


def _has_karpathy(root: Path, options: Options) -> bool:
    try:
        find_karpathy(root, options, "coco")
    except InputError:
        return False
    return True


def _read_variants(root: Path, variants: list[tuple[str, Path]], restval: str) -> Iterator[UncheckedRow]:
    """Rows of files that are splits themselves, in the files' order."""
    images = _image_base(root)
    for split, path in variants:
        if split == "restval" and restval != "separate":
            if restval == "drop":
                continue
            split = "train"
        grouped: dict[str, list[UncheckedCaption]] = {}
        base = path.parent.relative_to(root)
        for number, item in enumerate(read_document(path, "data")):
            where = f"{path}: data[{number}]"
            captions = [_caption(caption, base, where, strict=False) for caption in _captions_of(item, where)]
            grouped.setdefault(text_of(item, "image", where), []).extend(captions)
        for image, spoken in grouped.items():
            yield UncheckedRow(split, safe_key(PurePosixPath(image).stem), f"{images}{image}", tuple(spoken))


def _read_spoken(root: Path, variants: list[tuple[str, Path]]) -> dict[str, list[UncheckedCaption]]:
    """Captions by image file name, over all files."""
    spoken: dict[str, list[UncheckedCaption]] = {}
    for path in [path for _, path in variants] or _own_files(root):
        base = path.parent.relative_to(root)
        for number, item in enumerate(read_document(path, "data")):
            where = f"{path}: data[{number}]"
            filename = PurePosixPath(text_of(item, "image", where)).name
            for caption in _captions_of(item, where):
                read_caption = _caption(caption, base, where, strict=not variants)
                spoken.setdefault(filename, []).append(read_caption)
    return spoken


def _own_files(root: Path) -> list[Path]:
    remedy = "Unpack SpokenCOCO.tar.gz there; both files are needed, Karpathy's val and test are in val2014."
    found = []
    for part in ("train", "val"):
        names = [str(PurePosixPath(folder, f"SpokenCOCO_{part}.json")) for folder in _SPEECH_FOLDERS]
        found.append(find_file(root, names, f"SpokenCOCO's {part} captions", remedy))
    return found


def _captions_of(item: dict[str, Any], where: str) -> list[Any]:
    # "unrolled" variants of the file in circulation hold one caption an item, under the singular.
    captions = item.get("captions", item.get("caption"))
    if isinstance(captions, dict):
        return [captions]
    if not isinstance(captions, list):
        raise InputError(f"{where}: the field 'captions' (a list) is missing")
    return captions


def _caption(record: Any, base: Path, where: str, strict: bool) -> UncheckedCaption:
    wav = text_of(record, "wav", f"{where}: a caption")
    if not strict:
        # Variants drop fields; the recording's name is the utterance's.
        record = {"uttid": PurePosixPath(wav).stem, "speaker": "", "text": "", **record}
    return UncheckedCaption(
        id=given_key(text_of(record, "uttid", f"{where}: a caption")),
        audio=(base / wav).as_posix(),
        speaker=text_of(record, "speaker", f"{where}: a caption"),
        text=text_of(record, "text", f"{where}: a caption"),
    )


def _image_base(root: Path) -> str:
    """The folder of train2014 and val2014 as a prefix of paths relative to the root."""
    for folder in _IMAGE_FOLDERS:
        if any((root / folder / name).is_dir() for name in ("train2014", "val2014")):
            return f"{folder}/" if folder else ""
    looked = ", ".join(str(PurePosixPath(folder, "{train,val}2014")) for folder in _IMAGE_FOLDERS)
    remedy = "Unpack train2014.zip and val2014.zip there."
    raise InputError(f"{root}: COCO's pictures not found; looked for {looked}. {remedy}")
