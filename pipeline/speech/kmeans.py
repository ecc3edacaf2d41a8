"""The codebook: centroids of speech features with the facts of where they came from.

Fitted by scikit-learn or by our own Lloyd iterations (pipeline.speech.lloyd), kept as safetensors (never a
pickled estimator). The metadata says which encoder, layer, rate and normalisation the centroids belong to, so
that a later stage can refuse a stranger. Samples may be memory maps: no fit copies them.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from pipeline.errors import InputError
from pipeline.files import fingerprint
from pipeline.tensors import write_safetensors

Recipe = Literal["minibatch", "lloyd", "fairseq", "gslm"]

# fairseq's two recipes for scikit-learn: examples/hubert/simple_kmeans and examples/textless_nlp/gslm/speech2unit.
FAIRSEQ_RECIPES: dict[str, dict[str, Any]] = {
    "fairseq": {"n_init": 20, "max_iter": 100, "reassignment_ratio": 0.0},
    "gslm": {"n_init": 20, "max_iter": 150, "reassignment_ratio": 0.5},
}

# Rows assigned at a time: bounds the [rows, K] distance matrix.
_ASSIGN_ROWS = 65_536


@dataclass(frozen=True)
class Codebook:
    """`centroids` float32 [K, D]; `metadata` as DESIGN says: encoder, layer, sample_rate, hop, normalize, ..."""

    centroids: npt.NDArray[np.float32]
    metadata: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.centroids.ndim != 2 or self.centroids.dtype != np.float32:
            raise InputError(
                f"codebook: centroids must be float32 [K, D], not {self.centroids.dtype} {self.centroids.shape}"
            )
        if len(self.centroids) > 65_535:
            raise InputError(f"codebook: {len(self.centroids)} centroids; units are uint16, so at most 65,535")

    @cached_property
    def fingerprint(self) -> str:
        """16 hex characters over the centroids' bytes and the encoder they belong to."""
        identity = {key: self.metadata.get(key) for key in ("encoder_sha256", "layer", "normalize")}
        digest = hashlib.sha256(np.ascontiguousarray(self.centroids).tobytes()).hexdigest()
        return fingerprint([digest, identity])

    @cached_property
    def _half_squares(self) -> npt.NDArray[np.float32]:
        return (0.5 * (self.centroids.astype(np.float64) ** 2).sum(1)).astype(np.float32)

    def assign(self, features: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
        """Nearest centroid (Euclidean) of each row of float32 [T, D] -> int64 [T]; ties go to the lower id."""
        if features.ndim != 2 or features.shape[1] != self.centroids.shape[1]:
            raise InputError(
                f"codebook: features {features.shape} do not fit centroids {self.centroids.shape}; "
                "the codebook was fitted on another encoder or layer"
            )
        ids = np.empty(len(features), np.int64)
        for start in range(0, len(features), _ASSIGN_ROWS):
            rows = features[start : start + _ASSIGN_ROWS]
            ids[start : start + len(rows)] = (self._half_squares - rows @ self.centroids.T).argmin(1)
        return ids

    def save(self, path: Path) -> None:
        """Write safetensors, atomically."""
        metadata = {key: json.dumps(value, sort_keys=True) for key, value in sorted(self.metadata.items())}
        write_safetensors(path, {"centroids": self.centroids}, metadata)

    @classmethod
    def load(cls, path: Path) -> "Codebook":
        """Read what `save` wrote. InputError names the file when it is not a codebook."""
        try:
            with safe_open(path, framework="np") as tensors:
                metadata = {key: json.loads(value) for key, value in (tensors.metadata() or {}).items()}
                return cls(tensors.get_tensor("centroids"), metadata)
        except FileNotFoundError as error:
            raise InputError(f"{path}: no such codebook; run the kmeans stage or import one") from error
        except (SafetensorError, json.JSONDecodeError) as error:
            raise InputError(f"{path}: not a codebook ({error})") from error


def fit_kmeans(
    features: npt.NDArray[np.float32],
    num_clusters: int,
    *,
    seed: int,
    n_init: int = 5,
    batch_size: int = 10_000,
    max_iter: int = 100,
    reassignment_ratio: float = 0.01,
    max_no_improvement: int = 100,
    metadata: dict[str, Any] | None = None,
) -> Codebook:
    """Fit `num_clusters` centroids to float32 [N, D] with scikit-learn's MiniBatchKMeans.

    The names are scikit-learn's. A float32 memory map is read batch by batch, not copied.
    Raises InputError when there are fewer rows than clusters.
    """
    from sklearn.cluster import MiniBatchKMeans
    from threadpoolctl import threadpool_limits

    if len(features) < num_clusters:
        raise InputError(f"kmeans: {len(features)} frames cannot make {num_clusters} clusters; lower num_clusters")
    estimator = MiniBatchKMeans(
        num_clusters,
        init="k-means++",
        n_init=n_init,
        batch_size=batch_size,
        max_iter=max_iter,
        tol=0.0,
        max_no_improvement=max_no_improvement,
        reassignment_ratio=reassignment_ratio,
        random_state=seed,
        compute_labels=False,
    )
    # One thread: sums over threads differ in their last bits, and the same sample must give the same codebook.
    with threadpool_limits(1):
        estimator.fit(features)
    return Codebook(np.ascontiguousarray(estimator.cluster_centers_, np.float32), metadata or {})


def fit_codebooks(
    features: npt.NDArray[np.float32],
    nums_clusters: Sequence[int],
    recipe: Recipe,
    *,
    seed: int,
    device: str = "cpu",
    num_threads: int = 1,
    metadata: dict[str, Any] | None = None,
    **minibatch: Any,
) -> list[Codebook]:
    """A codebook for every K of `nums_clusters`, fitted to float32 [N, D] by a recipe.

    `lloyd` fits all of them in the same passes over the sample, on `device`; `fairseq` and `gslm` are fairseq's
    recipes; `minibatch` takes its settings from the keywords of `fit_kmeans`. A codebook remembers a recipe
    other than `minibatch`. Raises InputError when there are fewer rows than clusters.
    """
    facts = {**(metadata or {}), **({} if recipe == "minibatch" else {"recipe": recipe})}
    if recipe == "lloyd":
        from pipeline.speech.lloyd import fit_lloyd

        tables = fit_lloyd(features, nums_clusters, seed=seed, device=device, num_threads=num_threads)
        return [Codebook(table, facts) for table in tables]
    settings = FAIRSEQ_RECIPES.get(recipe, minibatch)
    return [fit_kmeans(features, k, seed=seed, metadata=facts, **settings) for k in nums_clusters]


def fit_report(codebook: Codebook, features: npt.NDArray[np.float32]) -> dict[str, float | int]:
    """Inertia (mean squared distance), usage, dead clusters and perplexity over float32 [N, D]."""
    ids = codebook.assign(features)
    counts = np.bincount(ids, minlength=len(codebook.centroids))
    squared = np.empty(len(features))
    for start in range(0, len(features), _ASSIGN_ROWS):
        here = slice(start, start + _ASSIGN_ROWS)
        squared[here] = ((features[here] - codebook.centroids[ids[here]]) ** 2).sum(1, dtype=np.float64)
    probability = counts[counts > 0] / counts.sum()
    return {
        "num_clusters": len(codebook.centroids),
        "num_frames": len(features),
        "inertia": round(float(squared.mean()), 6),
        "num_dead_clusters": int((counts == 0).sum()),
        "usage": round(float((counts > 0).mean()), 6),
        "perplexity": round(float(np.exp(-(probability * np.log(probability)).sum())), 4),
    }
