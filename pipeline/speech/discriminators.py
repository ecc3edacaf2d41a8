"""The two discriminators of HiFi-GAN: of periods (every p-th sample) and of scales (the waveform, averaged).

Kong et al. 2020, "HiFi-GAN: Generative Adversarial Networks for Efficient and High Fidelity Speech Synthesis",
section 2.3, with layer sizes, key names and shapes of that paper's published checkpoints (`mpd`, `msd`): there,
weight-normalised layers hold `weight_g` and `weight_v`, the spectrally normalised first scale `weight_orig`,
`weight_u` and `weight_v`. They are needed to train only, so nothing here enters a vocoder's folder.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.errors import InputError

_SLOPE = 0.1
PERIODS = (2, 3, 5, 7, 11)
NUM_SCALES = 3
FULL_WIDTH = 1024
_NARROWEST = 128  # 16 groups of one channel at the narrowest grouped layer

Judgement = tuple[Tensor, list[Tensor]]
"""Scores `[batch, n]` and the activations of every layer, the last one's included."""


class Discriminators(nn.Module):
    """Both families under the names of a HiFi-GAN checkpoint: `mpd.discriminators.N...`, `msd.discriminators.N...`.

    channels: width of the deepest layers, 1024 in the paper; others are in proportion. InputError unless it is a
    multiple of 128.
    """

    def __init__(self, channels: int = FULL_WIDTH) -> None:
        super().__init__()
        if channels < _NARROWEST or channels % _NARROWEST:
            raise InputError(
                f"vocoder: discriminator_channels must be a multiple of {_NARROWEST}, not {channels}; "
                f"the paper has {FULL_WIDTH}"
            )
        self.mpd = _Family([_PeriodDiscriminator(period, channels) for period in PERIODS])
        first = _ScaleDiscriminator(channels, _SpectralNorm)
        self.msd = _Family([first, *(_ScaleDiscriminator(channels, _WeightNorm) for _ in range(NUM_SCALES - 1))])

    def forward(self, waveform: Tensor) -> list[Judgement]:
        """Judge float32 `[batch, samples]` in [-1, 1]: the periods' judgements, then the scales'."""
        signal = waveform[:, None]
        judged = [discriminator(signal) for discriminator in self.mpd.discriminators]
        for index, discriminator in enumerate(self.msd.discriminators):
            if index:
                signal = F.avg_pool1d(signal, 4, stride=2, padding=2)
            judged.append(discriminator(signal))
        return judged


class _Family(nn.Module):
    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.discriminators = nn.ModuleList(members)


class _Convolution(nn.Module):
    """A convolution whose weight is computed at each use; starts as torch's own would."""

    def __init__(self, conv: nn.Conv1d | nn.Conv2d) -> None:
        super().__init__()
        self.options: dict[str, Any] = {"stride": conv.stride, "padding": conv.padding, "groups": conv.groups}
        self.convolve = F.conv1d if isinstance(conv, nn.Conv1d) else F.conv2d
        self.bias = nn.Parameter(cast(Tensor, conv.bias).detach().clone())

    def weight(self) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.convolve(x, self.weight(), self.bias, **self.options)


class _WeightNorm(_Convolution):
    """weight_g * weight_v / ||weight_v||, one norm an output channel."""

    def __init__(self, conv: nn.Conv1d | nn.Conv2d) -> None:
        super().__init__(conv)
        self.dims = tuple(range(1, conv.weight.ndim))
        self.weight_v = nn.Parameter(conv.weight.detach().clone())
        self.weight_g = nn.Parameter(torch.linalg.vector_norm(self.weight_v.detach(), dim=self.dims, keepdim=True))

    def weight(self) -> Tensor:
        return self.weight_v * (self.weight_g / torch.linalg.vector_norm(self.weight_v, dim=self.dims, keepdim=True))


class _SpectralNorm(_Convolution):
    """weight_orig over its largest singular value, which one power iteration a training step follows."""

    weight_u: Tensor
    weight_v: Tensor

    def __init__(self, conv: nn.Conv1d | nn.Conv2d) -> None:
        super().__init__(conv)
        self.weight_orig = nn.Parameter(conv.weight.detach().clone())
        matrix = self.weight_orig.detach().flatten(1)
        self.register_buffer("weight_u", F.normalize(torch.randn(matrix.shape[0]), dim=0))
        self.register_buffer("weight_v", F.normalize(torch.randn(matrix.shape[1]), dim=0))

    def weight(self) -> Tensor:
        # In float32 whatever the precision around it: a singular value of eight bits would jump.
        with torch.autocast(self.weight_orig.device.type, enabled=False):
            matrix = self.weight_orig.flatten(1)
            if self.training:
                with torch.no_grad():
                    self.weight_v.copy_(F.normalize(matrix.T @ self.weight_u, dim=0))
                    self.weight_u.copy_(F.normalize(matrix @ self.weight_v, dim=0))
            # Copies, because the next forward pass changes the buffers before this one's backward pass.
            largest = self.weight_u.clone() @ (matrix @ self.weight_v.clone())
            return self.weight_orig / largest


class _Discriminator(nn.Module):
    """Convolutions `convs` with leaky ReLUs, then `conv_post`."""

    convs: nn.ModuleList
    conv_post: nn.Module

    def judge(self, x: Tensor) -> Judgement:
        activations = []
        for conv in self.convs:
            x = F.leaky_relu(conv(x), _SLOPE)
            activations.append(x)
        x = self.conv_post(x)
        return x.flatten(1), [*activations, x]


class _PeriodDiscriminator(_Discriminator):
    """Sees the waveform folded into rows of `period` samples; its kernels span rows, never columns."""

    def __init__(self, period: int, channels: int) -> None:
        super().__init__()
        self.period = period
        widths = [1, channels // 32, channels // 8, channels // 2, channels]
        convs = [
            nn.Conv2d(narrow, wide, (5, 1), (3, 1), padding=(2, 0))
            for narrow, wide in zip(widths, widths[1:], strict=False)
        ]
        convs.append(nn.Conv2d(channels, channels, (5, 1), padding=(2, 0)))
        self.convs = nn.ModuleList(_WeightNorm(conv) for conv in convs)
        self.conv_post = _WeightNorm(nn.Conv2d(channels, 1, (3, 1), padding=(1, 0)))

    def forward(self, signal: Tensor) -> Judgement:
        short = -signal.shape[2] % self.period
        if short:
            signal = F.pad(signal, (0, short), "reflect")
        return self.judge(signal.unflatten(2, (-1, self.period)))


class _ScaleDiscriminator(_Discriminator):
    """Long, grouped kernels over the waveform as it is; samples shrink by 64 on the way."""

    def __init__(self, channels: int, norm: type[_Convolution]) -> None:
        super().__init__()
        eighth, quarter, half = channels // 8, channels // 4, channels // 2
        convs = [
            nn.Conv1d(1, eighth, 15, padding=7),
            nn.Conv1d(eighth, eighth, 41, 2, groups=4, padding=20),
            nn.Conv1d(eighth, quarter, 41, 2, groups=16, padding=20),
            nn.Conv1d(quarter, half, 41, 4, groups=16, padding=20),
            nn.Conv1d(half, channels, 41, 4, groups=16, padding=20),
            nn.Conv1d(channels, channels, 41, groups=16, padding=20),
            nn.Conv1d(channels, channels, 5, padding=2),
        ]
        self.convs = nn.ModuleList(norm(conv) for conv in convs)
        self.conv_post = norm(nn.Conv1d(channels, 1, 3, padding=1))

    def forward(self, signal: Tensor) -> Judgement:
        return self.judge(signal)
