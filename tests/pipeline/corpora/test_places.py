"""Places Audio: both distributions, base paths of other machines, images with several captions."""

import json
import shutil
from pathlib import Path

import pytest

from pipeline.corpora import get_reader
from pipeline.corpora.build import build
from pipeline.corpora.check import Limits
from pipeline.corpora.unchecked import Options, UncheckedRow
from pipeline.errors import InputError
from pipeline.manifest import Reject


def read(root: Path) -> tuple[list[UncheckedRow], list[Reject]]:
    items = list(get_reader("places")(root, Options()))
    rows = [item for item in items if isinstance(item, UncheckedRow)]
    return rows, [item for item in items if isinstance(item, Reject)]


def test_rows_as_published(places: Path) -> None:
    rows, rejects = read(places)
    assert not rejects
    # Two pictures are called gsun_1.jpg, so their folders become part of the keys.
    assert [(row.split, row.key, len(row.captions)) for row in rows] == [
        ("train", "s/sauna/gsun_1", 2),
        ("train", "b/beach/gsun_1", 1),
        ("val", "x", 1),
    ]
    assert rows[0].image == "images/s/sauna/gsun_1.jpg"
    caption = rows[0].captions[1]
    assert (caption.id, caption.audio) == ("A1B2-1", "wavs/1/utterance_1.wav")
    assert (caption.speaker, caption.text) == ("places_1", "there is a sauna")
    assert build(places, "places", Options(), Limits()).num_captions == 4


def test_the_first_distribution_gives_the_same_rows(places: Path) -> None:
    expected, _ = read(places)
    tables: dict[str, list[str]] = {"wav": [], "image": [], "spk": [], "ASR": []}
    (places / "lists").mkdir()
    for split in ("train", "val"):
        path = places / f"metadata/{split}.json"
        entries = json.loads(path.read_text())["data"]
        path.unlink()
        (places / f"lists/acl_2017_{split}_uttids").write_text("\n".join(entry["uttid"] for entry in entries))
        for entry in entries:
            for name, field in (("wav", "wav"), ("image", "image"), ("spk", "speaker"), ("ASR", "asr_text")):
                tables[name].append(f"{entry['uttid']} {entry[field]}")
    for name, lines in tables.items():
        (places / f"metadata/utt2{name}").write_text("\n".join(lines) + "\n")
    assert read(places)[0] == expected


def test_files_elsewhere_and_splits_with_a_year(places: Path) -> None:
    shutil.move(places / "images", places / "images256")
    (places / "placesaudio").mkdir()
    shutil.move(places / "wavs", places / "placesaudio/wavs")
    (places / "metadata/val.json").rename(places / "metadata/dev_seen_2020.json")
    rows, _ = read(places)
    assert {row.split for row in rows} == {"train", "val_seen"}
    sauna = next(row for row in rows if row.key == "s/sauna/gsun_1")
    assert sauna.image == "images256/s/sauna/gsun_1.jpg"
    assert sauna.captions[0].audio == "placesaudio/wavs/0/utterance_0.wav"


def test_bare_entries_will_do(places: Path) -> None:
    path = places / "metadata/train.json"
    document = json.loads(path.read_text())
    document["data"] = [{"wav": item["wav"], "image": item["image"]} for item in document["data"]]
    path.write_text(json.dumps(document))
    rows, _ = read(places)
    assert rows[0].captions[0].id == "utterance_0" and rows[0].captions[0].speaker == ""


def test_an_image_in_two_splits_stays_in_the_first(places: Path) -> None:
    path = places / "metadata/val.json"
    document = json.loads(path.read_text())
    document["data"][0]["image"] = "b/beach/gsun_1.jpg"
    path.write_text(json.dumps(document))
    rows, rejects = read(places)
    assert {row.split for row in rows} == {"train"}
    assert {reject.reason for reject in rejects} == {"the image is already in the split 'train'"}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("metadata", "metadata not found; looked for metadata/"),
        ("wavs", "recordings not found; looked for wavs/0/utterance_0.wav, placesaudio/wavs"),
        ("images", "pictures not found; looked for images/s/sauna/gsun_1.jpg.*link their folder"),
    ],
)
def test_what_is_missing_is_named(places: Path, name: str, message: str) -> None:
    shutil.rmtree(places / name)
    with pytest.raises(InputError, match=message):
        read(places)


def test_incomplete_entries_are_named(places: Path) -> None:
    path = places / "metadata/val.json"
    path.write_text(json.dumps({"data": [{"wav": "x.wav"}]}))
    with pytest.raises(InputError, match=r"val.json: data\[0\]: the field 'image'"):
        read(places)
