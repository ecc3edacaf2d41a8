"""Sharing by DVC: somebody publishes, a fresh clone trains from the published shards without any raw data.

The remote is read over http, as the public would; the publisher writes to the folder behind it. Every command here is
one of docs/sharing.md.
"""

import json
import os
import shutil
import subprocess
import sys

import pytest
import yaml

from pipeline.tokens.verify import verify
from tests.http_server import serve
from tests.tiny_project import ROOT, commit, make_project, set_params, sh

TINY = {
    "demo": {
        "num_train_images": 24,
        "num_restval_images": 1,
        "num_val_images": 3,
        "num_test_images": 2,
        "num_novel_images": 2,
        "captions_per_test_image": 2,
    },
    "manifest": {"rows_per_shard": 10},
    "features": {"num_utterances": 20, "max_frames": 2000},
    "kmeans": {"num_clusters": 30, "n_init": 1, "max_iter": 5},
    "train": {"steps": 4, "evaluate_every": 2, "num_pieces": 5, "max_length": 300, "num_validation_images": 2},
}
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """(the publisher's repository, url of the remote), after `dvc repro train` and `dvc push`."""
    folder, storage = tmp_path_factory.mktemp("publisher") / "im2speech", tmp_path_factory.mktemp("storage")
    make_project(folder, TINY)
    with serve(storage) as url:
        sh("dvc", "remote", "add", "--default", "public", url, cwd=folder)
        sh("dvc", "remote", "add", "--local", "storage", storage, cwd=folder)
        commit(folder, "remotes")
        sh("dvc", "repro", "train", cwd=folder)
        sh("dvc", "push", "--remote", "storage", "shards", cwd=folder)
        commit(folder, "shards")
        yield folder, url


def test_a_fresh_clone_trains_from_the_shards_alone(published, tmp_path):
    repository, _ = published
    sh("git", "clone", "-q", repository, tmp_path / "clone", cwd=tmp_path)
    clone = tmp_path / "clone"
    set_params(clone, {"train": {"learning_rate": 0.001}})
    said = sh("dvc", "repro", "--pull", "--allow-missing", "train", cwd=clone).stdout
    ran = [line for line in said.splitlines() if line.startswith("Running stage")]
    assert ran == ["Running stage 'train':"], said
    assert (clone / "data" / "train" / "model" / "model.safetensors").is_file()
    assert sorted(path.name for path in (clone / "data").iterdir() if path.is_dir()) == ["shards", "train"]
    assert verify(clone / "data" / "shards") == []


def test_get_import_and_a_trainer_without_dvc(published, tmp_path):
    repository, _ = published
    sh("dvc", "get", repository, "data/shards", "--out", "shards", cwd=tmp_path)
    assert verify(tmp_path / "shards") == []
    shutil.copy(repository / "params.yaml", tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "stages", "train", "--shards", "shards", "--out", "trained"]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
    assert (tmp_path / "trained" / "model" / "config.json").is_file()
    other = tmp_path / "other"
    other.mkdir()
    sh("git", "init", "-q", cwd=other)
    sh("dvc", "init", "-q", cwd=other)
    sh("dvc", "import", repository, "data/shards", "--out", "shards", cwd=other)
    assert verify(other / "shards") == [] and "rev_lock" in (other / "shards.dvc").read_text()


def test_the_artifact_names_the_shards(published):
    repository, _ = published
    artifacts = yaml.safe_load((repository / "dvc.yaml").read_text())["artifacts"]
    assert artifacts["token-shards"]["path"] == "data/shards"
    found = sh("dvc", "ls", "--dvc-only", "--json", repository, "data/shards", cwd=repository).stdout
    assert {"contents.json", "README.md", "train"} <= {entry["path"] for entry in json.loads(found)}
