"""Hears what a captioner in training says: samples for the log, and BLEU of a recogniser's transcripts.

Reads validation samples and training texts from the token shards, and a vocoder's folder. Changes nothing of the
training.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import InputError
from stages._trackers import Tracker

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from pipeline.evaluation.recogniser import RecogniserSettings
    from pipeline.tokens.sample import Sample


class Listener:
    """Speaks and hears the first validation images' units. num_samples go to the tracker, bleu_images are scored."""

    def __init__(
        self,
        shards: Path,
        split: str,
        vocoder: Path,
        tracker: Tracker,
        *,
        num_samples: int,
        bleu_images: int,
        recogniser: "RecogniserSettings",
        units_fingerprint: str,
        device: str,
        num_workers: int,
    ) -> None:
        from itertools import islice

        from pipeline.evaluation.recogniser import make_recogniser
        from pipeline.speech.vocoder import load_vocoder
        from pipeline.tokens.read import read_samples

        self._vocoder = load_vocoder(vocoder, device, units_fingerprint=units_fingerprint)
        self._tracker, self._num_samples, self._num_scored = tracker, num_samples, bleu_images
        spoken_of = (sample for sample in read_samples(shards, split) if sample.captions)
        self._samples: list[Sample] = list(islice(spoken_of, max(num_samples, bleu_images)))
        self._recogniser = None
        if bleu_images:
            references = [caption.text for sample in self._samples for caption in sample.captions]
            if not any(references):
                raise InputError(f"{shards}/{split}: no texts to score against; set train.bleu_images 0")
            texts: list[str] = []
            if recogniser.name == "pocketsphinx":
                texts = [caption.text for sample in read_samples(shards, "train") for caption in sample.captions]
            self._recogniser = make_recogniser(recogniser, texts, num_workers, device)

    def __call__(self, step: int, spoken: "Sequence[npt.NDArray[np.uint16]]") -> dict[str, float]:
        """Log the samples; {"validation_bleu4": per cent} where that is asked for."""
        from PIL import Image

        said = list(spoken)[: len(self._samples)]
        waveforms = self._vocoder.synthesize(said)
        rate = self._vocoder.sample_rate
        for sample, waveform in list(zip(self._samples, waveforms, strict=False))[: self._num_samples]:
            picture = None if sample.jpg is None else Image.open(io.BytesIO(sample.jpg)).convert("RGB")
            self._tracker.sample(step, sample.key, waveform, rate, picture)
        return self._score(waveforms[: self._num_scored], rate)

    def _score(self, waveforms: "Sequence[npt.NDArray[np.float32]]", rate: int) -> dict[str, float]:
        from pipeline.evaluation.metrics import bleu, normal_pairs
        from pipeline.evaluation.recogniser import SAMPLE_RATE
        from pipeline.evaluation.text import normalise
        from pipeline.media import resample

        if self._recogniser is None:
            return {}
        loud = [resample(waveform, rate, SAMPLE_RATE) for waveform in waveforms if len(waveform)]
        understood = iter(self._recogniser.transcribe(loud))
        heard = [next(understood) if len(waveform) else "" for waveform in waveforms]
        references = [[caption.text for caption in sample.captions] for sample in self._samples]
        # A picture none of whose captions has a text has nothing to be compared with.
        written = [(said, texts) for said, texts in zip(heard, references, strict=False) if any(map(normalise, texts))]
        if not written:
            return {}
        pairs = normal_pairs([said for said, _ in written], [texts for _, texts in written])
        return {"validation_bleu4": bleu(pairs)["bleu4"].value()}
