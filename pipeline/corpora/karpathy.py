"""Karpathy's split file (dataset_coco.json, dataset_flickr8k.json): which image belongs to which split.

Reads ``{"images": [{"filename", "split", "filepath" (COCO only), ...}]}``. Split names are free text: train,
restval, val and test as published, and any other that a corpus adds.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.corpora.unchecked import Options, find_file, read_document, text_of
from pipeline.errors import InputError

RESTVAL_CHOICES = ("train", "separate", "drop")


@dataclass(frozen=True)
class KarpathyImage:
    """``folder/filename`` is the picture; ``folder`` is empty in the Flickr files."""

    filename: str
    folder: str
    split: str

    @property
    def path(self) -> str:
        return f"{self.folder}/{self.filename}" if self.folder else self.filename


def find_karpathy(root: Path, options: Options, dataset: str) -> Path:
    """The split file of ``dataset`` ("coco", "flickr8k"): the one asked for or one of the usual places."""
    name = f"dataset_{dataset}.json"
    folders = ("", "karpathy/", "Karpathy/", "karpathy_splits/", "annotations/", "caption_datasets/")
    usual = [f"{folder}{name}" for folder in folders]
    return find_file(
        root,
        [options.karpathy] if options.karpathy else usual,
        "Karpathy's split file",
        "It comes in caption_datasets.zip; manifest.karpathy names it where it lies elsewhere.",
    )


def read_karpathy(path: Path, restval: str) -> Iterator[KarpathyImage]:
    """Images in the file's order, `restval` sent where asked.

    Raises InputError for another ``restval`` than train, separate and drop, and for an incomplete record.
    """
    if restval not in RESTVAL_CHOICES:
        raise InputError(f"restval must be one of {', '.join(RESTVAL_CHOICES)}, not {restval!r}")
    for number, record in enumerate(read_document(path, "images")):
        where = f"{path}: images[{number}]"
        split = text_of(record, "split", where)
        if split == "restval":
            if restval == "drop":
                continue
            split = "train" if restval == "train" else "restval"
        folder = text_of(record, "filepath", where) if "filepath" in record else ""
        yield KarpathyImage(text_of(record, "filename", where), folder, split)
