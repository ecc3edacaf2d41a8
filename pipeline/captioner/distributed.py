"""The processes that train together: one, several on a machine, or several machines, through accelerate.

Started by `accelerate launch` or `torchrun`, every process finds the others through what the launcher left in its
environment (accelerate reads it). A process started alone is a group of one, for which everything here is a no-op.
"""

import contextlib
import signal
import threading
from dataclasses import dataclass
from datetime import timedelta
from types import FrameType, TracebackType
from typing import TYPE_CHECKING

import torch
from torch import nn

from pipeline.errors import InputError

if TYPE_CHECKING:
    from accelerate import Accelerator

_PATIENCE = timedelta(hours=1)  # for the others, while the first one listens to samples or writes a checkpoint
_ASK_EVERY = 10  # steps between two questions of several processes whether one was told to stop


@dataclass(frozen=True)
class Processes:
    """This process among those that train together. `rank` counts from 0; the first writes what is written.

    num_local: processes on this machine.
    """

    device: torch.device
    rank: int = 0
    count: int = 1
    num_local: int = 1
    accelerator: "Accelerator | None" = None

    @property
    def is_main(self) -> bool:
        """Whether this one logs and writes."""
        return self.rank == 0

    @classmethod
    def launched(cls, device: str = "auto") -> "Processes":
        """The group that a launcher started, or this process alone. device: cpu, cuda, cuda:N or auto.

        Raises InputError for `cuda:N` with several processes, and for a way of sharing that is not supported.
        """
        from accelerate import Accelerator, InitProcessGroupKwargs
        from accelerate.utils import DistributedType

        accelerator = Accelerator(
            cpu=device == "cpu", mixed_precision="no", kwargs_handlers=[InitProcessGroupKwargs(timeout=_PATIENCE)]
        )
        known = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
        if accelerator.distributed_type not in known:
            raise InputError(
                f"train: {accelerator.distributed_type.value} is not supported; launch with --multi_gpu, or by torchrun"
            )
        count = accelerator.num_processes
        if count > 1 and ":" in device:
            raise InputError(f"I2S_DEVICE={device} with {count} processes; give cuda, and each takes its own device")
        here = accelerator.device if device == "auto" or count > 1 else torch.device(device)
        if here.type == "cpu":
            here = torch.device("cpu")
        local = min(count, torch.cuda.device_count()) if here.type == "cuda" else count
        return cls(here, accelerator.process_index, count, max(1, local), accelerator if count > 1 else None)

    def wrap(self, model: nn.Module) -> nn.Module:
        """The module to call in training, whose gradients are averaged over all processes.

        On GPUs batch norms take their statistics over all processes; on CPUs torch knows no such thing.
        """
        if self.accelerator is None:
            return model
        if self.device.type == "cuda":
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        wrapped: nn.Module = self.accelerator.prepare_model(model)
        return wrapped

    def gradients(self, wrapped: nn.Module, *, complete: bool) -> contextlib.AbstractContextManager[None]:
        """Forward and backward go in here; not `complete`: gradients gather in this process, more will follow."""
        if self.accelerator is None or complete:
            return contextlib.nullcontext()
        return self.accelerator.no_sync(wrapped)

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over all processes of a tensor of the same shape everywhere."""
        if self.accelerator is None:
            return values
        total: torch.Tensor = self.accelerator.reduce(values.to(self.device), "sum")
        return total

    def gather(self, values: torch.Tensor, fill: int = -1) -> torch.Tensor:
        """[P, ...]: the tensors of all processes by rank; where they differ in size, shorter ones are filled up."""
        if self.accelerator is None:
            return values[None]
        padded = values.to(self.device)
        for axis in range(values.ndim):
            padded = self.accelerator.pad_across_processes(padded, dim=axis, pad_index=fill)
        gathered: torch.Tensor = self.accelerator.gather(padded[None])
        return gathered.cpu()

    def told_to_stop(self, stop: "Interruption", step: int) -> int:
        """The signal after which all processes stop behind this step; 0: go on. Several ask one another now and then
        only, since an answer has to be waited for."""
        if self.accelerator is None:
            return stop.number
        if step % _ASK_EVERY:
            return 0
        return int(self.gather(torch.tensor([stop.number])).max())

    def close(self) -> None:
        """Leave the group."""
        if self.accelerator is not None:
            self.accelerator.end_training()


class Interrupted(SystemExit):
    """Training was told to stop by a signal, behind `step`, and its checkpoint is written. Exit code 128 + signal."""

    def __init__(self, number: int, step: int) -> None:
        super().__init__(128 + number)
        self.step, self.name = step, signal.Signals(number).name


class Interruption:
    """While entered, SIGTERM and SIGINT are remembered in `number` instead of acted upon; a second one acts."""

    def __init__(self) -> None:
        self.number = 0
        self._previous: dict[int, signal._HANDLER] = {}

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._remember)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()
