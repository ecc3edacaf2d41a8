"""What GIT's pretraining takes in, for either input: configuration, preprocessing and codebook.

Stands beside `image_to_speech` because it joins captioner and vision, which do not know each other.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from pipeline.captioner.model import CaptionerConfig, make_config
from pipeline.captioner.vision_pretraining import NUM_QUERIES
from pipeline.vision.tokenizer import load_tokenizer

BUNDLED_TOKENIZER = Path(__file__).resolve().parent / "bundled" / "vit_vqgan"
_BATCH = 256

GitInputs = tuple[
    Callable[[int], CaptionerConfig], Callable[[npt.NDArray[np.uint8]], torch.Tensor], torch.Tensor | None
]


def git_inputs(input: Literal["tokens", "pixels"], vqgan_dir: Path | None = None) -> GitInputs:
    """(vocabulary size -> configuration, pictures uint8 [N, S, S, 3] -> model input, codebook or None)."""
    if input == "pixels":
        return _pixel_config, _to_pixels, None
    tokenizer = load_tokenizer(vqgan_dir or BUNDLED_TOKENIZER).eval()
    codebook = torch.nn.functional.normalize(tokenizer.codebook.detach(), dim=-1)
    num_codes, dim = codebook.shape
    height, width = tokenizer.grid

    def config(vocab_size: int) -> CaptionerConfig:
        return make_config(
            input="tokens",
            vocab_size=vocab_size,
            stem_channels=(96, 128),
            token_vocab=num_codes,
            token_dim=dim,
            token_grid=(height, width),
            num_queries=NUM_QUERIES,
            image_tokenizer=tokenizer.fingerprint,
            dropout=0.0,
        )

    @torch.inference_mode()
    def tokenize(pictures: npt.NDArray[np.uint8]) -> torch.Tensor:
        parts = [
            tokenizer.encode_codes(_to_pixels(pictures[start : start + _BATCH]))[:, None]
            for start in range(0, len(pictures), _BATCH)
        ]
        return torch.cat(parts).clone()

    return config, tokenize, codebook


def _pixel_config(vocab_size: int) -> CaptionerConfig:
    return make_config(
        input="pixels",
        vocab_size=vocab_size,
        stem_channels=(32, 64, 96, 128),
        num_queries=NUM_QUERIES,
        dropout=0.0,
    )


def _to_pixels(pictures: npt.NDArray[np.uint8]) -> torch.Tensor:
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
