"""Finds the utterances of one speaker or of all: rows of a manifest joined, by shard and id, with their units."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.errors import InputError
from pipeline.manifest import read_rows, shard_paths
from pipeline.media import read_audio
from pipeline.speech.vocoder_crops import Example, make_example
from pipeline.tokens.parts import read_units_part

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


def find_utterances(manifest_dir: Path, units_dir: Path, split: str) -> "list[Utterance]":
    """All captions of a split that have units, in the order of the manifest."""
    found = []
    for path in shard_paths(manifest_dir, split):
        part = read_units_part(units_dir / split / f"{path.stem}.npz")
        places = part.index()
        for row in read_rows(path):
            for caption in row.captions:
                if caption.id in places:
                    units, durations = part.utterance(places[caption.id])
                    found.append(Utterance(caption.id, caption.audio, caption.speaker, units, durations))
    return found


def choose_speakers(utterances: "Sequence[Utterance]", first: str = "") -> list[str]:
    """Every speaker, `choose_speaker`'s choice before the others, which follow by name."""
    chosen = choose_speaker(utterances, first)
    return [chosen, *sorted({utterance.speaker for utterance in utterances} - {chosen})]


def choose_speaker(utterances: "Sequence[Utterance]", wanted: str = "") -> str:
    """`wanted` if it is there, else (when empty) the speaker of most utterances; ties go by name.

    InputError when nobody speaks, or `wanted` does not: it then names the most frequent speakers.
    """
    counts = Counter(utterance.speaker for utterance in utterances)
    if not counts:
        raise InputError("vocoder: the training split holds no utterance with units")
    ranked = sorted(counts, key=lambda name: (-counts[name], name))
    if wanted and wanted not in counts:
        raise InputError(f"vocoder: speaker {wanted!r} is not in train; most frequent are {', '.join(ranked[:5])}")
    return wanted or ranked[0]


def sample(utterances: "Sequence[Utterance]", count: int, seed: int) -> "list[Utterance]":
    """At most `count` of them, drawn by seed, in their old order."""
    if len(utterances) <= count:
        return list(utterances)
    chosen = np.random.default_rng([seed, 11]).permutation(len(utterances))[:count]
    return [utterances[index] for index in sorted(chosen.tolist())]


def load_examples(
    utterances: "Sequence[Utterance]", *, root: Path, sample_rate: int, hop: int, speakers: "Sequence[str]" = ()
) -> list[Example]:
    """Read the recordings under `root`, at `sample_rate`, into training examples; skip empty units.

    An example's speaker is the place of its name in `speakers`, 0 for a name that is not there.
    """
    numbers = {name: number for number, name in enumerate(speakers)}
    examples = []
    for utterance in utterances:
        if not len(utterance.units):
            continue
        waveform = read_audio(root / utterance.audio, sample_rate)
        try:
            number = numbers.get(utterance.speaker, 0)
            examples.append(make_example(utterance.units, utterance.durations, waveform, hop, number))
        except InputError as error:
            raise InputError(f"{root / utterance.audio} ({utterance.id}): {error}") from error
    return examples


@dataclass(frozen=True)
class Utterance:
    """A caption with its units: `audio` relative to the corpus root, units and durations uint16 `[n]`."""

    id: str
    audio: str
    speaker: str
    units: "NDArray[np.uint16]"
    durations: "NDArray[np.uint16]"
