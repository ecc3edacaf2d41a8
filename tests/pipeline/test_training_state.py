"""What an interrupted training goes on from: whose it is, and the random numbers that come next."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from pipeline import runner
from pipeline.training_state import load_state, run_fingerprint, save_state


def _module(path: Path, source: str) -> ModuleType:
    path.write_text(source)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_run_is_named_by_what_decides_it_and_by_its_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = _module(tmp_path / "recipe.py", "RATE = 1\n")
    name = run_fingerprint({"seed": 0}, [code])
    assert name == run_fingerprint({"seed": 0}, [code])
    assert run_fingerprint({"seed": 1}, [code]) != name
    (tmp_path / "recipe.py").write_text("RATE = 2\n")
    assert run_fingerprint({"seed": 0}, [code]) != name
    (tmp_path / "recipe.py").write_text("RATE = 1\n")
    assert run_fingerprint({"seed": 0}, [code]) == name
    monkeypatch.setattr(runner, "NUMERIC_LIBRARIES", ("numpy",))
    assert run_fingerprint({"seed": 0}, [code]) != name


def _draws(device: str, save: Path) -> list[torch.Tensor]:
    """What is drawn behind a save, and again behind the load of it."""
    modules = {"first": nn.Linear(2, 2).to(device), "judge": nn.Linear(2, 2)}
    torch.rand(3, device=device)
    save_state(save, 1, {}, modules, {}, {})
    drawn = [torch.rand(4), torch.rand(4, device=device).cpu()]
    assert load_state(save, {}, modules, {}) == (1, {})
    return [*drawn, torch.rand(4), torch.rand(4, device=device).cpu()]


def test_random_numbers_go_on_where_they_were(tmp_path: Path) -> None:
    first, _, again, _ = _draws("cpu", tmp_path)
    assert torch.equal(first, again)


@pytest.mark.gpu
def test_random_numbers_are_those_of_the_gpu_that_trains(tmp_path: Path) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs, the second of which is not the current one")
    one, two, one_again, two_again = _draws("cuda:1", tmp_path)
    assert torch.equal(one, one_again) and torch.equal(two, two_again)
