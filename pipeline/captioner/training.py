"""Trains the captioner by teacher forcing and watches it speak freely.

Takes examples in memory or a stream of token shards; gives the best model and the figures of each evaluation. One
process or many (`distributed`) make the same steps of the same batches (`batches`); what decides a run is in
`TrainingSettings`, and a checkpoint holds all that an interrupted one needs to come to the same result.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from pipeline.arithmetic import Precision, arithmetic
from pipeline.captioner.averaging import WeightAverage
from pipeline.captioner.batches import Feed, MemoryFeed, Sharing, Stream, StreamFeed
from pipeline.captioner.checkpoint import load_checkpoint, save_checkpoint
from pipeline.captioner.data import Examples
from pipeline.captioner.distributed import Interrupted, Interruption, Processes
from pipeline.captioner.model import Captioner, caption_loss
from pipeline.captioner.optimizer import is_new, make_optimizer, train_mode
from pipeline.captioner.schedules import Schedule, rate_factor
from pipeline.captioner.validation import Spoken, Validator, edit_distance, unit_error_rate
from pipeline.captioner.vocabulary import UnitVocabulary
from pipeline.errors import InputError
from pipeline.training_state import (
    check_finite,
    optimizer_tensors,
    random_states,
    restore_optimizer,
    restore_random_states,
)

__all__ = ["Interrupted", "TrainingSettings", "Watch", "edit_distance", "train_captioner", "unit_error_rate"]

Figures = dict[str, float]
Augment = Callable[[torch.Tensor, int, Sequence[int]], torch.Tensor]
"""(images of some captions, the step, the captions' numbers) -> images; see `augmentation`."""


@dataclass(frozen=True)
class TrainingSettings:
    """What decides a run. AdamW with weight decay on matrices only; `schedule` as in `schedules`.

    batch_size: captions of a step, of all processes together; batch_tokens: ids of a step instead, padding included
    (0: by captions). accumulation_steps: turns in which a process takes its share of them.
    pretrained_rate_scale: learning rate of everything but the units' embeddings and output, over theirs.
    embedding_steps: the first steps train only these, so that units find their place in what the pretrained
    decoder already does before it changes.
    clip_norm, ema_decay, patience: 0 for none. patience counts evaluations without a better one. save_every: steps
    between two checkpoints; 0: at evaluations.
    """

    steps: int
    batch_size: int
    learning_rate: float
    pretrained_rate_scale: float
    embedding_steps: int
    warmup_steps: int
    weight_decay: float
    label_smoothing: float
    clip_norm: float
    max_length: int
    evaluate_every: int
    num_validation_images: int
    seed: int
    schedule: Schedule = "cosine"
    batch_tokens: int = 0
    accumulation_steps: int = 1
    precision: Precision = "fp32"
    ema_decay: float = 0.0
    patience: int = 0
    save_every: int = 0


@dataclass(frozen=True)
class Watch:
    """Who is told what, in the first process. None of it changes the training.

    spoken: (step, units said of the first validation images) at each evaluation, gives further figures for the log.
    live: (step, figures, with the speed of this machine) at each evaluation made now, not before a resume.
    """

    spoken: Callable[[int, Spoken], Figures] | None = None
    live: Callable[[int, Figures], None] | None = None


@dataclass
class _Progress:
    """How far training has come: what the checkpoint says in JSON. Losses are sums since the last evaluation."""

    step: int = 0
    best_score: float = float("inf")
    num_worse: int = 0
    loss_sum: float = 0.0
    loss_steps: int = 0
    figures: Figures = field(default_factory=dict)
    history: list[tuple[int, Figures]] = field(default_factory=list)


def train_captioner(
    model: Captioner,
    vocabulary: UnitVocabulary,
    train: Examples | Stream,
    validation: Examples,
    settings: TrainingSettings,
    log: Callable[[int, Figures], None],
    checkpoint: Path | None = None,
    *,
    processes: Processes | None = None,
    watch: Watch | None = None,
    augment: Augment | None = None,
) -> Figures:
    """Train in place; the weights of the best evaluation stay in `model`. Returns the final figures.

    log: receives (step, figures) of each evaluation of the run, those before a resume again. checkpoint: a file from
    which an interrupted run goes on to the same result; the caller removes it when the result is safe. With one,
    SIGTERM and SIGINT end the run behind the step in progress, with the file written, by raising `Interrupted`.
    augment: changes the images of each step. Raises InputError when no caption fits `max_length`, when the loss is
    not a number, or when the checkpoint is of another model.
    """
    processes = processes or Processes(next(model.parameters()).device)
    if settings.precision == "fp16" and processes.device.type == "cpu":
        raise InputError("train.precision: fp16 needs a GPU; on a CPU use fp32 or bf16")
    feed = _make_feed(train, vocabulary, settings, processes)
    run = _Run(model, vocabulary, feed, validation, settings, processes, augment)
    watch = watch or Watch()
    torch.manual_seed(settings.seed + 7919 * processes.rank)
    if checkpoint is not None:
        run.restore(checkpoint)
    if processes.is_main:
        for step, figures in run.progress.history:
            log(step, figures)
    with Interruption() if checkpoint is not None else contextlib.nullcontext(Interruption()) as stop:
        for step in run.steps():
            run.learn(step)
            evaluated = step % settings.evaluate_every == 0 or step == settings.steps
            if evaluated:
                run.evaluate(log, watch)
            number = processes.told_to_stop(stop, step)
            due = step % settings.save_every == 0 or run.is_over if settings.save_every else evaluated
            if checkpoint is not None and (due or number):
                run.save(checkpoint)
            if number:
                raise Interrupted(number, step)
    return run.finish()


def _make_feed(
    train: Examples | Stream, vocabulary: UnitVocabulary, settings: TrainingSettings, processes: Processes
) -> Feed:
    sharing = Sharing(processes.rank, processes.count, settings.accumulation_steps)
    sizes = {name: getattr(settings, name) for name in ("batch_size", "batch_tokens", "max_length")}
    if isinstance(train, Stream):
        return StreamFeed(train, vocabulary, sharing=sharing, **sizes)
    return MemoryFeed(train, vocabulary, seed=settings.seed, sharing=sharing, **sizes)


class _Loss(nn.Module):
    """The loss as a module, since gradients are averaged over processes around a module's forward."""

    def __init__(self, model: Captioner, label_smoothing: float) -> None:
        super().__init__()
        self.model, self.label_smoothing = model, label_smoothing

    def forward(self, images: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        return caption_loss(self.model, images, ids, self.label_smoothing)


class _Run:
    """Model, optimiser, data and progress of one training."""

    def __init__(
        self,
        model: Captioner,
        vocabulary: UnitVocabulary,
        feed: Feed,
        validation: Examples,
        settings: TrainingSettings,
        processes: Processes,
        augment: Augment | None = None,
    ) -> None:
        self.model, self.feed, self.settings, self.processes = model, feed, settings, processes
        self.progress = _Progress()
        self._augment = augment
        self.trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
        self._optimizer = make_optimizer(
            model, settings.learning_rate, settings.pretrained_rate_scale, settings.weight_decay
        )
        self._loss = processes.wrap(_Loss(model, settings.label_smoothing))
        self._scaler = torch.amp.GradScaler(processes.device.type, enabled=settings.precision == "fp16")
        self._average = WeightAverage(self.trainable, settings.ema_decay) if settings.ema_decay else None
        self._validate = Validator(
            validation,
            vocabulary,
            settings.max_length,
            settings.batch_size,
            settings.num_validation_images,
            settings.precision,
            processes,
        )
        self._best = self._weights()
        # On the device: to read a loss is to wait for it.
        self._loss_sum = torch.zeros((), dtype=torch.float64, device=processes.device)
        self._tokens, self._clock = 0, time.monotonic()

    @property
    def is_over(self) -> bool:
        """Whether the last step is made, or patience is at its end."""
        settings, progress = self.settings, self.progress
        return progress.step >= settings.steps or 0 < settings.patience <= progress.num_worse

    def steps(self) -> Iterator[int]:
        """The steps that are left, with a progress bar in the first process."""
        total, hidden = self.settings.steps, None if self.processes.is_main else True
        with tqdm(desc="train", unit="step", total=total, initial=self.progress.step, disable=hidden) as bar:
            while not self.is_over:
                yield self.progress.step + 1
                bar.update()

    def learn(self, step: int) -> None:
        """Make one step of the optimiser."""
        settings, processes = self.settings, self.processes
        only_new = step <= settings.embedding_steps
        for name, parameter in self.trainable.items() if processes.count == 1 else ():
            parameter.requires_grad_(is_new(name) or not only_new)
        train_mode(self.model, only_new)
        factor = rate_factor(settings.schedule, step - 1, settings.warmup_steps, settings.steps)
        for group in self._optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
        self._optimizer.zero_grad(set_to_none=True)
        self._backward(step)
        if only_new:  # several processes wait for all gradients, so these are thrown away and not left out
            for name, parameter in self.trainable.items():
                parameter.grad = parameter.grad if is_new(name) else None
        self._scaler.unscale_(self._optimizer)
        if settings.clip_norm:
            nn.utils.clip_grad_norm_(self.trainable.values(), settings.clip_norm)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        if self._average is not None:
            self._average.update(step)
        self.progress.step = step
        self.progress.loss_steps += 1

    def _backward(self, step: int) -> None:
        """Gradients of the mean loss over all positions of the whole batch, whoever has how many of them."""
        turn, processes = next(self.feed), self.processes
        own = sum(part.num_tokens for part in turn.parts)
        total = torch.tensor(float(own)) if turn.num_tokens is None else turn.num_tokens
        if isinstance(total, torch.Tensor):
            total = processes.sum(total)
        for number, part in enumerate(turn.parts, start=1):
            with (
                processes.gradients(self._loss, complete=number == len(turn.parts)),
                arithmetic(processes.device, self.settings.precision),
            ):
                images = self._augment(part.images, step, part.numbers) if self._augment else part.images
                images, ids = (x.to(processes.device, non_blocking=True) for x in (images, part.ids))
                loss = self._loss(images, ids) * (part.num_tokens / total)
                # Processes' gradients are averaged, where their sum is wanted.
                self._scaler.scale(loss * processes.count).backward()
            self._loss_sum += loss.detach().double()
        self._tokens += own

    def evaluate(self, log: Callable[[int, Figures], None], watch: Watch) -> None:
        """Measure, tell, and keep the weights if they are the best so far."""
        progress, processes = self.progress, self.processes
        loss = progress.loss_sum + float(processes.sum(self._loss_sum))
        figures = {"loss": loss / progress.loss_steps}
        remedy = "a lower learning_rate, a longer warm-up (warmup_steps) or precision bf16 in place of fp16"
        check_finite("train", progress.step, figures, remedy)
        tokens = float(processes.sum(torch.tensor(float(self._tokens))))
        seconds = time.monotonic() - self._clock
        with self._average.applied() if self._average is not None else contextlib.nullcontext():
            measured, spoken = self._validate(self.model)
            figures |= measured
            score = figures.get("validation_loss", figures["loss"])
            if score <= progress.best_score:
                progress.best_score, progress.num_worse, self._best = score, 0, self._weights()
            else:
                progress.num_worse += 1
        if processes.is_main:
            if watch.spoken is not None:
                states = random_states(processes.device)  # who listens may draw, and must not change the training
                figures |= watch.spoken(progress.step, spoken)
                restore_random_states(states, processes.device)
            log(progress.step, figures)
            if watch.live is not None:
                speed = {"tokens_per_second": round(tokens / max(seconds, 1e-9), 1), "seconds": round(seconds, 2)}
                watch.live(progress.step, {**figures, **speed})
        progress.figures = figures
        progress.history.append((progress.step, figures))
        progress.loss_sum, progress.loss_steps = 0.0, 0
        self._loss_sum.zero_()
        self._tokens, self._clock = 0, time.monotonic()

    def finish(self) -> Figures:
        """The best weights into the model; the last figures and a summary."""
        for parameter in self.trainable.values():
            parameter.requires_grad_()
        self.model.load_state_dict(self._best, strict=False)
        progress, feed = self.progress, self.feed
        too_long = int(self.processes.sum(torch.tensor(feed.num_too_long))) if isinstance(feed, StreamFeed) else 0
        return {
            **progress.figures,
            "best_validation_loss": progress.best_score,
            "num_captions": feed.num_captions,
            "num_too_long": too_long or feed.num_too_long,
        }

    def save(self, path: Path) -> None:
        """Write the checkpoint, in the first process; the others give it what only they know."""
        progress, processes = self.progress, self.processes
        progress.loss_sum += float(processes.sum(self._loss_sum))
        self._loss_sum.zero_()
        position = processes.gather(torch.tensor(self.feed.position(), dtype=torch.int64)).tolist()
        random = {name: processes.gather(state) for name, state in random_states(processes.device).items()}
        if processes.is_main:
            groups = {
                "model": self._weights(),
                "best": self._best,
                "average": self._average.weights if self._average is not None else {},
                "optimizer": optimizer_tensors(self._optimizer),
                "random": random,
            }
            facts = {**asdict(progress), "positions": position, "scaler": self._scaler.state_dict()}
            save_checkpoint(path, groups, facts)

    def restore(self, path: Path) -> None:
        """Go on from the checkpoint, if there is one; all processes have to see the same file."""
        if path.exists():
            self._load(path)
        steps = self.processes.gather(torch.tensor([self.progress.step]))
        if int(steps.min()) != int(steps.max()):
            raise InputError(
                f"{path}: not the same for all processes (steps {steps.flatten().tolist()}); the scratch folder "
                "(I2S_SCRATCH) has to be one that all machines see"
            )

    def _load(self, path: Path) -> None:
        found, rank = load_checkpoint(path), self.processes.rank
        facts: dict[str, Any] = found.facts
        own = self._weights()
        for group in ("model", "best"):
            shapes = {name: value.shape for name, value in found.groups.get(group, {}).items()}
            if shapes != {name: value.shape for name, value in own.items()}:
                raise InputError(f"{path}: a checkpoint of another model; remove it to start anew")
        self.model.load_state_dict(found.groups["model"], strict=False)
        self._best = found.groups["best"]
        if self._average is not None:
            self._average.restore(found.groups["average"])
        restore_optimizer(self._optimizer, found.groups.get("optimizer", {}))
        positions, known = facts.pop("positions"), found.groups["random"]
        self._scaler.load_state_dict(facts.pop("scaler"))
        self.progress = _Progress(**facts)
        if isinstance(self.feed, StreamFeed) and len(positions) != self.processes.count:
            raise InputError(
                f"{path}: written by {len(positions)} processes; a streamed run goes on with as many, not with "
                f"{self.processes.count}"
            )
        self.feed.go_on(self.progress.step, positions[min(rank, len(positions) - 1)])
        if rank < len(known["random"]):
            states = {name: state[rank] for name, state in known.items()}
            restore_random_states(states, self.processes.device)

    def _weights(self) -> dict[str, torch.Tensor]:
        """A copy of the weights, without those that never change."""
        return {
            name: value.detach().cpu().clone()
            for name, value in self.model.state_dict().items()
            if name not in self._frozen
        }
