"""The precision of a model's convolutions and matrix products, said in one place for speech and pictures."""

import contextlib
from collections.abc import Iterator
from typing import Literal

import torch

Precision = Literal["fp32", "bf16", "fp16"]

_HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}

CPU_BATCH_BYTES = 16 * 2**20
"""What a batch's widest activation may take on a CPU: measured on cores with 1 MiB of second and 32 MiB of third
level cache. Above it a batch is slower than one item at a time."""


@contextlib.contextmanager
def arithmetic(device: torch.device, precision: Precision) -> Iterator[None]:
    """fp32 means fp32: on a GPU convolutions would use TF32 otherwise. bf16 and fp16 are autocast.

    Of a training the whole step belongs inside fp32, gradients too, which are computed when they are asked for; what
    is to be in half precision stands inside that once more.
    """
    if precision in _HALVES:
        with torch.autocast(device.type, _HALVES[precision]):
            yield
    elif device.type == "cuda":
        kept = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = False
        try:
            with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
                yield
        finally:
            torch.backends.cuda.matmul.allow_tf32 = kept
    else:
        yield
