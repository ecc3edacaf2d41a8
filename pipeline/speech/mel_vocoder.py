"""The default vocoder's network: speech units -> durations -> log-mel, small enough to train in a minute.

Deduplicated units pass a few convolutions that predict how long each lasts; they are then repeated to
50 frames a second and refined by further convolutions into two mel frames a unit frame. Griffin-Lim
(pipeline.speech.mel) does the rest. Padding is masked before every convolution, so that a sequence
gives the same result alone and inside a batch.
"""

from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.speech.mel import MelConfig


def expand_runs(durations: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Lay runs out in frames. Takes int64 `[batch, runs]` (0 where padded).

    Gives, each `[batch, frames]`: the index of the run that a frame lies in, the frame's place inside
    the run (float, in (0, 1)), and the frame mask.
    """
    ends = durations.cumsum(1)
    num_frames = int(ends[:, -1].max()) if durations.numel() else 0
    frames = torch.arange(num_frames, device=durations.device).expand(len(durations), -1).contiguous()
    mask = frames < ends[:, -1:]
    runs = torch.searchsorted(ends, frames, right=True).clamp(max=durations.shape[1] - 1)
    length = durations.gather(1, runs)
    start = ends.gather(1, runs) - length
    place = (frames - start + 0.5) / length.clamp(min=1)
    return runs, place, mask


def durations_from_log(log_durations: Tensor) -> Tensor:
    """Predicted log(duration + 1) to whole frames, at least 1 (the rule of fairseq's CodeHiFiGAN)."""
    return torch.clamp(torch.round(torch.exp(log_durations) - 1).long(), min=1)


@dataclass(frozen=True)
class MelVocoderConfig:
    """Sizes of the network. `frames_per_unit` mel frames belong to one unit frame of 320 samples."""

    num_units: int
    channels: int = 192
    kernel: int = 5
    num_unit_blocks: int = 2
    num_frame_blocks: int = 3
    griffin_lim_iterations: int = 16
    mel: MelConfig = field(default_factory=MelConfig)
    hop: int = 320

    @property
    def frames_per_unit(self) -> int:
        return self.hop // self.mel.hop

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "MelVocoderConfig":
        return cls(**{**values, "mel": MelConfig(**values["mel"])})


class _Block(nn.Module):
    """Residual convolution over time; what lies outside the mask counts as the silence of zero padding."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.conv = nn.Conv1d(channels, channels, kernel, padding=kernel // 2)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        hidden = self.norm(x) * mask
        hidden = self.conv(hidden.transpose(1, 2)).transpose(1, 2)
        return x + self.proj(F.gelu(hidden))


class MelVocoder(nn.Module):
    """Units to log-mel. Log-mels are predicted standardised; `mel_mean` and `mel_scale` undo that."""

    mel_mean: Tensor
    mel_scale: Tensor

    def __init__(self, config: MelVocoderConfig) -> None:
        super().__init__()
        self.config = config
        channels, num_mels = config.channels, config.mel.num_mels
        self.embed = nn.Embedding(config.num_units, channels)
        self.unit_blocks = nn.ModuleList(_Block(channels, 3) for _ in range(config.num_unit_blocks))
        self.duration = nn.Linear(channels, 1)
        self.place = nn.Linear(2, channels)
        frame_blocks = [_Block(channels, config.kernel) for _ in range(config.num_frame_blocks)]
        self.frame_blocks = nn.ModuleList(frame_blocks)
        self.norm = nn.LayerNorm(channels)
        self.out = nn.Linear(channels, config.frames_per_unit * num_mels)
        self.register_buffer("mel_mean", torch.zeros(num_mels))
        self.register_buffer("mel_scale", torch.ones(num_mels))

    def forward(
        self, units: Tensor, num_runs: Tensor, durations: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Predict standardised log-mels.

        `units` int64 `[batch, runs]`, deduplicated; `num_runs` int64 `[batch]`; `durations` int64
        `[batch, runs]` in frames, or None for the network's own. Gives `(mel, frame mask, log durations)`:
        float32 `[batch, frames * frames_per_unit, num_mels]`, bool `[batch, frames]`, float32 `[batch, runs]`
        holding log(duration + 1).
        """
        run_mask = torch.arange(units.shape[1], device=units.device) < num_runs[:, None]
        x = self.embed(units)
        for block in self.unit_blocks:
            x = block(x, run_mask[..., None])
        log_durations = self.duration(x).squeeze(2)
        if durations is None:
            durations = durations_from_log(log_durations)
        durations = durations * run_mask
        runs, place, mask = expand_runs(durations)
        length = durations.gather(1, runs).float()
        x = x.gather(1, runs[..., None].expand(-1, -1, x.shape[2]))
        x = x + self.place(torch.stack([place, torch.log1p(length)], dim=2))
        for block in self.frame_blocks:
            x = block(x, mask[..., None])
        mel = self.out(self.norm(x))
        return mel.reshape(len(units), -1, self.config.mel.num_mels), mask, log_durations

    def log_durations(self, units: Tensor) -> Tensor:
        """log(duration + 1) float32 `[1, runs]` of one utterance's deduplicated units int64 `[1, runs]`."""
        x = self.embed(units)
        mask = torch.ones_like(x[..., :1])
        for block in self.unit_blocks:
            x = block(x, mask)
        return self.duration(x).squeeze(2)

    @torch.inference_mode()
    def log_mels(self, units: list[Tensor], durations: list[Tensor] | None = None) -> list[Tensor]:
        """Log-mels, float32 `[frames * frames_per_unit, num_mels]` each, of non-empty unit sequences."""
        device = self.mel_mean.device
        num_runs = torch.tensor([len(sequence) for sequence in units], device=device)
        padded = nn.utils.rnn.pad_sequence(units, batch_first=True).to(device)
        given = None
        if durations is not None:
            given = nn.utils.rnn.pad_sequence(durations, batch_first=True).to(device)
        mel, mask, _ = self(padded, num_runs, given)
        lengths = (mask.sum(1) * self.config.frames_per_unit).tolist()
        mel = mel * self.mel_scale + self.mel_mean
        return [mel[index, :length] for index, length in enumerate(lengths)]
