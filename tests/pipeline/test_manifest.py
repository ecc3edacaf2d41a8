"""Rows survive a round trip, bad lines are named, shards depend on rows and seed only."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import manifest
from pipeline.errors import InputError
from pipeline.manifest import Caption, Image, Reject, Row


def make_row(key: str, digest: str = "a") -> Row:
    captions = tuple(
        Caption(
            id=f"{key}_{n}",
            audio=f"wavs/{key}_{n}.wav",
            num_samples=48000 + n,
            sample_rate=16000,
            sha256=f"{n}" * 64,
            speaker="anna",
            text="A RED CIRCLE, «quoted»",
        )
        for n in range(2)
    )
    return Row(key=key, image=Image(f"images/{key}.jpg", 128, 96, digest * 64), captions=captions)


def test_rows_round_trip_byte_for_byte(tmp_path: Path) -> None:
    rows = [make_row("b/1"), replace(make_row("a"), image=None)]
    manifest.write_rows(tmp_path / "train/00000.jsonl", rows)
    first = (tmp_path / "train/00000.jsonl").read_bytes()
    assert manifest.read_rows(tmp_path / "train/00000.jsonl") == rows
    manifest.write_rows(tmp_path / "train/00000.jsonl", rows)
    assert (tmp_path / "train/00000.jsonl").read_bytes() == first
    assert list(json.loads(first.splitlines()[0])) == ["captions", "image", "key"]


def test_rejects_round_trip_sorted(tmp_path: Path) -> None:
    rejects = [Reject("b", "", "manifest", "no image"), Reject("a", "a_1", "manifest", "silent")]
    manifest.write_rejects(tmp_path / "rejects.jsonl", rejects)
    assert manifest.read_rejects(tmp_path / "rejects.jsonl") == rejects[::-1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: row["captions"][1].pop("text"), r"captions\[1\]: the field 'text' is missing"),
        (lambda row: row["image"].pop("sha256"), "image: the field 'sha256' is missing"),
        (lambda row: row.pop("image"), "the field 'image' is missing"),
        (lambda row: row.pop("key"), "the field 'key' is missing"),
        (lambda row: row.update(key="a.b"), "the field 'key' must match"),
        (lambda row: row.update(key="/a"), "the field 'key' must match"),
        (lambda row: row.update(colour=1), "unknown field 'colour'"),
        (lambda row: row.update(captions=[]), "'captions' is empty"),
        (lambda row: row["image"].update(width=0), "'width' must be at least 1"),
        (lambda row: row["image"].update(width="9"), "'width' must be int"),
        (lambda row: row["image"].update(path="../x.jpg"), "inside the corpus root"),
        (lambda row: row["captions"][0].update(sha256="xyz"), "64 hexadecimal digits"),
    ],
)
def test_bad_line_names_file_line_and_field(tmp_path: Path, change, message: str) -> None:
    path = tmp_path / "00000.jsonl"
    manifest.write_rows(path, [make_row("a"), make_row("b")])
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    change(lines[1])
    path.write_text("\n".join(json.dumps(line) for line in lines) + "\n")
    with pytest.raises(InputError, match=rf"00000\.jsonl:2.*{message}"):
        manifest.read_rows(path)


def test_truncated_line_names_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "00000.jsonl"
    manifest.write_rows(path, [make_row("a"), make_row("b")])
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(InputError, match=r"00000\.jsonl:2"):
        manifest.read_rows(path)


@given(st.integers(1, 30), st.integers(1, 7), st.integers(0, 5))
def test_partition_keeps_every_row_once_in_an_order_of_the_seed(num: int, size: int, seed: int) -> None:
    rows = [make_row(f"k{index}") for index in range(num)]
    shards = manifest.partition(rows, size, seed)
    assert sorted(row.key for shard in shards for row in shard) == sorted(row.key for row in rows)
    assert all(len(shard) == size for shard in shards[:-1])
    assert shards == manifest.partition(rows[::-1], size, seed)


def test_write_splits_replaces_old_shards_and_keeps_other_files(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("by hand")
    rows = [make_row(f"k{index}") for index in range(5)]
    manifest.write_splits(tmp_path, {"train": rows[:4], "old": rows[4:]}, rows_per_shard=1, seed=0)
    assert manifest.split_names(tmp_path) == ["old", "train"]
    counts = manifest.write_splits(tmp_path, {"train": rows[:3]}, rows_per_shard=2, seed=0)
    assert counts == {"train": 2}
    assert manifest.split_names(tmp_path) == ["train"]
    assert [path.name for path in manifest.shard_paths(tmp_path, "train")] == ["00000.jsonl", "00001.jsonl"]
    assert len(manifest.read_split(tmp_path, "train")) == 3
    assert (tmp_path / "README.md").read_text() == "by hand"
    assert not (tmp_path / "old").exists()


def test_unknown_split_lists_known_ones(tmp_path: Path) -> None:
    manifest.write_splits(tmp_path, {"train": [make_row("a")]}, rows_per_shard=2, seed=0)
    with pytest.raises(InputError, match="no split 'test'; there are train"):
        manifest.read_split(tmp_path, "test")


def test_repeated_keys_and_ids_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="key 'a' occurs twice"):
        manifest.check_unique({"train": [make_row("a")], "val": [make_row("a")]})
    twin = replace(make_row("b"), captions=make_row("a").captions)
    with pytest.raises(InputError, match="caption id 'a_0' occurs twice"):
        manifest.check_unique({"train": [make_row("a"), twin]})


def test_leaks_are_images_shared_between_splits_only() -> None:
    train = [make_row("a", "1"), make_row("b", "2"), make_row("c", "2")]
    splits = {"train": train, "test": [make_row("d", "1")]}
    leaks = manifest.find_leaks(splits)
    assert [(leak.sha256[0], leak.places) for leak in leaks] == [("1", ("test:d", "train:a"))]
