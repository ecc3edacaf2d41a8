"""Small sets of token shards for tests, whole: several tars a split, carried codebooks, statistics, card, contents."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from pipeline.files import sha256_file, write_text
from pipeline.runner import ShardResult
from pipeline.speech.kmeans import Codebook
from pipeline.tensors import write_safetensors
from pipeline.tokens import carried, index, parts
from pipeline.tokens.card import About, dataset_card
from pipeline.tokens.contents import write_contents
from pipeline.tokens.read import read_shard
from pipeline.tokens.sample import Sample, TokenCaption
from pipeline.tokens.statistics import write_statistics
from pipeline.tokens.write import write_shard

NUM_UNITS, VOCAB, GRID = 12, 40, (3, 2)
IMAGE_FINGERPRINT = "1" * 16
ABOUT = About("A set of tests", "cc-by-4.0", "Random tokens.", "Us, 2026")


def make_samples(split: str, count: int, first: int = 0, captions: int = 2) -> list[Sample]:
    """Random samples `<split>/k-<n>`; each depends on its number alone."""
    samples = []
    for number in range(first, first + count):
        rng = np.random.default_rng([len(split), number])
        key = f"{split}/k-{number}"
        runs = [parts.deduplicate(rng.integers(0, NUM_UNITS, rng.integers(5, 40))) for _ in range(captions)]
        spoken = [TokenCaption(f"{key}-{i}", f"s{i}", f"naïve {number}", *run) for i, run in enumerate(runs)]
        samples.append(Sample(key, rng.integers(0, VOCAB, GRID).astype(np.uint16), spoken))
    return samples


def make_codebook(seed: int = 0) -> Codebook:
    centroids = np.random.default_rng(seed).normal(size=(NUM_UNITS, 4)).astype(np.float32)
    return Codebook(centroids, {"encoder": "tiny", "layer": 2, "sample_rate": 16000, "hop": 320, "normalize": False})


def write_set(folder: Path, sizes: dict[str, Sequence[int]], suffix: str = ".tar") -> Path:
    """Write a set: split -> number of samples of each of its shards. Returns the folder."""
    results: dict[str, ShardResult] = {}
    for split, counts in sizes.items():
        first = 0
        for number, count in enumerate(counts):
            samples = make_samples(split, count, first)
            first += count
            path = folder / split / f"{number:05d}{suffix}"
            write_shard(path, samples)
            results[f"{split}/{number:05d}"] = shard_result(path, samples)
    codebook = make_codebook()
    about_units = {**codebook.metadata, "fingerprint": codebook.fingerprint, "vocab": NUM_UNITS}
    about_image = {"fingerprint": IMAGE_FINGERPRINT, "vocab": VOCAB, "grid": list(GRID)}
    indexes = index.write_indexes(folder, results, index.Tokenizers(about_image, about_units), suffix)
    codebook.save(folder / carried.FOLDER / carried.UNITS_NAME)
    codes = np.random.default_rng(1).normal(size=(VOCAB, 8)).astype(np.float32)
    image = folder / carried.FOLDER / carried.IMAGE_NAME
    write_safetensors(image, {carried.CODEBOOK_NAME: codes}, {"fingerprint": IMAGE_FINGERPRINT})
    write_text(folder / "README.md", dataset_card(ABOUT, indexes, write_statistics(folder)))
    write_contents(folder)
    return folder


def shard_result(path: Path, samples: Sequence[Sample]) -> ShardResult:
    frames = sum(int(c.durations.sum()) for s in samples for c in s.captions)
    counts = {
        "samples": len(samples),
        "images": len(samples),
        "captions": sum(len(s.captions) for s in samples),
        "units": sum(len(c.units) for s in samples for c in s.captions),
        "frames": frames,
        "milliseconds": 20 * frames,
    }
    return ShardResult(counts, [], {"sha256": sha256_file(path), "filesize": path.stat().st_size})


def change_shard(path: Path, change: Callable[[Sample], Sample]) -> None:
    """Write a shard anew with every sample changed, and nothing else repaired."""
    write_shard(path, [change(sample) for sample in list(read_shard(path))])
