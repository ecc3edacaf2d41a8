"""SpokenCOCO with Karpathy splits: both files read, texts as published, restval as asked, faults said."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.corpora import get_reader
from pipeline.corpora.karpathy import read_karpathy
from pipeline.corpora.unchecked import Options, UncheckedRow
from pipeline.errors import InputError
from pipeline.manifest import Reject


def read(root: Path, **options: str) -> tuple[list[UncheckedRow], list[Reject]]:
    items = list(get_reader("spokencoco")(root, Options(**options)))
    rows = [item for item in items if isinstance(item, UncheckedRow)]
    return rows, [item for item in items if isinstance(item, Reject)]


def audio_of(row: UncheckedRow) -> tuple:
    return row.split, row.key, row.image, tuple(caption.audio for caption in row.captions)


def edit(path: Path, change) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def test_rows_as_published(spokencoco: Path) -> None:
    rows, rejects = read(spokencoco)
    assert not rejects
    assert [row.split for row in rows] == ["train", "train", "train", "val", "test", "test_novel"]
    test = rows[4]
    assert test.key == "COCO_val2014_000000000005"
    assert test.image == "val2014/COCO_val2014_000000000005.jpg"
    assert len(test.captions) == 6
    assert test.captions[0].audio == "SpokenCOCO/wavs/val/0/m0-HIT_5_0.wav"
    assert test.captions[0].text == "A DOG 0"
    assert (spokencoco / test.captions[0].audio).is_file() and (spokencoco / test.image).is_file()


@pytest.mark.parametrize(
    ("restval", "expected"),
    [
        ("train", ["test", "test_novel", "train", "train", "train", "val"]),
        ("separate", ["restval", "test", "test_novel", "train", "train", "val"]),
        ("drop", ["test", "test_novel", "train", "train", "val"]),
    ],
)
def test_restval_goes_where_it_is_sent(spokencoco: Path, restval: str, expected: list[str]) -> None:
    rows, rejects = read(spokencoco, restval=restval)
    assert sorted(row.split for row in rows) == expected
    assert not rejects


def test_unknown_restval_is_refused(spokencoco: Path) -> None:
    with pytest.raises(InputError, match="train, separate, drop, not 'merge'"):
        read(spokencoco, restval="merge")


def test_images_of_one_file_only_are_rejects(spokencoco: Path) -> None:
    edit(spokencoco / "dataset_coco.json", lambda d: d["images"].pop(0))
    edit(spokencoco / "SpokenCOCO/SpokenCOCO_val.json", lambda d: d["data"].pop(1))
    rows, rejects = read(spokencoco)
    assert len(rows) == 4
    reasons = {(reject.key, reject.reason.split(":")[0], bool(reject.id)) for reject in rejects}
    assert reasons == {
        ("COCO_val2014_000000000004", "no spoken caption", False),
        ("COCO_train2014_000000000001", "no split", False),
        ("COCO_train2014_000000000001", "no split", True),
    }


def test_unrolled_file_with_one_caption_an_item(spokencoco: Path) -> None:
    def unroll(document: dict) -> None:
        document["data"] = [
            {"image": item["image"], "caption": caption} for item in document["data"] for caption in item["captions"]
        ]

    plain = read(spokencoco)
    edit(spokencoco / "SpokenCOCO/SpokenCOCO_val.json", unroll)
    assert read(spokencoco) == plain


@pytest.mark.parametrize("prefix", ["SpokenCOCO", "my"])
@pytest.mark.parametrize("with_karpathy", [True, False])
def test_variants_with_a_file_a_split(spokencoco: Path, prefix: str, with_karpathy: bool) -> None:
    """`SpokenCOCO_val_unrolled_karpathy.json` (one caption an item) and `<prefix>_val.json`; fields may be gone."""
    plain, _ = read(spokencoco)
    folder = spokencoco / "SpokenCOCO"
    items = [
        item
        for part in ("train", "val")
        for item in json.loads((folder / f"SpokenCOCO_{part}.json").read_text())["data"]
    ]
    for part in ("train", "val"):
        (folder / f"SpokenCOCO_{part}.json").unlink()
    splits = {image.path: image.split for image in read_karpathy(spokencoco / "dataset_coco.json", "separate")}
    by_split: dict[str, list] = {}
    for item in items:
        # A split of no published name has no such file; its image goes with the test split here.
        split = splits[item["image"]].removesuffix("_novel")
        group = by_split.setdefault(split, [])
        if prefix == "my":
            group.append({**item, "reassign_id": 7})
        else:
            group += [
                {"image": item["image"], "caption": {"wav": c["wav"], "text": c["text"]}} for c in item["captions"]
            ]
    for split, group in by_split.items():
        name = f"my_{split}.json" if prefix == "my" else f"SpokenCOCO_{split}_unrolled_karpathy.json"
        (folder / name).write_text(json.dumps({"data": group}))
    if not with_karpathy:
        (spokencoco / "dataset_coco.json").unlink()
    rows, rejects = read(spokencoco)
    assert not rejects
    expected = plain if with_karpathy else [replace(row, split=row.split.removesuffix("_novel")) for row in plain]
    assert {audio_of(row) for row in rows} == {audio_of(row) for row in expected}
    if not with_karpathy:
        dropped, _ = read(spokencoco, restval="drop")
        assert len(dropped) == len(rows) - 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dataset_coco.json", "Karpathy's split file not found; looked for dataset_coco.json, karpathy/"),
        (
            "SpokenCOCO/SpokenCOCO_val.json",
            "SpokenCOCO's val captions not found; looked for SpokenCOCO/Spoken",
        ),
    ],
)
def test_missing_files_are_named_with_the_places(spokencoco: Path, name: str, message: str) -> None:
    (spokencoco / name).unlink()
    with pytest.raises(InputError, match=message):
        read(spokencoco)


def test_missing_pictures_and_root(spokencoco: Path, tmp_path: Path) -> None:
    for part in ("train", "val"):
        (spokencoco / f"{part}2014").rename(spokencoco / f"{part}_elsewhere")
    with pytest.raises(InputError, match=r"pictures not found; looked for \{train,val\}2014, images/"):
        read(spokencoco)
    with pytest.raises(InputError, match="no such folder"):
        read(tmp_path / "nowhere")


def test_truncated_and_incomplete_documents(spokencoco: Path) -> None:
    path = spokencoco / "SpokenCOCO/SpokenCOCO_train.json"
    text = path.read_text()
    edit(path, lambda d: d["data"][1]["captions"][0].pop("speaker"))
    with pytest.raises(InputError, match=r"SpokenCOCO_train.json: data\[1\]: a caption: the field 'speaker'"):
        read(spokencoco)
    path.write_text(text[: len(text) // 2])
    with pytest.raises(InputError, match=r"SpokenCOCO_train.json: not readable as JSON"):
        read(spokencoco)


def test_karpathy_file_in_another_place(spokencoco: Path) -> None:
    (spokencoco / "splits").mkdir()
    (spokencoco / "dataset_coco.json").rename(spokencoco / "splits/mine.json")
    rows, _ = read(spokencoco, karpathy="splits/mine.json")
    assert len(rows) == 6


def test_unknown_corpus_lists_the_known() -> None:
    with pytest.raises(InputError, match="unknown corpus 'coco'; known are flickr8k, places, spokencoco, table"):
        get_reader("coco")
