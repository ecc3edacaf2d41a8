"""Augmentation of image tokens while the captioner trains: other views of a picture that is there as tokens only.

Takes tokens int64 [B, 1, H, W] and gives what `Captioner` takes in their place: int64 [B, 1, h, w], or the codes'
vectors float32 [B, D, h, w] where a crop is resized or noise is added, which no token can say. As in SeiT (Park et al.
2023) tokens are replaced and swapped first, then the grid is cropped, then noise comes. Validation sees none of it.

What happens to an image depends on (seed, step, index) alone, not on the rest of its batch, so that it is the same for
any number of processes and after a resume; and each augmentation draws for itself, so that switching one on leaves the
others as they were. It all runs on the CPU, a few numpy and torch calls a batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.errors import InputError

_SYNONYMS, _SWAP, _CROP, _NOISE = range(4)
_ASPECTS = (np.log(3 / 4), np.log(4 / 3))
_CUBIC = -0.75
"""The coefficient of torch's bicubic resizing."""


@dataclass(frozen=True)
class AugmentationSettings:
    """Each off as it stands.

    synonyms: share of tokens replaced by one of their `num_synonyms` nearest codes. swap: largest side of two blocks
    that change places, as a share of the grid's shorter side (at most a half). crop: smallest share of the grid's area
    that a crop of an aspect from 3:4 to 4:3 keeps, resized bicubically to the model's grid. random_place: where the
    model's grid is smaller than the tokens', take it from anywhere, not from the centre. noise: deviation of Gaussian
    noise on every number of the vectors, over that of the codebook's numbers. share: of the images, changed by each.
    """

    synonyms: float = 0.0
    num_synonyms: int = 5
    swap: float = 0.0
    crop: float = 1.0
    random_place: bool = False
    noise: float = 0.0
    share: float = 1.0

    @property
    def is_on(self) -> bool:
        """Whether anything is ever changed."""
        changes = self.synonyms > 0 or self.swap > 0 or self.crop < 1 or self.random_place or self.noise > 0
        return self.share > 0 and changes


class TokenAugmentation:
    """Changes batches of tokens; see the module. `grid`: rows and columns that the model takes, at most the tokens'."""

    def __init__(
        self, settings: AugmentationSettings, codebook: torch.Tensor, grid: tuple[int, int], seed: int
    ) -> None:
        """codebook: float32 [K, D], as the model has it."""
        self._settings, self._grid, self._seed = settings, grid, seed
        self._codebook = codebook.detach().float().cpu()
        self._deviation = settings.noise * float(self._codebook.std())
        number = min(settings.num_synonyms, len(codebook) - 1)
        self._synonyms = nearest_codes(self._codebook, number) if settings.synonyms and number else None

    def __call__(self, tokens: torch.Tensor, step: int, indices: Sequence[int]) -> torch.Tensor:
        """int64 [B, 1, H, W] and the number of each of them in the training data -> as the module says.

        Raises InputError for what is no tokens, such as the output of a tower that ran before.
        """
        if tokens.is_floating_point() or tokens.ndim != 4 or tokens.shape[1] != 1:
            raise InputError(
                f"augmentation: tokens [B, 1, H, W] were expected, not {tokens.dtype} {list(tokens.shape)}"
            )
        if not self._settings.is_on:
            return tokens
        ids = tokens[:, 0].numpy().copy()
        for place, index in enumerate(indices):
            ids[place] = self._replaced(ids[place], self._draws(_SYNONYMS, step, index))
            ids[place] = self._swapped(ids[place], self._draws(_SWAP, step, index))
        boxes = np.stack([self._box(ids.shape[1:], self._draws(_CROP, step, index)) for index in indices])
        if self._settings.crop == 1 and not self._settings.noise:
            cut = [i[top : top + h, left : left + w] for i, (top, left, h, w) in zip(ids, boxes, strict=True)]
            return torch.from_numpy(np.stack(cut))[:, None]
        vectors = self._codebook[torch.from_numpy(ids)]
        rows = resize_weights(boxes[:, 0], boxes[:, 2], ids.shape[1], self._grid[0])
        columns = resize_weights(boxes[:, 1], boxes[:, 3], ids.shape[2], self._grid[1])
        vectors = torch.einsum("bih,bhwd,bjw->bdij", rows, vectors, columns)
        return vectors + self._noise(vectors.shape[1:], step, indices)

    def _draws(self, kind: int, step: int, index: int) -> np.random.Generator | None:
        """Chance for one image and one augmentation; None where this image is left as it is."""
        rng = np.random.default_rng([self._seed, step, index, kind])
        return rng if rng.random() < self._settings.share else None

    def _replaced(self, ids: NDArray[np.int64], rng: np.random.Generator | None) -> NDArray[np.int64]:
        if self._synonyms is None or rng is None:
            return ids
        chosen = rng.random(ids.shape) < self._settings.synonyms
        which = rng.integers(self._synonyms.shape[1], size=ids.shape)
        return np.where(chosen, self._synonyms[ids, which], ids)

    def _swapped(self, ids: NDArray[np.int64], rng: np.random.Generator | None) -> NDArray[np.int64]:
        """Two blocks that do not overlap: side by side along one axis, anywhere along the other."""
        largest = int(self._settings.swap * min(ids.shape))
        if rng is None or largest < 1:
            return ids
        side, apart = int(rng.integers(1, largest + 1)), int(rng.integers(2))
        corners = rng.integers(np.array(ids.shape) - side + 1, size=(2, 2))
        first, second = np.sort(rng.integers(ids.shape[apart] - 2 * side + 1, size=2))
        corners[:, apart] = first, second + side
        one, two = (tuple(slice(start, start + side) for start in corner) for corner in corners)
        swapped = ids.copy()
        swapped[one], swapped[two] = ids[two], ids[one]
        return swapped

    def _box(self, whole: tuple[int, int], rng: np.random.Generator | None) -> tuple[int, int, int, int]:
        """(top, left, height, width) of what the model sees of a grid; the centre unless the settings say otherwise."""
        height, width = self._grid
        free = whole[0] - height, whole[1] - width
        if rng is None or (self._settings.crop == 1 and not self._settings.random_place):
            return free[0] // 2, free[1] // 2, height, width
        if self._settings.crop < 1:
            area = rng.uniform(self._settings.crop, 1) * whole[0] * whole[1]
            aspect = np.exp(rng.uniform(*_ASPECTS))
            height = int(np.clip(round((area / aspect) ** 0.5), 1, whole[0]))
            width = int(np.clip(round((area * aspect) ** 0.5), 1, whole[1]))
        top, left = rng.integers(whole[0] - height + 1), rng.integers(whole[1] - width + 1)
        return int(top), int(left), height, width

    def _noise(self, shape: Sequence[int], step: int, indices: Sequence[int]) -> torch.Tensor:
        """float32 [B, *shape], zero for images that are left alone."""
        noise = np.zeros((len(indices), *shape), np.float32)
        for place, index in enumerate(indices):
            rng = self._draws(_NOISE, step, index) if self._deviation else None
            if rng is not None:
                rng.standard_normal(out=noise[place], dtype=np.float32)
        return torch.from_numpy(noise) * self._deviation


def nearest_codes(codebook: torch.Tensor, number: int) -> NDArray[np.int64]:
    """The `number` nearest other codes of each, nearest first: int64 [K, number] of float32 [K, D]."""
    found = []
    for start in range(0, len(codebook), 1024):  # rows at a time: all distances of 8,192 codes are 268 MB
        distances = torch.cdist(codebook[start : start + 1024], codebook)
        own = torch.arange(start, start + len(distances))
        distances[own - start, own] = torch.inf
        found.append(distances.topk(number, largest=False).indices)
    return torch.cat(found).numpy()


def resize_weights(starts: NDArray[np.int64], sizes: NDArray[np.int64], length: int, out: int) -> torch.Tensor:
    """float32 [B, out, length]: rows of which each, times a line of `length` numbers, gives one of the `out` numbers of
    that line's cut (`starts` [B], `sizes` [B]), resized bicubically as torch does with `align_corners=False`."""
    places = (np.arange(out) + 0.5) * sizes[:, None] / out - 0.5
    below = np.floor(places).astype(np.int64)
    taps = np.arange(-1, 3)
    distance = np.abs(places[..., None] - below[..., None] - taps)
    near = ((_CUBIC + 2) * distance - (_CUBIC + 3)) * distance**2 + 1
    far = _CUBIC * (((distance - 5) * distance + 8) * distance - 4)
    values = np.where(distance <= 1, near, far)
    within = np.clip(below[..., None] + taps, 0, sizes[:, None, None] - 1) + starts[:, None, None]
    weights = np.zeros((len(sizes), out, length))
    images, rows = np.ogrid[: len(sizes), :out]
    np.add.at(weights, (images[..., None], rows[..., None], within), values)
    return torch.from_numpy(weights.astype(np.float32))
