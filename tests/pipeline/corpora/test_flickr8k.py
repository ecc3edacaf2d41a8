"""Flickr8k Audio: official and Karpathy's splits, texts from three kinds of files, its known faults."""

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
from tests.pipeline.corpora.conftest import FLICKR_IMAGES


def read(root: Path, **options: str) -> tuple[list[UncheckedRow], list[Reject]]:
    items = list(get_reader("flickr8k")(root, Options(**options)))
    rows = [item for item in items if isinstance(item, UncheckedRow)]
    return rows, [item for item in items if isinstance(item, Reject)]


def test_rows_as_published(flickr8k: Path) -> None:
    rows, rejects = read(flickr8k)
    assert [(row.key, row.split) for row in rows] == [(name[:-4], split) for name, split in FLICKR_IMAGES.items()]
    first = rows[0]
    assert first.image == "Flicker8k_Dataset/1000268201_693b08cb0e.jpg"
    assert [caption.id for caption in first.captions] == [f"1000268201_693b08cb0e_{n}" for n in range(5)]
    assert first.captions[3].audio == "flickr_audio/wavs/1000268201_693b08cb0e_3.wav"
    assert first.captions[3].text == "A child , number 3 ." and first.captions[3].speaker == "1"
    assert [reject.reason for reject in rejects] == ["not a wav file [calf_wav_5.txt]"]


def test_names_that_end_in_letters_of_the_extension_stay_whole(flickr8k: Path) -> None:
    rows, _ = read(flickr8k)
    assert rows[1].key == "calf_wav" and rows[1].captions[0].id == "calf_wav_0"


def test_broken_recordings_cost_their_caption_only(flickr8k: Path) -> None:
    built = build(flickr8k, "flickr8k", Options(), Limits())
    assert built.num_rows == 4 and built.num_captions == 19
    reasons = sorted(reject.reason for reject in built.rejects)
    assert reasons == [
        "not a wav file [calf_wav_5.txt]",
        "silent, every sample is zero [flickr_audio/wavs/calf_wav_4.wav]",
    ]


def karpathy(root: Path, **splits: str) -> None:
    images = [
        {"filename": name, "split": splits.get(name[:4], split), "sentences": [{"raw": f"Raw {n}."} for n in range(5)]}
        for name, split in FLICKR_IMAGES.items()
    ]
    (root / "dataset_flickr8k.json").write_text(json.dumps({"dataset": "flickr8k", "images": images}))


@pytest.mark.parametrize("restval", ["train", "separate", "drop"])
def test_karpathys_splits_come_first(flickr8k: Path, restval: str) -> None:
    karpathy(flickr8k, calf="restval")
    rows, rejects = read(flickr8k, restval=restval)
    expected = {"train": ["train", "train"], "separate": ["train", "restval"], "drop": ["train"]}[restval]
    assert [row.split for row in rows] == [*expected, "val", "test"]
    assert len(rejects) == 1  # what was dropped on purpose is no fault


@pytest.mark.parametrize("form", ["captions.txt", "karpathy", "nothing"])
def test_texts_from_other_files(flickr8k: Path, form: str) -> None:
    (flickr8k / "Flickr8k_text/Flickr8k.token.txt").unlink()
    if form == "captions.txt":
        lines = [f"{name},Text {n} , with a comma" for n in range(5) for name in FLICKR_IMAGES]
        (flickr8k / "captions.txt").write_text("image,caption\n" + "\n".join(lines) + "\n")
    elif form == "karpathy":
        karpathy(flickr8k)
    rows, _ = read(flickr8k)
    expected = {"captions.txt": "Text 2 , with a comma", "karpathy": "Raw 2.", "nothing": ""}[form]
    assert rows[0].captions[2].text == expected


def test_speakers_may_be_missing_and_places_may_differ(flickr8k: Path) -> None:
    (flickr8k / "flickr_audio/wav2spk.txt").unlink()
    shutil.move(flickr8k / "Flicker8k_Dataset", flickr8k / "Images")
    for path in (flickr8k / "Flickr8k_text").iterdir():
        shutil.move(path, flickr8k / path.name)
    rows, _ = read(flickr8k)
    assert rows[0].captions[0].speaker == "" and rows[0].image == "Images/1000268201_693b08cb0e.jpg"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("flickr_audio/wav2capt.txt", "the list of recordings not found; looked for flickr_audio/wav2capt.txt, "),
        ("Flickr8k_text/Flickr_8k.devImages.txt", "dataset_flickr8k.json.*Or put the official lists there"),
        ("Flicker8k_Dataset", "pictures not found; looked for Flicker8k_Dataset, Flickr8k_Dataset"),
    ],
)
def test_what_is_missing_is_named(flickr8k: Path, name: str, message: str) -> None:
    path = flickr8k / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(InputError, match=message):
        read(flickr8k)


def test_malformed_lines_are_named(flickr8k: Path) -> None:
    path = flickr8k / "flickr_audio/wav2capt.txt"
    text = path.read_text()
    path.write_text(text + "one_field\n")
    with pytest.raises(InputError, match=r"wav2capt.txt:22: 3 fields were expected"):
        read(flickr8k)
    path.write_text(text + "a.wav b.jpg 3\n")
    with pytest.raises(InputError, match=r"wav2capt.txt:22: '<wav> <jpg> #<number>'"):
        read(flickr8k)


def test_a_trial_run_is_not_stopped_by_what_the_whole_corpus_lacks(flickr8k: Path) -> None:
    path = flickr8k / "flickr_audio/wav2capt.txt"
    path.write_text(path.read_text() + "".join(f"other{n}.wav other{n}.jpg #0\n" for n in range(40)))
    whole = build(flickr8k, "flickr8k", Options(), Limits())
    trial = build(flickr8k, "flickr8k", Options(), Limits(), limit=1)
    assert trial.num_rows == 3
    assert sum(trial.num_rejected()) < sum(whole.num_rejected())
