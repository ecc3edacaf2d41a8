"""The codebook: nearest centroids, round trip, a fit that can be repeated, units that fit uint16."""

import numpy as np
import pytest

from pipeline.errors import InputError
from pipeline.speech import lloyd
from pipeline.speech.kmeans import Codebook, fit_codebooks, fit_kmeans, fit_report
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


def mapped(tmp_path, num_rows=6000):
    features, _ = blobs(num_rows)
    np.save(tmp_path / "frames.npy", features)
    return np.load(tmp_path / "frames.npy", mmap_mode="r")


@pytest.mark.parametrize("recipe", ["minibatch", "lloyd", "fairseq", "gslm"])
def test_recipes_fit_mapped_samples_and_say_who_they_are(tmp_path, recipe):
    features = mapped(tmp_path)
    first, more = fit_codebooks(features, [8, 3], recipe, seed=1, metadata={"layer": 2})
    assert (len(first.centroids), len(more.centroids)) == (8, 3) and first.metadata["layer"] == 2
    assert first.metadata.get("recipe", "minibatch") == recipe
    # Eight round clusters of variance 1 in 5 dimensions: 5 is what remains when each was found.
    assert fit_report(first, features)["inertia"] < 5.2
    again = fit_codebooks(features, [8, 3], recipe, seed=1)[0]
    assert np.array_equal(first.centroids, again.centroids)


def test_lloyd_does_not_depend_on_threads_and_is_no_worse_than_fairseqs_recipe(tmp_path, monkeypatch):
    monkeypatch.setattr(lloyd, "_BLOCK_ROWS", 512)
    rng = np.random.default_rng(0)
    features = (rng.standard_normal((20_000, 6)) ** 3).astype(np.float32)
    one = fit_codebooks(features, [50], "lloyd", seed=0)[0]
    two = fit_codebooks(features, [50], "lloyd", seed=0, num_threads=3)[0]
    assert np.array_equal(one.centroids, two.centroids)
    peer = fit_codebooks(features, [50], "fairseq", seed=0)[0]
    assert fit_report(one, features)["inertia"] <= 1.02 * fit_report(peer, features)["inertia"]


def test_lloyd_fills_empty_clusters():
    """Rows of three values only, then one more far away: no centroid is left without rows that could have some."""
    features = np.repeat(np.eye(3, dtype=np.float32), 300, axis=0)
    features[7] = 50
    centroids = fit_codebooks(features, [4], "lloyd", seed=0)[0]
    assert fit_report(centroids, features)["inertia"] == 0


@pytest.mark.gpu
def test_lloyd_on_a_gpu_is_as_good_as_on_the_cpu(cuda):
    features, _ = blobs(20_000)
    own, other = (fit_codebooks(features, [8], "lloyd", seed=0, device=d)[0] for d in ("cpu", cuda))
    first, second = fit_report(own, features)["inertia"], fit_report(other, features)["inertia"]
    assert abs(first - second) < 1e-3 * first
