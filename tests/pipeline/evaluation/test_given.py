"""Somebody else's predictions: every format, every way to name an image, and what does not fit."""

import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import InputError
from pipeline.evaluation.given import GIVEN, read_given, utterances
from pipeline.manifest import Caption, Image, Row
from pipeline.media import write_wav


def _row(key: str, path: str) -> Row:
    caption = Caption(f"{key}-0", f"{key}.wav", 10, 16000, "0" * 64, "", "a dog")
    return Row(key, Image(path, 8, 8, "0" * 64), (caption,))


COCO = _row("COCO_val2014_000000391895", "val2014/COCO_val2014_000000391895.jpg")
FLICKR = _row("flickr/1000268201_693b08cb0e", "Images/1000268201_693b08cb0e.jpg")
OTHER = _row("other", "train/other.png")
SCORED, ALL = [COCO, FLICKR], [COCO, FLICKR, OTHER]


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("a.json", [{"image_id": 391895, "caption": "One"}, {"image_id": "1000268201_693b08cb0e", "caption": "Two"}]),
        ("b.json", {"COCO_val2014_000000391895.jpg": "One", "Images/1000268201_693b08cb0e.jpg": "Two"}),
        ("c.jsonl", '{"key": "COCO_val2014_000000391895", "transcript": "One"}\n'
                    '{"name": "flickr/1000268201_693b08cb0e", "text": "Two"}\n'),
        ("d.csv", "image,caption\nval2014/COCO_val2014_000000391895.jpg,One\n1000268201_693b08cb0e.png,Two\n"),
        ("e.tsv", "file_name\ttext\n391895\tOne\n1000268201_693b08cb0e\tTwo\n"),
    ],
)  # fmt: skip
def test_formats_and_names(tmp_path: Path, file: str, content: object) -> None:
    path = tmp_path / file
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    given = read_given(path, SCORED, ALL)
    first, further = utterances(given, SCORED, "refuse", path)
    assert [(u.row, u.raw[GIVEN], u.transcripts[GIVEN]) for u in first] == [
        (COCO, "One", "one"),
        (FLICKR, "Two", "two"),
    ]
    assert not further and not given.rejects and not given.are_recordings


def test_a_folder_as_the_reference_writes_it(tmp_path: Path) -> None:
    for row, text in ((COCO, "ONE DOG"), (FLICKR, "")):
        assert row.image is not None
        (tmp_path / Path(row.image.path).with_suffix(".txt").name).write_text(text)
    first, _ = utterances(read_given(tmp_path, SCORED, ALL), SCORED, "refuse", tmp_path)
    assert [u.raw[GIVEN] for u in first] == ["ONE DOG", ""]


def test_recordings_in_a_folder_and_in_a_table(tmp_path: Path) -> None:
    folder = tmp_path / "wavs"
    for name in ("COCO_val2014_000000391895.wav", "flickr/1000268201_693b08cb0e.wav"):
        write_wav(folder / name, np.full(800, 0.1, np.float32), 8000)
    table = tmp_path / "table.jsonl"
    records = [
        {"key": "391895", "wav": "wavs/COCO_val2014_000000391895.wav"},
        {"key": "other", "wav": "x.wav"},
        {"key": "1000268201_693b08cb0e", "audio": "wavs/gone.wav"},
    ]
    table.write_text("".join(json.dumps(record) + "\n" for record in records))
    first, _ = utterances(read_given(folder, SCORED, ALL), SCORED, "refuse", folder)
    assert [len(u.waveform) for u in first] == [1600, 1600] and not first[0].transcripts
    given = read_given(table, SCORED, ALL)
    assert given.are_recordings and given.num_elsewhere == 1
    assert [reject.reason for reject in given.rejects] == ["table.jsonl:3: gone.wav: no such file"]
    first, _ = utterances(given, SCORED, "silence", table)
    assert [(u.row, len(u.waveform)) for u in first] == [(COCO, 1600), (FLICKR, 0)]


def test_a_recording_that_does_not_open_is_a_reject(tmp_path: Path) -> None:
    (tmp_path / "391895.wav").write_bytes(b"RIFF")
    given = read_given(tmp_path, SCORED, ALL)
    assert utterances(given, SCORED, "leave_out", tmp_path) == ([], [])
    assert "391895.wav" in given.rejects[0].reason


def test_samples_missing_and_unknown(tmp_path: Path) -> None:
    path = tmp_path / "samples.json"
    path.write_text(json.dumps({"391895": ["one", "two", "three"], "999": "nobody", "other": "elsewhere"}))
    given = read_given(path, SCORED, ALL)
    assert given.num_elsewhere == 1 and "names no image of the manifest" in given.rejects[0].reason
    with pytest.raises(InputError, match=r"nothing for 1 of 2 images, flickr/1000268201_693b08cb0e .*leave_out"):
        utterances(given, SCORED, "refuse", path)
    first, further = utterances(given, SCORED, "leave_out", path)
    assert [u.raw[GIVEN] for u in first] == ["one"] and [u.raw[GIVEN] for u in further] == ["two", "three"]
    first, _ = utterances(given, SCORED, "silence", path)
    assert [u.transcripts[GIVEN] for u in first] == ["one", ""]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("a.json", '[{"image_id": 1, "caption": "x"}]', "nothing in it belongs to the 2 images"),
        ("a.json", '[{"image": "391895"}]', "record 0: a record names its image"),
        ("a.json", '[{"image": "391895", "text": 3}]', "must be a string, not 3"),
        ("a.json", '"x"', "a list of records"),
        ("a.json", "[3]", "record 0 is not an object"),
        ("a.csv", "picture,said\n391895,x\n", "a.csv:2: a record names its image"),
        ("a.txt", "x", "predictions are .json"),
        ("a.jsonl", '{"key": "391895", "text": "x"}\n{"key": "391895", "wav": "a.jsonl"}\n', "texts and recordings"),
    ],
)
def test_what_does_not_fit_is_said(tmp_path: Path, file: str, content: str, message: str) -> None:
    (tmp_path / file).write_text(content)
    with pytest.raises(InputError, match=message):
        read_given(tmp_path / file, SCORED, ALL)


def test_places_without_predictions(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no .wav, .flac or .txt"):
        read_given(tmp_path, SCORED, ALL)
    with pytest.raises(InputError, match="no such file or folder"):
        read_given(tmp_path / "gone.json", SCORED, ALL)


def test_a_name_of_two_images_is_a_reject(tmp_path: Path) -> None:
    twins = [_row("a", "one/x.jpg"), _row("b", "two/x.jpg")]
    path = tmp_path / "p.json"
    path.write_text(json.dumps({"x.jpg": "which?", "one/x.jpg": "this"}))
    given = read_given(path, twins, twins)
    assert list(given.said) == ["a"] and "names 2 images" in given.rejects[0].reason


@pytest.mark.parametrize("name", ["table.csv", "folder/391895.txt"])
def test_text_that_is_not_utf_8_is_refused_by_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes("image,caption\n391895,na\u00efve\n".encode("latin-1"))
    given = path if path.suffix == ".csv" else path.parent
    with pytest.raises(InputError, match=f"{given.name}: not readable as text in UTF-8"):
        read_given(given, SCORED, ALL)
