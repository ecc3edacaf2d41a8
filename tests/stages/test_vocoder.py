"""The vocoder stage on a tiny corpus: choice of speaker, held-out utterances, files, imported vocoders."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import InputError
from pipeline.files import sha256_file, write_json
from pipeline.manifest import Caption, Image, Row, write_rows
from pipeline.media import write_wav
from pipeline.speech.vocoder import load_vocoder
from pipeline.tokens.parts import UnitsPart, deduplicate, write_units_part
from stages._cli import StageContext
from stages._settings import Settings
from stages.vocoder import Params, run

ROOT = Path(__file__).parents[2]
FINGERPRINT = "0123456789abcdef"
TINY: dict[str, Any] = {
    "steps": 3,
    "batch_size": 2,
    "crop_frames": 8,
    "channels": 32,
    "discriminator_channels": 128,
    "griffin_lim_iterations": 2,
}


def _context(tmp_path: Path, **fields: Any) -> StageContext:
    settings = Settings(1, 1, "cpu", "loky", tmp_path / "scratch", tmp_path / "logs")
    return StageContext("vocoder", settings, **fields)


def _write_split(folder: Path, split: str, speakers: list[str], rate: int) -> None:
    rng = np.random.default_rng(len(split))
    rows, ids, units, durations = [], [], [], []
    for number, speaker in enumerate(speakers):
        waveform = rng.uniform(-0.5, 0.5, size=rate // 2).astype(np.float32)
        path = Path("wavs") / f"{split}{number}.wav"
        write_wav(folder / "corpus" / path, waveform, rate)
        caption = Caption(
            id=f"{split}{number}",
            audio=str(path),
            num_samples=len(waveform),
            sample_rate=rate,
            sha256=sha256_file(folder / "corpus" / path),
            speaker=speaker,
            text="a square",
        )
        image = Image(path=f"{number}.jpg", width=8, height=8, sha256="0" * 64)
        rows.append(Row(key=f"{split}-{number}", image=image, captions=(caption,)))
        found = deduplicate(rng.integers(0, 10, size=24))
        ids.append(caption.id)
        units.append(found[0])
        durations.append(found[1])
    write_rows(folder / "manifests" / split / "00000.jsonl", rows)
    # The last utterance was rejected on the way: its units are missing.
    part = UnitsPart.from_utterances(ids[:-1], units[:-1], durations[:-1])
    write_units_part(folder / "units" / split / "00000.npz", part)


def _corpus(folder: Path, rate: int = 16000) -> dict[str, Path]:
    _write_split(folder, "train", ["ann", "bob", "bob", "ann", "bob", "ann", "ann"], rate)
    _write_split(folder, "val", ["ann", "bob", "bob"], rate)
    facts = {"codebook_fingerprint": FINGERPRINT, "num_units": 10, "sample_rate": 16000, "hop": 320}
    write_json(folder / "units" / "units.json", facts)
    return {"manifests": folder / "manifests", "units": folder / "units", "root": folder / "corpus"}


@pytest.mark.parametrize(("kind", "rate"), [("mel", 16000), ("hifigan", 8000)])
def test_the_stage_trains_writes_and_repeats_itself(tmp_path: Path, kind: str, rate: int) -> None:
    paths = _corpus(tmp_path, rate)
    params = Params(kind=kind, **TINY)
    for name in ("a", "b"):
        run(params, _context(tmp_path), **paths, out=tmp_path / name)
    for name in ("config.json", "model.safetensors", "metrics.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    metrics = json.loads((tmp_path / "a" / "metrics.json").read_text())
    assert metrics["num_train_utterances"] == 3 and metrics["num_utterances"] == 1
    assert metrics["mel_error"] > 0 and metrics["duration_error"] >= 0
    vocoder = load_vocoder(tmp_path / "a", units_fingerprint=FINGERPRINT, num_units=10)
    assert vocoder.info.speaker == "ann"  # three each have units; the tie goes by name
    assert len(vocoder.synthesize([[1, 2, 3]])[0]) >= 3 * 320
    assert (tmp_path / "logs" / "vocoder.jsonl").exists()


def test_a_named_speaker_without_validation_utterances_holds_some_of_train_out(tmp_path: Path) -> None:
    paths = _corpus(tmp_path)
    (tmp_path / "units" / "val" / "00000.npz").unlink()
    (tmp_path / "units" / "val").rmdir()
    run(Params(speaker="bob", **TINY), _context(tmp_path), **paths, out=tmp_path / "out")
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["num_train_utterances"] == 2 and metrics["num_utterances"] == 1
    with pytest.raises(InputError, match="'eve' is not in train; most frequent are ann, bob"):
        run(Params(speaker="eve", **TINY), _context(tmp_path), **paths, out=tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_an_imported_vocoder_is_taken_when_it_fits(tmp_path: Path) -> None:
    paths = _corpus(tmp_path)
    run(Params(**TINY), _context(tmp_path), **paths, out=tmp_path / "trained")
    imported = Params(source=str(tmp_path / "trained"))
    run(imported, _context(tmp_path), **paths, out=tmp_path / "out")
    same = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("trained", "out")]
    assert same[0] == same[1]
    facts = {"codebook_fingerprint": "feedfeedfeedfeed", "num_units": 10, "sample_rate": 16000, "hop": 320}
    write_json(paths["units"] / "units.json", facts)
    with pytest.raises(InputError, match=f"{FINGERPRINT}.*feedfeedfeedfeed"):
        run(imported, _context(tmp_path), **paths, out=tmp_path / "other")


def test_all_speakers_can_be_learnt_and_gone_on_from(tmp_path: Path) -> None:
    paths = _corpus(tmp_path)
    params = {**TINY, "kind": "hifigan", "speakers": "all", "speaker": "bob", "steps": 1}
    run(Params(**params), _context(tmp_path), **paths, out=tmp_path / "all")
    vocoder = load_vocoder(tmp_path / "all")
    assert vocoder.speakers == ("bob", "ann") and vocoder.info.speaker == "bob"
    metrics = json.loads((tmp_path / "all" / "metrics.json").read_text())
    assert metrics["num_train_utterances"] == 6 and metrics["num_utterances"] == 2
    start = {"start": str(tmp_path / "all")}
    with pytest.raises(InputError, match="its voices are bob, ann, training asks for one"):
        run(Params(**{**params, **start, "speakers": "one"}), _context(tmp_path), **paths, out=tmp_path / "none")
    run(Params(**params, **start), _context(tmp_path), **paths, out=tmp_path / "further")
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("all", "further")]
    assert weights[0] != weights[1]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"speakers": "all"}, "speakers: all needs kind: hifigan"),
        ({"start": "somewhere"}, "start: somewhere needs kind: hifigan"),
        ({"kind": "hifigan", "discriminators": False, "precision": "bf16"}, "precision: bf16 needs kind: hifigan with"),
        ({"kind": "hifigan", "start": "nowhere"}, "nowhere/config.json: no such file"),
    ],
)
def test_parameters_that_do_not_go_together_are_refused(tmp_path: Path, given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        run(Params(**TINY, **given), _context(tmp_path), **_corpus(tmp_path), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_dry_run_writes_nothing(tmp_path: Path) -> None:
    paths = _corpus(tmp_path)
    run(Params(**TINY), _context(tmp_path, dry_run=True), **paths, out=tmp_path / "out")
    assert not (tmp_path / "out").exists() and not (tmp_path / "logs").exists()


@pytest.mark.slow
def test_a_killed_training_goes_on_to_the_same_voice(tmp_path: Path) -> None:
    """kill -9 after the first checkpoint (1,000 steps); the same command again ends as an unbroken run does.

    The other kind goes the same way, and takes minutes: tests/pipeline/speech/test_hifigan_training.py interrupts it.
    """
    _corpus(tmp_path)
    flags = ["--kind", "mel", "--steps", "1500", "--batch-size", "1", "--crop-frames", "4", "--channels", "8"]
    flags += ["--manifests", "manifests", "--root", "corpus", "--units", "units", "--params", str(ROOT / "params.yaml")]

    def start(out: str, scratch: str) -> subprocess.Popen[bytes]:
        settings = {"I2S_THREADS": "1", "I2S_DEVICE": "cpu", "I2S_SCRATCH": scratch, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "stages", "vocoder", *flags, "--out", out]
        return subprocess.Popen(command, cwd=tmp_path, env={**os.environ, **settings}, stderr=subprocess.DEVNULL)

    killed = start("out", "scratch")
    while not list((tmp_path / "scratch").glob("vocoder-*/state.json")):
        assert killed.poll() is None
        time.sleep(0.01)
    killed.kill()
    killed.wait()
    assert not (tmp_path / "out").exists()
    assert start("out", "scratch").wait() == 0
    assert not list((tmp_path / "scratch").glob("vocoder-*"))
    assert start("whole", "other").wait() == 0
    for name in ("config.json", "model.safetensors", "metrics.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    steps = [json.loads(line).get("step") for line in (tmp_path / "logs" / "vocoder.jsonl").read_text().splitlines()]
    assert steps.count(0) == 2  # of the killed and the unbroken run; the resumed one began later
