"""What evaluation asks of a recogniser, and how one is made from its name.

A recogniser takes float32 waveforms [num_samples] at 16 kHz and gives one transcript each. It must not
depend on the order of the waveforms nor on the number of workers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from pipeline.errors import InputError

SAMPLE_RATE = 16_000
NAMES = ("pocketsphinx", "ctc", "wav2vec2", "whisper")


class Recogniser(Protocol):
    """Speech to text."""

    def transcribe(self, waveforms: Sequence[npt.NDArray[np.float32]]) -> list[str]:
        """One transcript a waveform, in order; "" where nothing was heard."""
        ...


@dataclass(frozen=True)
class RecogniserSettings:
    """Which recogniser, and what it is given. Fields that a kind does not know are not looked at.

    language_model (pocketsphinx): "captions" for an n-gram model of the texts given, "default" for the
    general one of the wheel, or the path of an ARPA file. model (wav2vec2, whisper, ctc): a folder.
    batch_size: utterances that wav2vec2 and whisper take at a time. min_seconds (wav2vec2): shorter ones are filled
    up with silence. language, task (whisper of several languages): a code such as "en"; transcribe or translate.
    """

    name: str = "pocketsphinx"
    model: str = ""
    language_model: str = "captions"
    ngram_order: int = 3
    dither: float = 0.01
    seed: int = 0
    batch_size: int = 1
    min_seconds: float = 1.0
    language: str = "en"
    task: str = "transcribe"


def make_recogniser(
    settings: RecogniserSettings, texts: Sequence[str] = (), num_workers: int = 1, device: str = "cpu"
) -> Recogniser:
    """Build the recogniser of `settings`; `texts` feed a language model made of captions."""
    if settings.name == "pocketsphinx":
        from pipeline.evaluation.pocketsphinx import PocketsphinxRecogniser

        return PocketsphinxRecogniser(
            texts,
            language_model=settings.language_model,
            ngram_order=settings.ngram_order,
            dither=settings.dither,
            seed=settings.seed,
            num_workers=num_workers,
        )
    if settings.name == "ctc":
        from pipeline.evaluation.ctc import BUNDLED, CTCRecogniser

        return CTCRecogniser(Path(settings.model) if settings.model else BUNDLED)
    if settings.name == "wav2vec2":
        from pipeline.evaluation.wav2vec2 import Wav2Vec2Recogniser

        return Wav2Vec2Recogniser(
            _model(settings), device, batch_size=settings.batch_size, min_seconds=settings.min_seconds
        )
    if settings.name == "whisper":
        from pipeline.evaluation.whisper import WhisperRecogniser

        return WhisperRecogniser(
            *(_model(settings), device),
            batch_size=settings.batch_size,
            language=settings.language,
            task=settings.task,
        )
    raise InputError(f"recogniser: {settings.name!r} is unknown; known are {', '.join(NAMES)}")


def refuse_absent(settings: RecogniserSettings) -> None:
    """InputError when wav2vec2's or whisper's model is not on this machine: it is loaded at the first utterance, which
    is late to hear of a misspelt folder."""
    if settings.name not in ("wav2vec2", "whisper"):
        return
    from transformers.utils import cached_file

    model = _model(settings)
    try:
        cached_file(model, "config.json", local_files_only=True)
    except (OSError, ValueError) as error:
        raise InputError(
            f"recogniser_model {model!r}: neither a folder with a model nor one that transformers has in its "
            "cache; nothing is downloaded here"
        ) from error


def _model(settings: RecogniserSettings) -> str:
    if not settings.model:
        raise InputError(f"recogniser {settings.name} needs recogniser_model: the folder of a model, or a cached id")
    return settings.model
