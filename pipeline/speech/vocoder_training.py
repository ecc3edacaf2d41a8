"""Training of both kinds of vocoder from (units, durations, waveform) examples.

The mel vocoder learns log-mels and durations by regression. The unit HiFi-GAN is trained against discriminators
(pipeline.speech.hifigan_training), or, without them, on a mel loss, a multi-resolution STFT loss and the durations,
which is soon intelligible and stays buzzy. Training is budgeted in steps, never in seconds, so that a slower machine
gets the same vocoder; an interrupted one goes on from its checkpoint and ends with the same weights.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from pipeline.arithmetic import arithmetic
from pipeline.errors import InputError
from pipeline.speech.hifigan import CodeHiFiGAN, HiFiGANConfig
from pipeline.speech.hifigan_training import BETAS, AdversarialSettings, AdversarialTraining
from pipeline.speech.mel import LogMel, MelConfig
from pipeline.speech.mel_vocoder import MelVocoder, MelVocoderConfig
from pipeline.speech.vocoder_crops import Crops, CropSampler, Example, duration_loss
from pipeline.training_state import check_finite, load_state, save_state

_NUM_CALIBRATION = 200  # utterances
_STFT_SIZES = ((512, 128), (1024, 256), (2048, 512))


@dataclass(frozen=True)
class TrainingSettings:
    """Budget and optimiser. `crop_frames` in unit frames (20 ms at 16 kHz).

    `adversarial`: how a unit HiFi-GAN meets its discriminators; None: it does not, and the rate follows a cosine.
    """

    steps: int = 600
    batch_size: int = 16
    crop_frames: int = 64
    lr: float = 2e-3
    weight_decay: float = 0.01
    seed: int = 0
    adversarial: AdversarialSettings | None = None
    checkpoint_every: int = 1000


def train_vocoder(
    examples: Sequence[Example],
    config: MelVocoderConfig | HiFiGANConfig,
    settings: TrainingSettings,
    *,
    device: str = "cpu",
    start: Mapping[str, Tensor] | None = None,
    checkpoint: Path | None = None,
    log: Callable[[dict[str, Any]], None] | None = None,
    show_progress: bool = True,
) -> MelVocoder | CodeHiFiGAN:
    """Train a vocoder of the kind that `config` belongs to. Same examples and settings, same weights.

    `start`: weights to begin with, of the same sizes. `checkpoint`: a folder from which an interrupted run of the
    same examples and settings goes on; on a CPU it ends with the very weights of an unbroken one. `log` receives a
    dict with step and losses about a hundred times. InputError without examples, for a checkpoint of other
    settings, and when a loss is not a number.
    """
    if not examples:
        raise InputError("vocoder training: no utterances to train on")
    torch.manual_seed(settings.seed)
    training = _training(examples, config, settings, device)
    if start is not None:
        training.network.load_state_dict(start)
    sampler = CropSampler(
        examples,
        batch_size=settings.batch_size,
        crop_frames=settings.crop_frames,
        hop=training.hop,
        context=training.context,
        seed=settings.seed,
    )
    named = {**asdict(settings), "model": config.to_dict()}
    first = 0 if checkpoint is None else _resume(checkpoint, named, training, sampler)
    steps = range(first, settings.steps)
    for step in tqdm(steps, "vocoder", initial=first, total=settings.steps, disable=not show_progress, mininterval=2.0):
        with arithmetic(torch.device(device), "fp32"):
            losses = training.step(sampler.next().to(device), step)
        told = step % max(1, settings.steps // 100) == 0
        kept = checkpoint is not None and (step + 1) % settings.checkpoint_every == 0 and step + 1 < settings.steps
        if told or kept or step + 1 == settings.steps:  # to read a loss is to wait for it
            found = {name: round(float(value.detach()), 5) for name, value in losses.items()}
            check_finite("vocoder training", step, found, "a lower lr, or precision bf16 in place of fp16,")
        if told and log is not None:
            log({"step": step, **found})
        if checkpoint is not None and kept:
            facts = {"sampler": sampler.state(), "scaler": training.scaler.state_dict()}
            save_state(checkpoint, step + 1, named, training.parts, training.optimizers, facts)
    training.network.eval()
    _calibrate_durations(training.network, examples[:_NUM_CALIBRATION], device)
    return training.network


def _training(
    examples: Sequence[Example], config: MelVocoderConfig | HiFiGANConfig, settings: TrainingSettings, device: str
) -> "_Regression | AdversarialTraining":
    if isinstance(config, MelVocoderConfig):
        return _Regression(_MelTask(config, examples), settings, device)
    if settings.adversarial is None:
        return _Regression(_HiFiGANTask(config), settings, device)
    return AdversarialTraining(
        config,
        settings.adversarial,
        rate=settings.lr,
        weight_decay=settings.weight_decay,
        steps_per_epoch=len(examples) / settings.batch_size,
        device=device,
    )


def _resume(
    checkpoint: Path, named: Mapping[str, Any], training: "_Regression | AdversarialTraining", sampler: CropSampler
) -> int:
    found = load_state(checkpoint, named, training.parts, training.optimizers)
    if found is None:
        return 0
    step, facts = found
    sampler.restore(facts["sampler"])
    training.scaler.load_state_dict(facts["scaler"])
    return step


@torch.no_grad()
def _calibrate_durations(network: MelVocoder | CodeHiFiGAN, examples: Sequence[Example], device: str) -> None:
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
    network: MelVocoder | CodeHiFiGAN, examples: Sequence[Example], device: str = "cpu"
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
            speaker = torch.tensor([example.speaker], device=device)
            waveform = network(units.repeat_interleave(durations[0], dim=1), speaker)
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


class _Regression:
    """A task of one network and one optimiser: the sum of its losses, a short warm-up and a cosine."""

    def __init__(self, task: "_MelTask | _HiFiGANTask", settings: TrainingSettings, device: str) -> None:
        self.task, self.settings = task.to(device).train(), settings
        self.network, self.hop, self.context = task.network, task.hop, task.context
        self.parts: dict[str, nn.Module] = {"network": self.network}
        parameters = self.network.parameters()
        optimizer = torch.optim.AdamW(parameters, lr=settings.lr, betas=BETAS, weight_decay=settings.weight_decay)
        self.optimizers: dict[str, torch.optim.Optimizer] = {"network": optimizer}
        self.scaler = torch.amp.GradScaler(enabled=False)

    def step(self, crops: Crops, step: int) -> dict[str, Tensor]:
        """Train on a batch; gives the losses."""
        steps, optimizer = self.settings.steps, self.optimizers["network"]
        warmup = min(50, max(1, steps // 10))
        factor = min((step + 1) / warmup, 0.5 + 0.5 * math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = self.settings.lr * factor
        losses = self.task.losses(crops)
        total = torch.stack(list(losses.values())).sum()
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        optimizer.step()
        return losses


class _MelTask(nn.Module):
    """Regression of standardised log-mels and log durations."""

    def __init__(self, config: MelVocoderConfig, examples: Sequence[Example]) -> None:
        super().__init__()
        self.network = MelVocoder(config)
        self.analyse = LogMel(config.mel)
        self.hop, self.context = config.hop, config.mel.n_fft // 2
        sample = examples[:: max(1, len(examples) // 100)]
        mels = [self.analyse(torch.from_numpy(e.pcm.astype(np.float32) / 32768)[None])[0] for e in sample]
        stacked = torch.cat(mels)
        self.network.mel_mean.copy_(stacked.mean(0))
        self.network.mel_scale.copy_(stacked.std(0).clamp(min=0.1))

    def losses(self, crops: Crops) -> dict[str, Tensor]:
        with torch.no_grad():
            target = self.analyse(crops.samples, padded=True)
            target = (target - self.network.mel_mean) / self.network.mel_scale
        mel, mask, log_durations = self.network(crops.units, crops.num_runs, crops.durations)
        mel_mask = mask.repeat_interleave(self.network.config.frames_per_unit, dim=1)[..., None]
        difference = ((mel - target[:, : mel.shape[1]]).abs() * mel_mask).sum()
        error = difference / (mel_mask.sum() * mel.shape[2])
        return {"mel": error, "duration": duration_loss(log_durations, crops)}


class _HiFiGANTask(nn.Module):
    """Mel and multi-resolution STFT losses on the waveform, and log durations."""

    def __init__(self, config: HiFiGANConfig) -> None:
        super().__init__()
        if config.dur_predictor_params is None:
            raise InputError("vocoder training: config key 'dur_predictor_params' is needed to train durations")
        self.network = CodeHiFiGAN(config)
        self.analyse = LogMel(MelConfig(config.sampling_rate))
        self.hop, self.context = config.hop, 0

    def losses(self, crops: Crops) -> dict[str, Tensor]:
        mask = crops.frame_mask.repeat_interleave(self.hop, dim=1)
        target = crops.samples * mask
        waveform = self.network(crops.frames, crops.speakers) * mask
        mel = F.l1_loss(self.analyse(waveform), self.analyse(target))
        spectral = torch.stack([_stft_loss(waveform, target, *size) for size in _STFT_SIZES]).mean()
        log_durations = self.network.log_durations(crops.units)
        return {"mel": mel, "stft": spectral, "duration": duration_loss(log_durations, crops)}


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
