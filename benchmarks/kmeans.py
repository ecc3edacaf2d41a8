"""The codebook: our `lloyd` recipe against scikit-learn with fairseq's recipe and against faiss, on one mapped sample.

Frames of the bundled encoder over espeak speech, interpolated between neighbours, lifted to 768 dimensions by a fixed
random map with a little noise: as many as asked for, with the structure of real frames. Lower inertia is better; it is
taken over all rows, whatever a peer was fitted on. faiss takes part where it is installed (the extra `bench`).
"""

import os
import tempfile
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import sklearn.cluster  # noqa: F401  (its import is nobody's work)
import torch

from benchmarks._common import last_line, pairs, parser, speech
from pipeline.speech.hubert import BUNDLED, SpeechEncoder
from pipeline.speech.kmeans import Codebook, Recipe, fit_codebooks, fit_report

BLOCK = 10_000


def write_frames(path: Path, num_rows: int, dim: int) -> npt.NDArray[np.float32]:
    """float32 [num_rows, dim], mapped read-only, written block by block."""
    torch.set_num_threads(1)
    encoder = SpeechEncoder(BUNDLED, 3)
    waveforms = speech(min(1200.0, num_rows / 50))
    real = np.concatenate([encoder.encode([waveform])[0].numpy() for waveform in waveforms])
    rng = np.random.default_rng(0)
    lift = rng.standard_normal((real.shape[1], dim)).astype(np.float32) / np.float32(real.shape[1] ** 0.5)
    rows = np.lib.format.open_memmap(path, "w+", np.float32, (num_rows, dim))
    for start in range(0, num_rows, BLOCK):
        count = min(num_rows, start + BLOCK) - start
        at, share = rng.integers(len(real) - 1, size=count), rng.random((count, 1), dtype=np.float32)
        frames = share * real[at] + (1 - share) * real[at + 1]
        rows[start : start + count] = frames @ lift + 0.1 * rng.standard_normal((count, dim), dtype=np.float32)
    rows.flush()
    return np.load(path, mmap_mode="r")


def faiss_fits(num_rows: int) -> dict[str, dict[str, int]]:
    """faiss.Kmeans as it comes (256 rows a cluster), with all rows, and with as many passes over all as ours makes."""
    everything = {"max_points_per_centroid": num_rows}
    return {
        "faiss": {},
        "faiss, all rows": everything,
        "faiss, all rows, 2 iterations": {**everything, "niter": 2},
    }


def fit_faiss(frames: npt.NDArray[np.float32], num_clusters: int, threads: int, settings: dict[str, int]) -> Codebook:
    """By faiss.Kmeans, with 25 iterations unless the settings say otherwise."""
    import faiss

    faiss.omp_set_num_threads(threads)
    found = faiss.Kmeans(frames.shape[1], num_clusters, seed=0, **settings)
    found.train(frames)
    return Codebook(np.ascontiguousarray(found.centroids, np.float32))


def compare_faiss(
    frames: npt.NDArray[np.float32], num_clusters: int, threads: int, own: float, inertia: float
) -> dict[str, dict[str, float]]:
    """Of each way of faiss: its time over ours, and our inertia over its own. Empty where it is not installed."""
    try:
        import faiss  # noqa: F401
    except ImportError as error:
        print(f"left out: faiss ({error}; pip install 'im2speech[bench]')")
        return {}
    found = {}
    for name, settings in faiss_fits(len(frames)).items():
        started = time.perf_counter()
        codebook = fit_faiss(frames, num_clusters, threads, settings)
        taken = time.perf_counter() - started
        other = float(fit_report(codebook, frames)["inertia"])
        print(f"{name}: {taken:.1f} s, inertia {other:.4f}, ours {inertia / other:.5f} of it")
        found[name] = {"ratio": round(taken / own, 3), "inertia_ratio": round(inertia / other, 5)}
    return found


def main() -> None:
    """Print the comparison."""
    arguments = parser(__doc__.splitlines()[0])
    arguments.add_argument("--rows", type=int, default=0, help="default: 20,000 small, else 1,000,000")
    arguments.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = arguments.parse_args()
    num_rows = options.rows or (20_000 if options.small else 1_000_000)
    dim, num_clusters = (256, 50) if options.small else (768, 200)
    cores = len(os.sched_getaffinity(0))
    found: dict[str, Codebook] = {}
    with tempfile.TemporaryDirectory() as temporary:
        frames = write_frames(Path(temporary) / "frames.npy", num_rows, dim)

        def fit(recipe: Recipe) -> None:
            found[recipe] = fit_codebooks(
                frames, [num_clusters], recipe, seed=0, device=options.device, num_threads=cores
            )[0]

        ratio, own, other = pairs(lambda: fit("lloyd"), lambda: fit("fairseq"), options.pairs or 1, warm=False)
        inertia = {recipe: float(fit_report(codebook, frames)["inertia"]) for recipe, codebook in found.items()}
        faiss = compare_faiss(frames, num_clusters, cores, own, inertia["lloyd"])
    share = inertia["lloyd"] / inertia["fairseq"]
    print(f"{num_rows} rows x {dim}, K {num_clusters}: lloyd {own:.1f} s, fairseq's recipe {other:.1f} s")
    print(f"inertia: lloyd {inertia['lloyd']:.4f}, fairseq's recipe {inertia['fairseq']:.4f}, ratio {share:.5f}")
    last_line(
        "kmeans",
        "scikit-learn MiniBatchKMeans, fairseq's simple_kmeans recipe, one thread",
        ratio,
        {"inertia_ratio": round(share, 5)},
        options.device,
        f"{num_rows} x {dim}, K {num_clusters}, {cores} threads for ours and faiss",
        faiss=faiss,
    )


if __name__ == "__main__":
    main()
