"""The codebook: nearest centroids, round trip, a fit that can be repeated, units that fit uint16."""

import numpy as np
import pytest

from pipeline.errors import InputError
from pipeline.speech.kmeans import Codebook, fit_kmeans, fit_report
from pipeline.speech.unit_quality import frame_phonemes, unit_quality


def blobs(num_rows=3000, seed=0):
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((8, 5)).astype(np.float32) * 10
    labels = rng.integers(8, size=num_rows)
    return centres[labels] + rng.standard_normal((num_rows, 5)).astype(np.float32), labels


def test_assign_is_the_nearest_centroid():
    features, _ = blobs()
    codebook = Codebook(features[:50].copy())
    distances = ((features[:, None] - codebook.centroids[None]) ** 2).sum(-1)
    assert np.array_equal(codebook.assign(features), distances.argmin(1))


def test_fit_finds_the_clusters_and_repeats():
    features, labels = blobs()
    first, second = fit_kmeans(features, 8, seed=1), fit_kmeans(features, 8, seed=1)
    assert np.array_equal(first.centroids, second.centroids)
    figures = unit_quality(first.assign(features), [str(label) for label in labels])
    assert figures["pnmi"] > 0.95 and figures["phone_purity"] > 0.95
    report = fit_report(first, features)
    assert report["num_dead_clusters"] == 0 and report["usage"] == 1.0


def test_round_trip_and_fingerprint(tmp_path):
    features, _ = blobs()
    codebook = fit_kmeans(features, 8, seed=0, metadata={"encoder_sha256": "x", "layer": 2, "normalize": False})
    codebook.save(tmp_path / "codebook.safetensors")
    again = Codebook.load(tmp_path / "codebook.safetensors")
    assert np.array_equal(again.centroids, codebook.centroids) and again.metadata == codebook.metadata
    assert again.fingerprint == codebook.fingerprint
    first = (tmp_path / "codebook.safetensors").read_bytes()
    for _ in range(5):
        codebook.save(tmp_path / "codebook.safetensors")
        assert (tmp_path / "codebook.safetensors").read_bytes() == first
    other = Codebook(codebook.centroids, {**codebook.metadata, "layer": 3})
    assert other.fingerprint != codebook.fingerprint


def test_bad_input_is_named(tmp_path):
    with pytest.raises(InputError, match="lower num_clusters"):
        fit_kmeans(np.zeros((3, 2), np.float32), 5, seed=0)
    with pytest.raises(InputError, match="no such codebook"):
        Codebook.load(tmp_path / "none.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"not a codebook")
    with pytest.raises(InputError, match="bad.safetensors"):
        Codebook.load(tmp_path / "bad.safetensors")
    with pytest.raises(InputError, match="do not fit"):
        Codebook(np.zeros((2, 3), np.float32)).assign(np.zeros((4, 5), np.float32))


def test_phoneme_of_a_frame_is_the_one_under_its_middle():
    # Frame i covers samples 320 i to 320 i + 400; its middle is at 320 i + 200.
    assert frame_phonemes([(0, "a"), (500, "'b"), (900, "_")], 4) == ["a", "b", "b", "_"]
