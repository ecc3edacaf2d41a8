"""Scores of transcripts against reference texts, each with a bootstrap interval.

Takes lists of texts and gives `Counted` statistics: one row of counts an item, and the formula that turns
their sum into a number in per cent. So a corpus score's 1000 resamples are one matrix product; the score of the
whole set is the number that the package itself gives, to the last bit.

BLEU, ROUGE-L and CIDEr are counted by pycocoevalcap, or BLEU by sacrebleu, WER by jiwer; METEOR and SPICE are
Java programs. What a word is, the caller says (`Pairs`); pipeline.evaluation.protocols knows the usual ways.
"""

import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.errors import InputError
from pipeline.evaluation.text import normalise

Floats = npt.NDArray[np.float64]
# What was heard and what it is compared with, an item each; words are what stands between spaces.
Pairs = Sequence[tuple[str, Sequence[str]]]

# The constants of pycocoevalcap's BLEU, which keep an order without a match from being a logarithm of zero.
_TINY, _SMALL = 1e-15, 1e-9


@dataclass(frozen=True)
class Counted:
    """A score as sums over items. `items` float64 [num_items, k]; `formula` maps sums [..., k] to [...].

    `whole`: the score of the whole set as the package counted it, where one did; the formula gives the same up to
    rounding (a sum taken in another order differs in its last bit).
    """

    items: Floats
    formula: Callable[[Floats], Floats]
    whole: float | None = None

    def value(self) -> float:
        """The score of the whole set, in per cent."""
        return float(self.formula(self.items.sum(axis=0))) if self.whole is None else self.whole

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
    whole = 100.0 * float(np.mean(column)) if len(column) else 0.0
    return Counted(np.stack([column, np.ones_like(column)], axis=1), ratio, whole)


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


def bleu(pairs: Pairs) -> dict[str, Counted]:
    """bleu1 .. bleu4 of the corpus, brevity against the closest reference length, as COCO counts them."""
    from pycocoevalcap.bleu.bleu_scorer import BleuScorer

    scorer = BleuScorer(n=4)
    for heard, texts in pairs:
        scorer += (heard, list(texts))
    rows = []
    for item in scorer.ctest or []:
        said = int(item["testlen"])
        closest = min((abs(length - said), length) for length in item["reflen"])[1]
        rows.append([said, closest, *item["guess"], *item["correct"]])
    items = np.array(rows, dtype=np.float64).reshape(-1, 10)
    whole = scorer.compute_score(option="closest")[0] if rows else [0.0] * 4
    return {f"bleu{order}": Counted(items, _bleu_formula(order), 100.0 * whole[order - 1]) for order in range(1, 5)}


def _bleu_formula(order: int) -> Callable[[Floats], Floats]:
    def formula(sums: Floats) -> Floats:
        said, closest = sums[..., 0], sums[..., 1]
        guess, correct = sums[..., 2 : 2 + order], sums[..., 6 : 6 + order]
        precision = np.prod((correct + _TINY) / (guess + _SMALL), axis=-1) ** (1.0 / order)
        length = (said + _TINY) / (closest + _SMALL)
        return 100.0 * precision * np.where(length < 1, np.exp(1.0 - 1.0 / length), 1.0)

    return formula


def sacre_bleu(pairs: Pairs) -> dict[str, Counted]:
    """bleu1 .. bleu4 of the corpus as `sacrebleu.corpus_bleu` counts them, of raw text: its tokenizer (13a), its
    smoothing (exp). InputError when items have unequal numbers of references."""
    from sacrebleu.metrics.bleu import BLEU

    if len({len(texts) for _, texts in pairs}) > 1:
        raise InputError("sacrebleu wants the same number of references for every item")
    counter = BLEU(effective_order=True)  # of one sentence alone; the counts are those of the corpus score
    rows = []
    for heard, texts in pairs:
        found = counter.sentence_score(heard, list(texts))
        rows.append([found.sys_len, found.ref_len, *found.totals, *found.counts])
    items = np.array(rows, dtype=np.float64).reshape(-1, 10)
    streams = [list(stream) for stream in zip(*(texts for _, texts in pairs), strict=True)]
    scores = {}
    for order in range(1, 5):
        whole = BLEU(max_ngram_order=order).corpus_score([heard for heard, _ in pairs], streams).score if rows else 0.0
        scores[f"bleu{order}"] = Counted(items, _sacre_formula(order), whole)
    return scores


def _sacre_formula(order: int) -> Callable[[Floats], Floats]:
    from sacrebleu.metrics.bleu import BLEU

    def one(sums: Floats) -> float:
        said, closest, *counts = (round(float(value)) for value in sums)
        score = BLEU.compute_bleu(
            correct=counts[4 : 4 + order],
            total=counts[:order],
            sys_len=said,
            ref_len=closest,
            smooth_method="exp",
            max_ngram_order=order,
        )
        return float(score.score)

    def formula(sums: Floats) -> Floats:
        return np.apply_along_axis(one, -1, sums) if sums.size else np.zeros(sums.shape[:-1])

    return formula


def rouge_l(pairs: Pairs) -> Counted:
    """Mean ROUGE-L of the items."""
    from pycocoevalcap.rouge.rouge import Rouge

    scorer = Rouge()
    return averaged([scorer.calc_score([heard], list(texts)) for heard, texts in pairs])


def cider(pairs: Pairs) -> Counted:
    """Mean CIDEr-D of the items, times 100 as papers print it.

    Document frequencies come from the references given, so values of different test sets do not compare.
    """
    from pycocoevalcap.cider.cider_scorer import CiderScorer

    scorer = CiderScorer(n=4, sigma=6.0)
    for heard, texts in pairs:
        scorer += (heard, list(texts))
    return averaged(scorer.compute_score()[1] if len(pairs) else [])


def coco_scores(pairs: Pairs) -> dict[str, Counted]:
    """All scores of coco-caption that need no Java: bleu1 .. bleu4, rouge_l, cider."""
    return {**bleu(pairs), "rouge_l": rouge_l(pairs), "cider": cider(pairs)}


def normal_pairs(transcripts: Sequence[str], references: Sequence[Iterable[str]]) -> Pairs:
    """Texts as `text.normalise` leaves them, references without a word taken away.

    InputError for an item without a reference.
    """
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

    def scores(self, pairs: Pairs) -> dict[str, Counted]:
        """{metric: score} of those that can be computed here."""
        if not pairs:
            return {}
        heard = {str(place): [pair[0]] for place, pair in enumerate(pairs)}
        texts = {str(place): list(pair[1]) for place, pair in enumerate(pairs)}
        found = {}
        for name, scorer in self._scorers.items():
            whole, values = scorer.compute_score(texts, heard)
            score = averaged([v["All"]["f"] if isinstance(v, dict) else v for v in values])
            found[name] = _moved(score, 100.0 * float(whole))
        return found


def _moved(score: Counted, whole: float) -> Counted:
    """A mean moved to `whole`, its interval with it: METEOR's corpus score is made of summed statistics that stay
    in the Java program, and lies a little off the mean of its items."""
    difference = whole - score.value()
    return Counted(score.items, lambda sums: score.formula(sums) + difference, whole)


def _spice_jars() -> bool:
    spec = find_spec("pycocoevalcap")
    places = spec.submodule_search_locations if spec else None
    return any(list(Path(place, "spice", "lib").glob("stanford-corenlp-*.jar")) for place in places or ())
