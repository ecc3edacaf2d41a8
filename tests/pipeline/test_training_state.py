"""What an interrupted training goes on from: whose it is."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from pipeline import runner
from pipeline.training_state import run_fingerprint


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
