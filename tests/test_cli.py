"""The command line: flags beat params.yaml, typos are refused by name, errors are messages, not tracebacks."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipeline.errors import InputError
from stages import kmeans
from stages.__main__ import STAGES
from stages._cli import build_params, read_params
from stages._settings import from_environment, resolve_device

ROOT = Path(__file__).resolve().parent.parent


def command(*arguments, cwd=ROOT):
    return subprocess.run(
        [sys.executable, "-m", "stages", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "COLUMNS": "160"},
    )


def test_an_unknown_parameter_is_named_with_its_nearest_name():
    with pytest.raises(InputError, match="num_cluster: unknown parameter .did you mean 'num_clusters'"):
        build_params(kmeans.Params, {"num_cluster": 50}, "params.yaml")


def test_a_wrong_value_is_named():
    with pytest.raises(InputError, match="num_clusters: .*greater than or equal to 2"):
        build_params(kmeans.Params, {"num_clusters": 1}, "params.yaml")


def test_an_unknown_section_is_named(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text("kmean: {num_clusters: 50}\n")
    with pytest.raises(InputError, match="unknown section 'kmean' .did you mean 'kmeans'"):
        read_params(path, "kmeans", set(STAGES))


def test_a_flag_beats_the_file(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump({"kmeans": {"num_clusters": 50, "seed": 3}}))
    done = command("kmeans", "--params", path, "--num-clusters", 60, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert '"num_clusters":60' in done.stdout and '"seed":3' in done.stdout


def test_a_typo_in_the_file_stops_the_command_without_a_traceback(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text("kmeans: {num_clusterz: 50}\n")
    done = command("kmeans", "--params", path)
    assert done.returncode == 2 and "num_clusterz" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("name", STAGES)
def test_every_parameter_is_a_flag_with_help(name):
    done = command(name, "--help")
    assert done.returncode == 0, done.stderr
    module = __import__(f"stages.{name}", fromlist=["Params"])
    for field, info in module.Params.model_fields.items():
        assert info.description, f"{name}.{field} has no description"
        assert f"--{field.replace('_', '-')}" in done.stdout, f"{name} --help lacks {field}"


def test_an_unknown_machine_setting_is_refused(monkeypatch):
    monkeypatch.setenv("I2S_WORKER", "2")
    with pytest.raises(InputError, match="I2S_WORKER"):
        from_environment()


def test_a_device_that_is_none_or_not_here_is_refused(monkeypatch):
    monkeypatch.setenv("I2S_DEVICE", "gpu")
    with pytest.raises(InputError, match="I2S_DEVICE='gpu': cpu, cuda, cuda:N or auto"):
        from_environment()
    with pytest.raises(InputError, match="I2S_DEVICE=cuda:99: torch .* GPUs here"):
        resolve_device("cuda:99")
    monkeypatch.setenv("I2S_EXECUTOR", "dask://elsewhere:8786")
    assert resolve_device("cuda:99") == "cuda:99"
