"""One step of training a unit HiFi-GAN against its discriminators.

Losses of Kong et al. 2020 (HiFi-GAN, section 2.4) with their weights: least squares between generator and
discriminators, 2 x feature matching, 45 x the absolute error of log-mels; and the duration predictor's squared error
of log(duration + 1), as fairseq trains it. AdamW with betas (0.8, 0.99) and a rate that falls by a factor an epoch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.arithmetic import Precision, arithmetic
from pipeline.errors import InputError
from pipeline.speech.discriminators import FULL_WIDTH, Discriminators, Judgement
from pipeline.speech.hifigan import CodeHiFiGAN, HiFiGANConfig
from pipeline.speech.mel import LogMel, MelConfig
from pipeline.speech.vocoder_crops import Crops, duration_loss

BETAS = (0.8, 0.99)


def discriminator_loss(real: Sequence[Judgement], fake: Sequence[Judgement]) -> Tensor:
    """Recordings should score 1 and generated speech 0: mean squares, summed over discriminators."""
    losses = [
        (1 - r.float()).square().mean() + f.float().square().mean() for (r, _), (f, _) in zip(real, fake, strict=True)
    ]
    return torch.stack(losses).sum()


def generator_loss(fake: Sequence[Judgement]) -> Tensor:
    """Generated speech should score 1: mean squares, summed over discriminators."""
    return torch.stack([(1 - scores.float()).square().mean() for scores, _ in fake]).sum()


def feature_loss(real: Sequence[Judgement], fake: Sequence[Judgement]) -> Tensor:
    """Mean absolute difference of activations, summed over layers and discriminators."""
    differences = [
        F.l1_loss(ours.float(), theirs.float())
        for (_, expected), (_, found) in zip(real, fake, strict=True)
        for ours, theirs in zip(found, expected, strict=True)
    ]
    return torch.stack(differences).sum()


@dataclass(frozen=True)
class AdversarialSettings:
    """Weights of the losses as in the paper. `start`: the first step with discriminators.

    `rate_decay`: factor of the learning rate an epoch. `channels`: width of the discriminators' deepest layers.
    """

    start: int = 0
    channels: int = FULL_WIDTH
    mel_weight: float = 45.0
    feature_weight: float = 2.0
    adversarial_weight: float = 1.0
    duration_weight: float = 1.0
    rate_decay: float = 0.999
    precision: Precision = "fp32"


class AdversarialTraining(nn.Module):
    """Generator, discriminators and their optimisers. `steps_per_epoch` decides how fast the rate falls.

    InputError for a generator without a duration predictor, or for a width that is not a multiple of 128.
    """

    context = 0

    def __init__(
        self,
        config: HiFiGANConfig,
        settings: AdversarialSettings,
        *,
        rate: float,
        weight_decay: float,
        steps_per_epoch: float,
        device: str,
    ) -> None:
        super().__init__()
        if config.dur_predictor_params is None:
            raise InputError("vocoder training: config key 'dur_predictor_params' is needed to train durations")
        self.settings, self.rate, self.steps_per_epoch, self.hop = settings, rate, steps_per_epoch, config.hop
        self.network = CodeHiFiGAN(config)
        self.discriminators = Discriminators(settings.channels)
        # Kong et al.'s analysis; the generator's own hop is the units' and has nothing to do with it.
        self.analyse = LogMel(MelConfig(config.sampling_rate, n_fft=1024, hop=256, num_mels=80, floor=1e-5))
        self.to(device).train()
        self.optimizers = {
            name: torch.optim.AdamW(module.parameters(), lr=rate, betas=BETAS, weight_decay=weight_decay)
            for name, module in self.parts.items()
        }
        self.device = torch.device(device)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=settings.precision == "fp16")

    @property
    def parts(self) -> dict[str, nn.Module]:
        """What a checkpoint holds."""
        return {"generator": self.network, "discriminators": self.discriminators}

    def step(self, crops: Crops, step: int) -> dict[str, Tensor]:
        """Train both sides on a batch; gives the unweighted losses."""
        settings = self.settings
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = self.rate * settings.rate_decay ** int(step / self.steps_per_epoch)
        target, waveform, log_durations = self._speak(crops)
        losses: dict[str, Tensor] = {}
        if step >= settings.start:
            losses["discriminator"] = self._train_discriminators(target, waveform.detach())
            losses |= self._judged(target, waveform)
        losses["mel"] = F.l1_loss(self.analyse(waveform), self.analyse(target))
        losses["duration"] = duration_loss(log_durations.float(), crops)
        total = settings.mel_weight * losses["mel"] + settings.duration_weight * losses["duration"]
        if step >= settings.start:
            total = total + settings.adversarial_weight * losses["adversarial"]
            total = total + settings.feature_weight * losses["feature"]
        self._update("generator", total)
        self.scaler.update()
        return losses

    def _speak(self, crops: Crops) -> tuple[Tensor, Tensor, Tensor]:
        """True and generated waveforms `[batch, samples]`, silent where an utterance is over; log durations."""
        mask = crops.frame_mask.repeat_interleave(self.hop, dim=1)
        with arithmetic(self.device, self.settings.precision):
            waveform = self.network(crops.frames, crops.speakers)
            log_durations = self.network.log_durations(crops.units)
        return crops.samples * mask, waveform.float() * mask, log_durations

    def _train_discriminators(self, target: Tensor, waveform: Tensor) -> Tensor:
        with arithmetic(self.device, self.settings.precision):
            loss = discriminator_loss(self.discriminators(target), self.discriminators(waveform))
        self._update("discriminators", loss)
        return loss

    def _judged(self, target: Tensor, waveform: Tensor) -> dict[str, Tensor]:
        # They learn nothing from the generator's step, so their own gradients need not be computed.
        self.discriminators.requires_grad_(False)
        with arithmetic(self.device, self.settings.precision):
            with torch.no_grad():
                real = self.discriminators(target)
            fake = self.discriminators(waveform)
            losses = {"adversarial": generator_loss(fake), "feature": feature_loss(real, fake)}
        self.discriminators.requires_grad_(True)
        return losses

    def _update(self, name: str, loss: Tensor) -> None:
        optimizer = self.optimizers[name]
        optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.step(optimizer)
