"""A million rows with null encoders: what the house itself costs, without any model.

Writes the manifest of a made-up corpus (one picture and five captions a row, as in SpokenCOCO), makes units and image
parts of it that no model has looked at (random ids of realistic lengths), joins them to token shards and indexes,
each step in a process of its own. Prints wall time, peak memory, files and bytes of each step.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks._common import last_line, parser
from pipeline.files import sha256_file
from pipeline.manifest import Caption, Image, Row, count_items, read_rows, write_rows
from pipeline.runner import ShardResult, run_shards
from pipeline.tokens.index import Tokenizers
from pipeline.tokens.join import Sources, choose_shards, make_shard
from pipeline.tokens.parts import ImagesPart, UnitsPart, write_images_part, write_units_part

CAPTIONS, FRAMES, GRID = 5, 210, (32, 32)


def manifest(folder: Path, num_rows: int, rows_per_shard: int) -> None:
    """The rows, shard by shard."""
    text = "a young man riding a wave on a white surfboard in the sea"
    for start in range(0, num_rows, rows_per_shard):
        rows = []
        for number in range(start, min(num_rows, start + rows_per_shard)):
            digest = f"{number:064x}"
            captions = tuple(
                Caption(
                    f"m071506418gb9vo0w5xq3-{number}_{i}", f"wavs/{number}_{i}.wav", 67_200, 16_000, digest, "s", text
                )
                for i in range(CAPTIONS)
            )
            rows.append(Row(f"k{number:09d}", Image(f"train/{number:012d}.jpg", 640, 480, digest), captions))
        write_rows(folder / "manifests" / "train" / f"{start // rows_per_shard:05d}.jsonl", rows)


def null_units(manifests: Path, name: str, path: Path) -> ShardResult:
    """Units of one shard that no encoder has made: 110 runs in 210 frames an utterance."""
    rng = np.random.default_rng([0, int(name.split("/")[1])])
    ids = [caption.id for row in read_rows(manifests / f"{name}.jsonl") for caption in row.captions]
    lengths = rng.integers(80, 140, len(ids))
    part = UnitsPart(
        np.array(ids, dtype=np.str_),
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        rng.integers(200, size=int(lengths.sum())).astype(np.uint16),
        rng.integers(1, 4, size=int(lengths.sum())).astype(np.uint16),
    )
    write_units_part(path, part)
    return ShardResult({"utterances": len(part)})


def null_images(manifests: Path, name: str, path: Path) -> ShardResult:
    """Image tokens of one shard that no tokenizer has made."""
    rng = np.random.default_rng([1, int(name.split("/")[1])])
    keys = [row.key for row in read_rows(manifests / f"{name}.jsonl")]
    tokens = rng.integers(8192, size=(len(keys), *GRID)).astype(np.uint16)
    write_images_part(path, ImagesPart(np.array(keys, dtype=np.str_), tokens))
    return ShardResult({"images": len(keys)})


def tokenise(folder: Path, word: str, workers: int) -> None:
    """What the stages `units` and `images` do around their encoders: count, hash, map, publish."""
    manifests = folder / "manifests"
    names, _ = choose_shards(manifests)
    paths = [manifests / f"{name}.jsonl" for name in names]
    num_items = sum(count_items(path)[0 if word == "images" else 1] for path in paths)
    digests = [sha256_file(path) for path in paths]
    work = partial(null_units if word == "units" else null_images, manifests)
    _run(work, names, folder, word, workers, num_items, digests[0][:16])


def shards(folder: Path, workers: int) -> None:
    """What the stage `shards` does before its index."""
    names, _ = choose_shards(folder / "manifests")
    units, image = {"fingerprint": "0" * 16, "vocab": 200}, {"fingerprint": "1" * 16, "vocab": 8192, "grid": GRID}
    sources = Sources(folder / "manifests", folder / "units", folder / "images", Tokenizers(image, units))
    num_rows = sum(count_items(folder / "manifests" / f"{name}.jsonl")[0] for name in names)
    _run(partial(make_shard, sources), names, folder, "shards", workers, num_rows, "2" * 16, ".tar")


def _run(
    work: "partial[ShardResult]",
    names: list[str],
    folder: Path,
    word: str,
    workers: int,
    num_items: int,
    fingerprint: str,
    suffix: str = ".npz",
) -> None:
    run_shards(
        work,
        names,
        folder / word,
        suffix=suffix,
        scratch_dir=folder / "scratch",
        fingerprint=fingerprint,
        num_workers=workers,
        num_threads=1,
        label=word,
        max_reject_fraction=0,
        num_items=num_items,
    )


def run_step(word: str, folder: Path, num_rows: int, rows_per_shard: int) -> None:
    """One step, in this process; prints its wall seconds and the peak bytes of this process."""
    workers = len(os.sched_getaffinity(0))
    started = time.perf_counter()
    if word == "manifests":
        manifest(folder, num_rows, rows_per_shard)
    elif word == "shards":
        shards(folder, workers)
    else:
        tokenise(folder, word, workers)
    seconds = time.perf_counter() - started
    print(json.dumps([seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024]))


def main() -> None:
    """Print the cost of every step."""
    arguments = parser(__doc__.splitlines()[0], paired=False)
    arguments.add_argument("--rows", type=int, default=0, help="default: 20,000 small, else 1,000,000")
    arguments.add_argument("--rows-per-shard", type=int, default=1000)
    arguments.add_argument("--folder", type=Path, default=None, help="a disk with room: 15 GB for a million rows")
    arguments.add_argument("--step", help=argparse.SUPPRESS)
    options = arguments.parse_args()
    num_rows, workers = options.rows or (20_000 if options.small else 1_000_000), len(os.sched_getaffinity(0))
    if options.step:
        run_step(options.step, options.folder, num_rows, options.rows_per_shard)
        return
    figures: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        folder = Path(temporary)
        for word in ("manifests", "units", "images", "shards"):
            command = [sys.executable, "-m", "benchmarks.scale", "--step", word, "--folder", str(folder)]
            command += ["--rows", str(num_rows), "--rows-per-shard", str(options.rows_per_shard)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            wall, own = json.loads(done.stdout.splitlines()[-1])
            files = [path for path in (folder / word).rglob("*") if path.is_file()]
            size = sum(path.stat().st_size for path in files)
            figures[word] = {"seconds": round(wall, 1), "peak_mib": round(own / 2**20)}
            figures[word] |= {"files": len(files), "bytes": size}
            print(f"{word}: {wall:.1f} s, peak {own / 2**20:.0f} MiB, ", end="")
            print(f"{len(files)} files, {size / 1e6:.0f} MB, {num_rows / wall:.0f} rows/s", flush=True)
    last_line(
        "scale",
        "none: no other tool does this work",
        1.0,
        None,
        "cpu",
        f"{num_rows} rows of {CAPTIONS} captions, shards of {options.rows_per_shard}, {workers} workers, null encoders",
        seconds=round(sum(step["seconds"] for step in figures.values()), 1),
        peak_mib=max(step["peak_mib"] for step in figures.values()),
        steps=figures,
    )


if __name__ == "__main__":
    from benchmarks.scale import main as imported  # by its own name, so that worker processes find its functions

    imported()
