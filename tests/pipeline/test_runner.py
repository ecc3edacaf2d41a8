"""The runner: resume, workers, signals and the reject threshold, with real files and real processes."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from pipeline import files, manifest, runner
from pipeline.errors import InputError
from tests.pipeline.runner_work import number_file

NAMES = [f"train/{number:05d}" for number in range(6)] + ["val/00000"]
ROOT = Path(__file__).parents[2]


def run(tmp_path: Path, *, fail_at: str | None = None, allowed: float = 1.0, workers: int = 1, **options):
    log = tmp_path / "log"
    log.touch()
    return runner.run_shards(
        partial(number_file, log, fail_at, 0.0),
        NAMES,
        tmp_path / f"out{workers}",
        suffix=".txt",
        scratch_dir=tmp_path / "scratch",
        fingerprint="f" * 16,
        num_workers=workers,
        label="test",
        max_reject_fraction=allowed,
        num_items=2 * len(NAMES),
        num_threads=1,
        **options,
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_run_leaves_exactly_its_files(tmp_path):
    report = run(tmp_path)
    found = set(contents(tmp_path / "out1"))
    assert found == {f"{name}.txt" for name in NAMES} | {"rejects.jsonl", "summary.json"}
    assert report.counts == {"items": 11} and report.num_computed == 7 and len(report.rejects) == 3
    assert not (tmp_path / "scratch" / f"test-{'f' * 16}").exists()
    rejects = manifest.read_rejects(tmp_path / "out1" / "rejects.jsonl")
    assert [r.key for r in rejects] == ["train/00000", "train/00003", "val/00000"]
    summary = files.read_json(tmp_path / "out1" / "summary.json")
    assert summary["rejects"] == {"too short": 3} and summary["num_rejects"] == 3


def test_resume_computes_nothing_twice(tmp_path):
    with pytest.raises(RuntimeError, match="the disk is gone") as error:
        run(tmp_path, fail_at="train/00004")
    assert error.value.__notes__ == ["while working on shard train/00004"]
    assert not (tmp_path / "out1").exists()
    report = run(tmp_path)
    assert sorted((tmp_path / "log").read_text().split()) == sorted(NAMES)
    assert report.num_resumed == 4 and report.counts == {"items": 11} and len(report.rejects) == 3
    assert report.shards["train/00001"].facts == {"number": 1}


def test_a_torn_shard_is_made_again(tmp_path):
    with pytest.raises(RuntimeError):
        run(tmp_path, fail_at="train/00004")
    torn = tmp_path / "scratch" / f"test-{'f' * 16}" / "out" / "train" / "00002.txt"
    torn.write_text("tr")
    run(tmp_path)
    assert (tmp_path / "out1" / "train" / "00002.txt").read_text() == "train/00002"


def test_bytes_do_not_depend_on_the_number_of_workers(tmp_path):
    run(tmp_path, workers=1)
    run(tmp_path, workers=2)
    assert contents(tmp_path / "out1") == contents(tmp_path / "out2")


def test_an_old_folder_is_replaced_and_finish_writes_last(tmp_path):
    (tmp_path / "out1").mkdir()
    (tmp_path / "out1" / "stale.npz").write_text("old")

    def finish(folder: Path, report: runner.RunReport) -> None:
        assert (folder / "summary.json").is_file()
        files.write_json(folder / "index.json", sorted(report.shards))

    run(tmp_path, finish=finish)
    assert "stale.npz" not in contents(tmp_path / "out1")
    assert files.read_json(tmp_path / "out1" / "index.json") == NAMES


def test_too_many_rejects_publish_nothing_and_say_why(tmp_path):
    with pytest.raises(InputError, match=r"3 of 14 items rejected.*0\.1(?s:.*)3 x too short.*train/00000") as error:
        run(tmp_path, allowed=0.1)
    assert not (tmp_path / "out1").exists()
    path = Path(str(error.value).split("All of them are in ")[1].split(". Nothing")[0])
    assert len(manifest.read_rejects(path)) == 3
    report = run(tmp_path, allowed=0.5)
    assert report.num_computed == 0 and len((tmp_path / "log").read_text().split()) == 7


@pytest.mark.parametrize("workers, number", [(1, signal.SIGTERM), (2, signal.SIGTERM), (1, signal.SIGINT)])
def test_signals_leave_no_partial_file_and_the_next_run_goes_on(tmp_path, workers, number):
    # Python leaves SIGINT ignored where it was so at the start, as in a shell's background jobs.
    script = f"""
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from functools import partial
from pathlib import Path
from pipeline import runner
from tests.pipeline.runner_work import number_file
names = [f"train/{{n:05d}}" for n in range(24)]
runner.run_shards(partial(number_file, Path({str(tmp_path / "log")!r}), None, 0.05), names,
    Path({str(tmp_path / "out")!r}), suffix=".txt", scratch_dir=Path({str(tmp_path / "scratch")!r}),
    fingerprint="a", num_workers={workers}, label="test", max_reject_fraction=1.0, num_items=48)
"""
    (tmp_path / "log").touch()
    command, env = [sys.executable, "-c", script], {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, cwd=ROOT, env=env, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len((tmp_path / "log").read_text().split()) < 5 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(number)
    assert process.wait(30) == (128 + number if number == signal.SIGTERM else -number)
    assert not (tmp_path / "out").exists()
    scratch = tmp_path / "scratch" / "test-a"
    assert not (scratch / "tmp").exists()
    finished = sorted((scratch / "out").rglob("*.txt"))
    # What the last five lines of the log speak of may still be in the workers' hands.
    assert 5 - workers <= len(finished) < 24
    assert all(path.read_text() == f"train/{path.stem}" for path in finished)
    subprocess.run(command, cwd=ROOT, env=env, check=True, stderr=subprocess.DEVNULL)
    assert len(list((tmp_path / "out").rglob("*.txt"))) == 24
    # A kill costs at most the shards that were in the workers' hands.
    assert len((tmp_path / "log").read_text().split()) <= 24 + workers


def _run_and_report(tmp_path: Path, made: Path) -> None:
    runner.run_shards(
        partial(number_file, made, None, 0.004),
        [f"train/{n:05d}" for n in range(300)],
        tmp_path / "out",
        suffix=".txt",
        scratch_dir=tmp_path / "scratch",
        fingerprint="a",
        num_workers=1,
        label="test",
        max_reject_fraction=1.0,
        num_items=600,
    )


def test_kill_9_at_ten_random_moments_costs_no_finished_shard(tmp_path):
    """Each time: nothing published by half, no finished shard made again; in the end the bytes of an unbroken run."""
    made, random, kills = tmp_path / "log", np.random.default_rng(0), 0
    made.touch()
    folder = tmp_path / "scratch" / "test-a"
    for _ in range(10):
        before = {p: p.stat().st_mtime_ns for p in folder.glob("out/*/*.txt") if (folder / "results").exists()}
        done = {p.stem for p in before if (folder / "results" / "train" / f"{p.stem}.json").exists()}
        process = multiprocessing.get_context("fork").Process(target=_run_and_report, args=(tmp_path, made))
        process.start()
        process.join(float(random.uniform(0.01, 0.12)))
        if process.is_alive():
            kills += 1
            process.kill()
        process.join()
        assert all(p.stat().st_mtime_ns == when for p, when in before.items() if p.stem in done and p.exists())
    assert kills == 10 and not (tmp_path / "out").exists()
    _run_and_report(tmp_path, made)
    _run_and_report(whole := tmp_path / "whole", made)
    assert contents(tmp_path / "out") == contents(whole / "out")


def test_a_kill_between_the_renames_of_publishing_loses_nothing(tmp_path):
    with pytest.raises(RuntimeError):
        run(tmp_path, finish=_fail)
    scratch = tmp_path / "scratch" / f"test-{'f' * 16}"
    os.replace(scratch / "out", tmp_path / f".out1.{scratch.name}.incoming")
    assert run(tmp_path).num_computed == 0
    assert not list(tmp_path.glob(".out1*")) and (tmp_path / "out1" / "summary.json").exists()


def _fail(folder: Path, report: runner.RunReport) -> None:
    raise RuntimeError("killed here")


def test_the_progress_bar_says_speed_and_rejects():
    total = runner.Counter({"samples": 16_000 * 60, "rejects": 2})
    rate = runner.Rate("samples", 1 / 16_000, "h of audio an hour")
    assert runner._speed(total, rate, 2.0) == "30 h of audio an hour, 2 rejects"
    assert runner._speed(total, None, 2.0) == "2 rejects"


def test_dask_survives_the_death_of_a_worker(tmp_path):
    """Two workers, one killed with SIGKILL midway: everything is there, equal to a run in one process."""
    distributed = pytest.importorskip("distributed", reason="needs dask.distributed (pip install 'im2speech[cluster]')")
    names = [f"train/{n:05d}" for n in range(30)]
    (tmp_path / "log").touch()
    options = {"suffix": ".txt", "fingerprint": "a", "label": "test", "max_reject_fraction": 1.0, "num_items": 60}
    with distributed.LocalCluster(2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster:
        victim = next(iter(cluster.workers.values())).pid

        def kill() -> None:
            while len((tmp_path / "log").read_text().split()) < 6:
                time.sleep(0.01)
            os.kill(victim, signal.SIGKILL)

        killer = threading.Thread(target=kill)
        killer.start()
        executor = f"dask://{cluster.scheduler_address.removeprefix('tcp://')}"
        work = partial(number_file, tmp_path / "log", None, 0.1)
        scratch = tmp_path / "scratch"
        runner.run_shards(work, names, tmp_path / "d", scratch_dir=scratch, num_workers=2, executor=executor, **options)
        killer.join()
    runner.run_shards(work, names, tmp_path / "one", scratch_dir=scratch, num_workers=1, **options)
    assert contents(tmp_path / "d") == contents(tmp_path / "one")


def test_two_runs_cannot_share_a_scratch_folder(tmp_path):
    scratch = tmp_path / "scratch" / f"test-{'f' * 16}"
    with runner._locked(scratch), pytest.raises(InputError, match="another run"):
        run(tmp_path)


def test_executors_are_named_when_they_cannot_be_used(tmp_path):
    with pytest.raises(InputError, match="expected loky, dask"):
        run(tmp_path, executor="slurm")
    for word in ("dask", "ray"):
        try:
            __import__(word)
        except ImportError:
            with pytest.raises(InputError, match=rf"needs the package '{word}'.*cluster"):
                run(tmp_path, executor=f"{word}://localhost:1")


def test_code_fingerprint_follows_the_source(tmp_path):
    source = tmp_path / "a.py"
    source.write_text("x = 1\n")
    first = runner.code_fingerprint([source, runner])
    assert first == runner.code_fingerprint([runner, source]) and len(first) == 16
    source.write_text("x = 2\n")
    assert runner.code_fingerprint([source, runner]) != first


def test_reasons_are_counted_without_their_details():
    reasons = ["no units: a", "no units: b", "broken"]
    rejects = [manifest.Reject("k", "", "s", reason) for reason in reasons]
    assert json.dumps(runner.count_reasons(rejects)) == '{"broken": 1, "no units": 2}'
