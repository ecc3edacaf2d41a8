"""Whisper as a recogniser, through transformers: greedy, without timestamps, the same at every run.

Reads a model folder, or an id that transformers finds in its cache; gives transcripts with Whisper's own capitals,
punctuation and figures. It hears 30 seconds: what is longer is cut there, and counted in `num_cut`. Every input is
filled up to 30 seconds by the model's own design, so batches do not change transcripts.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pipeline.errors import InputError

SAMPLE_RATE = 16_000
MAX_SECONDS = 30


class WhisperRecogniser:
    """Greedy decoding. `num_cut`: utterances so far of which only the first 30 seconds were heard."""

    def __init__(
        self, model: str, device: str = "cpu", *, batch_size: int = 1, language: str = "en", task: str = "transcribe"
    ) -> None:
        """`model`: folder or id. It is loaded at the first utterance, and never downloaded. `language` ("" lets the
        model decide) and `task` (transcribe or translate) are for models of several languages."""
        self.source, self.device, self.batch_size = model, device, batch_size
        self.language, self.task, self.num_cut = language, task, 0
        self._loaded: tuple[Any, Any] | None = None

    def _load(self) -> tuple[Any, Any]:
        if self._loaded is None:
            from transformers import WhisperForConditionalGeneration, WhisperProcessor

            try:
                processor = WhisperProcessor.from_pretrained(self.source, local_files_only=True)
                model = WhisperForConditionalGeneration.from_pretrained(self.source, local_files_only=True)
            except (OSError, ValueError) as error:
                raise InputError(
                    f"recogniser_model {self.source!r}: no Whisper model that is on this machine ({error}); "
                    "give the folder of a downloaded one"
                ) from error
            self._loaded = processor, model.eval().to(torch.device(self.device))
        return self._loaded

    def _choices(self, model: Any) -> dict[str, str]:
        """What a model of several languages is told; an English one knows no other."""
        if not getattr(model.generation_config, "is_multilingual", False):
            if self.language not in ("", "en") or self.task != "transcribe":
                raise InputError(f"recogniser_model {self.source!r} writes English down, and nothing else")
            return {}
        known = getattr(model.generation_config, "lang_to_id", {})
        if self.language and f"<|{self.language}|>" not in known:
            codes = ", ".join(sorted(code.strip("<|>") for code in known))
            raise InputError(f"recogniser_language: {self.language!r} is not among {self.source}'s: {codes}")
        return {"task": self.task, **({"language": self.language} if self.language else {})}

    @torch.inference_mode()
    def transcribe(self, waveforms: Sequence[npt.NDArray[np.float32]]) -> list[str]:
        """Transcripts of float32 waveforms [num_samples] at 16 kHz, in order, as Whisper writes them.

        "" for one that has no sample, of which it would make words.
        """
        from tqdm import trange

        processor, model = self._load()
        choices = self._choices(model)
        most = MAX_SECONDS * SAMPLE_RATE
        self.num_cut += sum(len(waveform) > most for waveform in waveforms)
        texts = [""] * len(waveforms)
        sounding = [place for place, waveform in enumerate(waveforms) if len(waveform)]
        for start in trange(0, len(sounding), self.batch_size, desc="whisper", unit="batch", disable=None):
            places = sounding[start : start + self.batch_size]
            batch = [waveforms[place][:most] for place in places]
            inputs = processor(batch, sampling_rate=SAMPLE_RATE, return_tensors="pt", return_attention_mask=True)
            said = model.generate(
                inputs.input_features.to(self.device),
                attention_mask=inputs.attention_mask.to(self.device),
                do_sample=False,
                num_beams=1,
                return_timestamps=False,
                **choices,
            )
            for place, text in zip(places, processor.batch_decode(said, skip_special_tokens=True), strict=True):
                texts[place] = text.strip()
        return texts
