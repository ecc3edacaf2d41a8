"""Image-text pairs for pretraining: scenes of the wider drawn world, and their captions as word ids. Reads nothing."""

import joblib
import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from pipeline.corpora.world.draw import render, render_wide
from pipeline.corpora.world.scenes import captions, sample_scene, sample_wide, wide_captions

PAD, BOS, EOS = 0, 1, 2
_CHUNK = 250

Images = npt.NDArray[np.uint8]


def wide_pairs(num_images: int, seed: int, image_size: int, num_workers: int) -> tuple[Images, list[list[str]]]:
    """Pictures uint8 [N, S, S, 3] and the captions that fit each; the same for any number of workers."""
    chunks = range(0, num_images, _CHUNK)
    parts = joblib.Parallel(n_jobs=num_workers)(
        joblib.delayed(_wide_chunk)(start, min(start + _CHUNK, num_images), seed, image_size)
        for start in tqdm(chunks, desc="drawing", unit="chunk", mininterval=5, disable=None)
    )
    images = np.concatenate([part for part, _ in parts])
    return images, [texts for _, part in parts for texts in part]


def _wide_chunk(start: int, stop: int, seed: int, image_size: int) -> tuple[Images, list[list[str]]]:
    images, texts = [], []
    for index in range(start, stop):
        rng = np.random.default_rng([seed, 10, index])
        scene = sample_wide(rng)
        images.append(np.asarray(render_wide(scene, rng, image_size)))
        texts.append(wide_captions(scene))
    return np.stack(images), texts


def demo_pairs(split: str, num_images: int, seed: int, image_size: int) -> tuple[Images, list[list[str]]]:
    """Pictures of a demo split (drawn large, then shrunk, as the corpus is) and their five captions."""
    images, texts = [], []
    for index in range(num_images):
        rng = np.random.default_rng([seed, 11, index])
        scene = sample_scene(rng, split)
        image = render(scene, rng, 128).resize((image_size, image_size), resample=3)
        images.append(np.asarray(image))
        texts.append(captions(scene))
    return np.stack(images), texts


def word_vocabulary(texts: list[list[str]]) -> list[str]:
    """Sorted words; ids start after PAD, BOS and EOS."""
    return sorted({word for several in texts for text in several for word in text.split()})


def encode_texts(texts: list[str], words: list[str]) -> torch.Tensor:
    """int64 [B, T]: BOS, the words' ids, EOS, then PAD."""
    ids = {word: number + 3 for number, word in enumerate(words)}
    rows = [[BOS, *(ids[word] for word in text.split()), EOS] for text in texts]
    width = max(map(len, rows))
    return torch.tensor([row + [PAD] * (width - len(row)) for row in rows])


def decode_text(ids: list[int], words: list[str]) -> str:
    """What stands before the first EOS."""
    ids = ids[: ids.index(EOS)] if EOS in ids else ids
    return " ".join(words[i - 3] for i in ids if i >= 3)
