"""The demo stage by hand, with flags: makes the corpus, or says that none is wanted."""

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

import stages.demo
from pipeline.errors import InputError
from stages._cli import make_command

SMALL = ["--num-train-images=4", "--num-val-images=1", "--num-test-images=1", "--num-novel-images=1"]
SMALL += ["--num-restval-images=0", "--image-size=64", "--captions-per-test-image=2"]


def run(folder: Path, *arguments: str) -> None:
    app = typer.Typer()
    app.command()(make_command(stages.demo, {"demo"}))
    CliRunner().invoke(app, list(arguments), catch_exceptions=False)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "params.yaml").write_text("demo: {seed: 3}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("I2S_WORKERS", "1")
    return tmp_path


def test_makes_the_corpus_by_flags_over_params(folder: Path) -> None:
    run(folder, *SMALL)
    note = json.loads((folder / "data/demo/demo.json").read_text())
    assert note["images"] == {"train": 4, "restval": 0, "val": 1, "test": 1, "test_novel": 1}
    assert note["utterances"] == 14 and note["seed"] == 3
    run(folder, *SMALL, "--limit=2", "--out=data/less")
    assert json.loads((folder / "data/less/demo.json").read_text())["images"]["train"] == 2


def test_dry_run_writes_nothing_and_no_make_leaves_a_note(folder: Path) -> None:
    run(folder, *SMALL, "--dry-run")
    assert not (folder / "data").exists()
    run(folder, "--no-make")
    assert [path.name for path in (folder / "data/demo").iterdir()] == ["demo.json"]
    assert json.loads((folder / "data/demo/demo.json").read_text())["made"] is False


def test_a_typo_in_params_is_refused_by_name(folder: Path) -> None:
    (folder / "params.yaml").write_text("demo: {num_train_image: 3}\n")
    with pytest.raises(InputError, match="num_train_image: unknown parameter .*num_train_images"):
        run(folder, *SMALL)
