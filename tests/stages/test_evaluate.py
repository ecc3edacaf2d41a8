"""The evaluate stage by hand: espeak speech through every rung, small untrained parts where nobody listens."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Picture

from pipeline.captioner.generation import GenerationSettings
from pipeline.captioner.model import Captioner, make_config
from pipeline.captioner.vocabulary import UnitVocabulary
from pipeline.corpora.world import scenes
from pipeline.corpora.world.espeak import synthesize
from pipeline.errors import InputError
from pipeline.evaluation.protocols import make_protocol
from pipeline.files import read_json, read_jsonl, sha256_file, write_json
from pipeline.manifest import Caption, Image, Row, read_split, write_rows
from pipeline.media import read_audio, write_wav
from pipeline.speech.vocoder import Vocoder, VocoderInfo, build_network, save_vocoder
from pipeline.tokens.parts import UnitsPart, deduplicate, write_units_part
from stages._cli import StageContext
from stages._settings import Settings
from stages.evaluate import CHOICE, Params, run

FINGERPRINT = "0123456789abcdef"
SMALL: dict[str, Any] = {"bootstrap_samples": 50, "java_metrics": False, "num_report_items": 3}
NUM_UNITS = 10


def _context(folder: Path, workers: int = 1, **fields: Any) -> StageContext:
    return StageContext("evaluate", Settings(workers, 1, "cpu", "loky", folder / "scratch", folder / "logs"), **fields)


def _row(root: Path, split: str, number: int, texts: list[str], spoken: bool) -> Row:
    captions = []
    for place, text in enumerate(texts):
        path = Path("wavs") / f"{split}{number}_{place}.wav"
        samples = synthesize(text, "en-us+m3").waveform if spoken else np.full(800, 0.1, np.float32)
        write_wav(root / path, samples, 16000)
        digest = sha256_file(root / path)
        captions.append(
            Caption(f"{split}{number}_{place}", str(path), len(samples), 16000, digest, "ann", text.upper())
        )
    picture = Path("images") / f"{split}{number}.jpg"
    (root / picture).parent.mkdir(exist_ok=True)
    Picture.new("RGB", (32, 32), (40 * number, 80, 120)).save(root / picture)
    image = Image(str(picture), 32, 32, sha256_file(root / picture))
    return Row(f"{split}/{number}", image, tuple(captions))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A corpus of 4 spoken test images (2 captions each), training texts, units and untrained parts."""
    folder = tmp_path_factory.mktemp("evaluate")
    rng = np.random.default_rng(0)
    for split, number, captions in (("train", 150, 5), ("test", 4, 2)):
        drawn = [scenes.captions(scenes.sample_scene(rng, split))[:captions] for _ in range(number)]
        rows = [_row(folder / "root", split, i, texts, split == "test") for i, texts in enumerate(drawn)]
        write_rows(folder / "manifests" / split / "00000.jsonl", rows)
    units = [deduplicate(rng.integers(0, NUM_UNITS, size=30)) for _ in range(7)]
    ids = [f"test{number}_{place}" for number in range(4) for place in range(2)][:7]  # the last was rejected
    part = UnitsPart.from_utterances(ids, [u for u, _ in units], [d for _, d in units])
    write_units_part(folder / "units" / "test" / "00000.npz", part)
    write_json(folder / "units" / "units.json", {"codebook_fingerprint": FINGERPRINT, "num_units": NUM_UNITS})

    from pipeline.speech.mel_vocoder import MelVocoderConfig

    torch.manual_seed(0)
    config = MelVocoderConfig(num_units=NUM_UNITS, channels=16, griffin_lim_iterations=1).to_dict()
    info = VocoderInfo("mel", NUM_UNITS, 16000, 320, FINGERPRINT, "ann", config)
    save_vocoder(folder / "vocoder", Vocoder(build_network("mel", config), info))

    vocabulary = UnitVocabulary(NUM_UNITS, FINGERPRINT)
    small = {"hidden_size": 16, "num_layers": 1, "vision_layers": 1, "num_heads": 2, "image_size": 32}
    model = Captioner(make_config(input="pixels", vocab_size=vocabulary.size, grid=4, max_positions=24, **small))
    model.save_pretrained(folder / "model")
    vocabulary.save(folder / "model" / "unit_vocabulary.json")
    names = ("manifests", "root", "units", "vocoder", "model")
    return {name: folder / name for name in names} | {"images": folder / "none", "vqgan": folder / "none"}


def test_the_whole_ladder(corpus: dict[str, Path], tmp_path: Path) -> None:
    for name, workers in (("a", 1), ("b", 2)):
        run(Params(**SMALL), _context(tmp_path, workers), **corpus, out=tmp_path / name)
    out = tmp_path / "a"
    metrics = read_json(out / "metrics.json")["test"]
    assert list(metrics) == ["chance", "ground_truth", "prediction", "resynthesis"]
    truth = metrics["ground_truth"]
    assert truth["num_items"] == 4 and truth["wer"] <= 3 and truth["colour"] == 100 and truth["bleu4"] > 90
    assert len(truth["bleu4_ci"]) == 2 and "wer_ctc" in truth and "shape_ctc" in truth
    assert metrics["prediction"]["exact"] == 0 and metrics["prediction"]["num_items"] == 4
    assert metrics["prediction"]["uer"] > 0 and metrics["chance"]["uer"] > 0 and "uer" not in metrics["resynthesis"]
    assert metrics["resynthesis"]["units_used"] == 100 and truth["words_per_second"] > 1

    records = read_jsonl(out / "predictions.jsonl")
    assert {record["key"] for record in records} == {f"test/{number}" for number in range(4)}
    for record in records:
        assert max(record["units"], default=0) < NUM_UNITS and len(record["references"]) == 2
        assert record["ground_truth"][0]["text"] in record["references"]
        waveform = read_audio(out / "audio" / "test" / "prediction" / f"{record['key']}.wav")
        assert bool(len(waveform)) == bool(record["units"])

    page = (out / "report" / "index.html").read_text()
    assert "have no units" not in page and "have no tokens" not in page
    assert page.count("<article>") == 3 and "http" not in page and str(tmp_path) not in page
    assert (out / "plots" / "bleu4.csv").read_text().splitlines()[1].startswith("test ground_truth,test,ground_truth")
    for path in sorted(p for p in out.rglob("*") if p.is_file()):
        assert path.read_bytes() == (tmp_path / "b" / path.relative_to(out)).read_bytes(), path.name


def test_without_vocoder_and_captioner_the_recordings_remain(
    corpus: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    params = Params(**SMALL, max_captions=0, second_recogniser="none", max_items=2)
    write_json(tmp_path / "out" / "rejects.jsonl", "of an earlier run with --predictions")
    run(params, _context(tmp_path), **{**corpus, "vocoder": tmp_path / "none"}, out=tmp_path / "out")
    assert not (tmp_path / "out" / "rejects.jsonl").exists()
    metrics = read_json(tmp_path / "out" / "metrics.json")
    assert list(metrics["test"]) == ["ground_truth"]
    assert metrics["test"]["ground_truth"]["num_items"] == 4  # two images, two recordings each
    assert "wer_ctc" not in metrics["test"]["ground_truth"]
    assert "there is no vocoder" in capsys.readouterr().out


def test_what_a_rung_leaves_out_is_said(
    corpus: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    params = Params(**SMALL, max_captions=0, recogniser="ctc")
    run(params, _context(tmp_path), **{**corpus, "model": tmp_path / "none"}, out=tmp_path / "out")
    found = read_json(tmp_path / "out" / "metrics.json")["test"]
    assert found["ground_truth"]["num_items"] == 8 and found["resynthesis"]["num_items"] == 7
    note = "test: 1 of 8 recordings have no units, and are not spoken again."
    assert note in capsys.readouterr().out and note in (tmp_path / "out" / "report" / "index.html").read_text()


def test_every_way_to_choose_a_caption_is_a_parameter() -> None:
    known = {field.name for field in fields(GenerationSettings)} - {"min_length"}  # Python's alone
    assert set(CHOICE) == known <= set(Params.model_fields)
    defaults = GenerationSettings()
    assert all(getattr(Params(), name) == getattr(defaults, name) for name in CHOICE)


def test_a_vocoder_of_another_codebook_is_refused(corpus: dict[str, Path], tmp_path: Path) -> None:
    write_json(tmp_path / "units" / "units.json", {"codebook_fingerprint": "f" * 16})
    with pytest.raises(InputError, match=f"{FINGERPRINT}.*{'f' * 16}"):
        run(Params(), _context(tmp_path), **{**corpus, "units": tmp_path / "units"}, out=tmp_path / "out")


def test_splits_that_are_not_there_are_named(corpus: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no split 'tset'; it has test, train"):
        run(Params(splits=["tset"]), _context(tmp_path), **corpus, out=tmp_path / "out")


def test_generation_that_cannot_be_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    for wrong, said in (({"num_samples": 3}, "temperature above 0"), ({"num_beams": 2, "temperature": 1.0}, "choose")):
        with pytest.raises(InputError, match=said):
            run(Params(**wrong), _context(tmp_path), manifests=tmp_path / "nowhere", out=tmp_path / "out")  # type: ignore[arg-type]


def test_a_recogniser_that_is_not_here_is_said_before_anything_is_spoken(
    corpus: dict[str, Path], tmp_path: Path
) -> None:
    paths = {**corpus, "root": tmp_path / "nothing-to-read"}
    for model, message in (("", "needs recogniser_model"), ("models/gone", "'models/gone': neither a folder")):
        params = Params(recogniser="wav2vec2", recogniser_model=model)
        with pytest.raises(InputError, match=message):
            run(params, _context(tmp_path), **paths, out=tmp_path / "out")


def test_a_dry_run_writes_nothing(corpus: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(Params(), _context(tmp_path, dry_run=True, limit=3), **corpus, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert "3 images of test" in capsys.readouterr().out


def _rows(corpus: dict[str, Path]) -> list[Row]:
    return read_split(corpus["manifests"], "test")


def test_somebody_elses_transcripts_alone(
    corpus: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """COCO's results against Karpathy's captions, by the paper's protocol, without any part of ours."""
    rows = _rows(corpus)
    results = [{"image_id": Path(str(row.image and row.image.path)).name, "caption": "Nothing."} for row in rows]
    results[0]["caption"] = "A very long-eared dog!"
    write_json(tmp_path / "results.json", [*results, {"image_id": "gone.jpg", "caption": "x"}])
    captions = [["A very long-eared dog.", "a dog (brown)"] * 2 + ["Dog!"] * 2 for _ in rows]
    images = [
        {"filename": record["image_id"], "sentences": [{"raw": text} for text in texts]}
        for record, texts in zip(results, captions, strict=True)
    ]
    write_json(tmp_path / "dataset.json", {"images": images})
    none = tmp_path / "none"
    run(
        Params(**SMALL, protocol="test", references=str(tmp_path / "dataset.json")),
        _context(tmp_path),
        manifests=corpus["manifests"],
        predictions=tmp_path / "results.json",
        out=tmp_path / "out",
        **dict.fromkeys(("root", "units", "images", "vqgan", "vocoder", "model"), none),
    )
    metrics = read_json(tmp_path / "out" / "metrics.json")["test"]
    assert list(metrics) == ["chance", "prediction"]
    theirs = make_protocol("test").scores([record["caption"] for record in results], captions)
    for name in ("bleu1", "bleu4", "rouge_l", "cider"):
        assert metrics["prediction"][name] == round(theirs[name].value(), 2), name
    rejects = read_jsonl(tmp_path / "out" / "rejects.jsonl")
    assert [reject["key"] for reject in rejects] == ["gone.jpg"]
    said = capsys.readouterr().out
    page = (tmp_path / "out" / "report" / "index.html").read_text()
    for note in ("speaks of 4 of 4 images", "Protocol `test`: ptb (", "METEOR was not computed", "dataset.json"):
        assert note in said and note in page, note
    assert not list((tmp_path / "out" / "audio").rglob("*.wav"))


def test_somebody_elses_recordings_are_listened_to(corpus: dict[str, Path], tmp_path: Path) -> None:
    """The recordings of the corpus, handed in as a system's output: nearly perfect, and missing ones are counted."""
    rows = _rows(corpus)
    for row in rows[:3]:
        waveform = read_audio(corpus["root"] / row.captions[0].audio)
        write_wav(tmp_path / "wavs" / f"{row.key}.wav", waveform, 16000)
    paths = {**corpus, "predictions": tmp_path / "wavs"}
    with pytest.raises(InputError, match="nothing for 1 of 4 images"):
        run(Params(**SMALL), _context(tmp_path), **paths, out=tmp_path / "out")
    run(Params(**SMALL, missing_predictions="leave_out"), _context(tmp_path), **paths, out=tmp_path / "out")
    found = read_json(tmp_path / "out" / "metrics.json")["test"]["prediction"]
    assert found["num_items"] == 3 and found["wer"] <= 3 and found["shape"] == 100
    assert found["words_per_second"] > 1 and "uer" not in found
    assert len(list((tmp_path / "out" / "audio").rglob("*.wav"))) == 3


REAL = Path(__file__).resolve().parents[3] / "shared" / "real"


@pytest.mark.skipif(not (REAL / "coco20").exists(), reason="the real recordings (../shared/real/coco20) are not here")
def test_real_captions_with_their_own_vocabulary(tmp_path: Path) -> None:
    rows = []
    for line in (REAL / "coco20" / "table.jsonl").read_text().splitlines()[:4]:
        record = json.loads(line)
        captions = tuple(
            Caption(f"{record['key']}_{i}", c["audio"], 1, 16000, "0" * 64, c["speaker"], c["text"])
            for i, c in enumerate(record["captions"])
        )
        rows.append(Row(record["key"], None, captions))
    write_rows(tmp_path / "manifests" / "test" / "00000.jsonl", rows)
    none = tmp_path / "none"
    paths = {name: none for name in ("units", "images", "vqgan", "vocoder", "model")}
    params = Params(**SMALL, language_model="corpus", max_captions=0, second_recogniser="none")
    run(
        params,
        _context(tmp_path),
        manifests=tmp_path / "manifests",
        root=REAL / "coco20",
        out=tmp_path / "out",
        **paths,
    )
    truth = read_json(tmp_path / "out" / "metrics.json")["test"]["ground_truth"]
    assert truth["num_items"] == 8 and truth["wer"] < 30 and "colour" not in truth
