"""What can be measured on the speech itself, beside its transcript. Takes utterances and units, gives `Metrics`.

    uer                 unit errors of a prediction in per cent of the nearest reference's units (edit distance)
    units_per_second    speaking rate in deduplicated units, and
    words_per_second    in words that the recogniser heard
    duration_error      how far an utterance's length is from the recording's, in per cent of it; for a prediction
                        from the mean of its image's recordings
    unit_distinct1, 2   different units, and pairs of units, in per cent of all that are said
    units_used          share of the codebook that is said at all, in per cent
    self_bleu4          BLEU-4 of each sample of an image against its other samples: 100 where all say the same

The rates and errors carry intervals. Diversity does not: a resample repeats items, so it is always less diverse.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from pipeline.evaluation.ladder import Metrics, ScoreSettings, Utterance, shuffled
from pipeline.evaluation.metrics import Counted, Floats, bleu, ratio, summarise
from pipeline.evaluation.recogniser import SAMPLE_RATE

Units = npt.NDArray[np.uint16]


@dataclass(frozen=True)
class SpeechFacts:
    """What a split's speech is compared with: the recordings' units by caption id, the size of the codebook (0: not
    known) and further samples of the predictions."""

    units: Mapping[str, Units] = field(default_factory=dict)
    num_units: int = 0
    further: Sequence[Utterance] = ()


def measure(
    rungs: Mapping[str, Sequence[Utterance]], name: str, facts: SpeechFacts, settings: ScoreSettings
) -> dict[str, Metrics]:
    """{rung: metrics} of utterances that recogniser `name` has heard; `chance` has unit errors alone."""
    found: dict[str, Metrics] = {}
    for rung, utterances in rungs.items():
        scores = {**rates(utterances, name), "duration_error": _duration_errors(utterances)}
        if rung == "ground_truth":
            scores.pop("duration_error")
        if rung == "prediction":
            scores["uer"] = unit_errors(utterances, utterances, facts.units)
            scores["self_bleu4"] = self_bleu([*utterances, *facts.further], name)
        found[rung] = summarise(scores, settings.bootstrap_samples, settings.seed)
        found[rung].update(diversity([u.units for u in utterances if u.units is not None], facts.num_units))
    predicted = rungs.get("prediction", [])
    if len(predicted) > 1:
        others = [predicted[other] for other in shuffled(len(predicted), settings.seed)]
        errors = {"uer": unit_errors(predicted, others, facts.units)}
        found["chance"] = summarise(errors, settings.bootstrap_samples, settings.seed)
    return found


def unit_errors(utterances: Sequence[Utterance], others: Sequence[Utterance], units: Mapping[str, Units]) -> Counted:
    """Edits between what is said and the nearest of the references' unit sequences of `others`, an utterance each
    (fewest edits a unit). Utterances without units or without such references are skipped."""
    from rapidfuzz.distance import Levenshtein

    rows = []
    for utterance, other in zip(utterances, others, strict=True):
        references = [units[c.id] for c in other.row.captions if len(units.get(c.id, ()))]
        if utterance.units is None or not references:
            continue
        said = utterance.units.tolist()
        edits = [(Levenshtein.distance(said, reference.tolist()), len(reference)) for reference in references]
        rows.append(min(edits, key=lambda pair: (pair[0] / pair[1], pair)))
    return Counted(np.array(rows, dtype=np.float64).reshape(-1, 2), ratio)


def rates(utterances: Sequence[Utterance], name: str) -> dict[str, Counted]:
    """units_per_second of utterances that have units, words_per_second of all that have sound."""
    sounding = [(u, len(u.waveform) / SAMPLE_RATE) for u in utterances if len(u.waveform)]
    units = [[len(u.units), seconds] for u, seconds in sounding if u.units is not None]
    words = [[len(u.transcripts[name].split()), seconds] for u, seconds in sounding]
    return {
        "units_per_second": Counted(np.array(units, dtype=np.float64).reshape(-1, 2), _rate),
        "words_per_second": Counted(np.array(words, dtype=np.float64).reshape(-1, 2), _rate),
    }


def _rate(sums: Floats) -> Floats:
    return sums[..., 0] / np.maximum(sums[..., 1], 1e-12)


def _duration_errors(utterances: Sequence[Utterance]) -> Counted:
    rows = []
    for utterance in utterances:
        own = [caption.seconds for caption in utterance.row.captions if caption.id == utterance.id]
        recorded = own or [caption.seconds for caption in utterance.row.captions]
        if recorded and len(utterance.waveform):
            length = float(np.mean(recorded))
            rows.append([abs(len(utterance.waveform) / SAMPLE_RATE - length), length])
    return Counted(np.array(rows, dtype=np.float64).reshape(-1, 2), ratio)


def diversity(said: Sequence[Units], num_units: int) -> dict[str, float]:
    """unit_distinct1, unit_distinct2 and, where the codebook's size is known, units_used; empty without units."""
    if not any(len(units) for units in said):
        return {}
    everything = np.concatenate(said).astype(np.int64)
    different = len(np.unique(everything))
    found = {"unit_distinct1": round(100.0 * different / len(everything), 2)}
    pairs = [units.astype(np.int64) for units in said if len(units) > 1]
    if pairs:
        codes = np.concatenate([units[:-1] << 32 | units[1:] for units in pairs])
        found["unit_distinct2"] = round(100.0 * len(np.unique(codes)) / len(codes), 2)
    if num_units:
        found["units_used"] = round(100.0 * different / num_units, 2)
    return found


def self_bleu(utterances: Sequence[Utterance], name: str) -> Counted:
    """BLEU-4 of every sample against the image's others, an image an item; images with one sample are skipped."""
    groups: dict[str, list[str]] = {}
    for utterance in utterances:
        groups.setdefault(utterance.row.key, []).append(utterance.transcripts[name])
    items = []
    formula: Callable[[Floats], Floats] = ratio
    for samples in groups.values():
        if len(samples) > 1:
            counted = bleu([(s, samples[:place] + samples[place + 1 :]) for place, s in enumerate(samples)])["bleu4"]
            items.append(counted.items.sum(axis=0))
            formula = counted.formula
    return Counted(np.array(items, dtype=np.float64), formula)
