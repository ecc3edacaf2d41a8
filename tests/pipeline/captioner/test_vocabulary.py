"""Units to ids and back: both layouts, the cut at EOS, pieces that never grow into words."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.captioner.vocabulary import UnitVocabulary, learn_merges
from pipeline.errors import InputError

units = st.lists(st.integers(0, 199), max_size=40)


@given(units)
def test_compact_round_trip(sequence):
    vocabulary = UnitVocabulary(200)
    ids = vocabulary.encode(sequence)
    assert not set(ids) & {vocabulary.pad, vocabulary.bos, vocabulary.eos}
    assert vocabulary.decode([vocabulary.bos, *ids, vocabulary.eos, 7]) == sequence


@given(units)
def test_released_layout_is_the_reference_map(sequence):
    vocabulary = UnitVocabulary(200, layout="released")
    assert vocabulary.encode(sequence) == [u + 1 if u <= 100 else u + 3 for u in sequence]
    assert vocabulary.decode([101, *vocabulary.encode(sequence), 102]) == sequence


def test_released_unit_100_collides_with_bos():
    vocabulary = UnitVocabulary(200, layout="released")
    assert vocabulary.encode([100]) == [vocabulary.bos] == [101]
    assert (vocabulary.size, vocabulary.eos) == (203, 102)


def test_eos_last_first_and_absent():
    vocabulary = UnitVocabulary(10)
    assert vocabulary.decode([8, 9, 2]) == [5, 6]
    assert vocabulary.decode([2, 8, 9]) == []
    assert vocabulary.decode([8, 9]) == [5, 6]


def test_pieces_shorten_and_come_back(tmp_path):
    rng = np.random.default_rng(0)
    words = [rng.integers(0, 50, 8).tolist() for _ in range(10)]
    spoken = [sum((words[i] for i in rng.integers(0, 10, 6)), []) for _ in range(200)]
    merges = learn_merges(spoken, 40, 3)
    assert merges == learn_merges(spoken, 40, 3)
    assert max(len(left) + len(right) for left, right in merges) <= 3
    vocabulary = UnitVocabulary(50, "abc", merges=merges)
    encoded = [vocabulary.encode(sequence) for sequence in spoken]
    assert sum(map(len, encoded)) < 0.7 * sum(map(len, spoken))
    assert [vocabulary.decode(ids) for ids in encoded] == spoken
    vocabulary.save(tmp_path / "unit_vocabulary.json")
    assert UnitVocabulary.load(tmp_path / "unit_vocabulary.json") == vocabulary


def test_a_unit_outside_the_codebook_is_refused():
    with pytest.raises(InputError, match="unit 10 is not in a codebook of 10"):
        UnitVocabulary(10).encode([3, 10])
