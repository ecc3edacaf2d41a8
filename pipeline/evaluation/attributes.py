"""What a transcript gets right, by meaning: colours, shapes, sizes and relations of the drawn world, or digits.

Takes transcripts and reference texts, gives `Counted` scores. Stricter than counting what was said: an
attribute that the references name and the transcript does not is wrong. Lenient in one thing: "a above b"
and "b below a" say the same, so objects may come in either order, and the order that matches best counts.
"""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from pipeline.corpora.world.scenes import INVERSE, ParsedCaption, ParsedObject, parse_caption
from pipeline.errors import InputError
from pipeline.evaluation.metrics import Counted, ratio
from pipeline.evaluation.text import normalise

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
KINDS = ("demo", "digits", "none")
_SLOTS = ("colour", "shape", "size")
_NUMERALS = {str(value): word for value, word in enumerate(DIGITS)}


def detect_kind(references: Sequence[Sequence[str]]) -> str:
    """ "demo" when every reference names two objects and a relation, "digits" when all are digit words, else "none"."""
    texts = [normalise(text) for group in references for text in group]
    if texts and all(text and set(_digit_words(text)) <= set(DIGITS) for text in texts):
        return "digits"
    if texts and all(_is_scene(parse_caption(text)) for text in texts):
        return "demo"
    return "none"


def attribute_scores(kind: str, transcripts: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, Counted]:
    """Scores of `kind`: demo -> colour, shape, size, relation, all, exact; digits -> digit, exact; none -> nothing."""
    heard = [normalise(transcript) for transcript in transcripts]
    texts = [[normalise(text) for text in group] for group in references]
    if kind == "none":
        return {}
    if kind == "demo":
        rows = [_scene_row(transcript, group) for transcript, group in zip(heard, texts, strict=True)]
        names: tuple[str, ...] = (*_SLOTS, "relation", "all", "exact")
    elif kind == "digits":
        rows = [_digit_row(transcript, group) for transcript, group in zip(heard, texts, strict=True)]
        names = ("digit", "exact")
    else:
        raise InputError(f"attributes: {kind!r} is unknown; known are auto, {', '.join(KINDS)}")
    counts = np.array(rows, dtype=np.float64).reshape(len(rows), len(names), 2)
    return {name: Counted(counts[:, place], ratio) for place, name in enumerate(names)}


def _is_scene(parsed: ParsedCaption) -> bool:
    return len(parsed.objects) == 2 and parsed.relation is not None


def _readings(parsed: ParsedCaption) -> Iterator[tuple[ParsedObject, ParsedObject, str | None]]:
    """Every way to take two of the objects that were heard, silence standing in for a missing one."""
    objects = [*parsed.objects, *[ParsedObject()] * (2 - len(parsed.objects))]
    for first, second in itertools.permutations(range(len(objects)), 2):
        relation = parsed.relation
        if relation is not None and first > second:
            relation = INVERSE[relation]
        yield objects[first], objects[second], relation


def _scene_row(heard: str, references: Sequence[str]) -> list[list[float]]:
    best: list[list[float]] = []
    parsed = parse_caption(heard)
    scenes = {
        reference for reference in (parse_caption(text).canonical() for text in references) if _is_scene(reference)
    }
    if not scenes:
        raise InputError(f"{references[0]!r} does not speak of two objects; set evaluate.attributes to none")
    for scene in sorted(scenes, key=repr):
        for first, second, relation in _readings(parsed):
            row = [
                [
                    float(
                        sum(
                            getattr(a, slot) == getattr(b, slot)
                            for a, b in zip(scene.objects, (first, second), strict=True)
                        )
                    ),
                    2.0,
                ]
                for slot in _SLOTS
            ]
            row.append([float(relation == scene.relation), 1.0])
            complete = len(parsed.objects) == 2 and all(right == number for right, number in row)
            row.append([float(complete), 1.0])
            if not best or sum(right for right, _ in row) > sum(right for right, _ in best):
                best = row
    return [*best, [float(heard in references), 1.0]]


def _digit_words(text: str) -> list[str]:
    return [_NUMERALS.get(word, word) for word in text.split()]


def _digit_row(heard: str, references: Sequence[str]) -> list[list[float]]:
    """Digits found at their place (by the alignment of least edit distance) in the reference that fits best."""
    import jiwer

    said = " ".join(_digit_words(heard))
    rows = []
    for reference in references:
        wanted = _digit_words(reference)
        hits = jiwer.process_words(" ".join(wanted), said).hits if said else 0
        rows.append([[float(hits), float(len(wanted))], [float(said.split() == wanted), 1.0]])
    return max(rows, key=lambda row: (row[1][0], row[0][0] / row[0][1]))
