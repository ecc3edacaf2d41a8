"""Our sums against the packages that defined the metrics, and the intervals against what they promise."""

import numpy as np
import pytest
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from pipeline.errors import InputError
from pipeline.evaluation.metrics import JavaScorers, averaged, coco_scores, normal_pairs, summarise, word_errors

TRANSCRIPTS = [
    "a man rides a brown horse on the beach",
    "two dogs run over the grass",
    "",
    "a plate of food on a table next to a cup",
    "the the the the",
]
REFERENCES = [
    ["A man riding a horse on the beach.", "someone rides a brown horse on a beach", "man on horse"],
    ["two dogs are running over grass", "Dogs run on the grass"],
    ["a parked car"],
    ["a plate of food on a table", "a plate and a cup on the table"],
    ["the red bus on the road", "a bus"],
]


def test_the_values_are_those_of_pycocoevalcap() -> None:
    normal = {str(i): [text.lower().replace(".", "") for text in texts] for i, texts in enumerate(REFERENCES)}
    heard = {str(i): [text] for i, text in enumerate(TRANSCRIPTS)}
    theirs = dict(
        zip(("bleu1", "bleu2", "bleu3", "bleu4"), Bleu(4).compute_score(normal, heard, verbose=0)[0], strict=True)
    )
    theirs["cider"] = Cider().compute_score(normal, heard)[0]
    theirs["rouge_l"] = Rouge().compute_score(normal, heard)[0]
    ours = coco_scores(normal_pairs(TRANSCRIPTS, REFERENCES))
    assert set(ours) == set(theirs)
    for name, value in theirs.items():
        assert ours[name].value() == 100 * value, name
        # The intervals rest on the sums of the items: the same number but for the last bits.
        sums = ours[name].items.sum(axis=0)
        assert float(ours[name].formula(sums)) == pytest.approx(100 * value, abs=1e-9), name


def test_word_errors_takes_the_nearest_reference() -> None:
    scored = word_errors(["a red dog", "one two"], [["the red dog runs", "A RED DOG."], ["one two three four", ""]])
    assert scored.items.tolist() == [[0, 3], [2, 4]]
    assert scored.value() == pytest.approx(100 * 2 / 7)
    assert len(word_errors(["a"], [[""]]).items) == 0


def test_an_interval_holds_the_value_and_narrows_with_more_items() -> None:
    rng = np.random.default_rng(0)
    widths = []
    for number in (50, 5000):
        score = averaged((rng.random(number) < 0.7).astype(float))
        low, high = score.interval(1000, seed=1)
        assert low < score.value() < high
        assert (low, high) == score.interval(1000, seed=1)
        # What the normal approximation of a proportion says.
        assert high - low == pytest.approx(2 * 1.96 * 100 * np.sqrt(0.7 * 0.3 / number), rel=0.2)
        widths.append(high - low)
    assert widths[1] < widths[0] / 5


def test_bleu_is_resampled_as_a_corpus() -> None:
    bleu = coco_scores(normal_pairs(TRANSCRIPTS * 20, REFERENCES * 20))["bleu4"]
    low, high = bleu.interval(1000, seed=0)
    assert low < bleu.value() < high
    exact = coco_scores([("a small red star above a cross", ["a small red star above a cross"])] * 9)["bleu4"]
    assert exact.interval(1000, seed=0) == pytest.approx((100, 100), abs=1e-3)


def test_a_summary_has_numbers_and_intervals() -> None:
    summary = summarise({"x": averaged([0.0, 1.0]), "nothing": averaged([])}, 100, seed=0)
    assert summary["x"] == 50.0 and len(summary["x_ci"]) == 2  # type: ignore[arg-type]
    assert "nothing" not in summary
    assert summarise({"x": averaged([1.0])}, 0, seed=0) == {"x": 100.0}


def test_an_item_without_a_reference_is_refused() -> None:
    with pytest.raises(InputError, match="item 1 has no reference"):
        normal_pairs(["a", "b"], [["a"], ["."]])


def test_what_java_would_compute_is_said_when_it_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    scorers = JavaScorers()
    assert set(scorers.missing) == {"meteor", "spice"}
    assert scorers.scores([("a dog", ["a dog"])]) == {}
