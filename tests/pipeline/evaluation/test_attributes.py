"""What a transcript gets right, by meaning."""

import numpy as np
import pytest

from pipeline.corpora.world import scenes
from pipeline.errors import InputError
from pipeline.evaluation.attributes import attribute_scores, detect_kind

SCENE = scenes.Scene(scenes.Obj("red", "star", "small"), scenes.Obj("blue", "cross", "large"), "above")
REFERENCES = scenes.captions(SCENE)


def _values(transcript: str) -> dict[str, float]:
    return {name: score.value() for name, score in attribute_scores("demo", [transcript], [REFERENCES]).items()}


def test_every_caption_of_a_scene_is_wholly_right() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        texts = scenes.captions(scenes.sample_scene(rng, "train"))
        for scores in (attribute_scores("demo", [text], [texts]) for text in texts):
            assert all(score.value() == 100 for score in scores.values())


@pytest.mark.parametrize(
    ("transcript", "colour", "shape", "size", "relation", "complete", "exact"),
    [
        ("a large blue cross is below a small red star", 100, 100, 100, 100, 100, 0),
        ("a small red star below a large blue cross", 100, 100, 100, 0, 0, 0),
        ("a small green star above a large blue cross", 50, 100, 100, 100, 0, 0),
        ("a red star above a blue cross", 100, 100, 0, 100, 0, 0),
        ("a small red star", 50, 50, 50, 0, 0, 0),
        ("a large blue cross", 50, 50, 50, 0, 0, 0),
        ("", 0, 0, 0, 0, 0, 0),
    ],
)
def test_what_is_missing_is_wrong(
    transcript: str, colour: float, shape: float, size: float, relation: float, complete: float, exact: float
) -> None:
    wanted = {"colour": colour, "shape": shape, "size": size, "relation": relation, "all": complete, "exact": exact}
    assert _values(transcript) == wanted


def test_a_third_object_costs_only_the_strict_score() -> None:
    found = _values("a small red star above a large blue cross and a white ring")
    assert found["shape"] == 100 and found["relation"] == 100
    assert found["all"] == 0 and found["exact"] == 0


def test_digits_are_aligned() -> None:
    heard = ["three one seven", "three seven", "nine", "", "3 1"]
    texts = [["three one seven"], ["three one seven"], ["five"], ["two two"], ["three one"]]
    scores = attribute_scores("digits", heard, texts)
    assert scores["digit"].items.tolist() == [[3, 3], [2, 3], [0, 1], [0, 2], [2, 2]]
    assert scores["exact"].items[:, 0].tolist() == [1, 0, 0, 0, 1]


def test_the_kind_is_seen_in_the_references() -> None:
    assert detect_kind([REFERENCES, REFERENCES]) == "demo"
    assert detect_kind([["Three one seven"], ["8"]]) == "digits"
    assert detect_kind([["a dog runs"], *[REFERENCES]]) == "none"
    assert detect_kind([]) == "none"
    assert attribute_scores("none", ["a"], [["a"]]) == {}


def test_other_texts_are_refused_by_the_kind_demo() -> None:
    with pytest.raises(InputError, match="a dog runs"):
        attribute_scores("demo", ["a"], [["a dog runs"]])
