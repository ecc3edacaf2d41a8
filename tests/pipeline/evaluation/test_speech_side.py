"""What is measured on speech, against sums done by hand."""

import numpy as np
import pytest

from pipeline.evaluation.ladder import ScoreSettings, Utterance
from pipeline.evaluation.speech_side import SpeechFacts, diversity, measure, self_bleu
from pipeline.manifest import Caption, Row

SETTINGS = ScoreSettings(bootstrap_samples=20)


def _row(key: str, *seconds: int) -> Row:
    captions = [Caption(f"{key}-{i}", "a.wav", 16000 * s, 16000, "0" * 64, "", "a b") for i, s in enumerate(seconds)]
    return Row(key, None, tuple(captions))


def _said(row: Row, id_: str, text: str, seconds: int, units: list[int] | None) -> Utterance:
    array = None if units is None else np.array(units, np.uint16)
    return Utterance(row, id_, text, np.zeros(16000 * seconds, np.float32), array, {"ear": "one two three"})


def test_rates_errors_and_chance() -> None:
    rows = [_row("a", 2, 4), _row("b", 1)]
    units = {"a-0": np.array([1, 2, 3, 4]), "a-1": np.array([5, 6]), "b-0": np.array([7, 8, 9, 7, 8])}
    rungs = {
        "ground_truth": [_said(rows[0], "a-0", "a b", 2, None)],
        "resynthesis": [_said(rows[0], "a-0", "a b", 1, [1, 2, 3, 4])],
        "prediction": [_said(rows[0], "a", "", 3, [1, 2, 4]), _said(rows[1], "b", "", 1, [7, 8, 9, 7, 8])],
    }
    found = measure(rungs, "ear", SpeechFacts(units, 10), SETTINGS)
    assert found["ground_truth"] == {"words_per_second": 1.5, "words_per_second_ci": [1.5, 1.5]}
    assert found["resynthesis"]["duration_error"] == 50 and found["resynthesis"]["units_per_second"] == 4
    prediction = found["prediction"]
    assert prediction["uer"] == pytest.approx(100 / 9, abs=0.01) and len(prediction["uer_ci"]) == 2  # type: ignore[arg-type]
    assert prediction["duration_error"] == 0 and prediction["units_per_second"] == 2
    assert prediction["unit_distinct1"] == 75 and prediction["units_used"] == 60
    assert prediction["unit_distinct2"] == pytest.approx(100 * 5 / 6, abs=0.01)  # 1 2, 2 4, 7 8, 8 9, 9 7, 7 8
    assert found["chance"]["uer"] == pytest.approx(100 * 10 / 9, abs=0.01) and "self_bleu4" not in prediction


def test_self_bleu_is_100_when_all_samples_say_the_same() -> None:
    row, other = _row("a", 1), _row("b", 1)
    same = [_said(row, "a", "", 1, None) for _ in range(3)]
    for utterance, text in zip(same, ["a red dog is here"] * 3, strict=True):
        utterance.transcripts["ear"] = text
    alone = _said(other, "b", "", 1, None)
    assert self_bleu([*same, alone], "ear").value() == pytest.approx(100, abs=1e-3)
    same[1].transcripts["ear"] = "two cats sleep over there"
    assert self_bleu([*same, alone], "ear").value() < 90
    assert not len(self_bleu([alone], "ear").items)


def test_nothing_said_has_no_diversity() -> None:
    assert diversity([], 10) == {} and diversity([np.zeros(0, np.uint16)], 10) == {}
    assert diversity([np.array([1], np.uint16)], 0) == {"unit_distinct1": 100.0}
