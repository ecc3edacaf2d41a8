"""Training of a ViT-VQGAN: reconstruction, a perceptual network and an adversary as asked for, and the codebook's loss.

By default squared and absolute error alone: for small pictures the rest buys little and costs much, and a perceptual
network is a download. What a small codebook does need, so that its codes are all used, is always here: some steps
without quantisation, then codes initialised by clustering what the encoder says, then restarts of codes that nothing
uses (pipeline.vision.codebook).
"""

import copy
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from pipeline.arithmetic import Precision, arithmetic
from pipeline.errors import InputError
from pipeline.training_state import check_finite, load_state, save_state
from pipeline.vision.codebook import follow, initialise_codebook, restart_idle
from pipeline.vision.losses import Adversary, Criterion, LossWeights
from pipeline.vision.lpips import LPIPS, frechet_distance, perceptual_distance
from pipeline.vision.tokenizer import ImageTokenizer
from pipeline.vision.vit_vqgan import ViTVQGAN


@dataclass(frozen=True)
class VQGANTraining:
    """How a tokenizer is trained; every length is in steps.

    The learning rate warms up and then falls to zero along a cosine. During the first `continuous_steps`
    vectors pass unquantised; then the codes are set by spherical k-means of `init_batches` batches. Until
    `restart_until` of the run is over, every `restart_every` steps (0: never) codes used fewer than `restart_below`
    times since the last look are set to encoder outputs drawn from the batch at hand.

    codebook_decay: above 0, codes follow the mean of their vectors by a moving average and learn by no gradient.
    average_decay: above 0, what training leaves is a moving average of the weights of its steps.
    """

    steps: int
    seed: int = 0
    learning_rate: float = 1e-3
    warmup_steps: int = 100
    weight_decay: float = 1e-4
    l2_weight: float = 1.0
    l1_weight: float = 0.0
    logit_laplace_weight: float = 0.0
    perceptual_weight: float = 0.0
    adversary: Adversary | None = None
    codebook_weight: float = 1.0
    codebook_decay: float = 0.0
    average_decay: float = 0.0
    precision: Precision = "fp32"
    gradient_clip: float = 1.0
    continuous_steps: int = 200
    init_batches: int = 8
    restart_every: int = 50
    restart_below: int = 2
    restart_until: float = 0.8
    log_every: int = 25
    checkpoint_every: int = 500

    def rate(self, step: int) -> float:
        """The learning rate at a step counted from 0."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        return self.learning_rate * 0.5 * (1 + float(np.cos(np.pi * min(1.0, done))))

    @property
    def losses(self) -> LossWeights:
        """The weights of the losses on pictures."""
        return LossWeights(
            self.l2_weight, self.l1_weight, self.logit_laplace_weight, self.perceptual_weight, self.adversary
        )


def train_vit_vqgan(
    model: ViTVQGAN,
    batch_at: Callable[[int], torch.Tensor],
    settings: VQGANTraining,
    *,
    perceptual: LPIPS | None = None,
    checkpoint: Path | None = None,
    fresh_codebook: bool = True,
    log: Callable[[dict[str, Any]], None] | None = None,
    progress: bool = True,
) -> list[dict[str, float]]:
    """Train `model` in place on its own device and leave it in evaluation mode.

    batch_at(step) gives the images of a step, float32 [batch, 3, height, width] in [0, 1]; being a function
    of the step alone, a run that resumes from `checkpoint` (a folder) goes on with the very same pictures.
    perceptual: the network of the perceptual loss, needed when that has a weight.
    fresh_codebook: False keeps the codebook (fine-tuning) and skips the unquantised steps.
    Returns, and gives to `log` as they come, {step, l1, l2, codebook, rate, used}, where `used` is the
    share of codes used since codes were last counted, and the losses beside l1 and l2 that have a weight
    (unweighted). The caller sets the number of threads. InputError for settings that cannot be met, for a
    checkpoint of others, and when a loss is not a number.
    """
    if settings.precision == "fp16":
        raise InputError("image tokenizer: it trains in fp32 or bf16; fp16 is not supported")
    if not fresh_codebook:
        settings = replace(settings, continuous_steps=0)
    run = _Run(model, settings, perceptual)
    start = 0 if checkpoint is None else run.resume(checkpoint)
    model.train()
    for step in tqdm(range(start, settings.steps), "vqgan", initial=start, total=settings.steps, disable=not progress):
        if fresh_codebook and step == settings.continuous_steps:
            batches = [batch_at(settings.steps + i) for i in range(settings.init_batches)]
            initialise_codebook(model, batches, settings.seed)
            for average in run.averages:
                average.quantizer.load_state_dict(model.quantizer.state_dict())
        with arithmetic(_device(model), "fp32"):
            record = run.step(batch_at(step).to(_device(model)), step)
        told = step % settings.log_every == 0 or step + 1 == settings.steps
        kept = checkpoint is not None and (step + 1) % settings.checkpoint_every == 0
        if told or kept:  # to read a loss is to wait for it
            found = {name: value if isinstance(value, int | float) else float(value) for name, value in record.items()}
            check_finite("image tokenizer", step, found, "a lower learning_rate")
        if told:
            found["used"] = float((run.last_counts > 0).float().mean())
            run.history.append(found)
            if log is not None:
                log(found)
        if checkpoint is not None and kept:
            run.save(checkpoint, step + 1)
    for average in run.averages:
        model.load_state_dict(average.state_dict())
    model.quantizer.requires_grad_(True)
    model.eval()
    return run.history


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _optimizer(model: ViTVQGAN, settings: VQGANTraining) -> torch.optim.AdamW:
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            # Codes are normalised at every use, so decay would only change their learning rate.
            decays = parameter.ndim > 1 and name != "quantizer.embedding.weight"
            (matrices if decays else others).append(parameter)
    groups = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.99))


class _Run:
    """One training: the model, its losses and optimisers, the counts of its codes, the average of its weights."""

    def __init__(self, model: ViTVQGAN, settings: VQGANTraining, perceptual: LPIPS | None) -> None:
        if model.decoder is None:
            raise InputError("image tokenizer: it has no decoder, so it cannot be trained")
        self.model, self.settings = model, settings
        self.last_layer = cast(nn.Parameter, model.decoder.to_pixel[1].weight)
        model.quantizer.requires_grad_(not settings.codebook_decay)
        self.optimizer = _optimizer(model, settings)
        # Drawn beside the stream that the tokenizer is drawn from, so that an adversary changes nothing there.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            self.criterion = Criterion(model, settings.losses, perceptual, settings.precision)
        self.averages = [copy.deepcopy(model).requires_grad_(False)] if settings.average_decay else []
        self.counts = torch.zeros(model.vocab_size, dtype=torch.int64)
        self.last_counts = self.counts
        self.history: list[dict[str, float]] = []

    def step(self, images: torch.Tensor, step: int) -> dict[str, Any]:
        """Train on a batch; gives the step, its losses and its rate, tensors still."""
        settings, rate = self.settings, self.settings.rate(step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        vectors, codes, rebuilt, codebook_loss = self._rebuild(images, quantised=step >= settings.continuous_steps)
        loss, found = self.criterion(rebuilt, images, self.last_layer, step)
        self.optimizer.zero_grad(set_to_none=True)
        (loss + settings.codebook_weight * codebook_loss).backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), settings.gradient_clip)
        self.optimizer.step()
        found |= self.criterion.train_discriminator(rebuilt, images, rate, step)
        if codes is not None and settings.codebook_decay:
            follow(self.model, vectors.detach().flatten(0, 1), codes.flatten(), settings.codebook_decay)
        self._count(images, codes, step)
        self._average(step)
        found["codebook"] = codebook_loss
        return {"step": step, **{name: value.detach() for name, value in found.items()}, "rate": rate}

    def _rebuild(
        self, images: torch.Tensor, *, quantised: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor, torch.Tensor]:
        """Vectors before quantisation, codes (None: not quantised), reconstruction and codebook loss."""
        model, device = self.model, images.device
        with arithmetic(device, self.settings.precision):
            vectors = model.encode(images)
        vectors = vectors.float()
        passed, codebook_loss, codes = vectors, torch.zeros((), device=device), None
        if quantised:
            passed, codebook_loss, codes = model.quantize(vectors)
        with arithmetic(device, self.settings.precision):
            rebuilt = model.decode(passed)
        return vectors, codes, rebuilt.float(), codebook_loss

    def _count(self, images: torch.Tensor, codes: torch.Tensor | None, step: int) -> None:
        """Count the codes, and from time to time restart those that were hardly used."""
        settings = self.settings
        self.last_counts = self.counts
        if codes is None:
            return
        self.counts += torch.bincount(codes.flatten().cpu(), minlength=len(self.counts))
        since = step - settings.continuous_steps + 1
        if settings.restart_every and since % settings.restart_every == 0:
            if step < settings.restart_until * settings.steps:
                idle = (self.counts < settings.restart_below).nonzero().flatten()
                seed = settings.seed * 1_000_003 + step
                restart_idle(self.model, self.optimizer, images, idle, seed, self.averages)
            self.last_counts = self.counts.clone()
            self.counts.zero_()

    @torch.no_grad()
    def _average(self, step: int) -> None:
        # Less memory at first, so that the random start is soon forgotten.
        decay = min(self.settings.average_decay, (1 + step) / (10 + step))
        for average in self.averages:
            for mean, value in zip(average.parameters(), self.model.parameters(), strict=True):
                mean.lerp_(value, 1 - decay)

    @property
    def _parts(self) -> dict[str, nn.Module]:
        parts: dict[str, nn.Module] = {"model": self.model}
        if self.criterion.discriminator is not None:
            parts["discriminator"] = self.criterion.discriminator
        return parts | {f"average{number}": average for number, average in enumerate(self.averages)}

    @property
    def _optimizers(self) -> dict[str, torch.optim.Optimizer]:
        optimizers: dict[str, torch.optim.Optimizer] = {"model": self.optimizer}
        if self.criterion.optimizer is not None:
            optimizers["discriminator"] = self.criterion.optimizer
        return optimizers

    def save(self, folder: Path, step: int) -> None:
        """Write everything that the steps after `step` depend on."""
        facts = {"history": self.history, "counts": self.counts.tolist()}
        save_state(folder, step, asdict(self.settings), self._parts, self._optimizers, facts)

    def resume(self, folder: Path) -> int:
        """Put back what `save` wrote there, if anything; gives the steps done."""
        found = load_state(folder, asdict(self.settings), self._parts, self._optimizers)
        if found is None:
            return 0
        step, facts = found
        self.history = list(facts["history"])
        self.counts.copy_(torch.tensor(facts["counts"]))
        return step


# ---------------------------------------------------------------------------------------------- measuring


@torch.inference_mode()
def measure(
    model: ImageTokenizer, batches: Iterable[torch.Tensor], perceptual: LPIPS | None = None
) -> tuple[dict[str, float], np.ndarray]:
    """Reconstruction and codebook figures over batches of images [batch, 3, height, width] in [0, 1].

    Returns {num_images, psnr (mean over images, dB, peak 1), mse, usage (share of codes used), perplexity
    (exp of the entropy of code frequencies)} and the count of every code, int64 [n_embed]. Of no images,
    num_images alone; of a tokenizer that only encodes, no psnr and mse. With a perceptual network also lpips (mean)
    and, of two images or more, frechet_vgg: the Frechet distance between originals and reconstructions over its
    deepest activations. It is computed as FID is, but over VGG16 and not Inception, so it is no FID and not to be
    compared with one; it also falls with the number of images.
    """
    counts = np.zeros(model.vocab_size, np.int64)
    errors: list[np.ndarray] = []
    distances: list[float] = []
    pooled: list[tuple[torch.Tensor, torch.Tensor]] = []
    num_images = 0
    for images in batches:
        images = images.to(next(model.parameters()).device)
        codes = model.encode_codes(images)
        num_images += len(images)
        counts += np.bincount(codes.flatten().cpu().numpy(), minlength=model.vocab_size)
        if model.can_decode:
            rebuilt = model.decode_codes(codes).clamp(0, 1)
            errors.append((rebuilt - images).square().mean(dim=(1, 2, 3)).double().cpu().numpy())
            if perceptual is not None:
                distances.append(float(perceptual_distance(perceptual, rebuilt, images)) * len(images))
                pooled.append((perceptual.pooled(2 * images - 1).cpu(), perceptual.pooled(2 * rebuilt - 1).cpu()))
    if not num_images:
        return {"num_images": 0}, counts
    rebuilding: dict[str, float] = {}
    if errors:
        mse = np.concatenate(errors)
        psnr = np.mean(-10 * np.log10(np.maximum(mse, 1e-10)))
        rebuilding = {"psnr": float(psnr), "mse": float(mse.mean())}
    if pooled:
        rebuilding["lpips"] = sum(distances) / num_images
    if pooled and num_images > 1:
        rebuilding["frechet_vgg"] = frechet_distance(*(torch.cat(part) for part in zip(*pooled, strict=True)))
    frequencies = counts[counts > 0] / counts.sum()
    return {
        "num_images": num_images,
        **rebuilding,
        "usage": float((counts > 0).mean()),
        "perplexity": float(np.exp(-(frequencies * np.log(frequencies)).sum())),
    }, counts
