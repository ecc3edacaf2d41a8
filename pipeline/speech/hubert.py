"""The speech encoder: a transformers `HubertModel` whose batched output equals its unbatched output.

The base model normalises its first convolution over time (group norm), so padding changes every frame of
an utterance, attention mask or not; transformers leaves it so. Here those statistics are taken over the
utterance's own frames, everything behind its end is set to zero where the unbatched model pads with zeros,
and attention sees valid frames only. Units are then the same alone and in any batch. Only the layers up
to the one asked for are computed.

A long utterance is still one utterance: its convolutions run block by block with statistics of the whole, so
that memory stays small, and attention sees all of it. `chunking="fairseq"` gives what fairseq's
HubertFeatureReader gives instead: pieces of 1,600,000 samples (100 s), each encoded as if it stood alone.
"""

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn.utils import parametrize
from transformers import HubertConfig, HubertModel
from transformers.models.hubert.modeling_hubert import HubertGroupNormConvLayer

from pipeline.arithmetic import CPU_BATCH_BYTES, Precision, arithmetic
from pipeline.errors import InputError
from pipeline.files import read_json, sha256_file, stamp
from pipeline.speech.hubert_cpu import Convolutions, FourierConvolution, group_norm_over_time, pays

BUNDLED = Path(__file__).resolve().parent.parent / "bundled" / "hubert"

FAIRSEQ_CHUNK = 1_600_000
"""Samples of a piece in fairseq's HubertFeatureReader (`max_chunk`)."""

Chunking = Literal["whole", "fairseq"]

# Above this many samples (30 s) the convolutions of an utterance run in blocks of this many frames (10 s).
_LONG_SAMPLES, _BLOCK_FRAMES = 480_000, 500


class SpeechEncoder:
    """Waveforms -> features of one layer.

    model_dir: a transformers HuBERT folder (config.json, model.safetensors). layer: 1-based, transformers'
    `hidden_states[layer]`. normalize: mean 0 and variance 1 over each utterance first (fairseq's
    `task.normalize`: false for base, true for large). precision: of convolutions and matrix products; bf16
    and fp16 are autocast and change a few units. chunking: `fairseq` cuts what is longer than 100 s.
    Raises InputError when the folder or layer is wrong.
    """

    def __init__(
        self,
        model_dir: Path,
        layer: int,
        normalize: bool = False,
        device: str = "cpu",
        precision: Precision = "fp32",
        chunking: Chunking = "whole",
    ) -> None:
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
        self.precision, self.chunking = precision, chunking
        self.sha256 = sha256_file(weights)
        self.name = str(values.get("im2speech_name", model_dir.name))
        self.model = HubertModel.from_pretrained(model_dir, local_files_only=True).eval().to(self.device)
        self.model.encoder.layers = self.model.encoder.layers[:layer]
        positions = self.model.encoder.pos_conv_embed
        if parametrize.is_parametrized(positions.conv, "weight"):  # weight norm, else computed at each call
            parametrize.remove_parametrizations(positions.conv, "weight")
        self._convolutions: Convolutions | None = None
        if self.device.type == "cpu" and precision == "fp32" and pays(self.model):
            self._convolutions = Convolutions(self.model)
            positions.conv = FourierConvolution(positions.conv)
        self.hop = int(np.prod(config.conv_stride))
        self.sample_rate = 16_000
        self.window = _receptive_field(config)

    @property
    def identity(self) -> dict[str, Any]:
        """What a codebook fitted on these features must remember; `variant` only where it is not the default."""
        return {
            "encoder": self.name,
            "encoder_sha256": self.sha256,
            "layer": self.layer,
            "sample_rate": self.sample_rate,
            "hop": self.hop,
            "normalize": self.normalize,
            **self.variant,
        }

    @property
    def variant(self) -> dict[str, str]:
        """`precision` and `chunking` where they are not fp32 and whole."""
        found = {"precision": str(self.precision), "chunking": str(self.chunking)}
        return {key: value for key, value in found.items() if value not in ("fp32", "whole")}

    @property
    def fingerprint(self) -> str:
        """16 hex characters naming weights, layer and normalisation."""
        text = f"{self.sha256} {self.layer} {self.normalize}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def num_frames(self, num_samples: int) -> int:
        """Frames of an utterance of `num_samples` samples: floor((n - 400) / 320) + 1 for HuBERT.

        In fairseq's chunks each piece is counted by itself, and a last piece shorter than a frame has none.
        """
        if self.chunking == "fairseq" and num_samples > FAIRSEQ_CHUNK:
            whole, rest = divmod(num_samples, FAIRSEQ_CHUNK)
            return whole * ((FAIRSEQ_CHUNK - self.window) // self.hop + 1) + self.num_frames(rest)
        return max(0, (num_samples - self.window) // self.hop + 1)

    def batches(self, lengths: Sequence[int], max_samples: int) -> list[list[int]]:
        """Indices of utterances to encode together, by their lengths in samples: `length_batches` of a budget.

        On a CPU the budget is held to what its cache holds of the widest activation: above that a batch is slower
        than one utterance at a time (docs/scale.md). HuBERT base so takes nearly every utterance alone.
        """
        if self.device.type == "cpu":
            config = self.model.config
            bytes_a_sample = 4 * max(config.conv_dim[0] / config.conv_stride[0], config.conv_dim[-1] / self.hop)
            max_samples = min(max_samples, int(CPU_BATCH_BYTES / bytes_a_sample))
        return length_batches(lengths, max_samples)

    @torch.inference_mode()
    def encode(self, waveforms: Sequence[npt.NDArray[np.float32]]) -> list[torch.Tensor]:
        """float32 waveforms [num_samples] at 16 kHz, in one batch -> features [num_frames, D] each.

        Raises InputError for one shorter than a frame (400 samples) or not finite.
        """
        prepared = []
        for number, waveform in enumerate(waveforms):
            if len(waveform) < self.window:
                raise InputError(f"utterance {number} of the batch: {len(waveform)} samples, less than one frame")
            if not np.isfinite(waveform).all():
                raise InputError(f"utterance {number} of the batch: not all samples are finite numbers")
            samples = torch.from_numpy(np.ascontiguousarray(waveform, np.float32))
            prepared.append(nn.functional.layer_norm(samples, samples.shape) if self.normalize else samples)
        with arithmetic(self.device, self.precision):
            if self.chunking == "fairseq" and any(len(samples) > FAIRSEQ_CHUNK for samples in prepared):
                return [torch.cat([self._encode([piece])[0] for piece in self._pieces(s)]) for s in prepared]
            return self._encode(prepared)

    def _pieces(self, samples: torch.Tensor) -> list[torch.Tensor]:
        """fairseq's pieces; a last one shorter than a frame, on which fairseq fails, is left out."""
        return [piece for piece in samples.split(FAIRSEQ_CHUNK) if len(piece) >= self.window]

    def _encode(self, waveforms: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Prepared float32 waveforms, in one batch -> features [num_frames, D] each, on the encoder's device."""
        lengths = torch.tensor([len(samples) for samples in waveforms])
        if self._convolutions is not None:
            rows = [self._convolutions(samples) for samples in waveforms]
            hidden, frames = nn.utils.rnn.pad_sequence(rows, batch_first=True), (lengths - self.window) // self.hop + 1
        else:
            hidden, frames = self._convolve(waveforms, lengths)
        hidden = self._transformer(self.model.feature_projection(hidden), frames)
        return [features[:count] for features, count in zip(hidden, frames.tolist(), strict=True)]

    def _convolve(self, waveforms: Sequence[torch.Tensor], lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Waveforms of so many samples -> padded [B, frames, channels], and the valid frames of each."""
        batch = torch.zeros(len(waveforms), int(lengths.max()), pin_memory=self.device.type == "cuda")
        for row, samples in zip(batch, waveforms, strict=True):
            row[: len(samples)] = samples
        batch = batch.to(self.device, non_blocking=True)
        if len(waveforms) == 1 and batch.shape[1] > _LONG_SAMPLES:
            hidden, frames = self._front_end_in_blocks(batch), (lengths - self.window) // self.hop + 1
        else:
            hidden, frames = self._front_end(batch, lengths)
        return hidden.transpose(1, 2), frames

    def _front_end_in_blocks(self, samples: torch.Tensor) -> torch.Tensor:
        """`_front_end` of one long utterance, float32 [1, samples] -> [1, channels, frames], in little memory."""
        first, *others = self.model.feature_extractor.conv_layers
        is_group = isinstance(first, HubertGroupNormConvLayer)
        kernel, bias = first.conv.weight, first.conv.bias
        if is_group:
            scale, bias = group_norm_over_time(first.conv, first.layer_norm, samples[0])
            kernel = kernel * scale[:, None, None]
        num_frames = (samples.shape[1] - self.window) // self.hop + 1
        blocks = []
        for start in range(0, num_frames, _BLOCK_FRAMES):
            stop = min(num_frames, start + _BLOCK_FRAMES)
            hidden = samples[:, None, start * self.hop : (stop - 1) * self.hop + self.window]
            if is_group:
                hidden = first.activation(nn.functional.conv1d(hidden, kernel, bias, first.conv.stride))
            else:
                hidden = first(hidden)
            for layer in others:
                hidden = layer(hidden)
            blocks.append(hidden)
        return torch.cat(blocks, 2)

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
    """Group norm with one channel a group, over the first `lengths` frames of [B, C, T] only; zeros behind."""
    if bool((lengths == hidden.shape[2]).all()):
        return norm(hidden)
    if hidden.device.type != "cpu":
        return _masked_group_norm_at_once(hidden, lengths, norm)
    out = torch.empty_like(hidden)
    for row, target, length in zip(hidden, out, lengths.tolist(), strict=True):
        target[:, :length] = norm(row[None, :, :length])[0]
        target[:, length:] = 0
    return out


def _masked_group_norm_at_once(hidden: torch.Tensor, lengths: torch.Tensor, norm: nn.GroupNorm) -> torch.Tensor:
    """The same without a loop over utterances, whose many small kernels would keep a GPU waiting."""
    counts = lengths.to(hidden.device, torch.float32)[:, None, None]
    valid = (torch.arange(hidden.shape[2], device=hidden.device) < counts).float()
    centred = hidden.float()
    centred = (centred - (centred * valid).sum(2, keepdim=True) / counts) * valid
    variance = centred.square().sum(2, keepdim=True) / counts
    out = centred * torch.rsqrt(variance + norm.eps) * norm.weight[:, None] + norm.bias[:, None]
    return (out * valid).to(hidden.dtype)


def _receptive_field(config: HubertConfig) -> int:
    field, jump = 1, 1
    for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
        field += (kernel - 1) * jump
        jump *= stride
    return field


def load_encoder(
    model_dir: Path,
    layer: int,
    normalize: bool,
    device: str,
    precision: Precision = "fp32",
    chunking: Chunking = "whole",
) -> SpeechEncoder:
    """A `SpeechEncoder`, kept for the next shard of the same worker; loaded anew when its file has changed."""
    weights = model_dir / "model.safetensors"
    changed = stamp(weights) if weights.exists() else (0, 0)
    return _load_encoder(model_dir, layer, normalize, device, precision, chunking, changed)


@lru_cache(maxsize=2)
def _load_encoder(
    model_dir: Path,
    layer: int,
    normalize: bool,
    device: str,
    precision: Precision,
    chunking: Chunking,
    changed: tuple[int, int],
) -> SpeechEncoder:
    return SpeechEncoder(model_dir, layer, normalize, device, precision, chunking)


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
