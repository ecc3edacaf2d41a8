"""Reference captions from where they were published, in place of the manifest's.

Reads Karpathy's split files (`dataset_coco.json`, `dataset_flickr8k.json`) or COCO's caption files
(`captions_val2014.json`) and gives the raw captions by the name of the picture's file. A corpus of spoken captions
often holds other texts than those that papers score against: SpokenCOCO writes capitals without punctuation.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import InputError
from pipeline.files import read_json
from pipeline.manifest import Row


def read_references(path: Path) -> dict[str, tuple[str, ...]]:
    """{name of the picture's file: its captions}, as published, in the file's order. InputError for other files."""
    content = read_json(path)
    images = content.get("images") if isinstance(content, dict) else None
    if not isinstance(images, list) or not images:
        raise InputError(f"{path}: not a file of captions: a list `images` was expected")
    try:
        if "annotations" in content:
            return _coco(images, content["annotations"])
        return {str(image["filename"]): tuple(str(one["raw"]) for one in image["sentences"]) for image in images}
    except (KeyError, TypeError) as error:
        raise InputError(
            f"{path}: neither Karpathy's layout (images[].filename, images[].sentences[].raw) nor COCO's "
            f"(images[].id, images[].file_name, annotations[].image_id, annotations[].caption): {error!r}"
        ) from error


def _coco(images: list[dict[str, Any]], annotations: list[dict[str, Any]]) -> dict[str, tuple[str, ...]]:
    captions: dict[int, list[str]] = {}
    for annotation in annotations:
        captions.setdefault(annotation["image_id"], []).append(str(annotation["caption"]))
    return {str(image["file_name"]): tuple(captions.get(image["id"], ())) for image in images}


def references_of(rows: Sequence[Row], path: Path) -> dict[str, tuple[str, ...]]:
    """{row key: captions of its picture}. InputError when the file has none for some of the rows."""
    known = read_references(path)
    found = {row.key: known.get(Path(row.image.path).name, ()) if row.image else () for row in rows}
    missing = [row.image.path if row.image else row.key for row in rows if not found[row.key]]
    if missing:
        raise InputError(
            f"{path}: no captions for {len(missing)} of {len(rows)} images, of {missing[0]} for one; pictures are "
            "found by the name of their file, so take the file of the corpus that is scored"
        )
    return found
