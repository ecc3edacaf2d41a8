"""Any image tokenizer by its folder: config.json says which kind it is."""

from pathlib import Path
from typing import Any

import torch

from pipeline.errors import InputError
from pipeline.files import read_json
from pipeline.vision import taming_vqgan, vit_vqgan
from pipeline.vision.taming_vqgan import TamingVQGAN, load_taming_vqgan
from pipeline.vision.vit_vqgan import ViTVQGAN, load_vit_vqgan

ImageTokenizer = ViTVQGAN | TamingVQGAN


def load_tokenizer(folder: Path, device: str | torch.device = "cpu") -> ImageTokenizer:
    """The tokenizer saved in `folder`, in evaluation mode. InputError when it is of no known kind."""
    values = read_json(folder / "config.json")
    kind = values.get("model_type") if isinstance(values, dict) else None
    if kind == taming_vqgan.MODEL_TYPE:
        return load_taming_vqgan(folder, device)
    if kind == vit_vqgan.MODEL_TYPE:
        return load_vit_vqgan(folder, device)
    known = f"{vit_vqgan.MODEL_TYPE} and {taming_vqgan.MODEL_TYPE}"
    raise InputError(f"{folder / 'config.json'}: model_type {kind!r} is no image tokenizer; known are {known}")


def kind_of(model: ImageTokenizer) -> str:
    """The model_type that its config.json carries."""
    return taming_vqgan.MODEL_TYPE if isinstance(model, TamingVQGAN) else vit_vqgan.MODEL_TYPE


def facts_of(model: ImageTokenizer) -> dict[str, Any]:
    """What tokenizer.json beside image tokens says of the tokenizer that made them."""
    return {
        "grid": list(model.grid),
        "image_size": list(model.config.image_sides),
        "kind": kind_of(model),
        "resize": model.config.resize,
        "tokenizer_fingerprint": model.fingerprint,
        "vocab": model.vocab_size,
    }
