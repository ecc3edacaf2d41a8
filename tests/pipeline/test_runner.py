"""The runner: resume, workers, signals and the reject threshold, with real files and real processes."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

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


@pytest.mark.parametrize("workers", [1, 2])
def test_sigterm_leaves_no_partial_file_and_the_next_run_goes_on(tmp_path, workers):
    script = f"""
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
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 128 + signal.SIGTERM
    assert not (tmp_path / "out").exists()
    scratch = tmp_path / "scratch" / "test-a"
    finished = sorted((scratch / "out").rglob("*.txt"))
    assert 5 <= len(finished) < 24
    assert all(path.read_text() == f"train/{path.stem}" for path in finished)
    subprocess.run(command, cwd=ROOT, env=env, check=True, stderr=subprocess.DEVNULL)
    assert len(list((tmp_path / "out").rglob("*.txt"))) == 24
    # A kill costs at most the shards that were in the workers' hands.
    assert len((tmp_path / "log").read_text().split()) <= 24 + workers


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
