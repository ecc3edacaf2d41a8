"""`im2speech use`: params.yaml from a preset, comments kept, the root set, the digits corpus made."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import typer
import yaml
from typer.testing import CliRunner

from pipeline.errors import InputError
from pipeline.media import write_wav
from stages.tools.use import command

PRESETS = Path(__file__).parents[2] / "presets"


def use(*arguments: str) -> str:
    app = typer.Typer()
    app.command()(command)
    return CliRunner().invoke(app, list(arguments), catch_exceptions=False).output


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(PRESETS, tmp_path / "presets")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("preset", ["flickr8k", "paper", "places", "spokencoco", "table"])
def test_params_are_the_preset_with_the_root(folder: Path, preset: str) -> None:
    root = folder / 'it\'s "here": #1'
    root.mkdir()
    assert "Next: dvc repro" in use(preset, f"--root={root}")
    expected = yaml.safe_load((folder / f"presets/{preset}.yaml").read_text())
    expected["manifest"]["root"] = str(root)
    assert yaml.safe_load((folder / "params.yaml").read_text()) == expected
    assert "#" in (folder / "params.yaml").read_text()


def test_unknown_preset_lists_the_known(folder: Path) -> None:
    with pytest.raises(InputError, match=".coco.; there are .*digits, flickr8k, paper, places, spokencoco, table"):
        use("coco", "--root=.")
    with pytest.raises(InputError, match="nowhere: no such file or folder"):
        use("table", "--root=nowhere")
    with pytest.raises(InputError, match="--out is for presets that make a corpus"):
        use("table", "--root=.", "--out=x")
    assert not (folder / "params.yaml").exists()


def test_digits_makes_the_corpus_and_leaves_the_recipe_out(folder: Path) -> None:
    for who in ("george", "theo"):
        for digit in range(10):
            for number in (0, 5, 8):
                wave = np.random.default_rng([digit, number]).normal(0, 0.1, 900).astype(np.float32)
                write_wav(folder / f"fsdd/recordings/{digit}_{who}_{number}.wav", wave, 8000)
    preset = folder / "presets/digits.yaml"
    document = yaml.safe_load(preset.read_text())
    sizes = {"num_train_images": 4, "num_val_images": 2, "num_test_images": 2, "num_test_speaker_images": 2}
    document["use"].update(sizes)
    preset.write_text(yaml.safe_dump(document))
    use("digits", "--root=fsdd", "--out=made")
    params = yaml.safe_load((folder / "params.yaml").read_text())
    assert "use" not in params and params["demo"] == {"make": False}
    assert params["manifest"]["root"] == "made"
    assert len((folder / "made/table.jsonl").read_text().splitlines()) == 10
