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
            size = 16 * num_workers
            for start in range(0, len(names), size):
                yield from _on_ray(one, names[start : start + size])
            return
        jobs = joblib.Parallel(return_as="generator_unordered")(joblib.delayed(one)(name) for name in names)
        try:
            yield from jobs
        finally:
            jobs.close()


def _on_ray(one: Callable[[str], R], names: list[str], attempts: int = 3) -> list[R]:
    """A part of the names at a time: joblib's ray backend gives lists only, and fails when a worker dies."""
    from ray.exceptions import RayActorError

    for attempt in range(attempts):
        try:
            return joblib.Parallel()(joblib.delayed(one)(name) for name in names)
        except RayActorError:
            if attempt == attempts - 1:
                raise
    return []


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
        with Client(executor.removeprefix("dask://")), joblib.parallel_config("dask"):
            yield
    elif word == "ray":
        try:
            import ray
            from ray.util.joblib import register_ray
        except ImportError as error:
            raise _missing(executor, "ray") from error
        ray.init(address=executor if "://" in executor else "auto", ignore_reinit_error=True)
        register_ray()
        with joblib.parallel_config("ray", n_jobs=num_workers):
            yield
    else:
        raise InputError(f"executor {executor!r}: expected loky, dask://host:port, ray://host:port or ray")


def _missing(executor: str, package: str) -> InputError:
    return InputError(f"executor {executor!r} needs the package '{package}': pip install 'im2speech[cluster]'")
