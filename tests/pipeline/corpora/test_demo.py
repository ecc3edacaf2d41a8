"""The demo corpus: published layouts, same bytes for any number of workers, speech that can be heard."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline import manifest
from pipeline.corpora.build import build
from pipeline.corpora.check import Limits
from pipeline.corpora.demo import DemoSize, write_demo
from pipeline.corpora.unchecked import Options
from pipeline.corpora.world.scenes import HELD_OUT, parse_caption
from pipeline.errors import InputError
from pipeline.media import read_audio

SIZE = DemoSize(
    num_images={"train": 18, "restval": 2, "val": 3, "test": 3, "test_novel": 3},
    captions_per_train_image=2,
    captions_per_test_image=5,
    image_size=64,
    voices=("en-us", "en-us+m3"),
    rate=170,
    seed=7,
)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("demo") / "demo"
    write_demo(root, SIZE, num_workers=1)
    return root


def test_workers_do_not_show_and_the_seed_does(demo: Path, tmp_path: Path) -> None:
    note = json.loads((demo / "demo.json").read_text())
    assert write_demo(tmp_path / "again", SIZE, num_workers=2) == note
    assert write_demo(tmp_path / "other", replace(SIZE, seed=8), num_workers=1)["sha256"] != note["sha256"]


def test_layout_is_the_published_one(demo: Path) -> None:
    spoken = json.loads((demo / "SpokenCOCO/SpokenCOCO_train.json").read_text())["data"]
    assert len(spoken) == 18
    assert re.fullmatch(r"train2014/COCO_train2014_\d{12}\.jpg", spoken[0]["image"])
    caption = spoken[0]["captions"][0]
    assert set(caption) == {"text", "speaker", "uttid", "wav"}
    assert caption["text"].isupper()
    assert re.fullmatch(r"\w+-[A-Z0-9]{30}_\d+_\d+", caption["uttid"])
    assert caption["wav"] == f"wavs/train/0/{caption['uttid']}.wav"
    karpathy = json.loads((demo / "dataset_coco.json").read_text())["images"]
    assert {image["filepath"] for image in karpathy if image["split"] != "train"} == {"val2014"}
    coco = json.loads((demo / "annotations/captions_val2014.json").read_text())
    assert len(coco["images"]) == 11 and len(coco["annotations"]) == 2 * 2 + 9 * 5
    sentences = [s["raw"] for image in karpathy if image["split"] != "train" for s in image["sentences"]]
    assert sorted(sentences) == sorted(annotation["caption"] for annotation in coco["annotations"])


def test_reader_of_the_real_corpus_takes_it_whole(demo: Path) -> None:
    built = build(demo, "spokencoco", Options(restval="separate"), Limits())
    assert not built.rejects and not manifest.find_leaks(built.splits)
    assert {split: len(rows) for split, rows in built.splits.items()} == SIZE.num_images
    train = [row for split in ("train", "restval") for row in built.splits[split]]
    assert all(not held_out(caption.text) for row in train for caption in row.captions)
    assert all(held_out(row.captions[0].text) for row in built.splits["test_novel"])
    assert {len(row.captions) for row in built.splits["test"]} == {5}
    assert {len({caption.speaker for caption in row.captions}) for row in train} == {2}


def held_out(text: str) -> bool:
    return any((thing.colour, thing.shape) in HELD_OUT for thing in parse_caption(text).objects)


def test_speech_can_be_heard_and_alignments_lie_inside(demo: Path) -> None:
    lines = (demo / "SpokenCOCO/alignments.jsonl").read_text().splitlines()
    alignments = {line["id"]: line["phonemes"] for line in map(json.loads, lines)}
    wavs = sorted((demo / "SpokenCOCO/wavs").rglob("*.wav"))
    assert {path.stem for path in wavs} == set(alignments) and len(wavs) == 40 + 45
    for path in wavs:
        waveform = read_audio(path)
        assert 1.0 < len(waveform) / 16000 < 8.0
        assert 0.02 < float(np.sqrt(np.mean(waveform**2))) < 0.5
        starts = [start for start, _ in alignments[path.stem]]
        assert starts == sorted(starts) and starts[0] >= 0 and starts[-1] <= len(waveform)


def test_what_cannot_be_made_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="1 to 5 captions, not 6"):
        write_demo(tmp_path / "x", replace(SIZE, captions_per_test_image=6), 1)
    with pytest.raises(InputError, match="no voice 'xx-klingon'"):
        write_demo(tmp_path / "x", replace(SIZE, voices=("xx-klingon",)), 1)
    with pytest.raises(InputError, match="no split 'dev'"):
        write_demo(tmp_path / "x", replace(SIZE, num_images={"dev": 1}), 1)
    assert not (tmp_path / "x").exists()
