"""HuBERT as Hugging Face, fairseq, torchaudio or s3prl keep it -> a folder that transformers' HubertModel loads.

The layouts differ in names alone; arithmetic and shapes are the same. What the weights do not say (heads,
order of the norms, whether waveforms are normalised first) is taken from the checkpoint's own configuration,
or from the published sizes where there is none.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import HubertConfig, HubertModel

from pipeline.checkpoints.provenance import Provenance, provenance
from pipeline.checkpoints.torch_files import Tensors, read_torch, tensors_in
from pipeline.checkpoints.unpickle import Inert
from pipeline.checkpoints.weights import check_fit, find_weights, read_weights, strip_prefix
from pipeline.errors import InputError
from pipeline.files import read_json, write_json
from pipeline.tensors import write_safetensors

_HEADS = {768: 12, 1024: 16, 1280: 16}  # base, large, xlarge as published
_POSITIONS = "encoder.pos_conv_embed.conv."

# fairseq's names (also s3prl's), first match wins.
_FAIRSEQ = (
    (r"^mask_emb$", "masked_spec_embed"),
    (r"^feature_extractor\.conv_layers\.(\d+)\.0\.", r"feature_extractor.conv_layers.\1.conv."),
    (r"^feature_extractor\.conv_layers\.(\d+)\.2\.1\.", r"feature_extractor.conv_layers.\1.layer_norm."),
    (r"^feature_extractor\.conv_layers\.(\d+)\.2\.", r"feature_extractor.conv_layers.\1.layer_norm."),
    (r"^layer_norm\.", "feature_projection.layer_norm."),
    (r"^post_extract_proj\.", "feature_projection.projection."),
    (r"^encoder\.pos_conv\.0\.", _POSITIONS),
    (r"^(encoder\.layers\.\d+)\.self_attn\.", r"\1.attention."),
    (r"^(encoder\.layers\.\d+)\.self_attn_layer_norm\.", r"\1.layer_norm."),
    (r"^(encoder\.layers\.\d+)\.fc1\.", r"\1.feed_forward.intermediate_dense."),
    (r"^(encoder\.layers\.\d+)\.fc2\.", r"\1.feed_forward.output_dense."),
)
# mHuBERT at 25 Hz: batch norm before the positional convolution in place of weight norm.
_BATCH_NORM = (
    (r"^encoder\.pos_conv\.0\.", "encoder.pos_conv_embed.batch_norm."),
    (r"^encoder\.pos_conv\.1\.", _POSITIONS),
)
_TORCHAUDIO = (
    (r"^mask_generator\.mask_embedding$", "masked_spec_embed"),
    (r"^encoder\.feature_projection\.", "feature_projection."),
    (r"^encoder\.transformer\.", "encoder."),
)
# Heads for training objectives; nothing of them is in a feature.
_TRAINING_ONLY = ("final_proj.", "label_embs_concat", "logit_generator.", "lm_head.", "aux.", "encoder.readout.")


@dataclass(frozen=True)
class ImportedHubert:
    """What was found: the layout's name, the configuration, whether waveforms are to be normalised (None: unknown)."""

    layout: str
    config: HubertConfig
    normalize: bool | None
    provenance: Provenance


def import_hubert(source: Path, out: Path, name: str = "") -> ImportedHubert:
    """Write `config.json`, `preprocessor_config.json`, `model.safetensors` and `provenance.json` into `out`.

    source: a Hugging Face folder, or a `.pt` / `.pth` / `.ckpt` of fairseq, torchaudio or s3prl. name: what
    codebooks will remember the encoder by; empty: the source's name. Raises InputError for a file that is
    none of these or whose weights do not fit together.
    """
    layout, tensors, facts, files = _read(source)
    tensors = _canonical(tensors)
    tensors = {key: value for key, value in tensors.items() if not key.startswith(_TRAINING_ONLY)}
    config = _config(tensors, facts, source) if layout != "transformers" else _hf_config(source, tensors)
    with torch.device("meta"):
        expected = {key: tuple(value.shape) for key, value in HubertModel(config).state_dict().items()}
    if "masked_spec_embed" in expected and "masked_spec_embed" not in tensors:
        # Only training masks; torchaudio's checkpoints come without it.
        tensors["masked_spec_embed"] = np.zeros(expected["masked_spec_embed"], np.float32)
    kept, left = check_fit(tensors, expected, source)
    normalize = facts.get("normalize")
    notes = (f"left out: {', '.join(left[:20])}",) if left else ()
    origin = provenance(layout, *files, notes=notes)
    kept = {key: value.astype(np.float32) if value.dtype.kind == "f" else value for key, value in kept.items()}
    out.mkdir(parents=True, exist_ok=True)
    write_safetensors(out / "model.safetensors", kept, {"format": "pt", **origin.metadata})
    settings = {**config.to_dict(), "architectures": ["HubertModel"], "im2speech_name": name or source.stem}
    settings.pop("transformers_version", None)
    if normalize is not None:
        settings["im2speech_normalize"] = normalize
    write_json(out / "config.json", settings)
    write_json(
        out / "preprocessor_config.json",
        {
            "do_normalize": bool(normalize),
            "feature_extractor_type": "Wav2Vec2FeatureExtractor",
            "feature_size": 1,
            "padding_side": "right",
            "padding_value": 0.0,
            "return_attention_mask": config.feat_extract_norm == "layer",
            "sampling_rate": 16000,
        },
    )
    origin.save(out)
    return ImportedHubert(layout, config, normalize, origin)


def _read(source: Path) -> tuple[str, Tensors, dict[str, Any], list[Path]]:
    """(layout, tensors under transformers' names, facts of the checkpoint's configuration, files read)."""
    if source.is_dir():
        weights = find_weights(source)
        tensors = strip_prefix(read_weights(weights), "hubert.")
        return "transformers", tensors, _hf_facts(source), [source / "config.json", weights]
    if not source.exists():
        raise InputError(
            f"{source}: no such file or folder. A model of the Hub comes first by `im2speech fetch`; its folder "
            "is then what to give here"
        )
    checkpoint = read_torch(source)
    if not isinstance(checkpoint, Mapping):
        raise InputError(f"{source}: not a HuBERT checkpoint (a mapping was expected)")
    if "model_weight" in checkpoint:
        facts = _facts(checkpoint.get("model_cfg"), checkpoint.get("task_cfg"))
        return "s3prl", _from_fairseq(tensors_in(checkpoint["model_weight"])), facts, [source]
    if "model" in checkpoint:
        tensors = strip_prefix(tensors_in(checkpoint["model"]), "w2v_encoder.w2v_model.", "w2v_model.")
        return "fairseq", _from_fairseq(tensors), _fairseq_facts(checkpoint), [source]
    tensors = strip_prefix(tensors_in(checkpoint.get("state_dict", checkpoint)), "wav2vec2.", "model.wav2vec2.")
    if any(key.startswith("encoder.transformer.") for key in tensors):
        return "torchaudio", _renamed(tensors, _TORCHAUDIO), {}, [source]
    if any(key.startswith("post_extract_proj.") for key in tensors):
        return "fairseq", _from_fairseq(tensors), {}, [source]
    raise InputError(
        f"{source}: no HuBERT that is known here. Expected fairseq's `model`, s3prl's `model_weight` or "
        f"torchaudio's names; found {', '.join(sorted(map(str, checkpoint))[:5])}"
    )


def _from_fairseq(tensors: Tensors) -> Tensors:
    if "encoder.pos_conv.0.running_mean" in tensors:
        return _renamed(tensors, (*_BATCH_NORM, *_FAIRSEQ))
    return _renamed(tensors, _FAIRSEQ)


def _renamed(tensors: Tensors, rules: tuple[tuple[str, str], ...]) -> Tensors:
    def rename(key: str) -> str:
        for pattern, replacement in rules:
            new, count = re.subn(pattern, replacement, key)
            if count:
                return new
        return key

    return {rename(key): value for key, value in tensors.items()}


def _canonical(tensors: Tensors) -> Tensors:
    """The positional convolution's weight norm under torch's present names, whatever the file calls it."""
    names = {
        f"{_POSITIONS}weight_g": f"{_POSITIONS}parametrizations.weight.original0",
        f"{_POSITIONS}weight_v": f"{_POSITIONS}parametrizations.weight.original1",
    }
    return {names.get(key, key): value for key, value in tensors.items()}


def _fairseq_facts(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    cfg = _plain(checkpoint.get("cfg"))
    if cfg:
        return _facts(cfg.get("model"), cfg.get("task"))
    args = _plain(checkpoint.get("args"))  # before hydra: one flat namespace
    return _facts(args, args)


def _facts(model: Any, task: Any) -> dict[str, Any]:
    """What the configuration says beyond the shapes; only what is there."""
    model, task = _plain(model), _plain(task)
    inner = _plain(model.get("w2v_args"))  # a fine-tuned model keeps its encoder's configuration inside
    model = {**model, **_plain(inner.get("model"))}
    facts = {
        key: model[key]
        for key in ("encoder_attention_heads", "layer_norm_first", "conv_feature_layers")
        if key in model
    }
    normalize = task.get("normalize", _plain(inner.get("task")).get("normalize"))
    return {**facts, "normalize": bool(normalize)} if normalize is not None else facts


def _plain(value: Any) -> dict[str, Any]:
    """A mapping, a namespace or a configuration object as a dict; empty for anything else."""
    if isinstance(value, Inert):
        fields = value.fields
        return _plain(fields["_content"]) if "_content" in fields else fields
    if not isinstance(value, Mapping):
        return {}
    # omegaconf's nodes keep their value under `_val`.
    return {str(key): item.fields.get("_val", item) if isinstance(item, Inert) else item for key, item in value.items()}


def _strides(text: Any, num_layers: int) -> list[int]:
    """Strides of the convolutions from fairseq's `[(512,10,5)] + [(512,3,2)] * 4 + ...`; else the published ones."""
    strides: list[int] = []
    for block, times in re.findall(r"\[((?:\s*\([^()]*\)\s*,?)+)\]\s*(?:\*\s*(\d+))?", str(text or "")):
        here = [int(stride) for stride in re.findall(r"\(\s*\d+\s*,\s*\d+\s*,\s*(\d+)\s*\)", block)]
        strides += here * int(times or 1)
    return strides if len(strides) == num_layers else [5] + [2] * (num_layers - 1)


def _config(tensors: Tensors, facts: Mapping[str, Any], source: Path) -> HubertConfig:
    """A HubertConfig from shapes and facts. InputError when the names are not those of a HuBERT."""
    convs: list[Tensors] = []
    while f"feature_extractor.conv_layers.{len(convs)}.conv.weight" in tensors:
        prefix = f"feature_extractor.conv_layers.{len(convs)}."
        convs.append({key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)})
    num_layers = len({key.split(".")[2] for key in tensors if re.match(r"encoder\.layers\.\d+\.", key)})
    batch_normed = "encoder.pos_conv_embed.batch_norm.weight" in tensors
    positions = tensors.get(f"{_POSITIONS}{'weight' if batch_normed else 'parametrizations.weight.original1'}")
    projection = tensors.get("feature_projection.projection.weight")
    if not convs or not num_layers or positions is None or projection is None:
        raise InputError(
            f"{source}: not a HuBERT: it needs convolutions, a feature projection, a normalised positional "
            f"convolution and transformer layers; found {', '.join(sorted(tensors)[:4])}"
        )
    hidden = projection.shape[0]
    heads = int(facts.get("encoder_attention_heads") or _HEADS.get(hidden, hidden // 64))
    layer_normed = "layer_norm.weight" in convs[-1]
    return HubertConfig(
        hidden_size=hidden,
        num_hidden_layers=num_layers,
        num_attention_heads=heads,
        intermediate_size=tensors["encoder.layers.0.feed_forward.intermediate_dense.weight"].shape[0],
        feat_extract_norm="layer" if layer_normed else "group",
        do_stable_layer_norm=bool(facts.get("layer_norm_first", layer_normed)),
        conv_dim=[conv["conv.weight"].shape[0] for conv in convs],
        conv_kernel=[conv["conv.weight"].shape[2] for conv in convs],
        conv_stride=_strides(facts.get("conv_feature_layers"), len(convs)),
        conv_bias="conv.bias" in convs[0],
        num_feat_extract_layers=len(convs),
        num_conv_pos_embeddings=positions.shape[2],
        num_conv_pos_embedding_groups=hidden // positions.shape[1],
        conv_pos_batch_norm=batch_normed,
    )


def _hf_config(source: Path, tensors: Tensors) -> HubertConfig:
    values = read_json(source / "config.json")
    if not isinstance(values, dict) or values.get("model_type") not in ("hubert", None):
        raise InputError(f"{source / 'config.json'}: model_type is {values.get('model_type')!r}, not 'hubert'")
    return HubertConfig.from_dict(values)


def _hf_facts(source: Path) -> dict[str, Any]:
    # A preprocessor file of a base model often says do_normalize though HuBERT base was trained without it,
    # so it is believed only where the convolutions are layer-normed, as in large and xlarge.
    config = read_json(source / "config.json")
    return {"normalize": isinstance(config, dict) and config.get("feat_extract_norm") == "layer"}
