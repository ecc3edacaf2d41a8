"""Training of a ViT-VQGAN by reconstruction: squared and absolute error plus the codebook's own loss.

No adversary and no perceptual network: for small pictures they buy little and cost much. What a small
codebook does need, so that its codes are all used, is here: some steps without quantisation, then codes
initialised by clustering what the encoder says, then restarts of codes that nothing uses.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save
from torch import nn
from tqdm import tqdm

from pipeline.errors import InputError
from pipeline.files import atomic_path, fingerprint, read_json, write_json
from pipeline.vision.tokenizer import ImageTokenizer
from pipeline.vision.vit_vqgan import ViTVQGAN


@dataclass(frozen=True)
class VQGANTraining:
    """How a tokenizer is trained; every length is in steps.

    The learning rate warms up and then falls to zero along a cosine. During the first `continuous_steps`
    vectors pass unquantised; then the codes are set by spherical k-means of `init_batches` batches. Until
    `restart_until` of the run is over, every `restart_every` steps codes used fewer than `restart_below`
    times since the last look are set to encoder outputs drawn from the batch at hand.
    """

    steps: int
    seed: int = 0
    learning_rate: float = 1e-3
    warmup_steps: int = 100
    weight_decay: float = 1e-4
    l2_weight: float = 1.0
    l1_weight: float = 0.0
    codebook_weight: float = 1.0
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


def train_vit_vqgan(
    model: ViTVQGAN,
    batch_at: Callable[[int], torch.Tensor],
    settings: VQGANTraining,
    *,
    checkpoint: Path | None = None,
    fresh_codebook: bool = True,
    log: Callable[[dict[str, Any]], None] | None = None,
    progress: bool = True,
) -> list[dict[str, float]]:
    """Train `model` in place on its own device and leave it in evaluation mode.

    batch_at(step) gives the images of a step, float32 [batch, 3, height, width] in [0, 1]; being a function
    of the step alone, a run that resumes from `checkpoint` (a folder) goes on with the very same pictures.
    fresh_codebook: False keeps the codebook (fine-tuning) and skips the unquantised steps.
    Returns, and gives to `log` as they come, {step, l1, l2, codebook, rate, used}, where `used` is the
    share of codes used since codes were last counted. The caller sets the number of threads.
    """
    if not fresh_codebook:
        settings = replace(settings, continuous_steps=0)
    optimizer = _optimizer(model, settings)
    counts = torch.zeros(model.vocab_size, dtype=torch.int64)
    start = 0
    history: list[dict[str, float]] = []
    if checkpoint is not None and (checkpoint / "state.json").exists():
        start, history = _resume(checkpoint, model, optimizer, counts, settings)
    model.train()
    for step in tqdm(range(start, settings.steps), "vqgan", initial=start, total=settings.steps, disable=not progress):
        if fresh_codebook and step == settings.continuous_steps:
            _initialise_codebook(model, [batch_at(settings.steps + i) for i in range(settings.init_batches)], settings)
        record = _step(model, optimizer, batch_at(step).to(_device(model)), counts, step, settings)
        if step % settings.log_every == 0 or step + 1 == settings.steps:
            record["used"] = float((counts > 0).float().mean())
            history.append(record)
            if log is not None:
                log(record)
        if checkpoint is not None and (step + 1) % settings.checkpoint_every == 0:
            _save(checkpoint, model, optimizer, counts, step + 1, history, settings)
    model.eval()
    return history


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


def _step(
    model: ViTVQGAN,
    optimizer: torch.optim.Optimizer,
    images: torch.Tensor,
    counts: torch.Tensor,
    step: int,
    settings: VQGANTraining,
) -> dict[str, float]:
    for group in optimizer.param_groups:
        group["lr"] = settings.rate(step)
    if step < settings.continuous_steps:
        rebuilt = model.decode(model.encode(images))
        codebook_loss = torch.zeros((), device=images.device)
    else:
        rebuilt, codebook_loss, codes = model(images)
        counts += torch.bincount(codes.flatten().cpu(), minlength=len(counts))
    l1, l2 = F.l1_loss(rebuilt, images), F.mse_loss(rebuilt, images)
    loss = settings.l1_weight * l1 + settings.l2_weight * l2 + settings.codebook_weight * codebook_loss
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), settings.gradient_clip)
    optimizer.step()
    since = step - settings.continuous_steps + 1
    if since > 0 and since % settings.restart_every == 0:
        if step < settings.restart_until * settings.steps:
            _restart(model, optimizer, images, counts, step, settings)
        counts.zero_()
    return {
        "step": step,
        "l1": float(l1.detach()),
        "l2": float(l2.detach()),
        "codebook": float(codebook_loss.detach()),
        "rate": settings.rate(step),
    }


# ---------------------------------------------------------------------------------------------- codebook


@torch.no_grad()
def _initialise_codebook(model: ViTVQGAN, batches: Iterable[torch.Tensor], settings: VQGANTraining) -> None:
    vectors = torch.cat([model.encode(batch.to(_device(model))).flatten(0, 1).cpu() for batch in batches])
    generator = torch.Generator().manual_seed(settings.seed)
    codes = _spherical_kmeans(vectors, model.vocab_size, generator)
    model.quantizer.embedding.weight.copy_(codes.to(_device(model)))


def _spherical_kmeans(vectors: torch.Tensor, number: int, generator: torch.Generator, rounds: int = 10) -> torch.Tensor:
    """Unit centres [number, dim] of unit vectors [n, dim]; empty clusters restart at random vectors."""
    centres = vectors[torch.randint(len(vectors), (number,), generator=generator)]
    for _ in range(rounds):
        nearest = torch.cat([(part @ centres.T).argmax(1) for part in vectors.split(16384)])
        sums = torch.zeros_like(centres).index_add_(0, nearest, vectors)
        empty = torch.bincount(nearest, minlength=number) == 0
        sums[empty] = vectors[torch.randint(len(vectors), (int(empty.sum()),), generator=generator)]
        centres = F.normalize(sums, dim=1)
    return centres


@torch.no_grad()
def _restart(
    model: ViTVQGAN,
    optimizer: torch.optim.Optimizer,
    images: torch.Tensor,
    counts: torch.Tensor,
    step: int,
    settings: VQGANTraining,
) -> None:
    idle = (counts < settings.restart_below).nonzero().flatten()
    if not len(idle):
        return
    vectors = model.encode(images).flatten(0, 1)
    generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + step)
    chosen = torch.randint(len(vectors), (len(idle),), generator=generator)
    weight = model.quantizer.embedding.weight
    weight[idle.to(weight.device)] = vectors[chosen.to(vectors.device)]
    for name in ("exp_avg", "exp_avg_sq"):
        optimizer.state[weight][name][idle.to(weight.device)] = 0


# ---------------------------------------------------------------------------------------------- checkpoints


def _save(
    folder: Path,
    model: ViTVQGAN,
    optimizer: torch.optim.Optimizer,
    counts: torch.Tensor,
    step: int,
    history: list[dict[str, float]],
    settings: VQGANTraining,
) -> None:
    tensors = {f"model.{name}": tensor.contiguous() for name, tensor in model.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": torch.as_tensor(value) for name, value in state.items()}
    tensors["counts"] = counts
    # The number of the step is in the name, so that tensors and state.json can never disagree.
    with atomic_path(folder / f"step-{step}.safetensors") as temporary:
        temporary.write_bytes(save(tensors))
    write_json(folder / "state.json", {"step": step, "history": history, "settings": fingerprint(settings.__dict__)})
    for path in folder.glob("step-*.safetensors"):
        if path.name != f"step-{step}.safetensors":
            path.unlink()


def _resume(
    folder: Path,
    model: ViTVQGAN,
    optimizer: torch.optim.Optimizer,
    counts: torch.Tensor,
    settings: VQGANTraining,
) -> tuple[int, list[dict[str, float]]]:
    state = read_json(folder / "state.json")
    if state["settings"] != fingerprint(settings.__dict__):
        raise InputError(f"{folder}: a checkpoint of other training settings; remove the folder to start again")
    weights: dict[str, torch.Tensor] = {}
    moments: dict[int, dict[str, torch.Tensor]] = {}
    with safe_open(folder / f"step-{state['step']}.safetensors", framework="pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118
            kind, _, rest = name.partition(".")
            if kind == "model":
                weights[rest] = tensors.get_tensor(name)
            elif kind == "optimizer":
                index, _, moment = rest.partition(".")
                moments.setdefault(int(index), {})[moment] = tensors.get_tensor(name)
        counts.copy_(tensors.get_tensor("counts"))
    model.load_state_dict(weights)
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
    return int(state["step"]), list(state["history"])


# ---------------------------------------------------------------------------------------------- measuring


@torch.inference_mode()
def measure(model: ImageTokenizer, batches: Iterable[torch.Tensor]) -> tuple[dict[str, float], np.ndarray]:
    """Reconstruction and codebook figures over batches of images [batch, 3, height, width] in [0, 1].

    Returns {num_images, psnr (mean over images, dB, peak 1), mse, usage (share of codes used), perplexity
    (exp of the entropy of code frequencies)} and the count of every code, int64 [n_embed]. Of no images,
    num_images alone; of a tokenizer that only encodes, no psnr and mse.
    """
    counts = np.zeros(model.vocab_size, np.int64)
    errors: list[np.ndarray] = []
    num_images = 0
    for images in batches:
        images = images.to(next(model.parameters()).device)
        codes = model.encode_codes(images)
        num_images += len(images)
        counts += np.bincount(codes.flatten().cpu().numpy(), minlength=model.vocab_size)
        if model.can_decode:
            rebuilt = model.decode_codes(codes).clamp(0, 1)
            errors.append((rebuilt - images).square().mean(dim=(1, 2, 3)).double().cpu().numpy())
    if not num_images:
        return {"num_images": 0}, counts
    rebuilding: dict[str, float] = {}
    if errors:
        mse = np.concatenate(errors)
        psnr = np.mean(-10 * np.log10(np.maximum(mse, 1e-10)))
        rebuilding = {"psnr": float(psnr), "mse": float(mse.mean())}
    frequencies = counts[counts > 0] / counts.sum()
    return {
        "num_images": num_images,
        **rebuilding,
        "usage": float((counts > 0).mean()),
        "perplexity": float(np.exp(-(frequencies * np.log(frequencies)).sum())),
    }, counts
