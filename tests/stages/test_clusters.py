"""Clusters: a worker that is killed midway costs nothing, and the bytes are those of a single process.

Both clusters are real ones, on this machine with two workers. dask comes with the `dev` extra; ray with `cluster`.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.errors import InputError
from tests.stages.speech_corpus import write_corpus, write_models
from tests.stages.test_units import contents, run

NUM_SHARDS, SOME = 43, 8
ROOT = Path(__file__).parents[2]


class Killer(threading.Thread):
    """Once some shards are finished, waits for a worker that is at work, and ends it with SIGKILL."""

    def __init__(self, scratch: Path, find_busy: Callable[[], int | None]) -> None:
        super().__init__(daemon=True)
        self.scratch, self.find_busy = scratch, find_busy
        self.num_finished: int | None = None

    def finished(self) -> int:
        return len(list(self.scratch.glob("*/out/*/*.npz")))

    def run(self) -> None:
        while self.finished() < SOME or (victim := self.find_busy()) is None:
            time.sleep(0.005)
        os.kill(victim, signal.SIGKILL)
        self.num_finished = self.finished()


def check_run_with_a_kill(folder: Path, executor: str, find_busy: Callable[[], int | None]) -> None:
    killer = Killer(folder / "scratch-cluster", find_busy)
    killer.start()
    out = run(folder, "cluster", workers=2, executor=executor)
    killer.join(1)
    assert killer.num_finished is not None, "no worker was killed"
    assert SOME <= killer.num_finished < NUM_SHARDS, "the kill came when all was done"
    alone = contents(run(folder, "alone"))
    assert len([name for name in alone if name.endswith(".npz")]) == NUM_SHARDS
    assert contents(out) == alone


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_corpus(tmp_path, num_train=40, rows_per_shard=1)
    write_models(tmp_path)
    return tmp_path


def test_dask_with_a_worker_killed_midway_gives_the_same_bytes(folder: Path) -> None:
    distributed = pytest.importorskip("distributed", reason="needs dask.distributed (pip install 'im2speech[cluster]')")
    with distributed.LocalCluster(2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster:
        victim = next(iter(cluster.workers.values()))

        def busy() -> int | None:
            state = cluster.scheduler.workers.get(victim.worker_address)
            return victim.pid if state is not None and state.processing else None

        check_run_with_a_kill(folder, f"dask://{cluster.scheduler_address.removeprefix('tcp://')}", busy)


@pytest.fixture(scope="module")
def ray_head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, int]]:
    """A ray head of its own with two processors: its port, and the port for clients."""
    pytest.importorskip("ray", reason="needs ray (pip install 'im2speech[cluster]')")
    port, client_port = free_port(), free_port()
    folder = tmp_path_factory.mktemp("ray")
    options = {"port": port, "ray-client-server-port": client_port, "num-cpus": 2, "include-dashboard": "false"}
    options |= {"object-store-memory": 100_000_000, "temp-dir": folder, "min-worker-port": 0, "max-worker-port": 0}
    head = subprocess.Popen(
        [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"]
        + [f"--{name}={value}" for name, value in options.items()],
        # The last one: without it the head now and then fails to start a client's server (ray issue 63202).
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GRPC_ENABLE_FORK_SUPPORT": "0"},
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(client_port, head)
        yield port, client_port
    finally:
        head.terminate()  # with --block it takes its own processes with it
        head.wait(60)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def wait_for(port: int, process: "subprocess.Popen[bytes]", seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            assert process.poll() is None and time.monotonic() < deadline, "ray did not start"
            time.sleep(0.2)


def ray_worker_at_work() -> int | None:
    """ray tells in a process's name what it does."""
    psutil = pytest.importorskip("psutil")
    for process in psutil.process_iter(["cmdline"]):
        if (process.info["cmdline"] or [""])[0] == "ray::PoolActor.run_batch":
            return int(process.pid)
    return None


@pytest.mark.slow
@pytest.mark.parametrize("address", ["ray", "ray://"])
def test_ray_with_a_worker_killed_midway_gives_the_same_bytes(folder, ray_head, address, monkeypatch) -> None:
    port, client_port = ray_head
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")  # for plain `ray`, which otherwise looks in /tmp/ray
    executor = f"ray://127.0.0.1:{client_port}" if address == "ray://" else "ray"
    check_run_with_a_kill(folder, executor, ray_worker_at_work)


@pytest.mark.slow
def test_what_a_ray_cluster_lacks_is_said_at_once(folder, ray_head) -> None:
    executor = f"ray://127.0.0.1:{ray_head[1]}"
    with pytest.raises(InputError, match="I2S_WORKERS is 3, its processors are 2"):
        run(folder, "many", workers=3, executor=executor)
    with pytest.raises(InputError, match="I2S_WORKERS is 1"):
        run(folder, "one", workers=1, executor=executor)
