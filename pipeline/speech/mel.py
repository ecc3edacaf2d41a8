"""Log-mel spectrograms, and waveforms back from them.

Analysis is written in torch, so that a training loss can pass through it and a batch of crops costs
one call; the filterbank and the phase reconstruction (Griffin-Lim) are librosa's. Frame t is centred
on sample t * hop, and `hop` divides the 320 samples of a speech unit, so that F units are exactly
F * 320 / hop mel frames.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from numpy.typing import NDArray


@lru_cache(maxsize=8)
def _filterbank(sample_rate: int, n_fft: int, num_mels: int) -> "NDArray[np.float32]":
    from librosa.filters import mel

    return mel(sr=sample_rate, n_fft=n_fft, n_mels=num_mels).astype(np.float32)


@lru_cache(maxsize=8)
def _inverse_filterbank(sample_rate: int, n_fft: int, num_mels: int) -> "NDArray[np.float32]":
    return np.linalg.pinv(_filterbank(sample_rate, n_fft, num_mels)).astype(np.float32)


def log_mel_to_waveform(
    log_mel: "NDArray[np.float32]", config: "MelConfig", *, num_iterations: int, seed: int = 0
) -> "NDArray[np.float32]":
    """Invert a log-mel spectrogram with Griffin-Lim.

    `log_mel` is float32 `[frames, num_mels]`, natural logarithm of mel magnitudes; the result is
    float32 `[frames * hop]`. Mel bands go to linear bins through the pseudo-inverse of the filterbank:
    librosa's least-squares inversion is far slower and recognised no better. The starting phase comes
    from `seed`, so equal input gives equal output.
    """
    import librosa

    if len(log_mel) == 0:
        return np.zeros(0, np.float32)
    inverse = _inverse_filterbank(config.sample_rate, config.n_fft, config.num_mels)
    # One window of silence behind the end: librosa wants a frame at either end, and no less than a window.
    extra = -(-config.n_fft // config.hop)
    padded = np.pad(log_mel.T.astype(np.float32), ((0, 0), (0, extra)), constant_values=np.log(config.floor))
    magnitude = np.maximum(inverse @ np.exp(padded), config.floor)
    waveform = librosa.griffinlim(
        magnitude,
        n_iter=num_iterations,
        n_fft=config.n_fft,
        hop_length=config.hop,
        random_state=seed,
    )
    return waveform[: len(log_mel) * config.hop].astype(np.float32)


@dataclass(frozen=True)
class MelConfig:
    """Analysis settings: sizes in samples, `floor` in linear magnitude."""

    sample_rate: int = 16000
    n_fft: int = 1024
    hop: int = 160
    num_mels: int = 80
    floor: float = 1e-4


class LogMel(nn.Module):
    """Waveform to log-mel as a module without weights; differentiable."""

    filterbank: Tensor
    window: Tensor

    def __init__(self, config: MelConfig) -> None:
        super().__init__()
        self.config = config
        filterbank = torch.from_numpy(_filterbank(config.sample_rate, config.n_fft, config.num_mels))
        self.register_buffer("filterbank", filterbank, persistent=False)
        self.register_buffer("window", torch.hann_window(config.n_fft), persistent=False)

    def forward(self, waveform: Tensor, *, padded: bool = False) -> Tensor:
        """float32 `[batch, samples]` to `[batch, samples // hop, num_mels]`.

        `padded=True` says that the caller has put n_fft // 2 samples of true context on both sides
        (crops out of a longer recording); otherwise silence is assumed there.
        """
        config = self.config
        if not padded:
            waveform = F.pad(waveform, (config.n_fft // 2, config.n_fft // 2))
        spectrum = torch.stft(waveform, config.n_fft, config.hop, window=self.window, center=False, return_complex=True)
        num_frames = (waveform.shape[-1] - config.n_fft) // config.hop
        # The square root has no gradient at zero, which digital silence does reach.
        magnitude = (spectrum.real.square() + spectrum.imag.square() + 1e-12).sqrt()
        mel = self.filterbank @ magnitude[..., :num_frames]
        return mel.clamp(min=config.floor).log().transpose(1, 2)
