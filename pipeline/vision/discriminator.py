"""The patch discriminator: is each patch of this picture a photograph's, or a tokenizer's?

Isola et al. 2017 (pix2pix, section 6.1.2) as taming-transformers' VQGAN uses it (`NLayerDiscriminator`), with that
repository's key names, so that the discriminator of a published VQGAN's checkpoint fits. It is needed to train only.
"""

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import nn

from pipeline.errors import InputError

AdversarialLoss = Literal["hinge", "vanilla", "non_saturating"]
"""hinge and vanilla: as in taming, where the tokenizer raises the mean score. non_saturating: as in ViT-VQGAN, where
it lowers softplus(-score); its discriminator is vanilla's."""


class PatchDiscriminator(nn.Module):
    """Images `[batch, 3, height, width]` in [-1, 1] to scores `[batch, 1, rows, columns]`, high for real ones.

    layers: convolutions of stride 2 (3 in the original; a score then sees 70 x 70 pixels). channels: of the first.
    """

    def __init__(self, layers: int = 3, channels: int = 64) -> None:
        super().__init__()
        parts: list[nn.Module] = [nn.Conv2d(3, channels, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        width = channels
        for layer in range(1, layers + 1):
            wider = channels * min(2**layer, 8)
            stride = 2 if layer < layers else 1
            # No bias: the normalisation that follows has one.
            parts += [
                nn.Conv2d(width, wider, 4, stride=stride, padding=1, bias=False),
                nn.BatchNorm2d(wider),
                nn.LeakyReLU(0.2),
            ]
            width = wider
        parts.append(nn.Conv2d(width, 1, 4, padding=1))
        self.main = nn.Sequential(*parts)
        self.apply(_initialise)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.main(images)


def check_size(sides: tuple[int, int], layers: int) -> None:
    """InputError when a picture of that height and width leaves no score after so many layers."""
    side = min(sides)
    for _ in range(layers):
        side //= 2
    if side < 3:
        raise InputError(
            f"image tokenizer: pictures of {sides[0]} x {sides[1]} are too small for a discriminator of {layers} "
            "layers; lower discriminator_layers"
        )


def discriminator_loss(real: torch.Tensor, fake: torch.Tensor, kind: AdversarialLoss) -> torch.Tensor:
    """What the discriminator lowers: half the sum of both means."""
    _check(kind)
    if kind == "hinge":
        return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())
    return 0.5 * (F.softplus(-real).mean() + F.softplus(fake).mean())


def generator_loss(fake: torch.Tensor, kind: AdversarialLoss) -> torch.Tensor:
    """What the tokenizer lowers."""
    _check(kind)
    return F.softplus(-fake).mean() if kind == "non_saturating" else -fake.mean()


def _check(kind: str) -> None:
    if kind not in get_args(AdversarialLoss):
        raise InputError(f"image tokenizer: adversarial loss {kind!r}; one of {', '.join(get_args(AdversarialLoss))}")


def _initialise(module: nn.Module) -> None:
    """DCGAN's normal weights, as in the original."""
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)
