"""The ladder: what is lost from a person's speech to the units' speech to the captioner's, and what chance gives.

Reads manifest rows, unit parts, image tokens and trained parts; gives utterances for each rung, transcripts
for each utterance, and scores for each rung. Every rung is optional, so a corpus without a captioner still
gets the first two. Writes nothing.

    ground_truth   the recordings: what the recogniser itself gets wrong
    resynthesis    the recordings' units, spoken by the vocoder with predicted durations: what units lose
    prediction     the units that the captioner says of the image: the result
    chance         the predictions against the references of other images: what knowing the corpus is worth
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pipeline.errors import InputError
from pipeline.evaluation.attributes import attribute_scores, detect_kind
from pipeline.evaluation.metrics import JavaScorers, summarise, word_errors
from pipeline.evaluation.protocols import Protocol
from pipeline.evaluation.recogniser import SAMPLE_RATE, Recogniser
from pipeline.evaluation.text import normalise
from pipeline.files import sha256_file
from pipeline.manifest import Row
from pipeline.media import read_audio, resample
from pipeline.tokens.parts import read_images_part, read_units_part

if TYPE_CHECKING:
    import torch

    from pipeline.captioner.generation import GenerationSettings
    from pipeline.image_to_speech import ImageToSpeech
    from pipeline.speech.vocoder import Vocoder

_CHUNK = 8  # utterances that a worker takes at a time
Waveform = npt.NDArray[np.float32]
Metrics = dict[str, float | list[float]]


@dataclass
class Utterance:
    """Something said about an image. `text` is what was meant to be said ("" for predictions); `waveform` is at
    16 kHz; `transcripts` maps a recogniser's name to what it heard, normalised, and `raw` to what it wrote.
    `published`: reference texts as somebody wrote them, where they are not those of the row's captions."""

    row: Row
    id: str
    text: str
    waveform: Waveform
    units: npt.NDArray[np.uint16] | None = None
    transcripts: dict[str, str] = field(default_factory=dict)
    raw: dict[str, str] = field(default_factory=dict)
    published: tuple[str, ...] | None = None

    @property
    def raw_references(self) -> list[str]:
        """The reference texts as published, every one."""
        texts = [caption.text for caption in self.row.captions] if self.published is None else self.published
        return [text for text in texts if text.strip()]

    @property
    def references(self) -> list[str]:
        """The different reference texts of the image, normalised, in order."""
        return list(dict.fromkeys(text for raw in self.raw_references if (text := normalise(raw))))


@dataclass(frozen=True)
class Speaker:
    """The vocoder in `folder`, at work in `num_workers` processes when the device is a CPU."""

    folder: Path
    device: str = "cpu"
    num_workers: int = 1

    def speak(self, units: Sequence[npt.NDArray[np.uint16]]) -> list[Waveform]:
        """Waveforms at 16 kHz, float32 [num_samples], of unit sequences; the same for any number of workers."""
        from joblib import Parallel, delayed

        chunks = [units[start : start + _CHUNK] for start in range(0, len(units), _CHUNK)]
        workers = max(1, min(self.num_workers, len(chunks))) if self.device == "cpu" else 1
        # The digest keeps a process that lives on from speaking with a vocoder that has been trained anew.
        which = (self.folder, self.device, sha256_file(self.folder / "model.safetensors"))
        spoken = Parallel(n_jobs=workers)(delayed(_synthesize)(which, chunk) for chunk in chunks)
        return [waveform for chunk in spoken for waveform in chunk]


def _synthesize(which: tuple[Path, str, str], units: Sequence[npt.NDArray[np.uint16]]) -> list[Waveform]:
    from pipeline.evaluation.threads import one_thread

    vocoder = _vocoder(*which)
    with one_thread():
        return [resample(w, vocoder.sample_rate, SAMPLE_RATE) for w in vocoder.synthesize(list(units))]


@lru_cache(maxsize=1)
def _vocoder(folder: Path, device: str, digest: str) -> "Vocoder":
    from pipeline.speech.vocoder import load_vocoder

    return load_vocoder(folder, device)


@dataclass(frozen=True)
class ScoreSettings:
    """attributes: auto, demo, digits or none. bootstrap_samples 0: no intervals. seed: resamples and shuffles.
    protocol: how captions are scored."""

    attributes: str = "auto"
    bootstrap_samples: int = 1000
    seed: int = 0
    protocol: Protocol = field(default_factory=Protocol)


def recordings(rows: Sequence[Row], root: Path, max_captions: int) -> list[Utterance]:
    """The spoken captions themselves, the first `max_captions` of each row (0: all)."""
    return [
        Utterance(row, caption.id, normalise(caption.text), read_audio(root / caption.audio, SAMPLE_RATE))
        for row in rows
        for caption in row.captions[: max_captions or None]
    ]


def recorded_units(split_dir: Path) -> dict[str, npt.NDArray[np.uint16]]:
    """{caption id: its deduplicated units} of all parts in `split_dir`."""
    units: dict[str, npt.NDArray[np.uint16]] = {}
    for path in sorted(split_dir.glob("*.npz")):
        part = read_units_part(path)
        units.update({id_: part.utterance(place)[0] for id_, place in part.index().items()})
    return units


def resynthesised(rows: Sequence[Row], split_dir: Path, speaker: Speaker, max_captions: int) -> list[Utterance]:
    """The same captions from their units in the parts of `split_dir`; utterances that have none are left out."""
    units = recorded_units(split_dir)
    found = [
        (row, caption)
        for row in rows
        for caption in row.captions[: max_captions or None]
        if len(units.get(caption.id, ()))
    ]
    spoken = speaker.speak([units[caption.id] for _, caption in found])
    return [
        Utterance(row, caption.id, normalise(caption.text), waveform, units[caption.id])
        for (row, caption), waveform in zip(found, spoken, strict=True)
    ]


def predicted(
    rows: Sequence[Row],
    captioner: "ImageToSpeech",
    speaker: Speaker,
    split_dir: Path,
    root: Path,
    settings: "GenerationSettings | None" = None,
) -> list[Utterance]:
    """What the captioner says of each image; its tokens come from the parts of `split_dir`, its pixels from `root`.

    settings: how captions are chosen; greedily without.
    """
    rows = [row for row in rows if row.image is not None]
    if captioner.model.config.input == "tokens":
        rows, inputs = _image_tokens(rows, split_dir)
        units = captioner.generate_units(inputs, settings=settings) if rows else []
    else:
        paths = [root / row.image.path for row in rows if row.image]
        units = captioner.generate_units(paths, settings=settings) if rows else []
    spoken = speaker.speak(units)
    return [Utterance(row, row.key, "", w, u) for row, w, u in zip(rows, spoken, units, strict=True)]


def _image_tokens(rows: Sequence[Row], split_dir: Path) -> "tuple[list[Row], torch.Tensor]":
    import torch

    tokens: dict[str, npt.NDArray[np.uint16]] = {}
    for path in sorted(split_dir.glob("*.npz")):
        part = read_images_part(path)
        tokens.update({key: part.tokens[place] for key, place in part.index().items()})
    kept = [row for row in rows if row.key in tokens]
    if rows and not kept:
        raise InputError(f"{split_dir}: no image tokens of these rows; run `im2speech images` first")
    stacked = np.stack([tokens[row.key] for row in kept]).astype(np.int64) if kept else np.zeros((0, 1, 1), np.int64)
    return kept, torch.from_numpy(stacked)[:, None]


def listen(rungs: Sequence[Sequence[Utterance]], name: str, recogniser: Recogniser) -> None:
    """Write what `recogniser` hears into every utterance's transcripts, under `name`. One call for all rungs, so
    that worker processes start once."""
    utterances = [utterance for rung in rungs for utterance in rung]
    for utterance, text in zip(utterances, recogniser.transcribe([u.waveform for u in utterances]), strict=True):
        utterance.raw[name], utterance.transcripts[name] = text, normalise(text)


def shuffled(number: int, seed: int) -> list[int]:
    """A random order in which nothing keeps its place (Sattolo's cycle)."""
    order = list(range(number))
    rng = np.random.default_rng([seed, number])
    for place in range(number - 1, 0, -1):
        other = int(rng.integers(place))
        order[place], order[other] = order[other], order[place]
    return order


def score(
    utterances: Sequence[Utterance], names: Sequence[str], settings: ScoreSettings, java: JavaScorers | None = None
) -> Metrics:
    """Scores of one rung. The first of `names` is the recogniser that the captions are scored by; any other adds
    `wer_<name>` and `<attribute>_<name>`."""
    return _score(utterances, utterances, names, settings, java)


def score_chance(
    utterances: Sequence[Utterance], names: Sequence[str], settings: ScoreSettings, java: JavaScorers | None = None
) -> Metrics:
    """Scores of the same utterances against the references of other images; empty with fewer than two."""
    if len(utterances) < 2:
        return {}
    others = [utterances[other] for other in shuffled(len(utterances), settings.seed)]
    return _score(utterances, others, names, settings, java)


def _score(
    utterances: Sequence[Utterance],
    others: Sequence[Utterance],
    names: Sequence[str],
    settings: ScoreSettings,
    java: JavaScorers | None,
) -> Metrics:
    """Scores of utterances against the references of `others`, an utterance each."""
    kept = [(u, other) for u, other in zip(utterances, others, strict=True) if other.references]
    if not kept:
        return {"num_items": len(utterances)}
    texts = [other.references for _, other in kept]
    kind = detect_kind(texts) if settings.attributes == "auto" else settings.attributes
    # A recording is judged by its own words, a prediction by the reference that is nearest.
    spoken = [[u.text] if u.text else group for (u, _), group in zip(kept, texts, strict=True)]
    scores = {}
    for place, name in enumerate(names):
        heard = [u.transcripts[name] for u, _ in kept]
        suffix = f"_{name}" if place else ""
        scores[f"wer{suffix}"] = word_errors(heard, spoken)
        scores.update({f"{key}{suffix}": value for key, value in attribute_scores(kind, heard, texts).items()})
        if not place:
            raw = [u.raw.get(name, u.transcripts[name]) for u, _ in kept]
            scores.update(settings.protocol.scores(raw, [other.raw_references for _, other in kept], java))
    return {**summarise(scores, settings.bootstrap_samples, settings.seed), "num_items": len(kept)}
