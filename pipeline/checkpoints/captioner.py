"""Captioners of others -> our captioner folder: GIT as a starting point, and the paper's released models.

- GIT (microsoft/git-base, git-large-coco, ...): a Hugging Face folder. Its words are of no use to units, but
  its tower and layers are what `train.init` starts from.
- Im2Sp, the paper's checkpoints (ms-dot-k/Image-to-Speech, `{"state_dict": ...}`): from pixels, GIT itself with
  another vocabulary; from image units, GIT with SeiT's ViT as its tower. They speak in the `released` layout,
  in which unit 100 and BOS share an id, because they were trained so.
"""

import re
from dataclasses import dataclass
from math import isqrt
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import GitConfig, GitVisionConfig

from pipeline.captioner.model import Captioner, CaptionerConfig
from pipeline.captioner.vocabulary import UnitVocabulary
from pipeline.checkpoints.provenance import provenance
from pipeline.checkpoints.torch_files import Tensors
from pipeline.checkpoints.weights import check_fit, find_weights, read_weights, strip_prefix
from pipeline.errors import InputError
from pipeline.files import read_json

_TOWER = "git.image_encoder.vision_model."
_HEADS = {512: 8, 768: 12, 1024: 16, 1280: 16}  # of CLIP's and SeiT's towers

# timm's ViT (SeiT) to GIT's tower; the fused query, key and value are cut in three first.
_TIMM = (
    (r"^cls_token$", "embeddings.class_embedding"),
    (r"^pos_embed$", "embeddings.position_embedding"),
    (r"^patch_embed\.proj\.", "embeddings.layers.0."),
    (r"^blocks\.(\d+)\.norm1\.", r"encoder.layers.\1.layer_norm1."),
    (r"^blocks\.(\d+)\.norm2\.", r"encoder.layers.\1.layer_norm2."),
    (r"^blocks\.(\d+)\.attn\.(q|k|v)\.", r"encoder.layers.\1.self_attn.\2_proj."),
    (r"^blocks\.(\d+)\.attn\.proj\.", r"encoder.layers.\1.self_attn.out_proj."),
    (r"^blocks\.(\d+)\.mlp\.", r"encoder.layers.\1.mlp."),
)


@dataclass(frozen=True)
class ImageUnits:
    """What an image-unit captioner looks its tokens up in: an imported tokenizer's folder and its fingerprint."""

    folder: Path
    fingerprint: str
    grid: tuple[int, int]


def import_captioner(
    source: Path, out: Path, *, tokenizer: ImageUnits | None = None, units_fingerprint: str = ""
) -> Captioner:
    """Write a captioner folder into `out`, give the model.

    source: a GIT folder, or an Im2Sp checkpoint file. tokenizer: needed by the image-unit checkpoint, whose own
    file does not hold SeiT's codebook. units_fingerprint: of the codebook (HuBERT base, layer 6, K = 200) whose
    units it speaks. Raises InputError for a file that is neither, or whose weights do not fit.
    """
    files: tuple[Path, ...]
    if source.is_dir():
        config, tensors, files = *_git(source), (source / "config.json", find_weights(source))
        vocabulary = None
    else:
        config, tensors = _im2sp(source, tokenizer)
        files = (source,)
        vocabulary = UnitVocabulary(config.vocab_size - 3, units_fingerprint, layout="released")
        config.max_units = 511  # 512 with BOS, as the paper decodes
        config.unit_codebook = units_fingerprint
    model = Captioner(config)
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    kept, left = check_fit(tensors, shapes, source)
    model.load_state_dict({name: torch.tensor(value).float() for name, value in kept.items()})
    model.eval()
    model.save_pretrained(out)
    if vocabulary is not None:
        vocabulary.save(out / "unit_vocabulary.json")
    notes = (f"left out: {', '.join(left[:20])}",) if left else ()
    family = "GIT" if vocabulary is None else f"Im2Sp, input {config.input}"
    provenance(family, *files, notes=notes).save(out)
    return model


def _git(source: Path) -> tuple[CaptionerConfig, Tensors]:
    values = read_json(source / "config.json")
    if not isinstance(values, dict) or values.get("model_type") != "git":
        found = values.get("model_type") if isinstance(values, dict) else None
        raise InputError(f"{source / 'config.json'}: model_type is {found!r}, not 'git'")
    if values.get("num_image_with_embedding"):
        raise InputError(f"{source / 'config.json'}: a GIT for video (num_image_with_embedding); take one for images")
    own = GitConfig.from_dict(values).to_dict()
    for name in ("model_type", "architectures", "transformers_version"):
        own.pop(name, None)
    config = _untied(CaptionerConfig(**{**own, "input": "pixels", "stem_channels": (), "image_resize": "crop"}))
    return config, read_weights(find_weights(source))


def _untied(config: CaptionerConfig) -> CaptionerConfig:
    # Written out twice if it must be: with the tie, transformers 5 saves one of the two and loads neither.
    config.tie_word_embeddings = False
    return config


def _im2sp(source: Path, tokenizer: ImageUnits | None) -> tuple[CaptionerConfig, Tensors]:
    tensors = strip_prefix(read_weights(source), "module.")
    tensors = {
        name.removeprefix("model."): value for name, value in tensors.items() if name.startswith(("model.", "git."))
    }
    if "git.embeddings.word_embeddings.weight" not in tensors or "output.weight" not in tensors:
        raise InputError(
            f"{source}: not an Im2Sp captioner: it needs model.git.embeddings.word_embeddings.weight and "
            "model.output.weight. For a Hugging Face GIT give its folder"
        )
    if f"{_TOWER}cls_token" not in tensors:
        return _pixel_config(tensors), tensors
    if tokenizer is None:
        raise InputError(
            f"{source}: it takes image units, so it needs their codebook: `im2speech import vqgan tokenizer.ckpt "
            "--codebook codebook.ckpt --resize squash --crop-tokens 28`, then --vqgan with that folder here"
        )
    return _token_model(source, tensors, tokenizer)


def _decoder_settings(tensors: Tensors) -> dict[str, Any]:
    vocab_size, hidden = tensors["git.embeddings.word_embeddings.weight"].shape
    layers = {name.split(".")[3] for name in tensors if name.startswith("git.encoder.layer.")}
    return {
        "vocab_size": vocab_size,
        "hidden_size": hidden,
        "num_hidden_layers": len(layers),
        "num_attention_heads": max(1, hidden // 64),
        "intermediate_size": tensors["git.encoder.layer.0.intermediate.dense.weight"].shape[0],
        "max_position_embeddings": len(tensors["git.embeddings.position_embeddings.weight"]),
        "pad_token_id": 0,
        "bos_token_id": 101,
        "eos_token_id": 102,
        "tie_word_embeddings": False,
    }


def _pixel_config(tensors: Tensors) -> CaptionerConfig:
    patches = tensors[f"{_TOWER}embeddings.patch_embedding.weight"]
    positions = tensors[f"{_TOWER}embeddings.position_embedding.weight"]
    vision = GitVisionConfig(
        **_vision_sizes(tensors, "encoder.layers.", "mlp.fc1.weight", positions.shape[1]),
        patch_size=patches.shape[2],
        image_size=isqrt(len(positions) - 1) * patches.shape[2],
    )
    return CaptionerConfig(
        vision_config=vision.to_dict(), input="pixels", image_resize="crop", **_decoder_settings(tensors)
    )


def _vision_sizes(tensors: Tensors, layers: str, hidden: str, width: int) -> dict[str, int]:
    prefix = f"{_TOWER}{layers}"
    numbers = {name.removeprefix(prefix).split(".")[0] for name in tensors if name.startswith(prefix)}
    return {
        "hidden_size": width,
        "num_hidden_layers": len(numbers),
        "num_attention_heads": _HEADS.get(width, max(1, width // 64)),
        "intermediate_size": tensors[f"{prefix}0.{hidden}"].shape[0],
    }


def _token_model(source: Path, tensors: Tensors, tokenizer: ImageUnits) -> tuple[CaptionerConfig, Tensors]:
    """GIT with SeiT's ViT: pre-norm layers with exact GELU, no norm before and (in the reference) none after."""
    positions, stem = tensors[f"{_TOWER}pos_embed"], tensors[f"{_TOWER}patch_embed.proj.weight"]
    grid = isqrt(positions.shape[1] - 1)
    if any(side != 2 * grid for side in tokenizer.grid):
        raise InputError(
            f"{source}: it looks at {2 * grid} x {2 * grid} tokens, {tokenizer.folder} gives "
            f"{tokenizer.grid[0]} x {tokenizer.grid[1]}; import the tokenizer with --crop-tokens {2 * grid}"
        )
    vision = GitVisionConfig(
        **_vision_sizes(tensors, "blocks.", "mlp.fc1.weight", positions.shape[2]),
        image_size=16 * grid,
        patch_size=16,
        hidden_act="gelu",
        layer_norm_eps=1e-6,
    )
    with safe_open(tokenizer.folder / "model.safetensors", framework="np") as weights:
        codebook = weights.get_tensor("quantizer.embedding.weight")
    if codebook.shape[1] != stem.shape[1]:
        raise InputError(f"{source}: its first layer takes codes of {stem.shape[1]}, not {codebook.shape[1]} numbers")
    config = CaptionerConfig(
        vision_config=vision.to_dict(),
        input="tokens",
        stem_channels=(),
        tower_norms=False,
        token_vocab=len(codebook),
        token_dim=codebook.shape[1],
        token_grid=tokenizer.grid,
        image_tokenizer=tokenizer.fingerprint,
        **_decoder_settings(tensors),
    )
    ours = {name: value for name, value in tensors.items() if not name.startswith(_TOWER)}
    for name, value in tensors.items():
        if name.startswith(_TOWER):
            ours |= _timm(name.removeprefix(_TOWER), value)
    # The reference looks codes up as they are, not normalised.
    ours[f"{_TOWER}embeddings.codebook"] = codebook
    return config, ours


def _timm(name: str, value: Any) -> Tensors:
    if ".attn.qkv." in name:
        parts = {name.replace(".qkv.", f".{letter}."): value[i * len(value) // 3 : (i + 1) * len(value) // 3]
                 for i, letter in enumerate("qkv")}  # fmt: skip
        return {key: item for part, cut in parts.items() for key, item in _timm(part, cut).items()}
    for pattern, replacement in _TIMM:
        new, count = re.subn(pattern, replacement, name)
        if count:
            return {_TOWER + new: value.reshape(-1) if name == "cls_token" else value}
    return {f"{_TOWER}unused.{name}": value}
