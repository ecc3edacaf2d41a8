"""Each published layout in miniature, through `use`, a trial `manifest`, then units, images and shards."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

import stages.images
import stages.manifest
import stages.shards
import stages.units
from pipeline.errors import InputError
from pipeline.speech.hubert import BUNDLED, SpeechEncoder
from pipeline.speech.kmeans import Codebook
from pipeline.tokens.read import read_index, read_samples
from pipeline.tokens.verify import verify
from stages.__main__ import STAGES
from stages._cli import make_command
from stages.tools import use
from tests.pipeline.corpora.conftest import flickr8k, places, spokencoco

__all__ = ["flickr8k", "places", "spokencoco"]

ROOT = Path(__file__).parents[2]
BUNDLED_TOKENIZER = ROOT / "pipeline/bundled/vit_vqgan"


def run(stage, *arguments: str) -> str:
    app = typer.Typer()
    app.command()(make_command(stage, set(STAGES)))
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False).output


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(ROOT / "presets", tmp_path / "presets")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("I2S_WORKERS", "1")
    encoder = SpeechEncoder(BUNDLED, 3)
    centroids = np.random.default_rng(0).normal(size=(50, encoder.model.config.hidden_size)).astype(np.float32)
    Codebook(centroids, encoder.identity).save(tmp_path / "data/kmeans/codebook.safetensors")
    return tmp_path


@pytest.mark.parametrize(
    ("preset", "counts"),
    [
        ("spokencoco", {"train": (3, 6), "val": (1, 2), "test": (1, 6), "test_novel": (1, 2)}),
        ("flickr8k", {"train": (2, 9), "val": (1, 5), "test": (1, 5)}),
        ("places", {"train": (2, 3), "val": (1, 1)}),
    ],
)
def test_a_published_layout_becomes_shards(folder: Path, request, preset: str, counts: dict) -> None:
    root = request.getfixturevalue(preset)
    app = typer.Typer()
    app.command()(use.command)
    CliRunner().invoke(app, [preset, f"--root={root}"], catch_exceptions=False)
    trial = run(stages.manifest, "--limit=1", "--out=trial", "--max-reject-fraction=0.2")
    assert "train: 1 rows" in trial
    run(stages.manifest, "--max-reject-fraction=0.2")
    paths = [f"--root={root}", "--manifests=manifests"]
    run(stages.units, *paths, "--encoder=bundled")
    run(stages.images, *paths, f"--vqgan={BUNDLED_TOKENIZER}")
    run(stages.shards, *paths, f"--vqgan={BUNDLED_TOKENIZER}", "--max-reject-fraction=0.2")
    shards = folder / "data/shards"
    assert verify(shards) == []
    for split, (num_images, num_captions) in counts.items():
        totals = read_index(shards, split)["totals"]
        assert (totals["images"], totals["captions"]) == (num_images, num_captions), split
    texts = [caption.text for sample in read_samples(shards, "train") for caption in sample.captions]
    assert all(texts) and (preset != "spokencoco" or texts[0].isupper())


def test_a_trial_says_which_file_is_missing(folder: Path, flickr8k: Path) -> None:
    (flickr8k / "flickr_audio/wavs/1000268201_693b08cb0e_2.wav").unlink()
    (folder / "params.yaml").write_text(f"manifest: {{corpus: flickr8k, root: {flickr8k}}}\n")
    with pytest.raises(InputError, match=r"no such file \[flickr_audio/wavs/1000268201_693b08cb0e_2.wav\]"):
        run(stages.manifest, "--limit=100")
    assert not (folder / "manifests").exists()
