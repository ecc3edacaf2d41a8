"""The train stage as a person meets it: told to stop and started again, on two processes, with trackers."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.errors import InputError
from stages import train
from stages._cli import StageContext
from stages._settings import Settings
from stages._trackers import Files, refuse_missing
from tests.pipeline.tokens import making

ROOT = Path(__file__).parents[2]
SMALL = {
    "init": "none",
    "steps": 40,
    "batch_size": 6,
    "warmup_steps": 4,
    "evaluate_every": 10,
    "num_pieces": 4,
    "num_validation_images": 3,
    "dropout": 0.0,
    "learning_rate": 0.001,
    "accumulation_steps": 2,
    "ema_decay": 0.99,
}
TWO = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
FLAGS = [text for name, value in SMALL.items() for text in (f"--{name.replace('_', '-')}", str(value))]


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(making, "GRID", (4, 4))
        return making.write_set(tmp_path_factory.mktemp("train") / "set", {"train": [9, 6], "val": [4]})


def start(shards: Path, folder: Path, *flags: str, launcher: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    """The command as people type it; what it writes goes below `folder`."""
    command = [sys.executable, *launcher, "-m", "stages", "train", "--shards", shards, "--out", folder / "out"]
    command += ["--params", ROOT / "params.yaml", *FLAGS, *flags]
    settings = {"I2S_THREADS": "1", "I2S_DEVICE": "cpu", "I2S_SCRATCH": folder / "scratch", "I2S_LOGS": folder / "logs"}
    return subprocess.Popen(
        list(map(str, command)),
        cwd=ROOT,
        env={**os.environ, **{name: str(value) for name, value in settings.items()}, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def whole(shards, tmp_path_factory) -> Path:
    """An uninterrupted run of one process."""
    folder = tmp_path_factory.mktemp("whole")
    process = start(shards, folder)
    assert process.wait() == 0, process.stderr.read()
    assert not list((folder / "scratch").glob("train-*"))
    return folder


def wait_for_evaluations(process: subprocess.Popen[str], folder: Path, number: int) -> None:
    log = folder / "logs" / "train.jsonl"
    while not log.exists() or len(log.read_text().splitlines()) < number:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.005)


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_told_to_stop_it_saves_says_so_and_goes_on_to_the_same_bytes(shards, whole, tmp_path, number):
    process = start(shards, tmp_path)
    wait_for_evaluations(process, tmp_path, 1)
    process.send_signal(number)
    _, said = process.communicate()
    assert process.returncode == 128 + number and "the same command goes on" in said and "Traceback" not in said
    assert not (tmp_path / "out" / "model").exists() and not list((tmp_path / "out").rglob("*.tmp"))
    lines = [json.loads(line) for line in (tmp_path / "logs" / "train.jsonl").read_text().splitlines()]
    assert lines[-1]["event"] == "interrupted" and 10 <= lines[-1]["step"] < 40
    assert start(shards, tmp_path).wait() == 0
    assert contents(tmp_path / "out") == contents(whole / "out")


def test_two_processes_give_the_curve_of_one(shards, whole, tmp_path):
    process = start(shards, tmp_path, launcher=TWO)
    _, said = process.communicate()
    assert process.returncode == 0, said
    alone, together = (
        [json.loads(line) for line in (folder / "logs" / "train.jsonl").read_text().splitlines()][:4]
        for folder in (whole, tmp_path)
    )
    for one, two in zip(alone, together, strict=True):
        assert one["step"] == two["step"]
        for name in ("loss", "validation_loss"):
            assert two[name] == pytest.approx(one[name], rel=1e-3), name
    assert set(contents(tmp_path / "out")) == set(contents(whole / "out"))


@pytest.mark.slow
@pytest.mark.parametrize("flags", [[], ["--streaming"]], ids=["memory", "stream"])
def test_two_processes_told_to_stop_go_on_to_the_same_result(shards, tmp_path, flags):
    flags = [*flags, "--dropout", "0.1", "--embedding-steps", "3"]
    assert start(shards, tmp_path / "whole", *flags, launcher=TWO).wait() == 0
    process = start(shards, tmp_path / "halves", *flags, launcher=TWO)
    wait_for_evaluations(process, tmp_path / "halves", 1)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate()
    assert process.returncode != 0 and "the same command goes on" in said
    process = start(shards, tmp_path / "halves", *flags, launcher=TWO)
    _, said = process.communicate()
    assert process.returncode == 0, said
    first, second = (json.loads((tmp_path / name / "out" / "metrics.json").read_text()) for name in ("whole", "halves"))
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert second[name] == pytest.approx(value, rel=1e-3), name


def test_speed_is_in_the_log_and_not_in_what_is_published(whole):
    assert "tokens_per_second" in (whole / "logs" / "train.jsonl").read_text()
    assert b"second" not in (whole / "out" / "metrics.json").read_bytes()
    assert not [name for name in contents(whole / "out") if "second" in name]


def test_a_tracker_that_is_missing_is_named_with_its_extra(shards, tmp_path):
    if importlib.util.find_spec("wandb"):
        pytest.skip("wandb is installed")
    context = StageContext("train", Settings(1, 1, "cpu", "loky", tmp_path / "scratch", tmp_path / "logs"))
    with pytest.raises(InputError, match=r"--editable '.\[wandb\]'"):
        train.run(train.Params(tracker="wandb"), context, shards=shards, out=tmp_path / "out")
    refuse_missing("dvclive")


def test_bleu_needs_a_voice(shards, tmp_path):
    context = StageContext("train", Settings(1, 1, "cpu", "loky", tmp_path / "scratch", tmp_path / "logs"))
    with pytest.raises(InputError, match="--vocoder"):
        train.run(train.Params(bleu_images=2), context, shards=shards, out=tmp_path / "out")


def test_samples_become_files(tmp_path):
    import numpy as np
    from PIL import Image

    tracker = Files(tmp_path)
    tracker.sample(300, "val/k-1", np.zeros(1600, np.float32), 16000, Image.new("RGB", (4, 4)))
    tracker.figures(300, {"loss": 1.0})
    tracker.close()
    assert sorted(contents(tmp_path)) == ["0000300/val_k-1.jpg", "0000300/val_k-1.wav"]
