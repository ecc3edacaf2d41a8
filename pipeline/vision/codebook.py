"""What keeps a codebook in use: codes set by clustering, idle codes restarted, codes that follow their vectors.

Every draw comes from a seed and a step, so that training repeats itself and goes on after an interruption.
"""

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F

from pipeline.vision.vit_vqgan import ViTVQGAN


@torch.no_grad()
def initialise_codebook(model: ViTVQGAN, batches: Iterable[torch.Tensor], seed: int) -> None:
    """Set the codes to the centres of what the encoder says of `batches`, by spherical k-means."""
    device = model.quantizer.embedding.weight.device
    vectors = torch.cat([model.encode(batch.to(device)).flatten(0, 1).cpu() for batch in batches])
    generator = torch.Generator().manual_seed(seed)
    codes = _spherical_kmeans(vectors, model.vocab_size, generator)
    model.quantizer.embedding.weight.copy_(codes.to(device))


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
def restart_idle(
    model: ViTVQGAN,
    optimizer: torch.optim.Optimizer,
    images: torch.Tensor,
    idle: torch.Tensor,
    seed: int,
    copies: Sequence[ViTVQGAN] = (),
) -> None:
    """Set the codes numbered `idle` to encoder outputs of `images` drawn with `seed`; their moments become zero.

    copies: models that must have the new codes too, such as an average of weights.
    """
    if not len(idle):
        return
    vectors = model.encode(images).flatten(0, 1)
    generator = torch.Generator().manual_seed(seed)
    chosen = vectors[torch.randint(len(vectors), (len(idle),), generator=generator).to(vectors.device)]
    for each in (model, *copies):
        weight = each.quantizer.embedding.weight
        weight[idle.to(weight.device)] = chosen.to(weight.dtype)
    weight = model.quantizer.embedding.weight
    moments = optimizer.state.get(weight, {})  # none when codes learn by no gradient
    for name in ("exp_avg", "exp_avg_sq"):
        if name in moments:
            moments[name][idle.to(weight.device)] = 0


@torch.no_grad()
def follow(model: ViTVQGAN, vectors: torch.Tensor, codes: torch.Tensor, decay: float) -> None:
    """Move each used code towards the mean direction of its vectors; the others stay.

    vectors: unit vectors [n, dim]; codes: int64 [n]. A code becomes decay * code + (1 - decay) * direction, unit
    length again: the moving average of van den Oord et al. 2017 (appendix A.1) for codes that are directions.
    """
    weight = model.quantizer.embedding.weight
    vectors = vectors.to(weight.dtype)
    sums = torch.zeros_like(weight).index_add_(0, codes, vectors)
    used = torch.bincount(codes, minlength=len(weight)) > 0
    moved = decay * F.normalize(weight, dim=1) + (1 - decay) * F.normalize(sums, dim=1)
    weight.copy_(torch.where(used[:, None], F.normalize(moved, dim=1), weight))
