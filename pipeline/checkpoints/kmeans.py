"""k-means centroids as joblib, pickle or npy keep them -> our `Codebook`.

Of a pickled scikit-learn estimator only `cluster_centers_` is wanted, so its age and classes do not matter.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.checkpoints.provenance import provenance
from pipeline.checkpoints.torch_files import read_torch, tensors_in
from pipeline.checkpoints.unpickle import Inert, read_joblib
from pipeline.errors import InputError
from pipeline.speech.kmeans import Codebook


@dataclass(frozen=True)
class EncoderFacts:
    """Which features the centroids lie among. `sha256` of the encoder's model.safetensors; `hop` in samples."""

    encoder: str
    sha256: str
    layer: int
    normalize: bool
    sample_rate: int = 16_000
    hop: int = 320


def import_kmeans(source: Path, out: Path, encoder: EncoderFacts | None) -> Codebook:
    """Read centroids, write `out` (a codebook.safetensors), give the codebook.

    source: `km.bin` of joblib, a pickle, `.npy`, or a torch file that holds one matrix. encoder: what they
    were fitted on; None leaves it open, and then nothing can be checked later. Raises InputError when there
    is not exactly one matrix of finite centroids.
    """
    centroids = read_centroids(source)
    if not np.isfinite(centroids).all():
        raise InputError(f"{source}: some centroids are not finite")
    facts: dict[str, Any] = {}
    if encoder is not None:
        facts = {
            "encoder": encoder.encoder,
            "encoder_sha256": encoder.sha256,
            "layer": encoder.layer,
            "sample_rate": encoder.sample_rate,
            "hop": encoder.hop,
            "normalize": encoder.normalize,
        }
    origin = provenance("kmeans", source)
    codebook = Codebook(np.ascontiguousarray(centroids, np.float32), {**facts, "imported_from": origin.files})
    codebook.save(out)
    return codebook


def read_centroids(source: Path) -> NDArray[Any]:
    """The centroids [K, D] of a file, in the file's own precision."""
    if source.suffix == ".npy":
        try:
            found: Any = np.load(source, allow_pickle=False)
        except FileNotFoundError as error:
            raise InputError(f"{source}: no such file") from error
        except (ValueError, EOFError, OSError) as error:
            raise InputError(f"{source}: not a readable array ({error})") from error
        candidates = [found]
    elif source.is_file() and source.open("rb").read(2) == b"PK":
        value = read_torch(source)
        candidates = [value] if isinstance(value, np.ndarray) else list(tensors_in(value).values())
    else:
        candidates = list(_centers(read_joblib(source)))
    matrices = [array for array in candidates if array.ndim == 2 and array.dtype.kind == "f"]
    if len(matrices) != 1:
        raise InputError(
            f"{source}: {len(matrices)} matrices of centroids in it, one was expected (an estimator with "
            "`cluster_centers_`, or an array [K, D])"
        )
    return matrices[0]


def _centers(value: Any) -> Iterator[NDArray[Any]]:
    if isinstance(value, np.ndarray):
        yield value
    elif isinstance(value, Inert):
        found = value.fields.get("cluster_centers_")
        if isinstance(found, np.ndarray):
            yield found
    elif isinstance(value, dict):
        inside = value.get("cluster_centers_", value.get("centroids"))
        if isinstance(inside, np.ndarray):
            yield inside
