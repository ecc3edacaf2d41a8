"""What a reconstruction is judged by: pixels, a perceptual network and an adversary, each with its weight.

Weights of zero cost nothing: their parts are neither built nor run.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from pipeline.arithmetic import Precision, arithmetic
from pipeline.errors import InputError
from pipeline.vision.discriminator import (
    AdversarialLoss,
    PatchDiscriminator,
    check_size,
    discriminator_loss,
    generator_loss,
)
from pipeline.vision.lpips import LPIPS, perceptual_distance
from pipeline.vision.vit_vqgan import ViTVQGAN

_EDGE = 0.1
"""How far the logit-Laplace loss keeps from 0 and 1, where logits are infinite (Ramesh et al. 2021, appendix A.3)."""


@dataclass(frozen=True)
class Adversary:
    """The discriminator. `start`: its first step; `layers`, `channels`: its size; `rate_scale`: its rate over ours.

    adaptive: scale `weight` by how strongly the other losses pull at the decoder's last layer over how strongly this
    one does (Esser et al. 2021, equation 7), so that neither drowns the other.
    """

    weight: float = 0.1
    loss: AdversarialLoss = "non_saturating"
    start: int = 0
    layers: int = 3
    channels: int = 64
    adaptive: bool = True
    rate_scale: float = 1.0


@dataclass(frozen=True)
class LossWeights:
    """The weight of each loss; `adversary` None: there is none."""

    l2: float = 1.0
    l1: float = 0.0
    logit_laplace: float = 0.0
    perceptual: float = 0.0
    adversary: Adversary | None = None


def logit_laplace_loss(rebuilt: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """Mean negative log-likelihood of `images` under a logit-Laplace distribution around `rebuilt`, both in [0, 1].

    -log of exp(-|logit(x) - logit(y)| / b) / (2 b x (1 - x)) with values mapped into [0.1, 0.9] (Ramesh et al. 2021,
    appendix A.3). Those authors let the decoder say b with three further channels; published ViT-VQGAN decoders have
    three channels, so b is 1 here.
    """
    x = images * (1 - 2 * _EDGE) + _EDGE
    # A reconstruction may lie outside [0, 1] by as much as the edge allows; beyond it the squared error pulls.
    y = (rebuilt * (1 - 2 * _EDGE) + _EDGE).clamp(0.01, 0.99)
    return ((torch.logit(x) - torch.logit(y)).abs() + (x * (1 - x)).log()).mean() + math.log(2)


class Criterion:
    """The losses of one training and, with an adversary, its discriminator and optimiser.

    InputError when pictures are too small for a part, or the perceptual loss has a weight but no network.
    """

    def __init__(
        self, model: ViTVQGAN, weights: LossWeights, perceptual: LPIPS | None, precision: Precision = "fp32"
    ) -> None:
        self.weights, self.precision = weights, precision
        self.device = next(model.parameters()).device
        if weights.perceptual and perceptual is None:
            raise InputError("image tokenizer: a perceptual loss needs weights (perceptual_weights)")
        self.perceptual = perceptual.to(self.device) if perceptual is not None and weights.perceptual else None
        self.discriminator: PatchDiscriminator | None = None
        self.optimizer: torch.optim.Optimizer | None = None
        if weights.adversary is not None:
            check_size(model.config.image_sides, weights.adversary.layers)
            self.discriminator = PatchDiscriminator(weights.adversary.layers, weights.adversary.channels)
            self.discriminator.to(self.device)
            # The rate is set at every step; betas as taming's and enhancing-transformers' discriminators have them.
            self.optimizer = torch.optim.AdamW(self.discriminator.parameters(), betas=(0.5, 0.9), weight_decay=1e-4)

    def __call__(
        self, rebuilt: torch.Tensor, images: torch.Tensor, last_layer: nn.Parameter, step: int
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The weighted sum for the tokenizer, and each loss unweighted. `last_layer` is the decoder's."""
        weights = self.weights
        found = {"l1": F.l1_loss(rebuilt, images), "l2": F.mse_loss(rebuilt, images)}
        total = weights.l1 * found["l1"] + weights.l2 * found["l2"]
        if weights.logit_laplace:
            found["logit_laplace"] = logit_laplace_loss(rebuilt, images)
            total = total + weights.logit_laplace * found["logit_laplace"]
        if self.perceptual is not None:
            with arithmetic(self.device, self.precision):
                found["perceptual"] = perceptual_distance(self.perceptual, rebuilt, images)
            total = total + weights.perceptual * found["perceptual"]
        if self.discriminator is not None and weights.adversary is not None:
            found["adversarial"], found["adversarial_weight"] = torch.zeros(2, device=self.device)
            if step >= weights.adversary.start:
                found["adversarial"] = loss = self._adversarial(self.discriminator, rebuilt, weights.adversary.loss)
                found["adversarial_weight"] = weight = self._weight(total, loss, last_layer, weights.adversary)
                total = total + weight * loss
        return total, found

    def train_discriminator(
        self, rebuilt: torch.Tensor, images: torch.Tensor, rate: float, step: int
    ) -> dict[str, torch.Tensor]:
        """One step of the discriminator, from its first step on; gives its loss (0 before)."""
        adversary = self.weights.adversary
        if self.discriminator is None or self.optimizer is None or adversary is None:
            return {}
        if step < adversary.start:
            return {"discriminator": torch.zeros((), device=self.device)}
        for group in self.optimizer.param_groups:
            group["lr"] = rate * adversary.rate_scale
        with arithmetic(self.device, self.precision):
            real, fake = (self.discriminator(2 * x - 1) for x in (images, rebuilt.detach()))
        loss = discriminator_loss(real.float(), fake.float(), adversary.loss)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return {"discriminator": loss}

    def _adversarial(self, judge: PatchDiscriminator, rebuilt: torch.Tensor, kind: AdversarialLoss) -> torch.Tensor:
        # The tokenizer's step teaches the discriminator nothing, so its own gradients need not be computed.
        judge.requires_grad_(False)
        with arithmetic(self.device, self.precision):
            scores = judge(2 * rebuilt - 1)
        judge.requires_grad_(True)
        return generator_loss(scores.float(), kind)

    @staticmethod
    def _weight(
        others: torch.Tensor, loss: torch.Tensor, last_layer: nn.Parameter, adversary: Adversary
    ) -> torch.Tensor:
        if not adversary.adaptive:
            return torch.tensor(adversary.weight, device=loss.device)
        pulls = [torch.autograd.grad(each, last_layer, retain_graph=True)[0].norm() for each in (others, loss)]
        return adversary.weight * (pulls[0] / (pulls[1] + 1e-4)).clamp(0, 1e4)
