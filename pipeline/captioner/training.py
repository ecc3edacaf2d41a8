"""Trains the captioner by teacher forcing and watches it speak freely.

Takes examples in memory, gives the best model by validation loss and the figures of each evaluation:
teacher-forced loss and unit error rate of free-running generations against the nearest reference.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from pipeline.captioner.checkpoint import load_checkpoint, save_checkpoint
from pipeline.captioner.data import Examples, collate, encode_captions, epoch_batches
from pipeline.captioner.generation import generate_units
from pipeline.captioner.model import Captioner, caption_loss
from pipeline.captioner.vocabulary import UnitVocabulary
from pipeline.errors import InputError


@dataclass(frozen=True)
class TrainingSettings:
    """The schedule: linear warm-up, cosine to zero; weight decay on matrices only.

    pretrained_rate_scale: learning rate of everything but the units' embeddings and output, over theirs.
    embedding_steps: the first steps train only these, so that units find their place in what the pretrained
    decoder already does before it changes.
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


def train_captioner(
    model: Captioner,
    vocabulary: UnitVocabulary,
    train: Examples,
    validation: Examples,
    settings: TrainingSettings,
    log: Callable[[int, dict[str, float]], None],
    checkpoint: Path | None = None,
    augment: Callable[[torch.Tensor, int, Sequence[int]], torch.Tensor] | None = None,
) -> dict[str, float]:
    """Train in place; the weights of the best validation loss stay in `model`. Returns the final figures.

    log: receives (step, figures) at each evaluation. checkpoint: a file written at each evaluation, from which
    an interrupted run goes on to the same result; removed at the end. augment: changes the images [B, ...] of a step
    (see `augmentation`). Raises InputError when no caption fits `max_length`.
    """
    torch.manual_seed(settings.seed)
    pairs, num_too_long = encode_captions(train, vocabulary, settings.max_length)
    if not pairs:
        raise InputError(f"train: none of {num_too_long} captions has at most {settings.max_length} ids (max_length)")
    optimizer = _optimizer(model, settings)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, settings))
    trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    batches = _endless(pairs, settings)
    state = _start(model, optimizer, schedule, batches, checkpoint)
    device = next(model.parameters()).device
    losses: list[float] = []
    figures: dict[str, float] = {}
    steps = range(state.step + 1, settings.steps + 1)
    for step in tqdm(steps, desc="train", unit="step", total=settings.steps, initial=state.step, disable=None):
        for name, parameter in trainable.items():
            parameter.requires_grad_(_is_new(name) or step > settings.embedding_steps)
        _train_mode(model)
        chosen = next(batches)
        images, ids = collate(train, pairs, chosen, vocabulary.pad)
        if augment is not None:
            images = augment(images, step, chosen)
        loss = caption_loss(model, images.to(device), ids.to(device), settings.label_smoothing)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(trainable.values(), settings.clip_norm)
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
        if step % settings.evaluate_every == 0 or step == settings.steps:
            figures = {"loss": float(np.mean(losses)), **_validate(model, vocabulary, validation, settings)}
            losses.clear()
            log(step, figures)
            score = figures.get("validation_loss", figures["loss"])
            if score <= state.best_score:
                state.best_score, state.best = score, copy.deepcopy(model.state_dict())
            if checkpoint is not None:
                facts = {"step": step, "best_score": state.best_score, "figures": figures}
                save_checkpoint(checkpoint, model.state_dict(), state.best, optimizer, facts)
    model.load_state_dict(state.best)
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)
    summary = {"best_validation_loss": state.best_score, "num_captions": len(pairs), "num_too_long": num_too_long}
    return {**(figures or state.figures), **summary}


@dataclass
class _State:
    """How far training has come."""

    step: int
    best_score: float
    best: dict[str, torch.Tensor]
    figures: dict[str, float]


def _start(
    model: Captioner,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LambdaLR,
    batches: Iterator[list[int]],
    checkpoint: Path | None,
) -> _State:
    """The beginning, or where the checkpoint was written: weights, optimiser, schedule and place in the data."""
    if checkpoint is None or not checkpoint.exists():
        return _State(0, float("inf"), copy.deepcopy(model.state_dict()), {})
    weights, best, facts = load_checkpoint(checkpoint, optimizer)
    model.load_state_dict(weights)
    for _ in range(facts["step"]):
        next(batches)
    schedule.last_epoch = facts["step"] - 1
    schedule.step()
    return _State(facts["step"], facts["best_score"], best, facts["figures"])


def _optimizer(model: Captioner, settings: TrainingSettings) -> torch.optim.Optimizer:
    """AdamW; what stood in the pretrained model moves slower than the units' own embeddings and output."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            scale = 1.0 if _is_new(name) else settings.pretrained_rate_scale
            decay = settings.weight_decay if parameter.ndim > 1 else 0.0
            groups.setdefault((scale, decay), []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": parameters, "lr": settings.learning_rate * scale, "weight_decay": decay}
            for (scale, decay), parameters in groups.items()
        ],
        betas=(0.9, 0.98),
    )


def _is_new(name: str) -> bool:
    """Whether a weight belongs to the units and not to what was pretrained."""
    return name.startswith(("git.embeddings.word_embeddings.", "output."))


def _rate(step: int, settings: TrainingSettings) -> float:
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    done = (step - settings.warmup_steps) / max(1, settings.steps - settings.warmup_steps)
    return 0.5 * (1 + float(np.cos(np.pi * min(1.0, done))))


def _endless(pairs: list[tuple[int, list[int]]], settings: TrainingSettings) -> Iterator[list[int]]:
    rng = np.random.default_rng([settings.seed, 0])
    while True:
        yield from epoch_batches(pairs, settings.batch_size, rng)


def _train_mode(model: Captioner) -> None:
    """Training mode, but a frozen tower keeps its batch statistics and drops nothing."""
    model.train()
    tower = model.git.image_encoder
    if not any(parameter.requires_grad for parameter in tower.parameters()):
        tower.eval()


def _validate(
    model: Captioner, vocabulary: UnitVocabulary, validation: Examples, settings: TrainingSettings
) -> dict[str, float]:
    if not len(validation):
        return {}
    model.eval()
    pairs, _ = encode_captions(validation, vocabulary, settings.max_length)
    losses, weights = [], []
    with torch.inference_mode():
        for start in range(0, len(pairs), settings.batch_size):
            chosen = range(start, min(start + settings.batch_size, len(pairs)))
            images, ids = collate(validation, pairs, chosen, vocabulary.pad)
            images, ids = images.to(model.device), ids.to(model.device)
            losses.append(float(caption_loss(model, images, ids)))
            weights.append(int((ids[:, 1:] != vocabulary.pad).sum()))
    number = min(settings.num_validation_images, len(validation))
    spoken = generate_units(model, vocabulary, validation.images[:number], max_length=settings.max_length)
    errors = [
        unit_error_rate(units.tolist(), references)
        for units, references in zip(spoken, validation.captions[:number], strict=True)
        if references
    ]
    figures = {"validation_loss": float(np.average(losses, weights=weights))} if weights else {}
    return {**figures, "unit_error_rate": float(np.mean(errors))} if errors else figures


def unit_error_rate(units: list[int], references: list[list[int]]) -> float:
    """Edit distance to the nearest reference over its length: 0 is perfect."""
    return min(edit_distance(units, reference) / max(1, len(reference)) for reference in references)


def edit_distance(first: list[int], second: list[int]) -> int:
    """Levenshtein distance, one numpy row at a time."""
    other = np.array(second, dtype=np.int64)
    places = np.arange(len(second) + 1)
    row = places.copy()
    for number, unit in enumerate(first, start=1):
        steps = np.minimum(row[1:] + 1, row[:-1] + (other != unit))
        candidates = np.concatenate([[number], steps])
        # An insertion costs one a place, so the running minimum of (cost - place) carries it along the row.
        row = np.minimum.accumulate(candidates - places) + places
    return int(row[-1])
