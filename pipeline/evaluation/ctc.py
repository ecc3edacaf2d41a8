"""The stricter recogniser: a small convolutional network that spells what it hears, one character at a
time, with no language model and no list of words to choose from.

Reads waveforms and the weights in pipeline/bundled/ctc; gives transcripts. It stands beside
pocketsphinx because a closed vocabulary flatters: a recogniser that knows only the words of the
captions turns any noise into one of them, this one turns it into noise.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_model, save_model
from torch import Tensor, nn

from pipeline.errors import InputError
from pipeline.evaluation.threads import one_thread
from pipeline.files import atomic_path, read_json, write_json

ALPHABET = " 'abcdefghijklmnopqrstuvwxyz"
BLANK = 0
SAMPLE_RATE = 16_000
WINDOW, HOP = 400, 160
BUNDLED = Path(__file__).resolve().parent.parent / "bundled" / "ctc"

# Everything more than 50 dB below the loudest band of an utterance is taken as silence, so that a
# clean and a dithered recording look alike.
DYNAMIC_RANGE = 50.0 * float(np.log(10.0)) / 10.0


@dataclass(frozen=True)
class CTCConfig:
    """Sizes of the network. One output step lasts two hops, 20 ms."""

    num_mels: int = 64
    width: int = 128
    kernel_size: int = 5
    dilations: tuple[int, ...] = (1, 1, 2, 2, 4, 4)


@cache
def _filters(num_mels: int) -> Tensor:
    from librosa.filters import mel

    return torch.from_numpy(mel(sr=SAMPLE_RATE, n_fft=512, n_mels=num_mels, fmin=40.0, fmax=7600.0))


def log_mel(waveform: Tensor, num_mels: int = 64) -> Tensor:
    """Natural log of mel power: waveform float32 [num_samples] at 16 kHz -> [num_frames, num_mels], 10 ms hop."""
    if waveform.numel() < WINDOW:
        waveform = nn.functional.pad(waveform, (0, WINDOW - waveform.numel()))
    window = torch.hann_window(WINDOW)
    spectrum = torch.stft(waveform, 512, HOP, WINDOW, window, center=True, pad_mode="constant", return_complex=True)
    return (_filters(num_mels) @ spectrum.abs().square()).clamp(min=1e-10).log().T.contiguous()


def normalise_features(features: Tensor, mask: Tensor | None = None) -> Tensor:
    """Cut to the dynamic range, then take away each band's mean and divide by the overall spread.

    features: [batch, frames, mels]; mask: bool [batch, frames], true where there is speech. Masked
    frames come out as zeros, which is what the network's own padding holds.
    """
    if mask is None:
        mask = torch.ones(features.shape[:2], dtype=torch.bool)
    valid = mask.unsqueeze(-1)
    loudest = features.masked_fill(~valid, float("-inf")).amax(dim=(1, 2), keepdim=True)
    features = torch.maximum(features, loudest - DYNAMIC_RANGE)
    count = valid.sum(dim=1, keepdim=True)
    centred = (features - (features * valid).sum(dim=1, keepdim=True) / count) * valid
    spread = (centred.square().sum(dim=(1, 2), keepdim=True) / (count * features.shape[2])).sqrt()
    return centred / (spread + 1e-3)


def greedy_text(indices: Sequence[int]) -> str:
    """Best path: repeats merged, blanks dropped, spaces tidied."""
    letters = []
    previous = BLANK
    for index in indices:
        if index not in (previous, BLANK):
            letters.append(ALPHABET[index - 1])
        previous = index
    return " ".join("".join(letters).split())


class _Block(nn.Module):
    def __init__(self, config: CTCConfig, dilation: int) -> None:
        super().__init__()
        padding = config.kernel_size // 2 * dilation
        self.conv = nn.Conv1d(config.width, config.width, config.kernel_size, padding=padding, dilation=dilation)
        self.norm = nn.BatchNorm1d(config.width)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        return (hidden + torch.relu(self.norm(self.conv(hidden)))) * mask


class CharacterCTC(nn.Module):
    """Normalised log-mel [batch, frames, mels] -> log probabilities [batch, ceil(frames / 2), 29], blank first."""

    def __init__(self, config: CTCConfig) -> None:
        super().__init__()
        self.config = config
        self.stem = nn.Conv1d(config.num_mels, config.width, 7, stride=2, padding=3)
        self.stem_norm = nn.BatchNorm1d(config.width)
        self.blocks = nn.ModuleList(_Block(config, dilation) for dilation in config.dilations)
        self.head = nn.Conv1d(config.width, len(ALPHABET) + 1, 1)

    def forward(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        if mask is None:
            mask = torch.ones(features.shape[:2], dtype=torch.bool)
        kept = mask[:, ::2].unsqueeze(1).to(features.dtype)
        hidden = torch.relu(self.stem_norm(self.stem(features.transpose(1, 2)))) * kept
        for block in self.blocks:
            hidden = block(hidden, kept)
        return self.head(hidden).transpose(1, 2).log_softmax(-1)


def save_ctc(model: CharacterCTC, folder: Path) -> None:
    """Write config.json and model.safetensors into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", {"alphabet": ALPHABET, **asdict(model.config)})
    with atomic_path(folder / "model.safetensors") as temporary:
        save_model(model, str(temporary))


def load_ctc(folder: Path = BUNDLED) -> CharacterCTC:
    """Read a model written by `save_ctc`, in evaluation mode. InputError when it is another kind of model."""
    values = read_json(folder / "config.json")
    if values.pop("alphabet", None) != ALPHABET:
        raise InputError(
            f"{folder / 'config.json'}: not a character recogniser of ours (alphabet {ALPHABET!r} expected)"
        )
    values["dilations"] = tuple(values["dilations"])
    model = CharacterCTC(CTCConfig(**values))
    load_model(model, str(folder / "model.safetensors"))
    return model.eval()


class CTCRecogniser:
    """Greedy character recognition, one utterance at a time (so a transcript cannot depend on its neighbours)."""

    def __init__(self, folder: Path = BUNDLED) -> None:
        self.model = load_ctc(folder)

    @torch.inference_mode()
    def transcribe(self, waveforms: Sequence[npt.NDArray[np.float32]]) -> list[str]:
        """Transcripts of float32 waveforms [num_samples] at 16 kHz, in order."""
        with one_thread():
            return [self._spell(waveform) for waveform in waveforms]

    def _spell(self, waveform: npt.NDArray[np.float32]) -> str:
        features = log_mel(torch.from_numpy(np.asarray(waveform, dtype=np.float32)), self.model.config.num_mels)
        best = self.model(normalise_features(features.unsqueeze(0)))[0].argmax(-1)
        return greedy_text(best.tolist())
