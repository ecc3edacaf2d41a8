"""Scores of transcripts against reference texts, each with a bootstrap interval.

Takes lists of texts and gives `Counted` statistics: one row of counts an item, and the formula that turns
their sum into a number in per cent. So a corpus score and its 1000 resamples are one matrix product.
All texts pass through `text.normalise` first: words are what is left between spaces. (The COCO server
runs Stanford's PTB tokenizer in Java instead; on text without punctuation the two agree.)

BLEU, ROUGE-L and CIDEr are counted by pycocoevalcap, WER by jiwer; METEOR and SPICE are Java programs.
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.errors import InputError
from pipeline.evaluation.text import normalise

Floats = npt.NDArray[np.float64]

# The constants of pycocoevalcap's BLEU, which keep an order without a match from being a logarithm of zero.
_TINY, _SMALL = 1e-15, 1e-9


@dataclass(frozen=True)
class Counted:
    """A score as sums over items. `items` float64 [num_items, k]; `formula` maps sums [..., k] to [...]."""

    items: Floats
    formula: Callable[[Floats], Floats]

    def value(self) -> float:
        """The score of the whole set, in per cent."""
        return float(self.formula(self.items.sum(axis=0)))

    def per_item(self) -> Floats:
        """The score of each item by itself, in per cent, float64 [num_items]."""
        return self.formula(self.items)

    def interval(self, num_samples: int, seed: int) -> tuple[float, float]:
        """95 % bootstrap interval: items drawn anew with replacement, percentiles 2.5 and 97.5."""
        number = len(self.items)
        draws = np.random.default_rng(seed).multinomial(number, np.full(number, 1.0 / number), size=num_samples)
        low, high = np.percentile(self.formula(draws.astype(np.float64) @ self.items), (2.5, 97.5))
        return float(low), float(high)


def ratio(sums: Floats) -> Floats:
    """100 * first / second, and 0 where there was nothing to count."""
    return 100.0 * sums[..., 0] / np.maximum(sums[..., 1], 1e-12)


def averaged(values: Sequence[float] | Floats) -> Counted:
    """A score that is the plain mean of per-item values (given as fractions of one)."""
    column = np.asarray(values, dtype=np.float64)
    return Counted(np.stack([column, np.ones_like(column)], axis=1), ratio)


def summarise(scores: dict[str, Counted], num_samples: int, seed: int) -> dict[str, float | list[float]]:
    """{name: value, name_ci: [low, high]}, per cent, two decimals. num_samples 0 leaves the intervals out."""
    summary: dict[str, float | list[float]] = {}
    for name, score in scores.items():
        if not len(score.items):
            continue
        summary[name] = round(score.value(), 2)
        if num_samples:
            low, high = score.interval(num_samples, seed)
            summary[f"{name}_ci"] = [round(low, 2), round(high, 2)]
    return summary


def word_errors(transcripts: Sequence[str], references: Sequence[Sequence[str]]) -> Counted:
    """Word error rate against the reference of each item that fits best (fewest errors a word).

    References without a word are skipped, and so are items that have no other.
    """
    import jiwer

    rows = []
    for transcript, texts in zip(transcripts, references, strict=True):
        heard = normalise(transcript)
        candidates = []
        for text in sorted({normalise(text) for text in texts} - {""}):
            words = len(text.split())
            measured = jiwer.process_words(text, heard)
            candidates.append((measured.substitutions + measured.deletions + measured.insertions, words))
        if candidates:
            rows.append(min(candidates, key=lambda pair: (pair[0] / pair[1], pair)))
    return Counted(np.array(rows, dtype=np.float64).reshape(-1, 2), ratio)


def bleu(transcripts: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, Counted]:
    """bleu1 .. bleu4 of the corpus, brevity against the closest reference length, as COCO counts them."""
    from pycocoevalcap.bleu.bleu_scorer import BleuScorer

    scorer = BleuScorer(n=4)
    for heard, texts in _pairs(transcripts, references):
        scorer += (heard, texts)
    rows = []
    for item in scorer.ctest or []:
        said = int(item["testlen"])
        closest = min((abs(length - said), length) for length in item["reflen"])[1]
        rows.append([said, closest, *item["guess"], *item["correct"]])
    items = np.array(rows, dtype=np.float64).reshape(-1, 10)
    return {f"bleu{order}": Counted(items, _bleu_formula(order)) for order in range(1, 5)}


def _bleu_formula(order: int) -> Callable[[Floats], Floats]:
    def formula(sums: Floats) -> Floats:
        said, closest = sums[..., 0], sums[..., 1]
        guess, correct = sums[..., 2 : 2 + order], sums[..., 6 : 6 + order]
        precision = np.prod((correct + _TINY) / (guess + _SMALL), axis=-1) ** (1.0 / order)
        length = (said + _TINY) / (closest + _SMALL)
        return 100.0 * precision * np.where(length < 1, np.exp(1.0 - 1.0 / length), 1.0)

    return formula


def rouge_l(transcripts: Sequence[str], references: Sequence[Sequence[str]]) -> Counted:
    """Mean ROUGE-L of the items."""
    from pycocoevalcap.rouge.rouge import Rouge

    scorer = Rouge()
    return averaged(
        [scorer.calc_score([heard], texts) if heard else 0.0 for heard, texts in _pairs(transcripts, references)]
    )


def cider(transcripts: Sequence[str], references: Sequence[Sequence[str]]) -> Counted:
    """Mean CIDEr-D of the items, times 100 as papers print it.

    Document frequencies come from the references given, so values of different test sets do not compare.
    """
    from pycocoevalcap.cider.cider_scorer import CiderScorer

    scorer = CiderScorer(n=4, sigma=6.0)
    for heard, texts in _pairs(transcripts, references):
        scorer += (heard, texts)
    return averaged(scorer.compute_score()[1] if len(transcripts) else [])


def caption_scores(transcripts: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, Counted]:
    """All scores that need no Java: bleu1 .. bleu4, rouge_l, cider."""
    return {
        **bleu(transcripts, references),
        "rouge_l": rouge_l(transcripts, references),
        "cider": cider(transcripts, references),
    }


def _pairs(transcripts: Sequence[str], references: Sequence[Sequence[str]]) -> list[tuple[str, list[str]]]:
    pairs = []
    for place, (transcript, texts) in enumerate(zip(transcripts, references, strict=True)):
        kept = [text for text in map(normalise, texts) if text]
        if not kept:
            raise InputError(f"item {place} has no reference text to be compared with")
        pairs.append((normalise(transcript), kept))
    return pairs


class JavaScorers:
    """METEOR and SPICE, as far as this machine can run them.

    `missing` says, by metric, why it will not be computed. Nothing is ever downloaded. METEOR needs seconds to
    read its tables: make the object early, and its process gets ready while others work.
    """

    def __init__(self) -> None:
        self.missing: dict[str, str] = {}
        self._scorers: dict[str, Any] = {}
        if shutil.which("java") is None:
            reason = "no Java runtime (the command `java`) on this machine"
            self.missing = {"meteor": reason, "spice": reason}
            return
        from pycocoevalcap.meteor.meteor import Meteor

        self._scorers["meteor"] = Meteor()
        if _spice_jars():
            from pycocoevalcap.spice.spice import Spice

            self._scorers["spice"] = Spice()
        else:
            self.missing["spice"] = "Stanford CoreNLP's jars are not in pycocoevalcap/spice/lib"

    def scores(self, transcripts: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, Counted]:
        """{metric: mean of per-item values} of those that can be computed here."""
        pairs = _pairs(transcripts, references)
        if not pairs:
            return {}
        heard = {str(place): [pair[0]] for place, pair in enumerate(pairs)}
        texts = {str(place): pair[1] for place, pair in enumerate(pairs)}
        found = {}
        for name, scorer in self._scorers.items():
            values = scorer.compute_score(texts, heard)[1]
            found[name] = averaged([v["All"]["f"] if isinstance(v, dict) else v for v in values])
        return found


def _spice_jars() -> bool:
    spec = find_spec("pycocoevalcap")
    places = spec.submodule_search_locations if spec else None
    return any(list(Path(place, "spice", "lib").glob("stanford-corenlp-*.jar")) for place in places or ())
