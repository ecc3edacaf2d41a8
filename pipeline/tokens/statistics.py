"""What the tokens of a set are like: usage, perplexity, entropy against bytes on disk, lengths, bit rate, duplicates.

One pass over the shards with bounded memory (a few bytes a sample, for the duplicates). `statistics.json` holds the
figures, `plots/<split>/*.csv` the curves that `dvc plots show` draws, `plots/statistics.svg` a picture for the card.
"""

import csv
import hashlib
import io
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.files import read_json, write_json, write_text
from pipeline.tokens.index import read_index, split_names
from pipeline.tokens.plots import statistics_svg
from pipeline.tokens.read import read_shard
from pipeline.tokens.sample import Sample

STATISTICS_NAME, PLOTS, PICTURE = "statistics.json", "plots", "plots/statistics.svg"
PERCENTILES = {"min": 0, "p5": 5, "median": 50, "p95": 95, "max": 100}
_MAX_DURATION = 65_536
_BINS = 40


class SplitStatistics:
    """Counts over the samples of one split; `add` each sample, then `summary`."""

    def __init__(self, index: Mapping[str, Any]) -> None:
        vocab = index["vocab"]
        self.index = index
        self.units = np.zeros(vocab["units"], np.int64)
        self.image = np.zeros(vocab.get("image", 0), np.int64)
        self.durations = np.zeros(_MAX_DURATION, np.int64)
        self.units_per_caption: list[int] = []
        self.frames_per_caption: list[int] = []
        self.captions_per_image: Counter[int] = Counter()
        self.images_seen: Counter[bytes] = Counter()
        self.spoken_seen: Counter[bytes] = Counter()

    def add(self, sample: Sample) -> None:
        """Count one sample. InputError when an id is beyond the vocabulary that the index names."""
        if sample.image is not None:
            _count(self.image, sample.image.ravel(), sample.key)
            self.images_seen[_digest(sample.image)] += 1
        self.captions_per_image[len(sample.captions)] += 1
        for caption in sample.captions:
            _count(self.units, caption.units, sample.key)
            _count(self.durations, caption.durations, sample.key)
            self.units_per_caption.append(len(caption.units))
            self.frames_per_caption.append(int(caption.durations.sum(dtype=np.int64)))
            self.spoken_seen[_digest(caption.units, caption.durations)] += 1

    def summary(self) -> dict[str, Any]:
        """The figures as JSON takes them. Entropies are of single tokens, in bits; sizes in bytes; rates a second."""
        seconds = float(self.index["totals"].get("seconds", 0))
        units, image = usage(self.units), usage(self.image)
        run_bits = usage(self.durations)["entropy"]
        num_units, num_codes = int(self.units.sum()), int(self.image.sum())
        bits = num_units * (units["entropy"] + run_bits) + num_codes * image["entropy"]
        on_disk = sum(shard["filesize"] for shard in self.index["shards"])
        rate = num_units / seconds if seconds else 0.0
        return {
            "bits_per_second": {
                "entropy": round(rate * units["entropy"], 2),
                "entropy_with_durations": round(rate * (units["entropy"] + run_bits), 2),
                "fixed_length": round(rate * math.log2(max(2, len(self.units))), 2),
            },
            "bytes": {
                "entropy_bound": round(bits / 8),
                "on_disk": on_disk,
                "on_disk_over_bound": round(8 * on_disk / bits, 3) if bits else None,
            },
            "captions_per_image": {str(count): number for count, number in sorted(self.captions_per_image.items())},
            "duplicates": {"captions": _repeated(self.spoken_seen), "images": _repeated(self.images_seen)},
            "duration_entropy": run_bits,
            "frames_per_caption": lengths(self.frames_per_caption),
            "image_tokens": image,
            "units": units,
            "units_per_caption": lengths(self.units_per_caption),
            "units_per_second": round(rate, 3),
        }


def set_statistics(shards_dir: Path) -> tuple[dict[str, Any], dict[str, SplitStatistics]]:
    """(what statistics.json holds, the counts of each split). Reads every shard, pictures apart.

    Raises InputError when a shard cannot be read.
    """
    shards_dir = Path(shards_dir)
    counted: dict[str, SplitStatistics] = {}
    for split in split_names(shards_dir):
        index = read_index(shards_dir, split)
        counted[split] = SplitStatistics(index)
        for shard in index["shards"]:
            for sample in read_shard(shards_dir / split / shard["url"], pixels=False):
                counted[split].add(sample)
    summary = {
        "across_splits": shared_between(counted),
        "splits": {split: counts.summary() for split, counts in counted.items()},
    }
    return summary, counted


def read_statistics(shards_dir: Path) -> dict[str, Any]:
    """statistics.json of a set; counted anew where a set has none that fits its splits."""
    path = Path(shards_dir) / STATISTICS_NAME
    if path.is_file():
        found = read_json(path)
        if isinstance(found, dict) and set(found.get("splits", ())) == set(split_names(shards_dir)):
            return found
    return set_statistics(shards_dir)[0]


def write_statistics(shards_dir: Path, folder: Path | None = None) -> dict[str, Any]:
    """Write statistics.json and plots/ into `folder` (default: the set itself); returns the figures."""
    summary, counted = set_statistics(shards_dir)
    folder = Path(folder or shards_dir)
    write_json(folder / STATISTICS_NAME, summary)
    write_text(folder / PICTURE, statistics_svg(summary))
    for split, counts in counted.items():
        plots = folder / PLOTS / split
        _write_csv(plots / "unit_usage.csv", ("rank", "share"), _shares(counts.units))
        _write_csv(plots / "image_token_usage.csv", ("rank", "share"), _shares(counts.image))
        _write_csv(plots / "units_per_caption.csv", ("units", "captions"), _histogram(counts.units_per_caption))
    return summary


def usage(counts: NDArray[np.int64]) -> dict[str, Any]:
    """How evenly a vocabulary is used: total, ids used, entropy in bits a token, perplexity, the share of the top."""
    total = int(counts.sum())
    shares = counts[counts > 0] / total if total else np.zeros(0)
    entropy = max(0.0, float(-(shares * np.log2(shares)).sum())) if total else 0.0
    return {
        "entropy": round(entropy, 4),
        "ranked_shares": _curve(counts) if total else [],
        "perplexity": round(2**entropy, 2) if total else 0.0,
        "total": total,
        "used": int((counts > 0).sum()),
        "vocab": len(counts),
    }


def lengths(values: Sequence[int]) -> dict[str, Any]:
    """Percentiles, mean, and a histogram in equal bins from 0; empty without values."""
    if not len(values):
        return {}
    found = {name: round(float(np.percentile(values, share)), 2) for name, share in PERCENTILES.items()}
    width = max(1, math.ceil((max(values) + 1) / _BINS))
    counts = np.bincount(np.asarray(values, np.int64) // width)
    histogram = {"bin_width": width, "counts": counts.tolist()}
    return {**found, "histogram": histogram, "mean": round(float(np.mean(values)), 3)}


def shared_between(counted: Mapping[str, SplitStatistics]) -> dict[str, dict[str, int]]:
    """How many different images and captions two splits have in common, token for token, where there are any."""
    shared: dict[str, dict[str, int]] = {}
    names = sorted(counted)
    for place, first in enumerate(names):
        for second in names[place + 1 :]:
            a, b = counted[first], counted[second]
            images = len(a.images_seen.keys() & b.images_seen.keys())
            captions = len(a.spoken_seen.keys() & b.spoken_seen.keys())
            if images or captions:
                shared[f"{first}, {second}"] = {"captions": captions, "images": images}
    return shared


def _count(into: NDArray[np.int64], ids: NDArray[np.uint16], key: str) -> None:
    counts = np.bincount(ids)
    if len(counts) > len(into):
        problem = f"{key}: id {len(counts) - 1} is out of range (vocabulary of {len(into)})"
        raise InputError(f"{problem}; `im2speech tokens verify` lists every fault")
    into[: len(counts)] += counts


def _curve(counts: NDArray[np.int64]) -> list[float]:
    """The ids from the most used to the least, in at most _BINS equal groups: the mean share of an id in each."""
    ranked = np.sort(counts)[::-1] / counts.sum()
    return [round(float(group.mean()), 7) for group in np.array_split(ranked, min(_BINS, len(ranked)))]


def _digest(*arrays: NDArray[np.uint16]) -> bytes:
    digest = hashlib.blake2b(digest_size=12)
    for array in arrays:
        digest.update(f"{array.shape}".encode())
        digest.update(array.astype("<u2").tobytes())
    return digest.digest()


def _repeated(seen: Counter[bytes]) -> int:
    """How many there are beyond the first of each kind."""
    return sum(seen.values()) - len(seen)


def _shares(counts: NDArray[np.int64]) -> list[tuple[Any, ...]]:
    """(rank, share) of every id, the most used first."""
    total = max(1, int(counts.sum()))
    return [(rank, f"{count / total:.7f}") for rank, count in enumerate(np.sort(counts)[::-1].tolist())]


def _histogram(values: Sequence[int]) -> list[tuple[Any, ...]]:
    """(lower edge, count) of each bin."""
    found = lengths(values).get("histogram", {"bin_width": 1, "counts": []})
    return [(place * found["bin_width"], count) for place, count in enumerate(found["counts"])]


def _write_csv(path: Path, header: Sequence[str], rows: Sequence[tuple[Any, ...]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    write_text(path, text.getvalue())
