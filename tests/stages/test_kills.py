"""kill -9 at ten random moments of `units` and of `images`: the output is that of an unbroken run.

Slow, because a stage has to start twelve times.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from pipeline.corpora.world.draw import render
from pipeline.corpora.world.scenes import sample_scene
from pipeline.files import sha256_file
from pipeline.manifest import Caption, Image, Row, write_splits
from stages import vqgan
from stages._cli import StageContext
from stages._settings import Settings
from tests.stages.speech_corpus import write_corpus, write_models
from tests.stages.test_images import TINY

ROOT = Path(__file__).parents[2]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def speech(folder: Path) -> list[str]:
    write_corpus(folder, num_train=600, rows_per_shard=4)
    write_models(folder)
    return ["units", "--encoder", "encoder", "--codebook", "codebook.safetensors"]


def pictures(folder: Path) -> list[str]:
    rng = np.random.default_rng(0)
    rows = []
    for number in range(600):
        path = folder / "corpus" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        render(sample_scene(rng, "train"), rng).save(path)
        caption = Caption(f"c{number}", "a.wav", 16000, 16000, "0" * 64, "", "a scene")
        rows.append(Row(f"k{number}", Image(path.name, 128, 128, sha256_file(path)), (caption,)))
    write_splits(folder / "manifests", {"train": rows[:590], "val": rows[590:]}, rows_per_shard=4, seed=0)
    context = StageContext("vqgan", Settings(1, 1, "cpu", "loky", folder / "scratch", folder / "logs"))
    paths = {"root": folder / "corpus", "manifests": folder / "manifests", "out": folder / "vqgan"}
    vqgan.run(TINY.model_copy(update={"steps": 2}), context, **paths)
    return ["images", "--vqgan", "vqgan"]


def start(folder: Path, command: list[str], out: str, scratch: str) -> subprocess.Popen[bytes]:
    paths = ["--manifests", "manifests", "--root", "corpus", "--out", out, "--params", str(ROOT / "params.yaml")]
    settings = {"I2S_WORKERS": "1", "I2S_DEVICE": "cpu", "I2S_SCRATCH": scratch, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-m", "stages", *command, *paths],
        cwd=folder,
        env={**os.environ, **settings},
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def finished_shards(scratch: Path) -> dict[Path, int]:
    """Shards with their results, and when they were made."""
    found = {}
    for path in scratch.glob("*/out/*/*.npz"):
        if (path.parents[2] / "results" / path.parent.name / f"{path.stem}.json").exists():
            found[path] = path.stat().st_mtime_ns
    return found


@pytest.mark.slow
@pytest.mark.parametrize("make", [speech, pictures])
def test_ten_kills_change_no_byte_and_no_finished_shard(tmp_path, make):
    command, random = make(tmp_path), np.random.default_rng(0)
    num_shards = len(list((tmp_path / "manifests").rglob("*.jsonl")))
    scratch, kept = tmp_path / "scratch-kills", dict[Path, int]()
    for kill in range(10):
        process = start(tmp_path, command, "out", "scratch-kills")
        # Kills spread over the run: the next one comes when some more shards are there, and a moment later.
        aim = min(num_shards - 8, len(kept) + int(random.integers(0, max(1, (num_shards - len(kept)) // (10 - kill)))))
        while len(list(scratch.glob("*/out/*/*.npz"))) < aim or not scratch.exists():
            assert process.poll() is None
            time.sleep(0.001)
        time.sleep(float(random.uniform(0, 0.05)))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        time.sleep(0.2)
        now = finished_shards(scratch)
        assert all(now[path] == when for path, when in kept.items()), f"kill {kill}: a finished shard was made again"
        kept = now
        assert not (tmp_path / "out").exists()
    assert 0 < len(kept) < num_shards
    assert start(tmp_path, command, "out", "scratch-kills").wait() == 0
    assert start(tmp_path, command, "whole", "scratch-whole").wait() == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
