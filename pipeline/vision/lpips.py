"""LPIPS: how different two pictures look to a network that has learnt to name photographs.

Zhang et al. 2018, "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", with VGG16 and linear
heads as taming-transformers has it. Nothing is downloaded: the weights are read from where the caller says, in any of
the layouts that they are published in:

- `features.N.{weight,bias}`, torchvision's VGG16, and `linN.model.1.weight`, LPIPS' `vgg.pth`, in one file or in two
  files of one folder;
- `net.sliceK.N.*` and `linN.model.1.weight`, as `LPIPS` saves itself in taming;
- the same below `loss.perceptual_loss.`, as a VQGAN's or ViT-VQGAN's checkpoint carries it.
"""

import re
from pathlib import Path

import numpy as np
import torch
from torch import nn

from pipeline.checkpoints.torch_files import Tensors
from pipeline.checkpoints.weights import check_fit, read_weights, strip_prefix
from pipeline.errors import InputError

# Output channels of VGG16's thirteen convolutions by block; a pooling stands between blocks.
_BLOCKS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
SMALLEST = 16
"""Side of the smallest picture in pixels: four poolings must leave something."""
_FILES = (".safetensors", ".pth", ".pt", ".ckpt", ".bin")


class LPIPS(nn.Module):
    """Takes images float32 `[batch, 3, height, width]` in [-1, 1]. Frozen, and always in evaluation mode."""

    shift: torch.Tensor
    scale: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        # LPIPS' scaling layer: ImageNet's mean and deviation, for values in [-1, 1].
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1))
        self.features = nn.Sequential(*_vgg16())
        self.heads = nn.ParameterList(nn.Parameter(torch.zeros(1, block[-1], 1, 1)) for block in _BLOCKS)
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "LPIPS":
        """Stays in evaluation mode: it is a measure and learns nothing."""
        return super().train(False)

    def activations(self, images: torch.Tensor) -> list[torch.Tensor]:
        """The last ReLU of each of the five blocks, `[batch, channels, height / 2^k, width / 2^k]`.

        InputError for pictures of fewer than 16 pixels a side: nothing of them would be left.
        """
        if min(images.shape[2:]) < SMALLEST:
            sides = " x ".join(map(str, images.shape[2:]))
            raise InputError(f"pictures of {sides} are too small for LPIPS; it takes {SMALLEST} pixels a side at least")
        x = (images - self.shift) / self.scale
        found = []
        for layer in self.features:
            if isinstance(layer, nn.MaxPool2d):
                found.append(x)
            x = layer(x)
        return [*found, x]

    def forward(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        """Distances `[batch]`: unit-length activations, squared difference, weighted channels, mean over places."""
        total = torch.zeros(len(first), device=first.device)
        pairs = zip(self.activations(first), self.activations(second), self.heads, strict=True)
        for ours, theirs, head in pairs:
            difference = (_unit(ours) - _unit(theirs)).square()
            total = total + (difference * head).sum(dim=1).mean(dim=(1, 2))
        return total

    def pooled(self, images: torch.Tensor) -> torch.Tensor:
        """The deepest activations averaged over places, `[batch, 512]`: what `frechet_distance` compares."""
        return self.activations(images)[-1].mean(dim=(2, 3))


def _unit(x: torch.Tensor) -> torch.Tensor:
    # What is under the root keeps its gradient finite where no channel is active; elsewhere it is lost in rounding.
    return x / ((x.square().sum(dim=1, keepdim=True) + 1e-20).sqrt() + 1e-10)


def _vgg16() -> list[nn.Module]:
    """Torchvision's `vgg16().features` up to its last ReLU, with the same numbers."""
    layers: list[nn.Module] = []
    width = 3
    for number, block in enumerate(_BLOCKS):
        if number:
            layers.append(nn.MaxPool2d(2, 2))
        for wider in block:
            layers += [nn.Conv2d(width, wider, 3, padding=1), nn.ReLU()]
            width = wider
    return layers


def load_lpips(source: Path, device: str | torch.device = "cpu") -> LPIPS:
    """LPIPS with the weights of a file, or of all the files of a folder together.

    InputError when nothing is there, when a file is unreadable, and, by their names, for weights that are missing or
    of another shape.
    """
    tensors: Tensors = {}
    for path in weight_files(source):
        tensors |= _named(read_weights(path))
    network = LPIPS()
    expected = {name: value.shape for name, value in network.state_dict().items() if name not in ("shift", "scale")}
    try:
        kept, _ = check_fit(tensors, expected, source)
    except InputError as error:
        raise InputError(
            f"{error} (needed: torchvision's VGG16, `features.N.weight`, and LPIPS' heads, `linN.model.1.weight`, here "
            "`heads.N`; one file, or a folder of both)"
        ) from error
    weights = {name: torch.from_numpy(np.array(value, np.float32)) for name, value in kept.items()}
    network.load_state_dict(weights, strict=False)  # shift and scale are constants
    return network.to(device)


def weight_files(source: Path) -> list[Path]:
    """The files that `load_lpips` reads. InputError for a folder without any."""
    if not source.is_dir():
        return [source]
    found = sorted(path for path in source.iterdir() if path.suffix in _FILES)
    if not found:
        raise InputError(f"{source}: no weights in this folder ({', '.join(_FILES)})")
    return found


def _named(tensors: Tensors) -> Tensors:
    """Our names: `features.N.*` and `heads.N`. Anything else in the file, a classifier say, is left out."""
    found: Tensors = {}
    for name, value in strip_prefix(tensors, "loss.perceptual_loss.", "perceptual_loss.").items():
        if match := re.fullmatch(r"(?:features|net\.slice\d)\.(\d+\.(?:weight|bias))", name):
            found[f"features.{match[1]}"] = value
        elif match := re.fullmatch(r"lin(\d)\.model\.1\.weight", name):
            found[f"heads.{match[1]}"] = value
    return found


def perceptual_distance(network: LPIPS, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """LPIPS of images in [0, 1], mean over the batch."""
    return network(2 * first - 1, 2 * second - 1).mean()


def frechet_distance(first: torch.Tensor, second: torch.Tensor) -> float:
    """Frechet distance of two sets of vectors `[n, d]`, each taken for a Gaussian (Heusel et al. 2017, FID's formula).

    ||m1 - m2||^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), in float64. InputError with fewer than two vectors in a set.
    """
    if len(first) < 2 or len(second) < 2:
        raise InputError("a Frechet distance needs at least two pictures")
    means, covariances = [], []
    for vectors in (first.double(), second.double()):
        means.append(vectors.mean(0))
        covariances.append(torch.cov(vectors.T).reshape(vectors.shape[1], vectors.shape[1]))
    root = _root(covariances[0])
    # tr (C1 C2)^(1/2) = tr (C1^(1/2) C2 C1^(1/2))^(1/2), which is symmetric, so that its eigenvalues are real.
    between = torch.linalg.eigvalsh(root @ covariances[1] @ root).clamp(min=0).sqrt().sum()
    spread = torch.trace(covariances[0]) + torch.trace(covariances[1]) - 2 * between
    return max(0.0, float((means[0] - means[1]).square().sum() + spread))


def _root(matrix: torch.Tensor) -> torch.Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T
