"""The codebook: our `lloyd` recipe against scikit-learn with fairseq's recipe, on the same mapped sample.

Frames of the bundled encoder over espeak speech, interpolated between neighbours, lifted to 768 dimensions by a fixed
random map with a little noise: as many as asked for, with the structure of real frames. Lower inertia is better.
"""

import os
import tempfile
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
        inertia = {recipe: fit_report(codebook, frames)["inertia"] for recipe, codebook in found.items()}
    share = inertia["lloyd"] / inertia["fairseq"]
    print(f"{num_rows} rows x {dim}, K {num_clusters}: lloyd {own:.1f} s, fairseq's recipe {other:.1f} s")
    print(f"inertia: lloyd {inertia['lloyd']:.4f}, fairseq's recipe {inertia['fairseq']:.4f}, ratio {share:.5f}")
    last_line(
        "kmeans",
        "scikit-learn MiniBatchKMeans, fairseq's simple_kmeans recipe, one thread",
        ratio,
        {"inertia_ratio": round(share, 5)},
        options.device,
        f"{num_rows} x {dim}, K {num_clusters}, {cores} threads for ours",
    )


if __name__ == "__main__":
    main()
