"""Centroids from joblib, pickle, npy and torch: equal numbers, equal units."""

import pickle
import re
from pathlib import Path

import joblib
import numpy as np
import pytest
import torch
from sklearn.cluster import MiniBatchKMeans

from pipeline.checkpoints.kmeans import EncoderFacts, import_kmeans
from pipeline.errors import InputError
from pipeline.speech.kmeans import Codebook
from tests.pipeline.checkpoints.hostile import PICKLES, WRAPPINGS, Payload


@pytest.fixture(scope="module")
def estimator() -> MiniBatchKMeans:
    data = np.random.default_rng(0).normal(size=(400, 12)).astype(np.float32)
    return MiniBatchKMeans(20, random_state=0, n_init=1).fit(data)


def test_units_are_the_estimators_own(tmp_path: Path, estimator: MiniBatchKMeans) -> None:
    joblib.dump(estimator, tmp_path / "km.bin")
    facts = EncoderFacts("hubert-base-ls960", "ab" * 32, 6, False)
    codebook = import_kmeans(tmp_path / "km.bin", tmp_path / "codebook.safetensors", facts)
    features = np.random.default_rng(1).normal(size=(5000, 12)).astype(np.float32)
    np.testing.assert_array_equal(codebook.assign(features), estimator.predict(features))
    loaded = Codebook.load(tmp_path / "codebook.safetensors")
    assert loaded.fingerprint == codebook.fingerprint
    assert loaded.metadata["layer"] == 6 and loaded.metadata["encoder_sha256"] == "ab" * 32
    assert list(loaded.metadata["imported_from"]) == ["km.bin"]


def test_an_estimator_of_an_old_scikit_learn(tmp_path: Path, estimator: MiniBatchKMeans) -> None:
    """Its module has another name now (`sklearn.cluster.k_means_`), and its attributes changed: neither matters."""
    joblib.dump(estimator, tmp_path / "new.bin", protocol=2)
    old = (tmp_path / "new.bin").read_bytes()
    assert b"csklearn.cluster._kmeans\n" in old
    (tmp_path / "old.bin").write_bytes(re.sub(rb"csklearn\.cluster\._kmeans\n", b"csklearn.cluster.k_means_\n", old))
    codebook = import_kmeans(tmp_path / "old.bin", tmp_path / "codebook.safetensors", None)
    np.testing.assert_array_equal(codebook.centroids, estimator.cluster_centers_.astype(np.float32))


@pytest.mark.parametrize("form", ["npy", "float64 npy", "pickle", "dict", "array", "torch"])
def test_other_containers(tmp_path: Path, estimator: MiniBatchKMeans, form: str) -> None:
    centers = estimator.cluster_centers_.astype(np.float32)
    path = tmp_path / ("km.npy" if "npy" in form else "km.pkl")
    if "npy" in form:
        np.save(path, centers.astype(np.float64) if "64" in form else centers)
    elif form == "torch":
        torch.save(torch.from_numpy(centers), path)
    else:
        value = {"pickle": estimator, "dict": {"cluster_centers_": centers}, "array": centers}[form]
        path.write_bytes(pickle.dumps(value))
    codebook = import_kmeans(path, tmp_path / "codebook.safetensors", None)
    np.testing.assert_array_equal(codebook.centroids, centers)


@pytest.mark.parametrize("wrapping", [*PICKLES, *WRAPPINGS])
def test_a_hostile_file_is_refused(tmp_path: Path, wrapping: str) -> None:
    (PICKLES | WRAPPINGS)[wrapping](tmp_path / "km.bin", Payload(tmp_path / "ran"))
    with pytest.raises(InputError, match=r"km.bin: (refused|0 matrices)"):
        import_kmeans(tmp_path / "km.bin", tmp_path / "codebook.safetensors", None)
    assert not (tmp_path / "ran").exists() and not (tmp_path / "codebook.safetensors").exists()


def test_a_hostile_npy_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "km.npy", np.array([Payload(tmp_path / "ran")], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match="not a readable array"):
        import_kmeans(tmp_path / "km.npy", tmp_path / "codebook.safetensors", None)
    assert not (tmp_path / "ran").exists()


def test_what_holds_no_centroids_is_said(tmp_path: Path) -> None:
    joblib.dump({"other": np.zeros((3, 4))}, tmp_path / "km.bin")
    with pytest.raises(InputError, match="0 matrices of centroids"):
        import_kmeans(tmp_path / "km.bin", tmp_path / "codebook.safetensors", None)
    np.save(tmp_path / "km.npy", np.full((3, 4), np.nan, np.float32))
    with pytest.raises(InputError, match="not finite"):
        import_kmeans(tmp_path / "km.npy", tmp_path / "codebook.safetensors", None)
