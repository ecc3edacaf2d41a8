"""Image tokenizers of enhancing-transformers, SeiT and taming-transformers -> our tokenizer folder.

Sizes are read from the weights' shapes, so that base, small, large and anything trained since need no table.
Losses (`loss.*`: perceptual network, discriminator) and optimiser states are left behind.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import isqrt
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray

from pipeline.checkpoints.provenance import provenance
from pipeline.checkpoints.torch_files import Tensors, read_torch, tensors_in
from pipeline.checkpoints.weights import check_fit, read_weights
from pipeline.errors import InputError
from pipeline.vision.taming_vqgan import TamingVQGAN, TamingVQGANConfig
from pipeline.vision.tokenizer import ImageTokenizer
from pipeline.vision.transforms import Resize
from pipeline.vision.vit_vqgan import DIM_HEAD, TransformerConfig, ViTVQGAN, ViTVQGANConfig

_PATCHES = "to_patch_embedding.0.weight"


@dataclass(frozen=True)
class TokenizerSources:
    """What an image tokenizer is made of.

    checkpoint: the weights. codebook: SeiT's own codebook, a matrix [n, d] beside the encoder. config: taming's
    yaml. resize: how pictures become square. crop_tokens: keep only the centre of the grid (SeiT's models: 28).
    image_size: of a taming VQGAN without a yaml.
    """

    checkpoint: Path
    codebook: Path | None = None
    config: Path | None = None
    resize: Resize = "crop"
    crop_tokens: int = 0
    image_size: int = 256


def import_image_tokenizer(sources: TokenizerSources, out: Path) -> ImageTokenizer:
    """Write `config.json`, `model.safetensors` and `provenance.json` into `out`, give the tokenizer.

    Which family it is, the names of the weights say. Raises InputError for a checkpoint of neither family,
    one without a codebook, and weights that do not fit together.
    """
    tensors = read_weights(sources.checkpoint)
    if any(name.endswith(_PATCHES) for name in tensors):
        model: ImageTokenizer
        model, left, family = *_vit(tensors, sources), "ViT-VQGAN"
    elif "encoder.down.0.block.0.conv1.weight" in tensors:
        model, left, family = *_taming(tensors, sources), "taming VQGAN"
    else:
        found = ", ".join(sorted(tensors)[:4]) or "no tensors"
        raise InputError(
            f"{sources.checkpoint}: neither a ViT-VQGAN (…{_PATCHES}) nor a taming VQGAN "
            f"(encoder.down.0.block.0.conv1.weight); found {found}"
        )
    model.save(out)
    left = [name for name in left if not name.startswith("loss.")]
    notes = (f"left out: {', '.join(left[:20])}",) if left else ()
    files = [path for path in (sources.checkpoint, sources.codebook, sources.config) if path is not None]
    provenance(family, *files, notes=notes).save(out)
    return model


def _fill(model: torch.nn.Module, tensors: Tensors, source: Path) -> list[str]:
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    kept, left = check_fit(tensors, shapes, source)
    model.load_state_dict({name: torch.tensor(value.astype(np.float32)) for name, value in kept.items()})
    model.eval()
    return left


# ---------------------------------------------------------------------------------------- ViT-VQGAN, SeiT


def _vit(tensors: Tensors, sources: TokenizerSources) -> tuple[ViTVQGAN, list[str]]:
    codes = None if sources.codebook is None else _read_codebook(sources.codebook)
    tensors = _renamed_vit(tensors, codes, sources.checkpoint)
    encoder, patch, grid = _layers(tensors, "encoder.", "to_patch_embedding.0.weight", "en_pos_embedding", sources)
    decoder = None
    if "decoder.to_pixel.1.weight" in tensors:
        decoder = _layers(tensors, "decoder.", "to_pixel.1.weight", "de_pos_embedding", sources)[0]
    if sources.crop_tokens > grid:
        raise InputError(f"--crop-tokens {sources.crop_tokens}: the grid of {sources.checkpoint} has {grid} a side")
    n_embed, embed_dim = tensors["quantizer.embedding.weight"].shape
    config = ViTVQGANConfig(
        image_size=grid * patch,
        patch_size=patch,
        encoder=encoder,
        decoder=decoder,
        n_embed=n_embed,
        embed_dim=embed_dim,
        resize=sources.resize,
        crop_tokens=0 if sources.crop_tokens == grid else sources.crop_tokens,
    )
    model = ViTVQGAN(config)
    return model, _fill(model, tensors, sources.checkpoint)


def _renamed_vit(tensors: Tensors, codes: NDArray[Any] | None, source: Path) -> Tensors:
    """The usual names, whatever the pickled module calls its parts; the codebook put in its place."""
    prefix = next(name for name in tensors if name.endswith(_PATCHES)).removesuffix(_PATCHES)
    dim = tensors[prefix + _PATCHES].shape[0]
    outer = prefix.removesuffix("encoder.") if prefix.endswith("encoder.") else ""
    renamed: Tensors = {}
    for name, value in tensors.items():
        if name.startswith(prefix):
            renamed[f"encoder.{name.removeprefix(prefix)}"] = value
        else:
            renamed[name.removeprefix(outer)] = value
    if codes is not None:
        renamed["quantizer.embedding.weight"] = codes
    if "quantizer.embedding.weight" not in renamed:
        raise InputError(f"{source}: no codebook in it; give its file with --codebook (SeiT: codebook.ckpt)")
    width = renamed["quantizer.embedding.weight"].shape[1]
    if "pre_quant.weight" not in renamed:
        # The projection to the codes' width, under whatever name.
        linear = [
            name.removesuffix("weight")
            for name, value in renamed.items()
            if value.shape == (width, dim) and not name.startswith("encoder.")
        ]
        if len(linear) != 1:
            raise InputError(f"{source}: {len(linear)} projections from {dim} to the codes' {width}; one was expected")
        for part in ("weight", "bias"):
            renamed[f"pre_quant.{part}"] = renamed.pop(f"{linear[0]}{part}")
    return renamed


def _layers(
    tensors: Tensors, part: str, patches: str, positions: str, sources: TokenizerSources
) -> tuple[TransformerConfig, int, int]:
    """(sizes, pixels of a patch's side, patches a side) of the encoder or the decoder."""
    depth = len({name.split(".")[3] for name in tensors if name.startswith(f"{part}transformer.layers.")})
    qkv = tensors.get(f"{part}transformer.layers.0.0.fn.to_qkv.weight")
    hidden = tensors.get(f"{part}transformer.layers.0.1.fn.net.0.weight")
    places, patch = tensors.get(f"{part}{positions}"), tensors[f"{part}{patches}"]
    if qkv is None or hidden is None or places is None or places.ndim != 3:
        raise InputError(f"{sources.checkpoint}: {part}transformer or its positions are missing")
    grid = isqrt(places.shape[1])
    if grid * grid != places.shape[1] or patch.shape[2] != patch.shape[3]:
        raise InputError(f"{sources.checkpoint}: {places.shape[1]} positions of {patch.shape[2:]} are not square")
    sizes = TransformerConfig(places.shape[2], depth, qkv.shape[0] // 3 // DIM_HEAD, hidden.shape[0])
    return sizes, int(patch.shape[2]), grid


def _read_codebook(path: Path) -> NDArray[Any]:
    """The one matrix of codes in a file: a bare tensor (SeiT), or an embedding in a state dict."""
    found = read_torch(path)
    candidates = [found] if isinstance(found, np.ndarray) else list(_nested(found))
    matrices = [array for array in candidates if array.ndim == 2]
    if len(matrices) != 1:
        raise InputError(f"{path}: {len(matrices)} matrices in it; a codebook is one, [codes, dimensions]")
    return matrices[0]


def _nested(value: Any) -> Iterator[NDArray[Any]]:
    yield from tensors_in(value).values()
    if isinstance(value, Mapping):
        for item in value.values():
            if isinstance(item, Mapping):
                yield from tensors_in(item).values()


# ------------------------------------------------------------------------------------------------- taming


def _taming(tensors: Tensors, sources: TokenizerSources) -> tuple[TamingVQGAN, list[str]]:
    settings = _read_yaml(sources.config) if sources.config is not None else {}
    if settings.get("remap"):
        raise InputError(f"{sources.config}: a `remap` of codes is not supported; use the model without it")
    if "quantize.embedding.weight" not in tensors:
        raise InputError(f"{sources.checkpoint}: no quantize.embedding.weight; Gumbel VQGANs are not supported")
    tensors["quantizer.embedding.weight"] = tensors.pop("quantize.embedding.weight")
    levels = sorted({int(found[1]) for name in tensors if (found := re.match(r"encoder\.down\.(\d+)\.", name))})
    ch = tensors["encoder.conv_in.weight"].shape[0]
    if tensors["encoder.conv_out.weight"].shape[0] != tensors["quant_conv.weight"].shape[1]:
        raise InputError(f"{sources.checkpoint}: double_z is set; such autoencoders have no codes")
    n_embed, embed_dim = tensors["quantizer.embedding.weight"].shape
    details = settings.get("ddconfig") or {}
    config = TamingVQGANConfig(
        image_size=int(details.get("resolution", sources.image_size)),
        ch=ch,
        ch_mult=tuple(tensors[f"encoder.down.{n}.block.0.conv1.weight"].shape[0] // ch for n in levels),
        num_res_blocks=len({n.split(".")[4] for n in tensors if n.startswith("encoder.down.0.block.")}),
        attn_levels=tuple(n for n in levels if f"encoder.down.{n}.attn.0.q.weight" in tensors),
        z_channels=tensors["quant_conv.weight"].shape[1],
        embed_dim=embed_dim,
        n_embed=n_embed,
        channels=tensors["encoder.conv_in.weight"].shape[1],
        resize=sources.resize,
    )
    model = TamingVQGAN(config)
    return model, _fill(model, tensors, sources.checkpoint)


def _read_yaml(path: Path) -> dict[str, Any]:
    """`model.params` of taming's yaml."""
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
        return dict(document["model"]["params"])
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except (yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: not taming's yaml with model.params ({error})") from error
