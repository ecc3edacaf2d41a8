"""Memory of the units stage with ten times the utterances; and what it writes besides its outputs.

The same spoken captions under as many names as needed, in shards of 100 rows, through `im2speech units` in a process
of its own, with the bundled encoder. The peer is the same stage with a tenth of the utterances.
"""

import multiprocessing
import resource
import tempfile
import threading
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks._common import last_line, parser, speech, write_speech
from pipeline.manifest import Row, read_rows, write_rows
from pipeline.speech.hubert import BUNDLED, SpeechEncoder
from pipeline.speech.kmeans import Codebook
from stages import units
from stages._cli import StageContext
from stages._settings import Settings

ROWS_PER_SHARD = 100


def write_manifests(folder: Path, name: str, num_utterances: int) -> None:
    """`folder/name`: rows over the same wav files, each utterance with an id of its own."""
    rows = read_rows(folder / "manifests" / "train" / "00000.jsonl")
    for start in range(0, num_utterances, ROWS_PER_SHARD):
        shard = []
        for number in range(start, min(num_utterances, start + ROWS_PER_SHARD)):
            row = rows[number % len(rows)]
            shard.append(Row(f"k{number}", None, (replace(row.captions[0], id=f"u{number}"),)))
        write_rows(folder / name / "train" / f"{start // ROWS_PER_SHARD:05d}.jsonl", shard)


def peak_of_stage(folder: Path, name: str) -> tuple[int, int]:
    """(peak resident bytes, most bytes in scratch that are no shards) of the stage; meant for a fresh process."""
    scratch, most, ended = folder / f"scratch-{name}", [0], threading.Event()

    def watch() -> None:
        while not ended.wait(0.05):
            sizes = [size_of(path) for path in scratch.rglob("*") if "out" not in path.relative_to(scratch).parts]
            most[0] = max(most[0], sum(sizes))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        units.run(
            units.Params.model_validate({"max_reject_fraction": 0}),
            StageContext("units", Settings(1, 1, "cpu", "loky", scratch, folder / "logs")),
            manifests=folder / name,
            root=folder,
            codebook=folder / "codebook.safetensors",
            out=folder / f"units-{name}",
        )
    finally:
        ended.set()
        watcher.join()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, most[0]


def size_of(path: Path) -> int:
    """Bytes of a file, 0 for a folder and for what has gone meanwhile."""
    try:
        return path.stat().st_size if path.is_file() else 0
    except FileNotFoundError:
        return 0


def main() -> None:
    """Print both peaks and their ratio."""
    arguments = parser(__doc__.splitlines()[0], paired=False)
    arguments.add_argument("--utterances", type=int, default=0, help="of the smaller run (300 small, else 1000)")
    options = arguments.parse_args()
    few = options.utterances or (300 if options.small else 1000)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        waveforms = speech(100.0)
        write_speech(folder, waveforms, 10_000)
        encoder = SpeechEncoder(BUNDLED, 3)
        features = np.concatenate([encoder.encode([waveform])[0].numpy() for waveform in waveforms[:10]])
        Codebook(features[:100].copy(), encoder.identity).save(folder / "codebook.safetensors")
        peaks, spare = [], 0
        for name, number in (("few", few), ("many", 10 * few)):
            write_manifests(folder, name, number)
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                peak, spare = pool.submit(peak_of_stage, folder, name).result()
            peaks.append(peak)
            print(f"{number} utterances: peak {peak / 2**20:.0f} MiB")
        audio = 2 * sum(len(waveforms[i % len(waveforms)]) for i in range(10 * few))
        outputs = sum(path.stat().st_size for path in (folder / "units-many").rglob("*") if path.is_file())
    print(f"written: outputs {outputs / audio:.3%} of the audio's bytes, besides them {spare / audio:.4%}")
    last_line(
        "memory",
        "the same stage with a tenth of the utterances",
        peaks[0] / peaks[1],
        {"peak_ratio": round(peaks[1] / peaks[0], 4)},
        "cpu",
        f"{10 * few} utterances against {few}, bundled encoder",
        peak_mib=round(peaks[1] / 2**20),
        bytes_besides_outputs=round(spare / audio, 6),
    )


if __name__ == "__main__":
    from benchmarks.memory import main as imported  # by its own name, so that worker processes find its functions

    imported()
