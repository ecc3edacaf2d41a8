"""What the benchmarks share: lengths as of speech, a stage's work, pairs of timings, matrix rate, the last line."""

import argparse
import contextlib
import itertools
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.corpora.world.espeak import synthesize
from pipeline.files import sha256_file
from pipeline.manifest import Caption, Row, write_rows
from pipeline.media import write_wav
from pipeline.runner import ShardResult, run_shards
from stages._settings import bound_caches

_RUNS = itertools.count()

VOICES = ("en-us", "en-us+m3", "en-us+klatt4", "en-us+f1")

CAPTION_WORDS = (
    "a the two young man woman dog cat table with of on in near sitting standing riding holding red blue white large "
    "small street train kitchen bathroom plate food tennis ball player baseball field beach water snow wave horse bus "
    "clock tower building people group walking next green grass laptop computer desk bear sheep pizza cake umbrella"
)


def parser(description: str, *, paired: bool = True) -> argparse.ArgumentParser:
    """`--small`, which every benchmark has, and `--pairs` for those that take turns with a peer."""
    found = argparse.ArgumentParser(description=description)
    found.add_argument("--small", action="store_true", help="a minute or two, for a first look")
    if paired:
        found.add_argument("--pairs", type=int, default=0, help="timings of each side (default: the benchmark's own)")
    return found


def speech(num_seconds: float, seed: int = 0) -> list[npt.NDArray[np.float32]]:
    """Spoken captions, 16 kHz, by four espeak voices, about as long as SpokenCOCO's: 1 to 25 s, mostly 3 to 6."""
    rng = np.random.default_rng([seed, 0])
    found: list[npt.NDArray[np.float32]] = []
    total = 0
    while total < num_seconds * 16_000:
        num_words = int(np.clip(rng.lognormal(np.log(11), 0.35), 2, 60))
        text = " ".join(rng.choice(CAPTION_WORDS.split(), num_words))
        found.append(synthesize(text, VOICES[len(found) % len(VOICES)], rate=160).waveform[: 25 * 16_000])
        total += len(found[-1])
    return found


def write_speech(folder: Path, waveforms: list[npt.NDArray[np.float32]], rows_per_shard: int) -> list[str]:
    """`folder/wavs` and `folder/manifests/train`; the names of the shards."""
    rows = []
    for number, waveform in enumerate(waveforms):
        path = folder / "wavs" / f"{number:06d}.wav"
        write_wav(path, waveform, 16_000)
        caption = Caption(f"u{number}", f"wavs/{path.name}", len(waveform), 16_000, sha256_file(path), "", "")
        rows.append(Row(f"k{number}", None, (caption,)))
    names = []
    for start in range(0, len(rows), rows_per_shard):
        names.append(f"train/{start // rows_per_shard:05d}")
        write_rows(folder / "manifests" / f"{names[-1]}.jsonl", rows[start : start + rows_per_shard])
    return names


def run_stage(work: Callable[[str, Path], ShardResult], names: list[str], folder: Path, workers: int) -> list[Path]:
    """Map a stage's work over shards as its stage does, anew each time; the parts, in the order of the names."""
    with _stage_environment():
        run_shards(
            work,
            names,
            folder / "out",
            scratch_dir=folder / "scratch",
            fingerprint=f"{next(_RUNS):016x}",
            num_workers=workers,
            num_threads=1,
            label="ours",
            max_reject_fraction=0,
            num_items=1,
        )
    return [folder / "out" / f"{name}.npz" for name in names]


@contextlib.contextmanager
def _stage_environment() -> Iterator[None]:
    """What the stage units sets for its workers; the peers, in this process, keep what torch comes with."""
    before = dict(os.environ)
    bound_caches()
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def pairs(
    ours: Callable[[], Any], peer: Callable[[], Any], number: int, warm: bool = True
) -> tuple[float, float, float]:
    """(median of the peer's time over ours, our median, the peer's median) in seconds, one after the other each time.

    warm: both run once before, unmeasured. Neighbouring timings are compared, so that slow changes of a shared machine
    fall out of the ratio. A line on stderr after each pair says how far it is.
    """
    times: list[tuple[float, float]] = []
    for turn in range(-int(warm), number):
        own, other = seconds(ours), seconds(peer)
        left = (number - 1 - turn) * (own + other) / 60
        name = "unmeasured pair" if turn < 0 else f"pair {turn + 1} of {number}"
        print(f"{name}: ours {own:.1f} s, peer {other:.1f} s; {left:.1f} minutes left", file=sys.stderr)
        if turn >= 0:
            times.append((own, other))
    own, other = (statistics.median(side) for side in zip(*times, strict=True))
    return statistics.median(b / a for a, b in times), own, other


def seconds(work: Callable[[], Any]) -> float:
    """Wall seconds of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def matrix_rate(device: str = "cpu", precision: str = "fp32") -> float:
    """Floating-point operations a second of a plain matrix product with all threads: what arithmetic could cost."""
    import torch

    from pipeline.arithmetic import arithmetic

    size = 2048 if device == "cpu" else 8192
    a, b = torch.randn(size, size, device=device), torch.randn(size, size, device=device)

    def work() -> None:
        with arithmetic(torch.device(device), precision):  # type: ignore[arg-type]
            for _ in range(5):
                a @ b
        if device != "cpu":
            torch.cuda.synchronize()

    work()
    return 5 * 2 * size**3 / min(seconds(work) for _ in range(3))


def last_line(name: str, peer: str, ratio: float, equal: Any, device: str, work: str, **more: Any) -> None:
    """Print the JSON object that every benchmark ends with."""
    facts = {"name": name, "peer": peer, "ratio": round(ratio, 3), "equal": equal, "device": device, "work": work}
    print(json.dumps({**facts, **more}))
