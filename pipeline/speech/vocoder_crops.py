"""What vocoders are trained on: utterances in memory, and random stretches of them in batches.

Units and waveform are cut at the same unit frames, so that frame f of a crop is always its samples
[f * hop, (f + 1) * hop). Which crops come next is a state that can be written down, so that an interrupted training
goes on with the very same ones.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_PEAK = 0.95  # Recordings are scaled to this peak, as for fairseq's vocoders.


def make_example(
    units: "NDArray[Any]", durations: "NDArray[Any]", waveform: "NDArray[np.float32]", hop: int, speaker: int = 0
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
    return Example(np.asarray(units, np.int64), np.asarray(durations, np.int64), pcm, speaker)


def examples_fingerprint(examples: Sequence["Example"]) -> str:
    """16 hexadecimal digits of everything that training reads: units, durations, sound and speakers."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(f"{example.speaker} {len(example.units)}".encode())
        for array in (example.units, example.durations, example.pcm):
            digest.update(array.tobytes())
    return digest.hexdigest()[:16]


def crop(examples: "Sequence[Example]", crop_frames: int, hop: int, context: int, rng: np.random.Generator) -> "Crops":
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
    return Crops(
        units=pad(units, batch_first=True),
        num_runs=torch.tensor([len(sequence) for sequence in units]),
        durations=pad(durations, batch_first=True),
        whole=pad(whole, batch_first=True),
        frames=torch.from_numpy(frames),
        frame_mask=torch.from_numpy(frame_mask),
        samples=torch.from_numpy(samples),
        speakers=torch.tensor([example.speaker for example in examples]),
    )


def duration_loss(log_durations: Tensor, crops: "Crops") -> Tensor:
    """Mean squared error of log(duration + 1), `[batch, runs]`, over the runs that no crop has cut."""
    target = torch.log1p(crops.durations.float())
    squared = (log_durations - target).square() * crops.whole
    return squared.sum() / crops.whole.sum().clamp(min=1)


@dataclass(frozen=True)
class Example:
    """One utterance: units and durations int64 `[n]`, pcm int16 `[sum(durations) * hop]`; whose voice it is."""

    units: "NDArray[np.int64]"
    durations: "NDArray[np.int64]"
    pcm: "NDArray[np.int16]"
    speaker: int = 0


@dataclass(frozen=True)
class Crops:
    """A batch. `samples` carry `context` extra samples on both sides; `whole` marks runs not cut."""

    units: Tensor
    num_runs: Tensor
    durations: Tensor
    whole: Tensor
    frames: Tensor
    frame_mask: Tensor
    samples: Tensor
    speakers: Tensor

    def to(self, device: str) -> "Crops":
        return Crops(**{name: value.to(device) for name, value in vars(self).items()})


class CropSampler:
    """An endless series of batches: every utterance once an epoch, in an order drawn anew."""

    def __init__(
        self, examples: Sequence[Example], *, batch_size: int, crop_frames: int, hop: int, context: int, seed: int
    ) -> None:
        self._examples, self._batch_size, self._crop_frames = examples, batch_size, crop_frames
        self._hop, self._context = hop, context
        self._rng = np.random.default_rng([seed, 7])
        self._order: list[int] = []
        self._position = 0

    def next(self) -> Crops:
        """The next batch."""
        chosen = [self._examples[self._next_index()] for _ in range(self._batch_size)]
        return crop(chosen, self._crop_frames, self._hop, self._context, self._rng)

    def _next_index(self) -> int:
        if self._position == len(self._order):
            self._order, self._position = self._rng.permutation(len(self._examples)).tolist(), 0
        self._position += 1
        return self._order[self._position - 1]

    def state(self) -> dict[str, Any]:
        """Where the series is, as JSON values."""
        return {"order": self._order, "position": self._position, "rng": self._rng.bit_generator.state}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a `state` of the same examples and settings."""
        self._order, self._position = list(state["order"]), int(state["position"])
        self._rng.bit_generator.state = state["rng"]
