"""Where sharded work runs: in this process, on this machine's processors, or on a dask or ray cluster.

All of them through joblib's own backends; there is no scheduler of ours. What an executor may lose (a worker that
is killed) it gives to another worker; a shard is written under a temporary name, so the second try is harmless.
"""

import contextlib
from collections.abc import Callable, Generator, Iterator
from typing import TypeVar

import joblib

from pipeline.errors import InputError

R = TypeVar("R")


def map_unordered(
    one: Callable[[str], R],
    names: list[str],
    num_workers: int,
    executor: str,
    num_threads: int | None,
) -> Generator[R, None, None]:
    """Results as they come. In this process when one worker is asked for, else through joblib."""
    if not names or (executor == "loky" and num_workers == 1):
        yield from map(one, names)
        return
    with _backend(executor, num_workers, num_threads):
        if executor.startswith("ray"):
            yield from _on_ray(one, names, 16 * num_workers)
            return
        jobs = joblib.Parallel(return_as="generator_unordered")(joblib.delayed(one)(name) for name in names)
        try:
            yield from jobs
        finally:
            jobs.close()


def _on_ray(one: Callable[[str], R], names: list[str], size: int, attempts: int = 3) -> Iterator[R]:
    """So many names at a time: joblib's ray backend gives lists only, and fails when a worker dies.

    The workers stay from list to list, with their models; joblib itself replaces them after a failure.
    """
    from ray.exceptions import RayActorError

    with joblib.Parallel() as parallel:
        for start in range(0, len(names), size):
            for attempt in range(attempts):
                try:
                    found = parallel(joblib.delayed(one)(name) for name in names[start : start + size])
                    break
                except RayActorError:
                    if attempt == attempts - 1:
                        raise
            yield from found


@contextlib.contextmanager
def _backend(executor: str, num_workers: int, num_threads: int | None) -> Iterator[None]:
    """The joblib backend that an executor string names; plain `ray` is the cluster that this machine belongs to."""
    word, _, _ = executor.partition("://")
    if word == "loky":
        with joblib.parallel_config("loky", n_jobs=num_workers, inner_max_num_threads=num_threads):
            yield
    elif word == "dask":
        try:
            from dask.distributed import Client
        except ImportError as error:
            raise _missing(executor, "dask") from error
        try:
            client = Client(executor.removeprefix("dask://"))
        except (OSError, ValueError) as error:
            raise InputError(f"executor {executor!r}: no dask scheduler there ({error})") from error
        with client, joblib.parallel_config("dask"):
            yield
    elif word == "ray":
        # A processor a worker, so that ray spreads them over its machines.
        with (
            _joined_ray(executor, num_workers),
            joblib.parallel_config("ray", n_jobs=num_workers, ray_remote_args={"num_cpus": 1}),
        ):
            yield
    else:
        raise InputError(f"executor {executor!r}: expected loky, dask://host:port, ray://host:port or ray")


@contextlib.contextmanager
def _joined_ray(executor: str, num_workers: int) -> Iterator[None]:
    """Part of a ray cluster for as long as the work takes. InputError for all that would fail late, or obscurely."""
    try:
        import ray
        from ray.util.joblib import register_ray
    except ImportError as error:
        raise _missing(executor, "ray") from error
    if num_workers == 1:  # joblib would silently work here, not on the cluster
        raise InputError(f"executor {executor!r}: I2S_WORKERS is 1; set it to the cluster's processors, at least 2")
    mine = not ray.is_initialized()
    if mine:
        _connect_ray(executor)
    try:
        _check_ray(executor, num_workers)
        register_ray()
        yield
    finally:
        if mine:
            ray.shutdown()


def _connect_ray(executor: str, attempts: int = 3) -> None:
    """ray.init; again when the head fails to start its server for us, as it now and then does (ray issue 63202)."""
    import ray

    for attempt in range(attempts):
        try:
            ray.init(address=executor if "://" in executor else "auto")
            return
        except (ConnectionError, RuntimeError, ValueError) as error:
            if "client server failed" in str(error) and attempt < attempts - 1:
                continue
            raise InputError(
                f"executor {executor!r}: no ray cluster there ({error}). `ray start --head` starts one: for plain "
                "`ray` on this machine, for ray://host:PORT on that host, with --ray-client-server-port=PORT and this "
                "machine's versions of Python and ray"
            ) from error


def _check_ray(executor: str, num_workers: int) -> None:
    """InputError when the cluster is too small, or cannot import this package.

    Through a ray:// address nothing of this machine's import path reaches the cluster, and ray reports a module that it
    lacks by dropping the connection.
    """
    import ray

    num_processors = int(ray.cluster_resources().get("CPU", 0))
    if num_workers > num_processors:
        raise InputError(f"executor {executor!r}: I2S_WORKERS is {num_workers}, its processors are {num_processors}")

    def can_import() -> bool:
        import importlib.util

        return importlib.util.find_spec("pipeline") is not None

    if not ray.get(ray.remote(can_import).remote()):
        raise InputError(
            f"executor {executor!r}: the cluster cannot import im2speech. Install it in the environment that `ray "
            "start` runs in, or run that with PYTHONPATH set to the repository"
        )


def _missing(executor: str, package: str) -> InputError:
    return InputError(f"executor {executor!r} needs the package '{package}': pip install 'im2speech[cluster]'")
