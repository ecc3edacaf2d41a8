"""Training of both kinds of vocoder from (units, durations, waveform) examples of one voice.

The mel vocoder learns log-mels and durations by regression. The unit HiFi-GAN is trained in a first,
simple form: a mel loss, a multi-resolution STFT loss and the durations, and no discriminators, which
makes it intelligible and leaves it buzzy. Training is budgeted in steps, never in seconds, so that a
slower machine gets the same vocoder.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from pipeline.errors import InputError
from pipeline.speech.hifigan import CodeHiFiGAN, HiFiGANConfig
from pipeline.speech.mel import LogMel, MelConfig
from pipeline.speech.mel_vocoder import MelVocoder, MelVocoderConfig

if TYPE_CHECKING:
    from numpy.typing import NDArray

_PEAK = 0.95  # Recordings are scaled to this peak, as for fairseq's vocoders.
_NUM_CALIBRATION = 200  # utterances
_STFT_SIZES = ((512, 128), (1024, 256), (2048, 512))


def make_example(
    units: "NDArray[Any]", durations: "NDArray[Any]", waveform: "NDArray[np.float32]", hop: int
) -> "Example":
    """Bring an utterance into training form: loudness even, length exactly `hop` samples a frame.

    `units`, `durations` integer `[n]`; `waveform` float32 `[samples]`. The speech encoder yields a frame
    less than the audio has room for; the missing end of the last frame is silence. InputError when the
    durations say more than one second beyond or less than half of the waveform: another file's units.
    """
    num_samples = int(np.sum(durations, dtype=np.int64)) * hop
    if len(units) != len(durations) or not len(units):
        raise InputError(f"vocoder training: {len(units)} units with {len(durations)} durations")
    if num_samples > len(waveform) + 16000 or 2 * num_samples + 2 * hop < len(waveform):
        raise InputError(
            f"vocoder training: units last {num_samples} samples, but the recording has {len(waveform)}; "
            "they do not belong together"
        )
    fitted = np.zeros(num_samples, np.float32)
    fitted[: min(num_samples, len(waveform))] = waveform[:num_samples]
    peak = float(np.abs(fitted).max())
    if peak > 0:
        fitted *= _PEAK / peak
    # 16 bits are what the recordings had; half the memory of float32.
    pcm = np.round(fitted * 32767).astype(np.int16)
    return Example(np.asarray(units, np.int64), np.asarray(durations, np.int64), pcm)


def train_vocoder(
    examples: "Sequence[Example]",
    config: MelVocoderConfig | HiFiGANConfig,
    settings: "TrainingSettings",
    *,
    device: str = "cpu",
    log: Callable[[dict[str, Any]], None] | None = None,
    show_progress: bool = True,
) -> MelVocoder | CodeHiFiGAN:
    """Train a vocoder of the kind that `config` belongs to. Same examples and settings, same weights.

    `log` receives a dict with step and losses about a hundred times. InputError without examples.
    """
    if not examples:
        raise InputError("vocoder training: no utterances to train on")
    torch.manual_seed(settings.seed)
    rng = np.random.default_rng([settings.seed, 7])
    task: _MelTask | _HiFiGANTask
    task = _MelTask(config, examples) if isinstance(config, MelVocoderConfig) else _HiFiGANTask(config)
    task.to(device).train()
    optimizer = torch.optim.AdamW(
        task.network.parameters(), lr=settings.lr, betas=(0.8, 0.99), weight_decay=settings.weight_decay
    )
    warmup = min(50, max(1, settings.steps // 10))
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / warmup, 0.5 + 0.5 * math.cos(math.pi * step / settings.steps)),
    )
    order = _shuffled_forever(len(examples), rng)
    for step in tqdm(range(settings.steps), desc="vocoder", disable=not show_progress, mininterval=2.0):
        chosen = [examples[next(order)] for _ in range(settings.batch_size)]
        crops = _crop(chosen, settings.crop_frames, task.hop, task.context, rng)
        losses = task.losses(crops.to(device))
        total = torch.stack(list(losses.values())).sum()
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        nn.utils.clip_grad_norm_(task.network.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        if log is not None and step % max(1, settings.steps // 100) == 0:
            log({"step": step, **{name: round(float(value.detach()), 5) for name, value in losses.items()}})
    task.network.eval()
    _calibrate_durations(task.network, examples[:_NUM_CALIBRATION], device)
    return task.network


@torch.no_grad()
def _calibrate_durations(network: MelVocoder | CodeHiFiGAN, examples: "Sequence[Example]", device: str) -> None:
    """Shift the predicted log durations so that `examples` last as long as they do.

    The mean of a logarithm is the logarithm of too small a mean: left alone, speech comes out some 5 % too fast
    (Duan 1983, Smearing estimate: a nonparametric retransformation method).
    """
    projection = network.duration if isinstance(network, MelVocoder) else network.dur_predictor.proj  # type: ignore[union-attr]
    predicted, true = 0.0, 0
    for example in examples:
        units = torch.from_numpy(example.units).to(device)[None]
        predicted += float(network.log_durations(units).exp().sum())
        true += int(example.durations.sum()) + len(example.units)
    projection.bias += float(np.log(true / predicted))


@torch.inference_mode()
def measure_vocoder(
    network: MelVocoder | CodeHiFiGAN, examples: "Sequence[Example]", device: str = "cpu"
) -> dict[str, float | int]:
    """Errors on examples not trained on, with their true durations.

    `mel_error`: mean absolute difference of natural-log mels; `duration_error`: mean absolute error of a
    predicted run, in frames; `length_ratio`: predicted over true total length.
    """
    if not examples:
        raise InputError("vocoder: no held-out utterances to measure on")
    config = network.config
    hop = config.hop
    mel_config = config.mel if isinstance(config, MelVocoderConfig) else MelConfig(config.sampling_rate)
    analyse = LogMel(mel_config).to(device)
    mel_error, mel_frames, run_error, predicted, true, runs = 0.0, 0, 0.0, 0, 0, 0
    for example in examples:
        units = torch.from_numpy(example.units).to(device)[None]
        durations = torch.from_numpy(example.durations).to(device)[None]
        target = analyse(torch.from_numpy(example.pcm.astype(np.float32) / 32768).to(device)[None])
        if isinstance(network, MelVocoder):
            mel, _, log_durations = network(units, torch.tensor([units.shape[1]], device=device), durations)
            mel = mel * network.mel_scale + network.mel_mean
        else:
            waveform = network(units.repeat_interleave(durations[0], dim=1))
            mel, log_durations = analyse(waveform), network.log_durations(units)
        mel_error += float((mel - target).abs().mean(2).sum())
        mel_frames += mel.shape[1]
        guess = torch.clamp(torch.round(torch.exp(log_durations) - 1), min=1)
        run_error += float((guess - durations).abs().sum())
        predicted, true, runs = (
            predicted + int(guess.sum()),
            true + len(example.pcm) // hop,
            runs + units.shape[1],
        )
    return {
        "mel_error": round(mel_error / mel_frames, 4),
        "duration_error": round(run_error / runs, 4),
        "length_ratio": round(predicted / true, 4),
        "num_utterances": len(examples),
    }


def _shuffled_forever(count: int, rng: np.random.Generator) -> "Any":
    while True:
        yield from rng.permutation(count).tolist()


def _crop(
    examples: "Sequence[Example]", crop_frames: int, hop: int, context: int, rng: np.random.Generator
) -> "_Crops":
    """Random stretches of `crop_frames` unit frames; shorter utterances whole, padded with silence."""
    batch = len(examples)
    num_frames = min(crop_frames, max(len(example.pcm) // hop for example in examples))
    frames = np.zeros((batch, num_frames), np.int64)
    frame_mask = np.zeros((batch, num_frames), bool)
    samples = np.zeros((batch, num_frames * hop + 2 * context), np.float32)
    units, durations, whole = [], [], []
    for row, example in enumerate(examples):
        ends = np.cumsum(example.durations)
        starts = ends - example.durations
        # Beyond both ends and back: else the first and last words, which few crops hold, are learnt last.
        last_start, half = max(0, int(ends[-1]) - num_frames), num_frames // 2
        start = min(max(int(rng.integers(-half, last_start + half + 1)), 0), last_start)
        stop = min(start + num_frames, int(ends[-1]))
        first, last = np.searchsorted(ends, start, side="right"), np.searchsorted(starts, stop, side="left")
        kept = np.minimum(ends[first:last], stop) - np.maximum(starts[first:last], start)
        units.append(torch.from_numpy(example.units[first:last].copy()))
        durations.append(torch.from_numpy(kept))
        # A run cut by the crop's edge has lost its true length, so it teaches nothing about durations.
        whole.append(torch.from_numpy(kept == example.durations[first:last]))
        frames[row, : stop - start] = np.repeat(example.units[first:last], kept)
        frame_mask[row, : stop - start] = True
        low, high = start * hop - context, stop * hop + context
        piece = example.pcm[max(0, low) : high].astype(np.float32) / 32768
        samples[row, max(0, -low) : max(0, -low) + len(piece)] = piece
    pad = nn.utils.rnn.pad_sequence
    return _Crops(
        units=pad(units, batch_first=True),
        num_runs=torch.tensor([len(sequence) for sequence in units]),
        durations=pad(durations, batch_first=True),
        whole=pad(whole, batch_first=True),
        frames=torch.from_numpy(frames),
        frame_mask=torch.from_numpy(frame_mask),
        samples=torch.from_numpy(samples),
    )


def _duration_loss(log_durations: Tensor, crops: "_Crops") -> Tensor:
    target = torch.log1p(crops.durations.float())
    squared = (log_durations - target).square() * crops.whole
    return squared.sum() / crops.whole.sum().clamp(min=1)


@dataclass(frozen=True)
class TrainingSettings:
    """Budget and optimiser. `crop_frames` in unit frames (20 ms at 16 kHz)."""

    steps: int = 600
    batch_size: int = 16
    crop_frames: int = 64
    lr: float = 2e-3
    weight_decay: float = 0.01
    seed: int = 0


@dataclass(frozen=True)
class Example:
    """One utterance: units and durations int64 `[n]`, pcm int16 `[sum(durations) * hop]`."""

    units: "NDArray[np.int64]"
    durations: "NDArray[np.int64]"
    pcm: "NDArray[np.int16]"


@dataclass(frozen=True)
class _Crops:
    """A batch. `samples` carry `context` extra samples on both sides; `whole` marks runs not cut."""

    units: Tensor
    num_runs: Tensor
    durations: Tensor
    whole: Tensor
    frames: Tensor
    frame_mask: Tensor
    samples: Tensor

    def to(self, device: str) -> "_Crops":
        return _Crops(**{name: value.to(device) for name, value in vars(self).items()})


class _MelTask(nn.Module):
    """Regression of standardised log-mels and log durations."""

    def __init__(self, config: MelVocoderConfig, examples: "Sequence[Example]") -> None:
        super().__init__()
        self.network = MelVocoder(config)
        self.analyse = LogMel(config.mel)
        self.hop, self.context = config.hop, config.mel.n_fft // 2
        sample = examples[:: max(1, len(examples) // 100)]
        mels = [self.analyse(torch.from_numpy(e.pcm.astype(np.float32) / 32768)[None])[0] for e in sample]
        stacked = torch.cat(mels)
        self.network.mel_mean.copy_(stacked.mean(0))
        self.network.mel_scale.copy_(stacked.std(0).clamp(min=0.1))

    def losses(self, crops: _Crops) -> dict[str, Tensor]:
        with torch.no_grad():
            target = self.analyse(crops.samples, padded=True)
            target = (target - self.network.mel_mean) / self.network.mel_scale
        mel, mask, log_durations = self.network(crops.units, crops.num_runs, crops.durations)
        mel_mask = mask.repeat_interleave(self.network.config.frames_per_unit, dim=1)[..., None]
        difference = ((mel - target[:, : mel.shape[1]]).abs() * mel_mask).sum()
        error = difference / (mel_mask.sum() * mel.shape[2])
        return {"mel": error, "duration": _duration_loss(log_durations, crops)}


class _HiFiGANTask(nn.Module):
    """Mel and multi-resolution STFT losses on the waveform, and log durations."""

    def __init__(self, config: HiFiGANConfig) -> None:
        super().__init__()
        if config.dur_predictor_params is None:
            raise InputError("vocoder training: config key 'dur_predictor_params' is needed to train durations")
        self.network = CodeHiFiGAN(config)
        self.analyse = LogMel(MelConfig(config.sampling_rate))
        self.hop, self.context = config.hop, 0

    def losses(self, crops: _Crops) -> dict[str, Tensor]:
        mask = crops.frame_mask.repeat_interleave(self.hop, dim=1)
        target = crops.samples * mask
        waveform = self.network(crops.frames) * mask
        mel = F.l1_loss(self.analyse(waveform), self.analyse(target))
        spectral = torch.stack([_stft_loss(waveform, target, *size) for size in _STFT_SIZES]).mean()
        log_durations = self.network.log_durations(crops.units)
        return {"mel": mel, "stft": spectral, "duration": _duration_loss(log_durations, crops)}


def _stft_loss(waveform: Tensor, target: Tensor, n_fft: int, hop: int) -> Tensor:
    """Spectral convergence plus log-magnitude difference (Yamamoto et al. 2020, Parallel WaveGAN)."""
    window = torch.hann_window(n_fft, device=waveform.device)
    magnitudes = []
    for signal in (waveform, target):
        spectrum = torch.stft(signal, n_fft, hop, window=window, return_complex=True, pad_mode="constant")
        magnitudes.append((spectrum.real.square() + spectrum.imag.square() + 1e-7).sqrt())
    ours, theirs = magnitudes
    convergence = (ours - theirs).norm() / theirs.norm().clamp(min=1e-4)
    return convergence + F.l1_loss(ours.log(), theirs.log())
