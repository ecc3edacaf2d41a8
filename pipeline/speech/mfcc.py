"""MFCC on HuBERT's frame grid: the first targets of HuBERT pretraining, and the baseline it must beat.

Windows of 400 samples every 320, no padding, so that frame i covers just the samples that HuBERT's frame
i covers, and both have floor((n - 400) / 320) + 1 frames.
"""

from functools import lru_cache

import numpy as np
import numpy.typing as npt
import scipy.fft

WINDOW, HOP, NUM_MELS, NUM_COEFFICIENTS = 400, 320, 40, 13


@lru_cache(maxsize=1)
def _filterbank() -> npt.NDArray[np.float32]:
    import librosa

    return librosa.filters.mel(sr=16_000, n_fft=512, n_mels=NUM_MELS, fmin=20).astype(np.float32)


def mfcc(waveform: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """float32 [num_samples] at 16 kHz -> float32 [num_frames, 39]: coefficients, deltas, accelerations.

    Normalised to mean 0 and variance 1 over the utterance, as usual for clustering across speakers.
    """
    if len(waveform) < WINDOW:
        return np.zeros((0, 3 * NUM_COEFFICIENTS), np.float32)
    frames = np.lib.stride_tricks.sliding_window_view(waveform, WINDOW)[::HOP]
    window = np.hanning(WINDOW).astype(np.float32)
    power = np.abs(scipy.fft.rfft(frames * window, 512, axis=1)) ** 2
    log_mel = np.log(power @ _filterbank().T + 1e-6)
    coefficients = scipy.fft.dct(log_mel, norm="ortho", axis=1)[:, :NUM_COEFFICIENTS]
    delta = _slope(coefficients)
    acceleration = _slope(delta)
    features = np.concatenate([coefficients, delta, acceleration], axis=1)
    return ((features - features.mean(0)) / (features.std(0) + 1e-5)).astype(np.float32)


def _slope(track: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Least-squares slope over five frames of [num_frames, n], the edges repeated."""
    padded = np.pad(track, ((2, 2), (0, 0)), "edge")
    return 0.1 * (padded[3:-1] - padded[1:-3]) + 0.2 * (padded[4:] - padded[:-4])
