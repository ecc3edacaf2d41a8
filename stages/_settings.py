"""Machine settings, from the environment only. They never change an output's bytes.

I2S_WORKERS   worker processes for sharded work            (default: the number of processors)
I2S_THREADS   threads of a process that works alone         (default: the number of processors)
I2S_DEVICE    cpu | cuda | cuda:N | auto                    (default: auto)
I2S_EXECUTOR  loky | dask://host:port | ray://host:port | ray (default: loky)
I2S_SCRATCH   folder for work in progress                   (default: .scratch)
I2S_LOGS      folder for logs with clocks in them           (default: logs)
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import InputError


@dataclass(frozen=True)
class Settings:
    """What this machine offers. See the module's docstring for the variables."""

    num_workers: int
    num_threads: int
    device: str
    executor: str
    scratch_dir: Path
    logs_dir: Path


def _count(name: str) -> int:
    text = os.environ.get(name, "")
    if not text:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not text.isdecimal() or int(text) < 1:
        raise InputError(f"{name}={text!r}: a whole number of at least 1 was expected")
    return int(text)


def bound_caches() -> None:
    """Keep oneDNN from holding on to a kernel for every length of utterance it has ever met (1024 of them: 0.4 GB).

    For stages that run a model over utterances of all lengths, which seldom meet a length again; 16 kernels are enough
    for a corpus of one length. A variable of oneDNN's own, read when a model first runs; worker processes inherit it.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16")


def from_environment() -> Settings:
    """Read the I2S_* variables. InputError names the one that cannot be used."""
    known = {"I2S_WORKERS", "I2S_THREADS", "I2S_DEVICE", "I2S_EXECUTOR", "I2S_SCRATCH", "I2S_LOGS"}
    for name in os.environ:
        if name.startswith("I2S_") and name not in known:
            raise InputError(f"{name}: no such setting; known are {', '.join(sorted(known))}")
    device = os.environ.get("I2S_DEVICE", "auto")
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
        raise InputError(f"I2S_DEVICE={device!r}: cpu, cuda, cuda:N or auto was expected")
    return Settings(
        num_workers=_count("I2S_WORKERS"),
        num_threads=_count("I2S_THREADS"),
        device=device,
        executor=os.environ.get("I2S_EXECUTOR", "loky"),
        scratch_dir=Path(os.environ.get("I2S_SCRATCH", ".scratch")).absolute(),
        logs_dir=Path(os.environ.get("I2S_LOGS", "logs")),
    )


def resolve_device(name: str) -> str:
    """`auto` becomes cuda when there is one, else cpu. InputError for a GPU that is not here, unless the machines of a
    cluster do the work. Imports torch, so call it inside `run`."""
    if name == "cpu":
        return name
    import torch

    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return "cuda" if there else "cpu"
    if int(name.partition(":")[2] or 0) >= there and os.environ.get("I2S_EXECUTOR", "loky") == "loky":
        raise InputError(f"I2S_DEVICE={name}: torch {torch.__version__} sees {there} GPUs here; set another, or cpu")
    return name
