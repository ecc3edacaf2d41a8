"""Pictures for training, read from the corpus as they are needed: for more of them than memory holds.

A batch is a function of the seed and its step alone, so that an interrupted training goes on with the very same
pictures, cut and mirrored the same way. Threads read a few batches ahead of the model.
"""

import contextlib
import hashlib
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import numpy as np
import torch
from PIL import Image

from pipeline.errors import InputError
from pipeline.files import fingerprint
from pipeline.manifest import Row
from pipeline.media import MediaError, read_image
from pipeline.vision.encode import batch_sampler, read_pictures
from pipeline.vision.transforms import Resize, image_to_tensor

Augment = Literal["none", "crop_flip"]
"""crop_flip: a random part of the picture, of the tokenizer's aspect and 80 to 100 % of the largest such part's
sides, mirrored half of the time."""

_SMALLEST_PART = 0.8
_BATCHES_AHEAD = 4


@dataclass(frozen=True)
class StreamSettings:
    """What a batch is: `size` pictures of `sides` (height, width) pixels, and how they come to have them."""

    size: int
    sides: tuple[int, int]
    resize: Resize = "squash"
    augment: Augment = "none"
    seed: int = 0


class PictureStream:
    """Called with a step, gives float32 [size, 3, height, width] in [0, 1], drawn with replacement.

    A picture that cannot be read is replaced by the next row's. InputError when there is none that can.
    Threads read ahead until it is closed, as it is behind a `with`.

    unreadable: why pictures could not be read, each said once, of those met so far by it and its threads.
    """

    def __init__(self, corpus: Path, rows: Sequence[Row], settings: StreamSettings, num_threads: int = 1) -> None:
        self._corpus, self._settings = corpus, settings
        self._paths = [row.image.path for row in rows if row.image is not None]
        if not self._paths:
            raise InputError(f"{corpus}: its rows name no picture to train on")
        self.unreadable: set[str] = set()
        self._pool = ThreadPoolExecutor(num_threads)
        self._coming: dict[int, Future[torch.Tensor]] = {}

    def __call__(self, step: int) -> torch.Tensor:
        for number in range(step, step + _BATCHES_AHEAD):
            if number not in self._coming:
                self._coming[number] = self._pool.submit(self._batch, number)
        batch = self._coming.pop(step).result()
        wanted = range(step, step + _BATCHES_AHEAD)
        for number in [number for number in self._coming if number not in wanted]:
            self._coming.pop(number).cancel()
        return batch

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop reading ahead."""
        self._pool.shutdown(cancel_futures=True)

    def _batch(self, step: int) -> torch.Tensor:
        rng = np.random.default_rng([self._settings.seed, step])
        # Drawn before any picture is read: what is unreadable must not shift what comes after it.
        chosen = rng.integers(len(self._paths), size=self._settings.size).tolist()
        chances = rng.random((self._settings.size, 4))
        drawn = zip(chosen, chances.tolist(), strict=True)
        return torch.stack([self._picture(index, *draws) for index, draws in drawn])

    def _picture(self, index: int, scale: float, left: float, top: float, side: float) -> torch.Tensor:
        image = self._read(index)
        settings = self._settings
        if settings.augment == "crop_flip":
            image = _part(image, settings.sides, scale, left, top)
            if side < 0.5:
                image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return image_to_tensor(image, settings.sides, settings.resize)

    def _read(self, index: int) -> Image.Image:
        for offset in range(len(self._paths)):
            path = self._corpus / self._paths[(index + offset) % len(self._paths)]
            try:
                return read_image(path)
            except MediaError as error:
                self.unreadable.add(str(error))
        raise InputError(f"{self._corpus}: not one of {len(self._paths)} pictures can be read")


@contextlib.contextmanager
def training_batches(
    corpus: Path, rows: Sequence[Row], settings: StreamSettings, *, stream: bool, num_threads: int = 1
) -> Iterator[tuple[Callable[[int], torch.Tensor], str, Collection[str]]]:
    """step -> batch of the rows' pictures, a digest of what is behind it, and why pictures could not be read.

    stream: read them as they are needed, and say of which one cannot as they are met; else all of them now, into
    3 * height * width bytes each. InputError when not one can be read, or when pictures in memory are to be augmented.
    """
    if stream:
        digest = fingerprint([row.image.sha256 for row in rows if row.image is not None])
        with PictureStream(corpus, rows, settings, num_threads) as batch_at:
            yield batch_at, digest, batch_at.unreadable
        return
    if settings.augment != "none":
        raise InputError(f"params.yaml, section 'vqgan': augment: {settings.augment} needs pictures: stream")
    pictures, unreadable = read_pictures(corpus, rows, settings.sides, settings.resize, num_threads)
    if not len(pictures):
        raise InputError(f"{corpus}: not one picture of its rows can be read{f': {unreadable[0]}' if rows else ''}")
    sampler = batch_sampler(pictures, settings.size, settings.seed)
    yield sampler, hashlib.sha256(pictures.tobytes()).hexdigest(), unreadable


def _part(image: Image.Image, sides: tuple[int, int], scale: float, left: float, top: float) -> Image.Image:
    """A part with the aspect of `sides`; scale, left and top in [0, 1) say how large and where."""
    height, width = sides
    largest = min(image.width / width, image.height / height)
    factor = largest * (_SMALLEST_PART + (1 - _SMALLEST_PART) * scale)
    box_width, box_height = width * factor, height * factor
    x, y = left * (image.width - box_width), top * (image.height - box_height)
    return image.resize((width, height), Image.Resampling.BICUBIC, box=(x, y, x + box_width, y + box_height))
