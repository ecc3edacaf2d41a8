"""The unit HiFi-GAN: speech units straight to a waveform.

The generator of fairseq's CodeHiFiGAN (Polyak et al. 2021, "Speech Resynthesis from Discrete
Disentangled Self-Supervised Representations"; the duration predictor of Lee et al. 2021), with the
same configuration keys, state-dict names and shapes, so that published weights can be loaded. The
convolutions hold their weight-normalised parameters under the old names `weight_g` and `weight_v`,
which those checkpoints use; torch's present parametrization would rename them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.errors import InputError
from pipeline.speech.mel_vocoder import durations_from_log

_SLOPE = 0.1
_UNSUPPORTED = ("f0", "embedder_params", "style", "num_styles")


def small_config(
    num_units: int, channels: int, hop: int, sample_rate: int, speakers: Sequence[str] = ()
) -> "HiFiGANConfig":
    """A generator with a duration predictor, `channels` wide at its first layer (the original has 512).

    `speakers`: names of the voices that it tells apart by an embedding beside the units'; none: one voice.

    InputError when `hop`, samples a unit, is not 320 or 640, or `channels` cannot be halved five times.
    """
    if hop not in (320, 640):
        raise InputError(f"unit HiFi-GAN: no upsampling is known for a hop of {hop}; use 320 or 640, or kind mel")
    if channels % 32:
        raise InputError(f"unit HiFi-GAN: channels must be a multiple of 32, not {channels}")
    predictor = {
        "encoder_embed_dim": 128,
        "var_pred_hidden_dim": 128,
        "var_pred_kernel_size": 3,
        "var_pred_dropout": 0.5,
    }
    return HiFiGANConfig(
        num_embeddings=num_units,
        upsample_rates=(5, 4, 4, 2, 2) if hop == 320 else (5, 4, 4, 4, 2),
        upsample_kernel_sizes=(11, 8, 8, 4, 4) if hop == 320 else (11, 8, 8, 8, 4),
        upsample_initial_channel=channels,
        dur_predictor_params=predictor,
        sampling_rate=sample_rate,
        model_in_dim=256 if speakers else 128,
        multispkr="_" if speakers else None,
        num_speakers=len(speakers) or 200,
        speakers=tuple(speakers),
    )


@dataclass(frozen=True)
class HiFiGANConfig:
    """The keys of fairseq's config.json that decide the generator; defaults as in its hubert100 vocoder.

    `speakers` is ours: names of the rows of the speaker embedding, where they are known.
    """

    num_embeddings: int = 100
    embedding_dim: int = 128
    model_in_dim: int = 128
    resblock: str = "1"
    upsample_rates: Sequence[int] = (5, 4, 4, 2, 2)
    upsample_kernel_sizes: Sequence[int] = (11, 8, 8, 4, 4)
    upsample_initial_channel: int = 512
    resblock_kernel_sizes: Sequence[int] = (3, 7, 11)
    resblock_dilation_sizes: Sequence[Sequence[int]] = ((1, 3, 5), (1, 3, 5), (1, 3, 5))
    dur_predictor_params: dict[str, Any] | None = None
    multispkr: str | None = None
    num_speakers: int = 200
    sampling_rate: int = 16000
    speakers: Sequence[str] = ()

    @property
    def hop(self) -> int:
        """Samples that one unit frame becomes."""
        hop = 1
        for rate in self.upsample_rates:
            hop *= rate
        return hop

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "HiFiGANConfig":
        """Read a fairseq config. Keys for training are ignored; InputError for parts that we do not build."""
        for key in _UNSUPPORTED:
            if values.get(key):
                raise InputError(f"unit HiFi-GAN: config key {key!r} is set; such vocoders are not supported")
        known = {item.name for item in fields(cls)}
        config = cls(**{key: value for key, value in values.items() if key in known})
        if len(config.upsample_rates) != len(config.upsample_kernel_sizes):
            raise InputError("unit HiFi-GAN: 'upsample_rates' and 'upsample_kernel_sizes' differ in length")
        if config.speakers and len(config.speakers) != config.num_speakers:
            found = len(config.speakers)
            raise InputError(f"unit HiFi-GAN: {found} names in 'speakers', not {config.num_speakers} ('num_speakers')")
        width = config.embedding_dim * (2 if config.multispkr else 1)
        if config.model_in_dim != width:
            raise InputError(f"unit HiFi-GAN: config key 'model_in_dim' is {config.model_in_dim}, not {width}")
        return config

    def to_dict(self) -> dict[str, Any]:
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        if not self.speakers:
            del values["speakers"]
        return values


class _NormedConv(nn.Module):
    """A convolution whose weight is weight_g * weight_v / ||weight_v||, one norm per first dimension."""

    def __init__(self, shape: tuple[int, int, int], num_out: int) -> None:
        super().__init__()
        self.weight_v = nn.Parameter(torch.randn(shape) * 0.01)
        self.weight_g = nn.Parameter(self.weight_v.detach().norm(dim=(1, 2), keepdim=True))
        self.bias = nn.Parameter(torch.zeros(num_out))

    def weight(self) -> Tensor:
        return self.weight_v * (self.weight_g / self.weight_v.norm(dim=(1, 2), keepdim=True))


class _Conv(_NormedConv):
    def __init__(self, num_in: int, num_out: int, kernel: int, dilation: int = 1) -> None:
        super().__init__((num_out, num_in, kernel), num_out)
        self.dilation = dilation
        self.padding = (kernel - 1) * dilation // 2

    def forward(self, x: Tensor) -> Tensor:
        return F.conv1d(x, self.weight(), self.bias, padding=self.padding, dilation=self.dilation)


class _Upsample(_NormedConv):
    def __init__(self, num_in: int, num_out: int, kernel: int, rate: int) -> None:
        super().__init__((num_in, num_out, kernel), num_out)
        self.rate = rate
        self.padding = (kernel - rate) // 2

    def forward(self, x: Tensor) -> Tensor:
        return F.conv_transpose1d(x, self.weight(), self.bias, stride=self.rate, padding=self.padding)


class _ResBlock1(nn.Module):
    def __init__(self, channels: int, kernel: int, dilations: Sequence[int]) -> None:
        super().__init__()
        self.convs1 = nn.ModuleList(_Conv(channels, channels, kernel, dilation) for dilation in dilations)
        self.convs2 = nn.ModuleList(_Conv(channels, channels, kernel) for _ in dilations)

    def forward(self, x: Tensor) -> Tensor:
        for first, second in zip(self.convs1, self.convs2, strict=True):
            x = x + second(F.leaky_relu(first(F.leaky_relu(x, _SLOPE)), _SLOPE))
        return x


class _ResBlock2(nn.Module):
    def __init__(self, channels: int, kernel: int, dilations: Sequence[int]) -> None:
        super().__init__()
        self.convs = nn.ModuleList(_Conv(channels, channels, kernel, dilation) for dilation in dilations)

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.convs:
            x = x + conv(F.leaky_relu(x, _SLOPE))
        return x


class _DurationPredictor(nn.Module):
    """Two convolutions and a projection over unit embeddings; predicts log(duration + 1)."""

    def __init__(
        self,
        encoder_embed_dim: int,
        var_pred_hidden_dim: int,
        var_pred_kernel_size: int,
        var_pred_dropout: float,
    ) -> None:
        super().__init__()
        hidden, kernel = var_pred_hidden_dim, var_pred_kernel_size
        first = nn.Conv1d(encoder_embed_dim, hidden, kernel, padding=(kernel - 1) // 2)
        # The second convolution's padding is fixed at 1 in the original, whatever the kernel.
        second = nn.Conv1d(hidden, hidden, kernel, padding=1)
        self.conv1 = nn.Sequential(first, nn.ReLU())
        self.ln1 = nn.LayerNorm(hidden)
        self.conv2 = nn.Sequential(second, nn.ReLU())
        self.ln2 = nn.LayerNorm(hidden)
        self.proj = nn.Linear(hidden, 1)
        self.dropout = var_pred_dropout

    def forward(self, x: Tensor) -> Tensor:
        """float32 `[batch, runs, channels]` to `[batch, runs]`."""
        for conv, norm in ((self.conv1, self.ln1), (self.conv2, self.ln2)):
            x = norm(conv(x.transpose(1, 2)).transpose(1, 2))
            x = F.dropout(x, self.dropout, self.training)
        return self.proj(x).squeeze(2)


class CodeHiFiGAN(nn.Module):
    """The generator. Sequences go one at a time, or as equal-length crops: padding is not masked."""

    def __init__(self, config: HiFiGANConfig) -> None:
        super().__init__()
        self.config = config
        width = config.upsample_initial_channel
        self.dict = nn.Embedding(config.num_embeddings, config.embedding_dim)
        self.spkr = nn.Embedding(config.num_speakers, config.embedding_dim) if config.multispkr else None
        params = config.dur_predictor_params
        self.dur_predictor = _DurationPredictor(**params) if params else None
        self.conv_pre = _Conv(config.model_in_dim, width, 7)
        self.ups = nn.ModuleList()
        self.resblocks = nn.ModuleList()
        block = _ResBlock1 if config.resblock == "1" else _ResBlock2
        for rate, kernel in zip(config.upsample_rates, config.upsample_kernel_sizes, strict=True):
            self.ups.append(_Upsample(width, width // 2, kernel, rate))
            width //= 2
            sizes = zip(config.resblock_kernel_sizes, config.resblock_dilation_sizes, strict=True)
            for size, dilations in sizes:
                self.resblocks.append(block(width, size, dilations))
        self.conv_post = _Conv(width, 1, 7)

    def log_durations(self, units: Tensor) -> Tensor:
        """log(duration + 1) of deduplicated units `[batch, runs]`; InputError without a predictor."""
        if self.dur_predictor is None:
            raise InputError("unit HiFi-GAN: it predicts no durations; give durations with the units")
        return self.dur_predictor(self.dict(units))

    def forward(self, frames: Tensor, speaker: Tensor | None = None) -> Tensor:
        """Frame-level units int64 `[batch, frames]`, speakers int64 `[batch]`, to `[batch, frames * hop]`."""
        x = self.dict(frames).transpose(1, 2)
        if self.spkr is not None:
            if speaker is None:
                speaker = torch.zeros(len(frames), dtype=torch.long, device=frames.device)
            x = torch.cat([x, self.spkr(speaker)[..., None].expand(-1, -1, x.shape[2])], dim=1)
        x = self.conv_pre(x)
        num_kernels = len(self.config.resblock_kernel_sizes)
        for index, up in enumerate(self.ups):
            x = up(F.leaky_relu(x, _SLOPE))
            blocks = self.resblocks[index * num_kernels : (index + 1) * num_kernels]
            x = torch.stack([block(x) for block in blocks]).sum(0) / num_kernels
        # The slope before the last convolution is torch's default, 0.01, as in the original.
        return torch.tanh(self.conv_post(F.leaky_relu(x))).squeeze(1)

    @torch.inference_mode()
    def synthesize(self, units: Tensor, durations: Tensor | None = None, speaker: int | None = None) -> Tensor:
        """One non-empty sequence of deduplicated units `[runs]` to a waveform `[frames * hop]`."""
        if durations is None:
            durations = durations_from_log(self.log_durations(units[None]))[0]
        chosen = None if speaker is None else torch.tensor([speaker], device=units.device)
        return self(units.repeat_interleave(durations)[None], chosen)[0]
