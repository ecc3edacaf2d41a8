"""HuBERT's convolutions on a CPU: transformers' sums in fewer steps, for encoders as wide as the published ones.

Reads the layers of a transformers `HubertModel`; pipeline.speech.hubert puts what is here in their place where
`pays` says so. The convolutions are half of HuBERT's arithmetic and more than half of its time (docs/scale.md):

- Time comes first, so that a convolution is a few matrix products over rows, in blocks that stay in the cache.
- Two neighbouring outputs of kernel 3 and stride 2 share a product, five for six (Winograd's F(2, 2), over the
  even rows): Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, 2016.
- Group norm's statistics over time follow from the covariance of the samples under the first kernel, so that the
  first layer, the largest of all activations, is never written out whole.
- The positional convolution, 128 taps wide, takes place in the frequency domain, block by block (overlap-save).

Sums in another order: features differ from transformers' by rounding, as those of another BLAS would.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import HubertModel
from transformers.models.hubert.modeling_hubert import HubertGroupNormConvLayer

# Rows of a layer's output made at once, whose input of 512 channels is then 2 MiB; output frames (30 s) made at once.
_BLOCK_ROWS, _BLOCK_FRAMES = 512, 1500

_FOURIER_BLOCK = 128

_STATISTICS_SAMPLES = 480_000

_gelu_in_place = torch.ops.aten.gelu_.default


def pays(model: HubertModel) -> bool:
    """Whether `model` is of a kind that is faster here: 256 channels or more, GELU, strides of 2 behind the first.

    Narrower encoders gain more from batches (measured with the bundled one, of 48 channels).
    """
    config = model.config
    kernels, strides = config.conv_kernel[1:], config.conv_stride[1:]
    usual = all(stride == 2 and kernel in (2, 3) for kernel, stride in zip(kernels, strides, strict=True))
    return usual and min(config.conv_dim) >= 256 and config.feat_extract_activation == "gelu"


@dataclass(frozen=True)
class _Layer:
    """kernel: float32 [taps, inputs, outputs]; shared: the sum of its outer taps, where there are three."""

    kernel: Tensor
    shared: Tensor | None
    bias: Tensor | None
    norm: nn.Module | None

    def __call__(self, rows: Tensor, out: Tensor) -> None:
        """Rows [2 N + taps - 2, inputs] -> `out` [N, outputs]: convolution of stride 2, norm and GELU."""
        done = 0
        if self.shared is not None:
            done = len(out) // 2 * 2
            self._convolve_pairs(self.shared, rows, out[0:done:2], out[1:done:2])
        if done < len(out):
            self._convolve(rows[2 * done :], out[done:])
        _finish(out, self.bias, self.norm)

    def _convolve(self, rows: Tensor, out: Tensor) -> None:
        first, second, *last = self.kernel
        count = len(out)
        torch.mm(rows[0 : 2 * count : 2], first, out=out)
        out.addmm_(rows[1 : 2 * count : 2], second)
        for taps in last:
            out.addmm_(rows[2 : 2 * count + 1 : 2], taps)

    def _convolve_pairs(self, shared: Tensor, rows: Tensor, even: Tensor, odd: Tensor) -> None:
        """a, b, c: rows 0, 2 and 4 of each pair. a K0 + b K2 = b (K0 + K2) + (a - b) K0; b K0 + c K2 likewise."""
        count = len(even)
        a, b, c = rows[0 : 4 * count : 4], rows[2 : 4 * count : 4], rows[4 : 4 * count + 1 : 4]
        torch.mm(b, shared, out=even)
        odd.copy_(even)
        even.addmm_(a - b, self.kernel[0]).addmm_(rows[1 : 4 * count : 4], self.kernel[1])
        odd.addmm_(c - b, self.kernel[2]).addmm_(rows[3 : 4 * count : 4], self.kernel[1])


class Convolutions:
    """The convolutional layers for one utterance at a time.

    Blocks depend on nothing but the utterance, so its features are the same in any batch.
    """

    def __init__(self, model: HubertModel) -> None:
        self._first, *others = model.feature_extractor.conv_layers
        self._layers = [_layer(layer.conv, getattr(layer, "layer_norm", None)) for layer in others]
        self._num_channels = list(model.config.conv_dim)
        self._hop, self._window = 1, 1
        for kernel, stride in zip(model.config.conv_kernel, model.config.conv_stride, strict=True):
            self._window += (kernel - 1) * self._hop
            self._hop *= stride

    def __call__(self, samples: Tensor) -> Tensor:
        """float32 [num_samples] -> float32 [num_frames, channels]. A long utterance takes little memory beside that."""
        conv = self._first.conv
        kernel, bias = conv.weight[:, 0], conv.bias
        if isinstance(self._first, HubertGroupNormConvLayer):
            scale, bias = group_norm_over_time(conv, self._first.layer_norm, samples)
            kernel = kernel * scale[:, None]
        kernel = kernel.T.contiguous()
        num_frames = (len(samples) - self._window) // self._hop + 1
        out = torch.empty(num_frames, self._num_channels[-1])
        for start in range(0, num_frames, _BLOCK_FRAMES):
            stop = min(num_frames, start + _BLOCK_FRAMES)
            seen = samples[start * self._hop : (stop - 1) * self._hop + self._window]
            self._block(seen, kernel, bias, out[start:stop])
        return out

    def _block(self, samples: Tensor, kernel: Tensor, bias: Tensor | None, out: Tensor) -> None:
        windows = samples.unfold(0, len(kernel), self._first.conv.stride[0])
        norm = None if isinstance(self._first, HubertGroupNormConvLayer) else self._first.layer_norm
        rows: Tensor | None = None  # of the first layer none is kept: the second reads it block by block
        num_rows = len(windows)
        for number, (layer, width) in enumerate(zip(self._layers, self._num_channels[1:], strict=True)):
            taps = len(layer.kernel)
            num_rows = (num_rows - taps) // 2 + 1
            target = out if number == len(self._layers) - 1 else torch.empty(num_rows, width)
            for start in range(0, num_rows, _BLOCK_ROWS):
                stop = min(num_rows, start + _BLOCK_ROWS)
                read = slice(2 * start, 2 * stop + taps - 2)
                if rows is None:
                    block = torch.mm(windows[read], kernel)
                    _finish(block, bias, norm)
                else:
                    block = rows[read]
                layer(block, target[start:stop])
            rows = target


def _layer(conv: nn.Conv1d, norm: nn.Module | None) -> _Layer:
    kernel = conv.weight.detach().permute(2, 1, 0).contiguous()
    return _Layer(kernel, kernel[0] + kernel[2] if len(kernel) == 3 else None, conv.bias, norm)


def _finish(rows: Tensor, bias: Tensor | None, norm: nn.Module | None) -> None:
    if bias is not None:
        rows += bias
    if norm is not None:
        rows.copy_(norm(rows))
    _gelu_in_place(rows)


def group_norm_over_time(conv: nn.Conv1d, norm: nn.GroupNorm, samples: Tensor) -> tuple[Tensor, Tensor]:
    """Group norm with one channel a group over all of a first convolution of float32 [num_samples].

    Returns a factor of the convolution without its bias, and what to add: float32 [channels] each. A channel is
    linear in the samples under the kernel, so its mean and variance are those of theirs, taken in float64.
    """
    taps, stride = conv.kernel_size[0], conv.stride[0]
    total = (len(samples) - taps) // stride + 1
    step = _STATISTICS_SAMPLES // stride
    sums = torch.zeros(taps, dtype=torch.float64, device=samples.device)
    products = torch.zeros(taps, taps, dtype=torch.float64, device=samples.device)
    for start in range(0, total, step):
        stop = min(total, start + step)
        windows = samples[start * stride : (stop - 1) * stride + taps].unfold(0, taps, stride).double()
        sums += windows.sum(0)
        products += windows.T @ windows
    mean = sums / total
    kernel = conv.weight[:, 0].double()
    variance = ((kernel @ (products / total - torch.outer(mean, mean))) * kernel).sum(1).clamp_min(0)
    scale = norm.weight.double() / torch.sqrt(variance + norm.eps)
    return scale.float(), (norm.bias.double() - (kernel @ mean) * scale).float()


class FourierConvolution(nn.Module):
    """A grouped convolution of stride 1 with the weights of `conv`, in the frequency domain (overlap-save)."""

    def __init__(self, conv: nn.Conv1d) -> None:
        super().__init__()
        self.groups, self.padding, self.taps = conv.groups, int(conv.padding[0]), conv.kernel_size[0]
        self.size = _FOURIER_BLOCK + self.taps
        spectrum = torch.fft.rfft(conv.weight.detach(), n=self.size).conj()  # [outputs, inputs of a group, bins]
        spectrum = spectrum.unflatten(0, (self.groups, -1)).permute(3, 0, 2, 1).contiguous()
        self.spectrum = spectrum
        self.bias = conv.bias

    def forward(self, hidden: Tensor) -> Tensor:
        """float32 [B, inputs, T] -> [B, outputs, T + 2 padding - taps + 1]."""
        batch, _, width = hidden.shape
        num_frames = width + 2 * self.padding - self.taps + 1
        blocks = -(-num_frames // _FOURIER_BLOCK)
        behind = blocks * _FOURIER_BLOCK + self.taps - width - self.padding
        windows = nn.functional.pad(hidden, (self.padding, behind)).unfold(2, self.size, _FOURIER_BLOCK)
        bins = torch.fft.rfft(windows).unflatten(1, (self.groups, -1))  # [B, groups, inputs, blocks, bins]
        rows = bins.permute(4, 1, 0, 3, 2).flatten(2, 3)  # [bins, groups, B x blocks, inputs]
        products = torch.matmul(rows, self.spectrum).unflatten(2, (batch, blocks))
        found = torch.fft.irfft(products.permute(2, 1, 4, 3, 0), n=self.size)[..., :_FOURIER_BLOCK]
        found = found.flatten(3, 4).flatten(1, 2)[..., :num_frames]
        return found if self.bias is None else found + self.bias[:, None]
