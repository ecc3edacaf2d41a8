"""How the learning rate goes over a run, by name: a factor of its peak for every step, and nothing kept between steps.

So a run that goes on after an interruption needs no more than its step.
"""

from collections.abc import Callable
from typing import Literal, get_args

import numpy as np

from pipeline.errors import InputError

Schedule = Literal["cosine", "linear", "constant", "reference"]


def rate_factor(schedule: Schedule, step: int, warmup_steps: int, num_steps: int) -> float:
    """What the peak learning rate is multiplied by at `step` (from 0) of `num_steps`.

    cosine, linear: up in a line over `warmup_steps`, then down to zero along a cosine or a line. constant: up, then it
    stays. reference: the Image-to-Speech paper's code (ms-dot-k/Image-to-Speech, lr_scheduler.py): as cosine, but the
    first step has rate zero, where ours has a `warmup_steps`-th. Raises InputError for another name.
    """
    if schedule not in _AFTER_WARMUP:
        raise InputError(f"train.schedule: {schedule!r} is unknown; known are {', '.join(get_args(Schedule))}")
    if step < warmup_steps:
        return (step + (schedule != "reference")) / warmup_steps
    done = min(1.0, (step - warmup_steps) / max(1, num_steps - warmup_steps))
    return _AFTER_WARMUP[schedule](done)


def _cosine(done: float) -> float:
    return 0.5 * (1 + float(np.cos(np.pi * done)))


def _linear(done: float) -> float:
    return 1.0 - done


def _constant(done: float) -> float:
    return 1.0


_AFTER_WARMUP: dict[str, Callable[[float], float]] = {
    "cosine": _cosine,
    "linear": _linear,
    "constant": _constant,
    "reference": _cosine,
}
