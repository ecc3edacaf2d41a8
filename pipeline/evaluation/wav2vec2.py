"""wav2vec 2.0 as a recogniser, for real speech: greedy CTC through transformers.

Reads a model folder, or an id that transformers finds in its cache; gives transcripts. The published
image-to-speech scores come from facebook/wav2vec2-large-960h-lv60-self used in this way.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pipeline.errors import InputError

SAMPLE_RATE = 16_000


class Wav2Vec2Recogniser:
    """One utterance at a time; shorter than a second is filled up with silence, as the paper's code does."""

    def __init__(self, model: str, device: str = "cpu") -> None:
        """`model`: folder or id. It is loaded at the first utterance, and never downloaded."""
        self.source, self.device = model, device
        self._loaded: tuple[Any, Any] | None = None

    def _load(self) -> tuple[Any, Any]:
        if self._loaded is None:
            from transformers import Wav2Vec2ForCTC, Wav2Vec2Processor

            try:
                processor = Wav2Vec2Processor.from_pretrained(self.source, local_files_only=True)
                model = Wav2Vec2ForCTC.from_pretrained(self.source, local_files_only=True)
            except (OSError, ValueError) as error:
                raise InputError(
                    f"recogniser_model {self.source!r}: no wav2vec 2.0 model that is on this machine ({error}); "
                    "give the folder of a downloaded one"
                ) from error
            self._loaded = processor, model.eval().to(torch.device(self.device))
        return self._loaded

    @torch.inference_mode()
    def transcribe(self, waveforms: Sequence[npt.NDArray[np.float32]]) -> list[str]:
        """Transcripts of float32 waveforms [num_samples] at 16 kHz, in order, in the model's own case."""
        processor, model = self._load()
        texts = []
        for waveform in waveforms:
            filled = np.pad(waveform, (0, max(0, SAMPLE_RATE - len(waveform))))
            inputs = processor(filled, sampling_rate=SAMPLE_RATE, return_tensors="pt")
            best = model(inputs.input_values.to(self.device)).logits.argmax(-1)
            texts.append(processor.batch_decode(best)[0])
        return texts
