"""The rungs and their scores."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.evaluation.ladder import ScoreSettings, Utterance, listen, score, score_chance, shuffled
from pipeline.manifest import Caption, Row

SETTINGS = ScoreSettings(attributes="none", bootstrap_samples=50)


def _row(key: str, *texts: str) -> Row:
    captions = tuple(
        Caption(f"{key}-{i}", f"{key}-{i}.wav", 10, 16000, "0" * 64, "ann", text) for i, text in enumerate(texts)
    )
    return Row(key, None, captions)


def _utterance(row: Row, heard: str, text: str = "") -> Utterance:
    return Utterance(row, row.key, text, np.zeros(10, np.float32), transcripts={"ear": heard, "ctc": heard + " x"})


@given(st.integers(2, 300), st.integers(0, 5))
def test_in_a_shuffle_nothing_keeps_its_place(number: int, seed: int) -> None:
    order = shuffled(number, seed)
    assert sorted(order) == list(range(number))
    assert all(place != other for place, other in enumerate(order))
    assert order == shuffled(number, seed)


def test_a_recording_is_judged_by_its_own_words_and_a_prediction_by_the_nearest() -> None:
    row = _row("k", "A BIG DOG", "one two three four")
    assert _utterance(row, "").references == ["a big dog", "one two three four"]
    assert score([_utterance(row, "a big dog", "one two three four")], ["ear"], SETTINGS)["wer"] == 100.0
    assert score([_utterance(row, "a big dog")], ["ear"], SETTINGS)["wer"] == 0.0


def test_metrics_of_the_second_recogniser_carry_its_name() -> None:
    rows = [_row(str(i), text) for i, text in enumerate(["one two", "three four", "five"])]
    spoken = [_utterance(row, row.captions[0].text) for row in rows]
    found = score(spoken, ["ear", "ctc"], ScoreSettings(attributes="auto", bootstrap_samples=50))
    assert found["wer"] == 0 and found["digit"] == 100 and found["exact"] == 100
    assert found["wer_ctc"] == 60 and found["digit_ctc"] == 100 and found["exact_ctc"] == 0
    assert found["num_items"] == 3 and "bleu4_ctc" not in found
    low, high = found["wer_ctc_ci"]  # type: ignore[misc]
    assert low <= 60 <= high
    chance = score_chance(spoken, ["ear"], SETTINGS)
    assert chance["wer"] > 50 and chance["num_items"] == 3  # type: ignore[operator]
    assert score_chance(spoken[:1], ["ear"], SETTINGS) == {}


def test_rows_without_texts_have_no_scores_but_are_counted() -> None:
    spoken = [_utterance(_row("a", ""), "something")]
    assert score(spoken, ["ear"], SETTINGS) == {"num_items": 1}


def test_listening_normalises_what_was_heard() -> None:
    class Shouting:
        def transcribe(self, waveforms: object) -> list[str]:
            return ["A RED STAR.", "TWO"]

    rungs = [[_utterance(_row("a", "x"), "")], [_utterance(_row("b", "y"), "")]]
    listen(rungs, "loud", Shouting())
    assert [u.transcripts["loud"] for rung in rungs for u in rung] == ["a red star", "two"]


def test_an_unknown_kind_of_attribute_is_refused() -> None:
    with pytest.raises(ValueError, match="colours"):
        score([_utterance(_row("a", "x"), "x")], ["ear"], ScoreSettings(attributes="colours"))
