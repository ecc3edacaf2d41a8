"""Where the curves and samples of a training go: DVCLive always, TensorBoard or W&B beside it, or plain files.

DVCLive writes into the stage's output, so it gets no clock and, after an interruption, all evaluations again. The
others hold clocks and sounds and write into the logs.
"""

import contextlib
import importlib.util
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pipeline.errors import InputError
from stages._cli import StageContext

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from PIL import Image

    from pipeline.captioner.training import Watch
    from pipeline.captioner.validation import Spoken

_PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb"}


class Tracker(Protocol):
    """Takes figures and samples of an evaluation."""

    def figures(self, step: int, figures: dict[str, float]) -> None: ...

    def sample(
        self, step: int, name: str, waveform: "npt.NDArray[np.float32]", rate: int, picture: "Image.Image | None"
    ) -> None:
        """A spoken caption, float32 [num_samples] at `rate` Hz, and its picture, if it is at hand."""
        ...

    def close(self) -> None: ...


def refuse_missing(name: str) -> None:
    """InputError naming the extra when the tracker is not installed."""
    package = _PACKAGES.get(name)
    if package is not None and importlib.util.find_spec(package) is None:
        raise InputError(f"train.tracker: {name} is not installed; pip install --editable '.[{name}]', or use dvclive")


@contextlib.contextmanager
def watched(
    name: str,
    context: StageContext,
    curves: Path,
    run: str,
    params: dict[str, Any],
    hear: "Callable[[Tracker], Callable[[int, Spoken], dict[str, float]] | None]",
) -> "Iterator[tuple[Callable[[int, dict[str, float]], None], Watch]]":
    """What a training's log writes to DVCLive's folder `curves`, and its watch, which writes to the logs: figures with
    the speed, and what `hear` makes of the tracker."""
    from dvclive import Live

    from pipeline.captioner.training import Watch

    tracker = open_tracker(name, context.settings.logs_dir, run, params)
    try:
        spoken = hear(tracker)  # may refuse, so before anything of an earlier run goes
        shutil.rmtree(curves, ignore_errors=True)  # an interrupted run tells all its evaluations again
        with Live(str(curves), dvcyaml=None, save_dvc_exp=False) as live:

            def log(step: int, figures: dict[str, float]) -> None:
                live.step = step
                for name, value in figures.items():
                    live.log_metric(name, round(value, 5), timestamp=False)
                live.make_summary()

            def tell(step: int, figures: dict[str, float]) -> None:
                context.log(step=step, **figures)
                tracker.figures(step, figures)

            yield log, Watch(spoken=spoken, live=tell)
    finally:
        tracker.close()


def open_tracker(name: str, logs: Path, run: str, params: dict[str, Any]) -> Tracker:
    """The tracker beside DVCLive, writing below `logs`. run: the name of this run, the same after a resume."""
    if name == "tensorboard":
        return TensorBoard(logs / "tensorboard" / f"train-{run}")
    if name == "wandb":
        return Wandb(logs, run, params)
    return Files(logs / "samples" / f"train-{run}")


class Files:
    """Samples as files, `<step>/<name>.wav` and `.jpg`; figures are in the stage's log already."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def figures(self, step: int, figures: dict[str, float]) -> None:
        pass

    def sample(
        self, step: int, name: str, waveform: "npt.NDArray[np.float32]", rate: int, picture: "Image.Image | None"
    ) -> None:
        from pipeline.media import write_wav

        place = self._folder / f"{step:07d}" / name.replace("/", "_")
        place.parent.mkdir(parents=True, exist_ok=True)
        write_wav(place.with_suffix(".wav"), waveform, rate)
        if picture is not None:
            picture.save(place.with_suffix(".jpg"))

    def close(self) -> None:
        pass


class TensorBoard:
    """An event folder of torch's SummaryWriter."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder))

    def figures(self, step: int, figures: dict[str, float]) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(f"train/{name}", value, step)
        self._writer.flush()

    def sample(
        self, step: int, name: str, waveform: "npt.NDArray[np.float32]", rate: int, picture: "Image.Image | None"
    ) -> None:
        import numpy as np

        self._writer.add_audio(f"said/{name}", waveform[None], step, sample_rate=rate)
        if picture is not None:
            self._writer.add_image(f"seen/{name}", np.asarray(picture), step, dataformats="HWC")

    def close(self) -> None:
        self._writer.close()


class Wandb:
    """A run of Weights & Biases; its own variables (WANDB_MODE=offline, WANDB_PROJECT) say where it goes."""

    def __init__(self, folder: Path, run: str, params: dict[str, Any]) -> None:
        import wandb

        folder.mkdir(parents=True, exist_ok=True)
        self._wandb = wandb
        self._run = wandb.init(id=f"train-{run}", resume="allow", dir=str(folder), config=params)

    def figures(self, step: int, figures: dict[str, float]) -> None:
        self._run.log(dict(figures), step=step)

    def sample(
        self, step: int, name: str, waveform: "npt.NDArray[np.float32]", rate: int, picture: "Image.Image | None"
    ) -> None:
        said: dict[str, Any] = {f"said/{name}": self._wandb.Audio(waveform, sample_rate=rate)}
        if picture is not None:
            said[f"seen/{name}"] = self._wandb.Image(picture)
        self._run.log(said, step=step)

    def close(self) -> None:
        self._run.finish()
