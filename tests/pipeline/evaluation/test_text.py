"""The one normalisation."""

from hypothesis import given
from hypothesis import strategies as st

from pipeline.evaluation.text import normalise, vocabulary


def test_case_punctuation_accents_and_apostrophes() -> None:
    assert (
        normalise("A MAN'S t-shirt, on the caf\u00e9's 'left' side.") == "a man's t shirt on the caf\u0065's left side"
    )
    assert normalise("it\u2019s  \n two o'clock ''") == "it's two o'clock"
    assert normalise("...") == ""


@given(st.text())
def test_normalising_twice_changes_nothing(text: str) -> None:
    once = normalise(text)
    assert normalise(once) == once
    assert set(once) <= set("abcdefghijklmnopqrstuvwxyz0123456789' ")


def test_vocabulary() -> None:
    assert vocabulary(["The red, the BLUE", "red"]) == ["blue", "red", "the"]
