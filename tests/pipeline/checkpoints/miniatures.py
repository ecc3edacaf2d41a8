"""Small random checkpoints under the names that each family of files uses.

The names are written out here by hand, independently of the importers, from the published layouts.
"""

from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from transformers import HubertConfig, HubertModel


def hubert_model(kind: str = "base", layers: int = 2) -> HubertModel:
    """A HuBERT of a published structure, a few channels wide."""
    torch.manual_seed(0)
    is_base = kind != "large"
    config = HubertConfig(
        hidden_size=128,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=96,
        conv_dim=[32] * 7,
        conv_bias=not is_base,
        feat_extract_norm="group" if is_base else "layer",
        do_stable_layer_norm=not is_base,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        conv_pos_batch_norm=kind == "batch norm",
    )
    model = HubertModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def fairseq_names(model: HubertModel) -> dict[str, torch.Tensor]:
    """The state dict as fairseq's HubertModel names it, with the heads that only its training has."""
    state, config = model.state_dict(), model.config
    names = {"mask_emb": "masked_spec_embed"}
    for part in ("weight", "bias"):
        names[f"layer_norm.{part}"] = f"feature_projection.layer_norm.{part}"
        names[f"post_extract_proj.{part}"] = f"feature_projection.projection.{part}"
        names[f"encoder.layer_norm.{part}"] = f"encoder.layer_norm.{part}"
        for number in range(len(config.conv_dim)):
            ours = f"feature_extractor.conv_layers.{number}"
            names[f"{ours}.0.{part}"] = f"{ours}.conv.{part}"
            inner = "2" if config.feat_extract_norm == "group" else "2.1"
            names[f"{ours}.{inner}.{part}"] = f"{ours}.layer_norm.{part}"
        for number in range(config.num_hidden_layers):
            layer = f"encoder.layers.{number}"
            for letter in ("q_proj", "k_proj", "v_proj", "out_proj"):
                names[f"{layer}.self_attn.{letter}.{part}"] = f"{layer}.attention.{letter}.{part}"
            names[f"{layer}.self_attn_layer_norm.{part}"] = f"{layer}.layer_norm.{part}"
            names[f"{layer}.fc1.{part}"] = f"{layer}.feed_forward.intermediate_dense.{part}"
            names[f"{layer}.fc2.{part}"] = f"{layer}.feed_forward.output_dense.{part}"
            names[f"{layer}.final_layer_norm.{part}"] = f"{layer}.final_layer_norm.{part}"
    positions = "encoder.pos_conv_embed"
    if config.conv_pos_batch_norm:  # mHuBERT at 25 Hz
        for part in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            names[f"encoder.pos_conv.0.{part}"] = f"{positions}.batch_norm.{part}"
        names["encoder.pos_conv.1.weight"] = f"{positions}.conv.weight"
        names["encoder.pos_conv.1.bias"] = f"{positions}.conv.bias"
    else:
        names["encoder.pos_conv.0.weight_g"] = f"{positions}.conv.parametrizations.weight.original0"
        names["encoder.pos_conv.0.weight_v"] = f"{positions}.conv.parametrizations.weight.original1"
        names["encoder.pos_conv.0.bias"] = f"{positions}.conv.bias"
    found = {theirs: state[ours] for theirs, ours in names.items() if ours in state}
    assert len(found) == len(state)
    return {**found, "label_embs_concat": torch.randn(9, 4), "final_proj.weight": torch.randn(4, 128)}


def save_hubert(path: Path, model: HubertModel, layout: str, normalize: bool = False) -> None:
    """In fairseq's format since hydra, before hydra, as a fine-tuned model, in s3prl's or in torchaudio's."""
    facts = {"encoder_attention_heads": model.config.num_attention_heads}
    facts["layer_norm_first"] = model.config.do_stable_layer_norm
    facts["conv_feature_layers"] = "[(32,10,5)] + [(32,3,2)] * 4 + [(32,2,2)] * 2"
    value: dict[str, Any]
    if layout == "fairseq":
        value = {"args": None, "cfg": {"model": facts, "task": {"normalize": normalize}}, "model": fairseq_names(model)}
    elif layout == "fairseq before hydra":
        value = {"args": Namespace(**facts, normalize=normalize), "model": fairseq_names(model)}
    elif layout == "fairseq fine-tuned":
        inner = {"model": facts, "task": {"normalize": normalize}}
        tensors = {f"w2v_encoder.w2v_model.{name}": value for name, value in fairseq_names(model).items()}
        tensors["w2v_encoder.proj.weight"] = torch.randn(32, 128)
        value = {"cfg": {"model": {"w2v_args": inner}, "task": {}}, "model": tensors}
    elif layout == "s3prl":
        value = {"task_cfg": {"normalize": normalize}, "model_cfg": facts, "model_weight": fairseq_names(model)}
    else:
        value = _torchaudio_names(model)
    torch.save(value, path)


def _torchaudio_names(model: HubertModel) -> dict[str, torch.Tensor]:
    renamed = {}
    for name, tensor in model.state_dict().items():
        if name == "masked_spec_embed":
            continue
        name = name.replace("parametrizations.weight.original0", "weight_g")
        name = name.replace("parametrizations.weight.original1", "weight_v")
        if name.startswith("feature_projection."):
            name = f"encoder.{name}"
        elif name.startswith("encoder."):
            name = name.replace("encoder.", "encoder.transformer.", 1)
        renamed[name] = tensor
    return renamed
