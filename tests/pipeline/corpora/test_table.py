"""Tables: CSV and JSONL say the same, lines of one image are one row, useless lines are rejects."""

import json
from pathlib import Path

import pytest

from pipeline.corpora.table import read
from pipeline.corpora.unchecked import Options, UncheckedRow
from pipeline.errors import InputError

CSV = """image,audio,text,speaker,split
images/a.jpg,a0.wav,"a dog, running",anna,train
images/a.jpg,a1.wav,a dog,ben,train
images/b.jpg,b0.wav,a cat,anna,val
,c.wav,speech alone,,train
"""


def write_jsonl(path: Path, lines: list[dict]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_csv_and_jsonl_give_the_same_rows(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text(CSV)
    rows = list(read(tmp_path, Options(table="table.csv")))
    assert [(row.key, row.split, row.image, len(row.captions)) for row in rows] == [
        ("a", "train", "images/a.jpg", 2),
        ("b", "val", "images/b.jpg", 1),
        ("c", "train", None, 1),
    ]
    assert rows[0].captions[1].id == "a_1" and rows[0].captions[0].text == "a dog, running"
    listed = [
        {
            "image": row.image,
            "split": row.split,
            "captions": [{"audio": c.audio, "text": c.text, "speaker": c.speaker} for c in row.captions],
        }
        for row in rows
    ]
    write_jsonl(tmp_path / "table.jsonl", listed)
    assert list(read(tmp_path, Options())) == rows


def test_missing_splits_are_cut_in_exact_shares_whatever_the_order(tmp_path: Path) -> None:
    lines = [{"audio": f"{number}.wav"} for number in range(40)]
    write_jsonl(tmp_path / "table.jsonl", lines)
    options = Options(val_fraction=0.1, test_fraction=0.2, seed=3)
    splits = {row.key: row.split for row in read(tmp_path, options)}
    counts = [list(splits.values()).count(name) for name in ("train", "val", "test")]
    assert counts == [28, 4, 8]
    write_jsonl(tmp_path / "table.jsonl", lines[::-1])
    assert {row.key: row.split for row in read(tmp_path, options)} == splits
    assert {row.split for row in read(tmp_path, Options(split="test"))} == {"test"}


def test_lines_that_cannot_be_used_are_rejects_with_their_line(tmp_path: Path) -> None:
    lines = [
        {"image": "a.jpg", "audio": "a.wav", "split": "train"},
        {"image": "a.jpg", "audio": "b.wav", "split": "val"},
        {"image": "b.jpg"},
        {"audio": "c.wav", "txet": "typo"},
        {"image": "d.jpg", "captions": []},
        {"image": 5, "audio": "e.wav"},
    ]
    write_jsonl(tmp_path / "table.jsonl", lines)
    items = list(read(tmp_path, Options()))
    rows = [item for item in items if isinstance(item, UncheckedRow)]
    reasons = [item.reason for item in items if not isinstance(item, UncheckedRow) and not item.id]
    assert [row.key for row in rows] == ["a"]
    for number, part in enumerate(("already in the split 'train'", "'audio'", "'txet'", "'captions'", "'image'"), 2):
        assert any(f"table.jsonl:{number}:" in reason and part in reason for reason in reasons), part


def test_keys_are_safe_and_never_collide(tmp_path: Path) -> None:
    lines = [{"image": name, "audio": "x.wav"} for name in ("p/a.b.jpg", "p/a-b.jpg", "q/1.jpg", "r/1.jpg")]
    lines.append({"key": "q/1", "image": "s/z.jpg", "audio": "x.wav"})
    write_jsonl(tmp_path / "table.jsonl", lines)
    keys = [row.key for row in read(tmp_path, Options())]
    assert len(set(keys)) == 5 and keys[4] == "q/1"


def test_layout_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="table not found; looked for table.jsonl"):
        list(read(tmp_path, Options()))
    (tmp_path / "table.csv").write_text("picture,audio\na.jpg,a.wav\n")
    with pytest.raises(InputError, match=r"table.csv:1: the columns are audio and any of .*found picture, audio"):
        list(read(tmp_path, Options(table="table.csv")))
    (tmp_path / "table.jsonl").write_text('{"audio": "a.wav"}\n{"audio": "b.w')
    with pytest.raises(InputError, match=r"table.jsonl:2"):
        list(read(tmp_path, Options()))
    (tmp_path / "table.csv").write_bytes("audio,text\na.wav,na\u00efve\n".encode("cp1252"))  # as Excel saves it
    with pytest.raises(InputError, match=r"table.csv: not readable as a table of text in UTF-8"):
        list(read(tmp_path, Options(table="table.csv")))
