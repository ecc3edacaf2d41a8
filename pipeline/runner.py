"""One function mapped over numbered shards, restartable at any moment.

`run_shards` gives every shard name ("train/00007") to a function that writes one file. Work in progress lives
in a scratch folder named by a fingerprint of everything that decides the bytes, so a changed parameter can
never meet a stale shard. A shard is written to a temporary name and renamed, with a small JSON file for its
counts and rejected items, so a second run continues where the first one stopped. When every shard is there,
`rejects.jsonl` and `summary.json` are written, then the caller's index, and the folder moves to its final
place. What is written does not depend on the number of workers or on the order in which they finish.
"""

import contextlib
import ctypes
import fcntl
import hashlib
import importlib.metadata
import os
import shutil
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

from tqdm import tqdm

from pipeline.errors import InputError
from pipeline.executors import map_unordered
from pipeline.files import read_json, write_json
from pipeline.manifest import Reject, write_rejects

NUMERIC_LIBRARIES = (
    "numpy", "scipy", "scikit-learn", "torch", "transformers", "pillow", "soundfile", "soxr", "librosa",
)  # fmt: skip
"""Libraries whose version can change a number in an output."""

Work = Callable[[str, Path], "ShardResult"]


@dataclass(frozen=True)
class ShardResult:
    """What one shard held: counts to be summed over shards, the items left out, each with its reason, and
    whatever else (JSON-able) an index has to say about this shard.
    """

    counts: dict[str, int] = field(default_factory=dict)
    rejects: list[Reject] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RunReport:
    """What a run held. `counts` and `rejects` are the same for a resumed run and an unbroken one."""

    counts: dict[str, int]
    rejects: list[Reject]
    shards: dict[str, ShardResult]
    num_computed: int

    @property
    def num_resumed(self) -> int:
        """Shards that an earlier, interrupted run had finished."""
        return len(self.shards) - self.num_computed


@dataclass(frozen=True)
class Rate:
    """What the progress bar says of speed: the count times `scale` a second, in `unit`.

    Samples of 16 kHz audio with scale 1 / 16000 are seconds a second, which are hours an hour.
    """

    count: str
    scale: float
    unit: str


def run_shards(
    work: Work,
    names: Sequence[str],
    out_dir: Path,
    *,
    suffix: str = ".npz",
    scratch_dir: Path,
    fingerprint: str,
    num_workers: int,
    executor: str = "loky",
    label: str,
    max_reject_fraction: float,
    num_items: int,
    num_threads: int | None = None,
    rate: Rate | None = None,
    finish: Callable[[Path, RunReport], None] | None = None,
) -> RunReport:
    """Run `work(name, temporary_path) -> ShardResult` for every name and publish the folder of results.

    work: writes one file to the path it is given. It must be a module-level function or a `functools.partial`
      of one, and its bytes may depend on the name alone. Models are best loaded once a process
      (`functools.lru_cache`); `worker_slot()` tells the process which GPU is its own.
    names: shard names "<split>/<number>", in the order in which the report lists them.
    out_dir: receives `<name><suffix>`, `rejects.jsonl` and `summary.json`; an old folder is replaced whole.
    fingerprint: names the scratch folder; must change whenever the bytes can (see `code_fingerprint`).
    executor: "loky", "dask://host:port" or "ray://host:port"; a cluster needs scratch_dir on a disk that all
      its machines see.
    num_items: all items (utterances, images) that went in; num_threads: threads of each worker process.
    rate: what the progress bar tells of speed, beside shards, rejects and the time left.
    finish: called with the folder and the report when all shards are there, to write the index last.
    Raises InputError when more than `max_reject_fraction` of the items were rejected: nothing is published.
    """
    if len(set(names)) != len(names):
        raise InputError(f"{label}: shard names are not unique")
    scratch = Path(scratch_dir) / f"{label}-{fingerprint}"
    with _locked(scratch), _sigterm_as_exit():
        folder, results_dir = scratch / "out", scratch / "results"
        _clear_temporaries(scratch)
        _take_back(folder, Path(out_dir), scratch.name)
        finished = {name for name in names if _is_finished(folder, results_dir, name, suffix)}
        pending = [name for name in names if name not in finished]
        one = partial(_run_one, work, scratch, suffix)
        progress = tqdm(total=len(names), initial=len(finished), desc=label, unit="shard", disable=None)
        total: Counter[str] = Counter()
        started = time.monotonic()
        results = map_unordered(one, pending, num_workers, executor, num_threads)
        try:
            with progress, contextlib.closing(results) as done:
                for result in done:
                    total.update({**result.counts, "rejects": len(result.rejects)})
                    progress.set_postfix_str(_speed(total, rate, time.monotonic() - started), refresh=False)
                    progress.update()
        finally:
            _clear_temporaries(scratch)
        shards = {name: _read_result(results_dir / f"{name}.json") for name in names}
        report = _report(shards, len(pending))
        write_rejects(folder / "rejects.jsonl", report.rejects)
        _check_rejects(report, num_items, max_reject_fraction, label, folder / "rejects.jsonl")
        _remove_strangers(folder, names, suffix)
        write_json(folder / "summary.json", summary(report, num_items))
        if finish is not None:
            finish(folder, report)
        _publish(folder, Path(out_dir), scratch.name)
        shutil.rmtree(scratch)
    return report


def _speed(total: Counter[str], rate: Rate | None, seconds: float) -> str:
    """The progress bar's last words: speed and rejects so far, all workers together."""
    rejects = f"{total['rejects']} rejects"
    if rate is None:
        return rejects
    return f"{total[rate.count] * rate.scale / max(seconds, 1e-9):.4g} {rate.unit}, {rejects}"


def summary(report: RunReport, num_items: int) -> dict[str, Any]:
    """What `summary.json` says: counts only."""
    return {
        "counts": report.counts,
        "num_items": num_items,
        "num_rejects": len(report.rejects),
        "num_shards": len(report.shards),
        "rejects": count_reasons(report.rejects),
    }


def count_reasons(rejects: Iterable[Reject]) -> dict[str, int]:
    """Reject reasons and how often each occurred; what follows a colon is detail and is not counted apart."""
    return dict(sorted(Counter(reject.reason.split(":")[0].strip() for reject in rejects).items()))


def code_fingerprint(modules: Iterable[ModuleType | Path | str]) -> str:
    """16 hex characters over the sources that decide bytes and the versions of the numeric libraries.

    A package counts with all its .py files; a path is a source file. Folders do not matter, only contents.
    """
    digest = hashlib.sha256()
    for source in sorted(_sources(modules)):
        digest.update(source)
    for library in NUMERIC_LIBRARIES:
        try:
            version = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            version = "absent"
        digest.update(f"{library}={version};".encode())
    return digest.hexdigest()[:16]


def _sources(modules: Iterable[ModuleType | Path | str]) -> Iterator[bytes]:
    for module in modules:
        if isinstance(module, ModuleType):
            if module.__file__ is None:
                raise InputError(f"{module.__name__}: has no source file")
            path = Path(module.__file__)
            files = sorted(path.parent.rglob("*.py")) if path.name == "__init__.py" else [path]
        else:
            files = [Path(module)]
        for file in files:
            yield hashlib.sha256(file.read_bytes()).digest()


_slot: tuple[Path, int, Any] | None = None


def worker_slot() -> int:
    """A small number that no other worker process of this run on this machine has: 0, 1, 2, ...

    Take `cuda:{worker_slot() % number of GPUs}` to give GPUs to workers round-robin. 0 outside a run.
    """
    return 0 if _slot is None else _slot[1]


def _claim_slot(scratch: Path) -> None:
    """Take the first free slot; the lock is the process's own until it ends, however it ends."""
    global _slot
    if _slot is not None and _slot[0] == scratch:
        return
    folder = scratch / "slots"
    folder.mkdir(parents=True, exist_ok=True)
    number = 0
    while True:
        # The file must stay open for as long as the process lives: closing it gives the slot back.
        lock = (folder / f"{socket.gethostname()}-{number}").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            number += 1
            continue
        _slot = (scratch, number, lock)
        return


def _run_one(work: Work, scratch: Path, suffix: str, name: str) -> ShardResult:
    """Make one shard: temporary file, result beside it, rename last.

    An executor that has lost a worker asks again for what that worker had already finished: that is only read.
    """
    if _is_finished(scratch / "out", scratch / "results", name, suffix):
        return _read_result(scratch / "results" / f"{name}.json")
    _claim_slot(scratch)
    final = scratch / "out" / f"{name}{suffix}"
    temporary = scratch / "tmp" / f"{name.replace('/', '_')}.{socket.gethostname()}.{os.getpid()}{suffix}"
    for parent in (final.parent, temporary.parent):
        parent.mkdir(parents=True, exist_ok=True)
    try:
        result = work(name, temporary)
        if not temporary.is_file():
            raise RuntimeError(f"shard {name}: the work wrote no file to the path it was given")
        record = {
            "counts": {key: int(value) for key, value in result.counts.items()},
            "rejects": [asdict(reject) for reject in result.rejects],
            "facts": result.facts,
            "num_bytes": temporary.stat().st_size,
        }
        write_json(scratch / "results" / f"{name}.json", record)
        os.replace(temporary, final)
    except BaseException as error:
        error.add_note(f"while working on shard {name}")
        raise
    finally:
        temporary.unlink(missing_ok=True)
        _give_memory_back()
    return result


def _give_memory_back() -> None:
    """Hand freed memory to the system. glibc keeps what utterances of many lengths leave behind; loky would take a
    worker that grew by 300 MB for a leaking one and start another, which loads the model again."""
    if trim := getattr(_libc(), "malloc_trim", None):
        trim(0)


@cache
def _libc() -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(None)  # the symbols of this process; where libc is another, the name is not there
    except (OSError, TypeError):  # Windows has no such thing
        return None


def _is_finished(folder: Path, results_dir: Path, name: str, suffix: str) -> bool:
    """A shard counts as finished when its file has the size that its result says."""
    shard, result = folder / f"{name}{suffix}", results_dir / f"{name}.json"
    return shard.is_file() and result.is_file() and shard.stat().st_size == read_json(result)["num_bytes"]


def _read_result(path: Path) -> ShardResult:
    record = read_json(path)
    return ShardResult(record["counts"], [Reject(**reject) for reject in record["rejects"]], record["facts"])


def _report(shards: dict[str, ShardResult], num_computed: int) -> RunReport:
    counts: Counter[str] = Counter()
    for result in shards.values():
        counts.update(result.counts)
    rejects = [reject for result in shards.values() for reject in result.rejects]
    return RunReport(dict(sorted(counts.items())), rejects, shards, num_computed)


def _check_rejects(report: RunReport, num_items: int, allowed: float, label: str, path: Path) -> None:
    """Refuse a run that lost more than it may, with the most frequent reasons and an example of each."""
    num_rejects = len(report.rejects)
    if num_rejects <= allowed * num_items:
        return
    lines = []
    for reason, count in Counter(count_reasons(report.rejects)).most_common(5):
        first = next(r for r in report.rejects if r.reason.split(":")[0].strip() == reason)
        lines.append(f"  {count} x {reason} (for example {first.key} {first.id}: {first.reason})")
    raise InputError(
        f"{label}: {num_rejects} of {num_items} items rejected, more than max_reject_fraction={allowed}:\n"
        + "\n".join(lines)
        + f"\nAll of them are in {path}. Nothing was published; mend the input, or raise max_reject_fraction."
    )


@contextlib.contextmanager
def _locked(scratch: Path) -> Iterator[None]:
    """Keep two runs out of one scratch folder. The system lets go of the lock when the process ends."""
    scratch.parent.mkdir(parents=True, exist_ok=True)
    with scratch.with_name(f"{scratch.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"another run is working in {scratch}; wait for it or end it") from None
        scratch.mkdir(exist_ok=True)
        yield


@contextlib.contextmanager
def _sigterm_as_exit() -> Iterator[None]:
    """Leave through the `finally` blocks when the machine is taken away (SIGTERM), as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    previous = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _clear_temporaries(scratch: Path) -> None:
    """Remove what a killed worker left half written; one that is still dying may be writing beside us."""
    shutil.rmtree(scratch / "tmp", ignore_errors=True)
    for leftover in scratch.rglob(".*.tmp"):
        leftover.unlink(missing_ok=True)


def _remove_strangers(folder: Path, names: Iterable[str], suffix: str) -> None:
    """Remove files that no shard of this run accounts for, so that the folder holds what the report says."""
    wanted = {folder / f"{name}{suffix}" for name in names} | {folder / "rejects.jsonl"}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path not in wanted:
            path.unlink()


def _incoming(out_dir: Path, run: str) -> Path:
    return out_dir.with_name(f".{out_dir.name}.{run}.incoming")


def _take_back(folder: Path, out_dir: Path, run: str) -> None:
    """After a kill between the two renames of `_publish`: the finished folder back to scratch, nothing lost."""
    incoming = _incoming(out_dir, run)
    if not incoming.exists():
        return
    if folder.exists():
        shutil.rmtree(incoming)  # a copy to another disk that was not completed
    else:
        shutil.move(incoming, folder)


def _publish(folder: Path, out_dir: Path, run: str) -> None:
    """Put the finished folder in place of out_dir; another disk costs a copy, never a partial folder."""
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    incoming = _incoming(out_dir, run)
    if folder.stat().st_dev == out_dir.parent.stat().st_dev:
        os.replace(folder, incoming)
    else:
        shutil.copytree(folder, incoming)
    if out_dir.exists():
        shutil.rmtree(out_dir)
    os.replace(incoming, out_dir)
