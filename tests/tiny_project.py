"""The repository's files in a fresh git repository, with small parameters: a stranger's clone in miniature."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent


def sh(*command: object, cwd: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a command with this environment's programs on the path; a failure fails the test with what was said."""
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "DVC_NO_ANALYTICS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True)
    if check and done.returncode:
        pytest.fail(f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-5000:]}")
    return done


def set_params(folder: Path, changes: Mapping[str, Mapping[str, Any]]) -> None:
    """Change parameters of the folder's params.yaml, section by section."""
    params = yaml.safe_load((folder / "params.yaml").read_text())
    for section, values in changes.items():
        params[section].update(values)
    (folder / "params.yaml").write_text(yaml.safe_dump(params))


def commit(folder: Path, message: str) -> None:
    """Commit all that git does not ignore."""
    sh("git", "add", "-A", cwd=folder)
    sh("git", "commit", "-qm", message, cwd=folder)


def make_project(folder: Path, params: Mapping[str, Mapping[str, Any]]) -> Path:
    """Copy what git knows or would add, without dvc.lock, change `params`, and make a git repository of it."""
    listed = sh("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT).stdout.split("\0")
    for name in filter(None, listed):
        if (ROOT / name).is_file() and name != "dvc.lock":
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    set_params(folder, params)
    sh("git", "init", "-q", cwd=folder)
    for name, value in (("user.name", "t"), ("user.email", "t@t")):
        sh("git", "config", name, value, cwd=folder)
    commit(folder, "start")
    return folder
