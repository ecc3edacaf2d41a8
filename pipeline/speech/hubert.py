"""The speech encoder: a transformers `HubertModel` whose batched output equals its unbatched output.

The base model normalises its first convolution over time (group norm), so padding changes every frame of
an utterance, attention mask or not; transformers leaves it so. Here those statistics are taken over the
utterance's own frames, everything behind its end is set to zero where the unbatched model pads with zeros,
and attention sees valid frames only. Units are then the same alone and in any batch. Only the layers up
to the one asked for are computed.
"""

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from transformers import HubertConfig, HubertModel
from transformers.models.hubert.modeling_hubert import HubertGroupNormConvLayer

from pipeline.errors import InputError
from pipeline.files import read_json, sha256_file

BUNDLED = Path(__file__).resolve().parent.parent / "bundled" / "hubert"


class SpeechEncoder:
    """Waveforms -> features of one layer.

    model_dir: a transformers HuBERT folder (config.json, model.safetensors). layer: 1-based, transformers'
    `hidden_states[layer]`. normalize: mean 0 and variance 1 over each utterance first (fairseq's
    `task.normalize`: false for base, true for large). Raises InputError when the folder or layer is wrong.
    """

    def __init__(self, model_dir: Path, layer: int, normalize: bool = False, device: str = "cpu") -> None:
        weights = model_dir / "model.safetensors"
        if not weights.exists() or not (model_dir / "config.json").exists():
            raise InputError(f"{model_dir}: no HuBERT there (config.json and model.safetensors are expected)")
        values = read_json(model_dir / "config.json")
        config = HubertConfig.from_dict(values)
        trained = values.get("im2speech_normalize", normalize)
        if trained != normalize:
            raise InputError(
                f"{model_dir}: trained with normalize {str(trained).lower()} (im2speech_normalize in its config.json), "
                f"asked for with {str(normalize).lower()}; that would give other units. Set features.normalize"
            )
        if not 1 <= layer <= config.num_hidden_layers:
            raise InputError(f"{model_dir}: layer {layer}; this encoder has layers 1 to {config.num_hidden_layers}")
        self.layer, self.normalize, self.device = layer, normalize, torch.device(device)
        self.sha256 = sha256_file(weights)
        self.name = str(values.get("im2speech_name", model_dir.name))
        self.model = HubertModel.from_pretrained(model_dir, local_files_only=True).eval().to(self.device)
        self.model.encoder.layers = self.model.encoder.layers[:layer]
        self.hop = int(np.prod(config.conv_stride))
        self.sample_rate = 16_000
        self.window = _receptive_field(config)

    @property
    def identity(self) -> dict[str, Any]:
        """What a codebook fitted on these features must remember."""
        return {
            "encoder": self.name,
            "encoder_sha256": self.sha256,
            "layer": self.layer,
            "sample_rate": self.sample_rate,
            "hop": self.hop,
            "normalize": self.normalize,
        }

    @property
    def fingerprint(self) -> str:
        """16 hex characters naming weights, layer and normalisation."""
        text = f"{self.sha256} {self.layer} {self.normalize}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def num_frames(self, num_samples: int) -> int:
        """Frames of an utterance of `num_samples` samples: floor((n - 400) / 320) + 1 for HuBERT."""
        return max(0, (num_samples - self.window) // self.hop + 1)

    @torch.inference_mode()
    def encode(self, waveforms: Sequence[npt.NDArray[np.float32]]) -> list[torch.Tensor]:
        """float32 waveforms [num_samples] at 16 kHz, in one batch -> features [num_frames, D] each.

        Raises InputError for one shorter than a frame (400 samples) or not finite.
        """
        lengths = [len(waveform) for waveform in waveforms]
        for number, waveform in enumerate(waveforms):
            if lengths[number] < self.window:
                raise InputError(f"utterance {number} of the batch: {lengths[number]} samples, less than one frame")
            if not np.isfinite(waveform).all():
                raise InputError(f"utterance {number} of the batch: not all samples are finite numbers")
        batch = torch.zeros(len(waveforms), max(lengths))
        for row, waveform in zip(batch, waveforms, strict=True):
            samples = torch.from_numpy(np.ascontiguousarray(waveform, np.float32))
            if self.normalize:
                samples = nn.functional.layer_norm(samples, samples.shape)
            row[: len(samples)] = samples
        hidden, frames = self._front_end(batch.to(self.device), torch.tensor(lengths))
        hidden = self._transformer(self.model.feature_projection(hidden.transpose(1, 2)), frames)
        return [features[:count] for features, count in zip(hidden, frames.tolist(), strict=True)]

    def _front_end(self, samples: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """float32 [B, samples] -> [B, channels, frames] and the valid frames of each."""
        hidden = samples[:, None]
        for layer in self.model.feature_extractor.conv_layers:
            kernel, stride = layer.conv.kernel_size[0], layer.conv.stride[0]
            lengths = torch.div(lengths - kernel, stride, rounding_mode="floor") + 1
            if isinstance(layer, HubertGroupNormConvLayer):
                hidden = layer.activation(masked_group_norm(layer.conv(hidden), lengths, layer.layer_norm))
            else:
                hidden = layer(hidden)
        return hidden, lengths

    def _transformer(self, hidden: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
        """Positions and the layers, over [B, T, D] of which the first `frames` are valid."""
        encoder, width = self.model.encoder, hidden.shape[1]
        mask = None
        if bool((frames < width).any()):
            valid = torch.arange(width)[None] < frames[:, None]
            valid = valid.to(hidden.device)
            hidden = hidden * valid[..., None]
            mask = torch.zeros(len(frames), 1, 1, width, device=hidden.device, dtype=hidden.dtype)
            mask = mask.masked_fill(~valid[:, None, None], torch.finfo(hidden.dtype).min)
        hidden = hidden + self._positions(hidden, mask)
        stable = self.model.config.do_stable_layer_norm
        if not stable:
            hidden = encoder.layer_norm(hidden)
        for layer in encoder.layers:
            hidden = layer(hidden, attention_mask=mask)
        if stable and self.layer == self.model.config.num_hidden_layers:
            hidden = encoder.layer_norm(hidden)
        return hidden

    def _positions(self, hidden: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        embed = self.model.encoder.pos_conv_embed
        if embed.batch_norm is None or mask is None:
            return embed(hidden)
        # Batch norm moves the zeros behind an utterance's end, where the unbatched convolution pads with zeros.
        normed = embed.batch_norm(hidden.transpose(1, 2)) * (mask[:, 0] == 0)
        return embed.activation(embed.padding(embed.conv(normed))).transpose(1, 2)


def masked_group_norm(hidden: torch.Tensor, lengths: torch.Tensor, norm: nn.GroupNorm) -> torch.Tensor:
    """Group norm with one channel a group, over the first `lengths` frames of [B, C, T] only."""
    if bool((lengths == hidden.shape[2]).all()):
        return norm(hidden)
    out = torch.empty_like(hidden)
    for row, target, length in zip(hidden, out, lengths.tolist(), strict=True):
        target[:, :length] = norm(row[None, :, :length])[0]
        target[:, length:] = 0
    return out


def _receptive_field(config: HubertConfig) -> int:
    field, jump = 1, 1
    for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
        field += (kernel - 1) * jump
        jump *= stride
    return field


@lru_cache(maxsize=2)
def load_encoder(model_dir: Path, layer: int, normalize: bool, device: str) -> SpeechEncoder:
    """A `SpeechEncoder`, kept for the next shard of the same worker."""
    return SpeechEncoder(model_dir, layer, normalize, device)


def length_batches(lengths: Sequence[int], max_samples: int) -> list[list[int]]:
    """Indices in batches of similar length, each padded to at most `max_samples` samples in all.

    Longest first, so that the largest batch is met at once. An utterance above the budget stands alone.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    batches: list[list[int]] = []
    for index in order:
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= max_samples:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches
