"""Image to units: greedy, beam search or sampling, many images at once, the image encoded once, cut at the first EOS.

`generate_units` gives each image's best caption, `generate_captions` the n best with their scores. What is drawn
depends on the seed and on the image's place, never on the batch. Reads and writes no files.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from pipeline.captioner.decoding import Adjust, Pick, Said, extend, search
from pipeline.captioner.model import Captioner
from pipeline.captioner.vocabulary import UnitVocabulary
from pipeline.errors import InputError


@dataclass(frozen=True)
class GenerationSettings:
    """How a caption is chosen. As it stands: greedy decoding, as in the paper.

    num_beams: beam search when above 1. temperature: above 0 draws at random, from the `top_k` likeliest ids (0: all)
    and from the likeliest that together have `top_p` of the probability. num_samples: captions drawn for an image,
    of which the best is taken. length_penalty: captions are compared by log-probability over length to this power,
    the length in ids with EOS; 0 compares whole log-probabilities. repetition_penalty: above 1 makes ids that were
    said less likely (Keskar et al. 2019). no_repeat_ngram_size: no run of so many ids twice; 0 allows all. An id is a
    unit, or a piece of several units where the vocabulary has pieces. min_length: EOS not before so many ids.
    seed: of the drawing.
    """

    num_beams: int = 1
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    num_samples: int = 1
    length_penalty: float = 1.0
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    min_length: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("num_beams", 1), ("num_samples", 1), ("top_k", 0), ("no_repeat_ngram_size", 0)):
            if getattr(self, name) < least:
                raise InputError(f"generation: {name} is {getattr(self, name)}; at least {least} is possible")
        if not 0 <= self.temperature < math.inf or not 0 < self.top_p <= 1 or self.repetition_penalty <= 0:
            raise InputError("generation: temperature is at least 0, top_p in (0, 1], repetition_penalty above 0")
        if self.num_beams > 1 and self.temperature:
            raise InputError("generation: num_beams above 1 searches, temperature above 0 draws; choose one of them")
        if not self.temperature and (self.num_samples > 1 or self.top_k or self.top_p < 1):
            raise InputError("generation: num_samples, top_k and top_p are for drawing; set a temperature above 0")


@dataclass(frozen=True)
class Caption:
    """Deduplicated `units` uint16 [n]. `score`: log-probability over length (see `length_penalty`); higher is better.

    finished: whether EOS was said before the longest length was reached.
    """

    units: npt.NDArray[np.uint16]
    score: float
    finished: bool


def generate_units(
    model: Captioner,
    vocabulary: UnitVocabulary,
    images: Tensor,
    *,
    batch_size: int = 64,
    max_length: int = 256,
    num_beams: int = 1,
    settings: GenerationSettings | None = None,
) -> list[npt.NDArray[np.uint16]]:
    """Deduplicated units uint16 [n] for each image of [N, ...] (what `Captioner` takes): its best caption.

    batch_size: captions at work at once, so with 5 beams a fifth as many images. max_length: new ids at most; the
    model's positions bound it as well. num_beams: for `settings` of nothing else. The same for any batch size.
    """
    settings = settings or GenerationSettings(num_beams=num_beams)
    found = generate_captions(model, vocabulary, images, settings, batch_size=batch_size, max_length=max_length)
    return [captions[0].units for captions in found]


@torch.inference_mode()
def generate_captions(
    model: Captioner,
    vocabulary: UnitVocabulary,
    images: Tensor,
    settings: GenerationSettings,
    *,
    batch_size: int = 64,
    max_length: int = 256,
    first_image: int = 0,
) -> list[list[Caption]]:
    """All different captions found for each image of [N, ...], best score first: beams, samples, or the greedy one.

    first_image: the place of the first image in the whole, where a caller gives images in parts; drawing is by place.
    """
    model.eval()
    device = next(model.parameters()).device
    limit = min(max_length, model.config.max_position_embeddings)
    copies = settings.num_beams if settings.num_beams > 1 else settings.num_samples
    per_batch = max(1, batch_size // copies)
    found: list[list[Caption]] = []
    for start in range(0, len(images), per_batch):
        batch = images[start : start + per_batch].to(device)
        said = _say(model, vocabulary, batch, settings, limit, first_image + start)
        for first in range(0, len(batch) * copies, copies):
            found.append(_best_first(said, range(first, first + copies), vocabulary, settings))
    return found


def _say(
    model: Captioner, vocabulary: UnitVocabulary, images: Tensor, settings: GenerationSettings, limit: int, place: int
) -> Said:
    marks = {"bos": vocabulary.bos, "eos": vocabulary.eos, "pad": vocabulary.pad}
    adjust = _adjust(vocabulary, settings)
    if settings.num_beams > 1:
        beams = {"num_beams": settings.num_beams, "length_penalty": settings.length_penalty}
        return search(model, images, **marks, limit=limit, adjust=adjust, **beams)  # type: ignore[arg-type]
    pick: Pick = _likeliest
    if settings.temperature:
        pick = _draw(settings, len(images), limit, place, images.device)
    said = extend(model, images, **marks, limit=limit, copies=settings.num_samples, adjust=adjust, pick=pick)
    said.log_probability /= said.length**settings.length_penalty
    return said


def _adjust(vocabulary: UnitVocabulary, settings: GenerationSettings) -> Adjust | None:
    """What is asked of the scores before one is chosen, by transformers' own processors, in their order."""
    processors = LogitsProcessorList()
    if settings.repetition_penalty != 1:
        processors.append(RepetitionPenaltyLogitsProcessor(settings.repetition_penalty))
    if settings.no_repeat_ngram_size:
        processors.append(NoRepeatNGramLogitsProcessor(settings.no_repeat_ngram_size))
    if settings.min_length:
        processors.append(lambda ids, scores: _no_end(ids, scores, vocabulary.eos, settings.min_length))
    if settings.temperature:
        processors.append(TemperatureLogitsWarper(settings.temperature))
    if settings.top_k:
        processors.append(TopKLogitsWarper(settings.top_k))
    if settings.top_p < 1:
        processors.append(TopPLogitsWarper(settings.top_p))
    return processors if processors else None


def _no_end(ids: Tensor, scores: Tensor, eos: int, min_length: int) -> Tensor:
    # ids hold BOS, and what is chosen now is the id number ids.shape[1].
    if ids.shape[1] > min_length:
        return scores
    scores = scores.clone()
    scores[:, eos] = -math.inf
    return scores


def _likeliest(scores: Tensor, rows: Tensor, step: int) -> Tensor:
    return scores.argmax(1)


def _draw(settings: GenerationSettings, num_images: int, limit: int, place: int, device: torch.device) -> Pick:
    """A draw for every step of every caption, decided beforehand by seed, image and sample: no batch changes it."""
    numbers = [
        np.random.default_rng([settings.seed, place + image, sample]).random(limit)
        for image in range(num_images)
        for sample in range(settings.num_samples)
    ]
    draws = torch.from_numpy(np.stack(numbers)).to(device)

    def pick(scores: Tensor, rows: Tensor, step: int) -> Tensor:
        sums = scores.double().softmax(1).cumsum(1)
        chosen = torch.searchsorted(sums, draws[rows, step, None] * sums[:, -1:], right=True)
        return chosen[:, 0].clamp(max=scores.shape[1] - 1)

    return pick


def _best_first(said: Said, rows: range, vocabulary: UnitVocabulary, settings: GenerationSettings) -> list[Caption]:
    captions: dict[tuple[int, ...], Caption] = {}
    for row in sorted(rows, key=lambda row: -float(said.log_probability[row])):
        ids = said.ids[row, : said.length[row]].tolist()
        units = np.array(vocabulary.decode(ids), dtype=np.uint16)
        # Pieces may meet with the same unit at both sides.
        keep = np.concatenate([[True], units[1:] != units[:-1]]) if len(units) else np.zeros(0, bool)
        caption = Caption(units[keep], float(said.log_probability[row]), bool(ids and ids[-1] == vocabulary.eos))
        captions.setdefault(tuple(caption.units.tolist()), caption)
    return list(captions.values())
