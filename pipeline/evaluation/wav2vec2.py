"""wav2vec 2.0 as a recogniser, for real speech: greedy CTC through transformers, in batches as the model wants them.

Reads a model folder, or an id that transformers finds in its cache; gives transcripts. The published
image-to-speech scores come from facebook/wav2vec2-large-960h-lv60-self, greedily decoded.

Models whose front end normalises each frame (`feat_extract_norm: layer`) and whose feature extractor gives an
attention mask are filled up and masked: the same transcripts as alone. Models that normalise over time (`group`,
the base models) are changed by any filling, mask or not, so only utterances of equal length share a batch.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pipeline.errors import InputError

SAMPLE_RATE = 16_000


class Wav2Vec2Recogniser:
    """Greedy CTC. Utterances shorter than `min_seconds` are filled up with silence that the model hears."""

    def __init__(self, model: str, device: str = "cpu", *, batch_size: int = 1, min_seconds: float = 1.0) -> None:
        """`model`: folder or id. It is loaded at the first utterance, and never downloaded."""
        self.source, self.device, self.batch_size, self.min_seconds = model, device, batch_size, min_seconds
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
        from tqdm import tqdm

        processor, model = self._load()
        shortest = max(round(self.min_seconds * SAMPLE_RATE), _receptive_field(model.config))
        filled = [np.pad(waveform, (0, max(0, shortest - len(waveform)))) for waveform in waveforms]
        masked = model.config.feat_extract_norm == "layer" and processor.feature_extractor.return_attention_mask
        texts = [""] * len(filled)
        with tqdm(total=len(filled), desc="wav2vec2", unit="utterance", disable=None) as progress:
            for places in batches([len(waveform) for waveform in filled], self.batch_size, equal=not masked):
                inputs = processor(
                    [filled[place] for place in places],
                    sampling_rate=SAMPLE_RATE,
                    padding=True,
                    return_attention_mask=True,
                    return_tensors="pt",
                )
                mask = inputs.attention_mask.to(self.device) if masked else None
                logits = model(inputs.input_values.to(self.device), attention_mask=mask).logits
                best = logits.argmax(-1)
                if mask is not None:  # what the model says of the filling is none of the utterance
                    frames = model._get_feat_extract_output_lengths(mask.sum(-1))
                    outside = torch.arange(best.shape[1], device=best.device) >= frames[:, None]
                    best = best.masked_fill(outside, processor.tokenizer.pad_token_id)
                for place, text in zip(places, processor.batch_decode(best), strict=True):
                    texts[place] = text
                progress.update(len(places))
        return texts


def _receptive_field(config: Any) -> int:
    """Samples that the first output frame needs."""
    field = 1
    for kernel, stride in zip(reversed(config.conv_kernel), reversed(config.conv_stride), strict=True):
        field = (field - 1) * stride + kernel
    return int(field)


def batches(lengths: Sequence[int], batch_size: int, *, equal: bool) -> Iterator[list[int]]:
    """Places of at most `batch_size` utterances, sorted by length; `equal`: of one length only."""
    places = sorted(range(len(lengths)), key=lambda place: (lengths[place], place))
    batch: list[int] = []
    for place in places:
        if batch and (len(batch) == batch_size or (equal and lengths[place] != lengths[batch[0]])):
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch
