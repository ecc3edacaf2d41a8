"""Samples a second of our loader against two others on the same images and captions, in one run, in one process.

    python -m benchmarks.loader [--small]

- `files`: how the paper's published code feeds itself: a JPEG to decode and scale for each image, and a `.unit` file
  (an integer array by torch.save) for each caption. An image is decoded once for all its captions here.
- `webdataset`: the stock package with its default decoders on the very tars that ours reads.
- `webdataset_undecoded`: the same when it only cuts the tars into bytes.

A sample is an image with all its captions. Every loader but the last gives the units of every caption; `equal` says
whether they are the same. They take turns, and the ratios are medians over the turns. The last line printed is a JSON
object; `ratio` is ours over `files`, `others.webdataset.ratio` ours over webdataset.
"""

import argparse
import io
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import numpy as np
import torch
import webdataset
from PIL import Image

from pipeline.files import sha256_file
from pipeline.runner import ShardResult
from pipeline.tokens.index import Tokenizers, write_indexes
from pipeline.tokens.loader import TokenSource
from pipeline.tokens.parts import deduplicate, restore
from pipeline.tokens.sample import Sample, TokenCaption
from pipeline.tokens.write import write_shard

NUM_CAPTIONS, FRAMES, NUM_UNITS, VOCAB, GRID = 5, 220, 200, 8192, (32, 32)
PICTURE, INPUT_SIZE = (640, 480), 224
Units = dict[str, np.ndarray]


def main() -> None:
    """Make the data in a temporary folder, let the loaders take turns, print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="200 images and 3 turns in place of 1000 and 7")
    small = parser.parse_args().small
    num_images, num_turns = (200, 3) if small else (1000, 7)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_data(folder, num_images)
        loaders: dict[str, Callable[[Path], Iterator[Units]]] = {
            "ours": ours,
            "files": files,
            "webdataset": stock,
            "webdataset_undecoded": raw,
        }
        found = {name: merged(load(folder)) for name, load in loaders.items()}  # warms the page cache too
        seconds: dict[str, list[float]] = {name: [] for name in loaders}
        for turn in range(num_turns):
            for name, load in loaders.items():
                start = time.perf_counter()
                count = sum(1 for _ in load(folder))
                seconds[name].append(time.perf_counter() - start)
                print(f"turn {turn}: {name} {count / seconds[name][-1]:,.0f} samples/s", flush=True)
    ratios = {
        name: round(median(b / a for a, b in zip(seconds["ours"], seconds[name], strict=True)), 2) for name in loaders
    }
    rates = {name: round(num_images / median(values), 1) for name, values in seconds.items()}
    equal = {name: same(found["ours"], found[name]) for name in ("files", "webdataset")}
    result = {
        "name": "loader",
        "peer": "files (JPEG decode and a .unit file for each caption)",
        "ratio": ratios["files"],
        "equal": all(equal.values()),
        "device": "cpu, one process",
        "work": f"{num_images} images of {PICTURE[0]} x {PICTURE[1]}, {NUM_CAPTIONS} captions each, {num_turns} turns",
        "others": {
            "webdataset": {"ratio": ratios["webdataset"], "equal": equal["webdataset"]},
            "webdataset_undecoded": {"ratio": ratios["webdataset_undecoded"]},
        },
        "samples_per_second": rates,
    }
    print(json.dumps(result))


def make_data(folder: Path, num_images: int) -> None:
    """The same images and captions as shards of 100 (`shards/`) and as files (`files/`)."""
    rng = np.random.default_rng(0)
    pictures = [photograph(rng) for _ in range(20)]
    results: dict[str, ShardResult] = {}
    (folder / "files").mkdir()
    for first in range(0, num_images, 100):
        samples = []
        for number in range(first, min(first + 100, num_images)):
            spoken = [utterance(rng) for _ in range(NUM_CAPTIONS)]
            captions = [
                TokenCaption(f"{number}-{i}", "s", "A MAN ON A HORSE", *deduplicate(f)) for i, f in enumerate(spoken)
            ]
            samples.append(Sample(f"{number}", rng.integers(0, VOCAB, GRID).astype(np.uint16), captions))
            (folder / "files" / f"{number}.jpg").write_bytes(pictures[number % len(pictures)])
            for caption, frames in zip(captions, spoken, strict=True):
                torch.save(frames, folder / "files" / f"{caption.id}.unit")
        path = folder / "shards" / "train" / f"{first // 100:05d}.tar"
        write_shard(path, samples)
        counts = {"samples": len(samples), "images": len(samples), "captions": NUM_CAPTIONS * len(samples)}
        facts = {"sha256": sha256_file(path), "filesize": path.stat().st_size}
        results[f"train/{path.stem}"] = ShardResult({**counts, "units": 0, "frames": 0, "milliseconds": 0}, [], facts)
    tokenizers = Tokenizers({"fingerprint": "image", "vocab": VOCAB}, {"fingerprint": "units", "vocab": NUM_UNITS})
    write_indexes(folder / "shards", results, tokenizers)


def photograph(rng: np.random.Generator) -> bytes:
    """A JPEG of a photograph's size, in pixels and roughly in bytes: coarse shapes under fine grain."""
    coarse = Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)).resize(
        PICTURE, Image.Resampling.BICUBIC
    )
    grain = rng.normal(0, 12, (PICTURE[1], PICTURE[0], 3))
    picture = Image.fromarray(np.clip(np.asarray(coarse) + grain, 0, 255).astype(np.uint8))
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=85)
    return stream.getvalue()


def utterance(rng: np.random.Generator) -> np.ndarray:
    """Frame-level units, int64 [FRAMES], in runs of one to four."""
    return np.repeat(rng.integers(0, NUM_UNITS, FRAMES), rng.integers(1, 5, FRAMES))[:FRAMES]


def ours(folder: Path) -> Iterator[Units]:
    """Our loader, shuffled, checking everything that it checks."""
    for sample, _ in TokenSource(folder / "shards", "train").samples():
        yield {caption.id: restore(caption.units, caption.durations) for caption in sample.captions}


def stock(folder: Path) -> Iterator[Units]:
    """webdataset with its default decoders."""
    urls = [str(path) for path in sorted((folder / "shards" / "train").glob("*.tar"))]
    for sample in webdataset.WebDataset(urls, shardshuffle=False).decode():
        units, durations = sample["units.npy"], sample["durations.npy"]
        found = {}
        for caption in sample["json"]["captions"]:
            here = slice(caption["offset"], caption["offset"] + caption["num_units"])
            found[caption["id"]] = np.repeat(units[here], durations[here])
        yield found


def raw(folder: Path) -> Iterator[Units]:
    """webdataset without decoders: grouped bytes, and no units."""
    urls = [str(path) for path in sorted((folder / "shards" / "train").glob("*.tar"))]
    for _ in webdataset.WebDataset(urls, shardshuffle=False):
        yield {}


def files(folder: Path) -> Iterator[Units]:
    """A picture decoded, scaled and normalised, and a pickled array for each caption."""
    mean, deviation = torch.tensor([0.48, 0.46, 0.41]).view(3, 1, 1), torch.tensor([0.27, 0.26, 0.28]).view(3, 1, 1)
    for path in sorted((folder / "files").glob("*.jpg")):
        with Image.open(path) as picture:
            scaled = picture.convert("RGB").resize((INPUT_SIZE, INPUT_SIZE), Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.asarray(scaled, np.float32) / 255).permute(2, 0, 1)
        _ = (pixels - mean) / deviation
        names = [f"{path.stem}-{i}" for i in range(NUM_CAPTIONS)]
        yield {name: torch.load(path.with_name(f"{name}.unit"), weights_only=False) for name in names}


def merged(samples: Iterator[Units]) -> Units:
    return {name: units for sample in samples for name, units in sample.items()}


def same(first: Units, second: Units) -> bool:
    """Whether both know the same captions with the same frame-level units."""
    return first.keys() == second.keys() and all(np.array_equal(first[name], second[name]) for name in first)


if __name__ == "__main__":
    main()
