"""The manifest stage by hand: a table of real files with faults, around the threshold, and reruns."""

import json
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

import stages.manifest
from pipeline import manifest
from pipeline.errors import InputError
from pipeline.media import write_wav
from stages._cli import make_command


def run(*arguments: str) -> str:
    app = typer.Typer()
    app.command()(make_command(stages.manifest, {"manifest"}))
    return CliRunner().invoke(app, list(arguments), catch_exceptions=False).output


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Twelve images with a recording each in `corpus`; the recording of the last is missing."""
    rng = np.random.default_rng(0)
    lines = []
    for number in range(12):
        (tmp_path / "corpus").mkdir(exist_ok=True)
        pixels = rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"corpus/{number}.png")
        if number < 11:
            write_wav(tmp_path / f"corpus/{number}.wav", rng.normal(0, 0.1, 8000).astype(np.float32), 16000)
        lines.append({"image": f"{number}.png", "audio": f"{number}.wav", "text": "noise"})
    (tmp_path / "corpus/table.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "params.yaml").write_text("manifest: {corpus: table, root: corpus, rows_per_shard: 4}\n")
    (tmp_path / "manifests").mkdir()
    (tmp_path / "manifests/README.md").write_text("by hand")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("I2S_WORKERS", "1")
    return tmp_path


def test_goes_on_below_the_threshold(folder: Path) -> None:
    output = run("--max-reject-fraction=0.2")
    assert "rejected 1 rows, 1 captions" in output
    assert manifest.split_names(folder / "manifests") == ["test", "train", "val"]
    rejects = manifest.read_rejects(folder / "manifests/rejects.jsonl")
    assert {reject.reason for reject in rejects} == {"no such file [11.wav]", "no caption is left"}


def test_fails_above_the_threshold_and_says_where_to_look(folder: Path) -> None:
    with pytest.raises(InputError, match=r"no such file \[11.wav\].*rejects.jsonl") as caught:
        run("--max-reject-fraction=0.01")
    assert not (folder / "manifests/summary.json").exists()
    listed = Path(str(caught.value).split("listed in ")[1].split(";")[0])
    assert len(manifest.read_rejects(listed)) == 2


def test_a_rerun_replaces_splits_and_shards_and_keeps_what_is_written_by_hand(folder: Path) -> None:
    run("--max-reject-fraction=1", "--rows-per-shard=1")
    run("--max-reject-fraction=1", "--split=test")
    assert manifest.split_names(folder / "manifests") == ["test"]
    assert not list((folder / "manifests/train").iterdir())
    assert len(manifest.shard_paths(folder / "manifests", "test")) == 3
    assert (folder / "manifests/README.md").read_text() == "by hand"
    first = (folder / "manifests/test/00000.jsonl").read_bytes()
    run("--max-reject-fraction=1", "--split=test")
    assert (folder / "manifests/test/00000.jsonl").read_bytes() == first


def test_limit_splits_and_dry_run(folder: Path) -> None:
    run("--dry-run")
    assert not (folder / "manifests/train").exists()
    run("--max-reject-fraction=1", "--splits=train", "--limit=2")
    assert manifest.split_names(folder / "manifests") == ["train"]
    assert len(manifest.read_split(folder / "manifests", "train")) == 2


def test_a_wrong_root_is_said(folder: Path) -> None:
    with pytest.raises(InputError, match="elsewhere: no such folder"):
        run("--root=elsewhere")
