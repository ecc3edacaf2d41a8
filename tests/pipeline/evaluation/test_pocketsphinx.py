"""The real recogniser on real espeak captions."""

import math

import jiwer
import numpy as np
import pytest

from pipeline.corpora.world import scenes
from pipeline.corpora.world.espeak import synthesize
from pipeline.errors import InputError
from pipeline.evaluation.pocketsphinx import (
    PocketsphinxRecogniser,
    arpa,
    common_words,
    dictionary,
    dithered,
    join_phrases,
)


def _captions(split: str, number: int, seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    return [scenes.captions(scenes.sample_scene(rng, split))[i % 5] for i in range(number)]


@pytest.fixture(scope="module")
def recogniser() -> PocketsphinxRecogniser:
    return PocketsphinxRecogniser(_captions("train", 400, seed=0), ngram_order=3, dither=DITHER)


DITHER = 0.01


def test_held_out_captions_are_understood(recogniser: PocketsphinxRecogniser) -> None:
    texts = _captions("test", 12, seed=1)
    heard = recogniser.transcribe([synthesize(text, "en-us+m3").waveform for text in texts])
    assert jiwer.wer(texts, heard) <= 0.02


def test_order_and_workers_change_nothing(recogniser: PocketsphinxRecogniser) -> None:
    waveforms = [synthesize(text, "en-us").waveform for text in _captions("test", 4, seed=2)]
    waveforms.insert(2, np.zeros(0, np.float32))
    together = recogniser.transcribe(waveforms)
    assert together[2] == ""
    # The noise is drawn by place, so a list's end keeps its place when the beginning is other speech.
    assert recogniser.transcribe([waveforms[1], *waveforms[1:]])[1:] == together[1:]
    many = PocketsphinxRecogniser(_captions("train", 400, seed=0), ngram_order=3, dither=DITHER, num_workers=2)
    assert many.transcribe(waveforms * 5) == recogniser.transcribe(waveforms * 5)


def test_spoken_digits() -> None:
    words = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(words, size=3)) for _ in range(40)]
    recogniser = PocketsphinxRecogniser(texts[6:], dither=DITHER)
    heard = recogniser.transcribe([synthesize(text, "en-us", rate=140).waveform for text in texts[:6]])
    assert jiwer.wer(texts[:6], heard) <= 0.12


def test_words_that_the_dictionary_lacks_are_named() -> None:
    recogniser = PocketsphinxRecogniser(["a skeeing woman", "a bejes of food"])
    assert recogniser.missing_words == ["bejes", "skeeing"]
    with pytest.raises(InputError, match="no training caption"):
        PocketsphinxRecogniser(["skeeing bejes"])
    with pytest.raises(InputError, match="neither captions, nor default, nor a file"):
        PocketsphinxRecogniser(["a"], language_model="missing.arpa")


def test_the_language_model_is_a_distribution() -> None:
    sentences = [text.split() for text in ("a red star", "a red cross", "the star is red", "a star")]
    lines = arpa(sentences, order=3).splitlines()
    grams: dict[tuple[str, ...], tuple[float, float]] = {}
    for line in lines[lines.index("\\1-grams:") :]:
        fields = line.split()
        if len(fields) < 2:
            continue
        backoff = float(fields[-1]) if _is_number(fields[-1]) else 0.0
        words = fields[1:-1] if _is_number(fields[-1]) else fields[1:]
        grams[tuple(words)] = (float(fields[0]), backoff)
    words = sorted({gram[0] for gram in grams if len(gram) == 1} - {"<s>"})

    def log_probability(history: tuple[str, ...], word: str) -> float:
        if (*history, word) in grams:
            return grams[(*history, word)][0]
        backoff = grams[history][1] if history in grams else 0.0
        return backoff + log_probability(history[1:], word)

    for history in [(), ("<s>",), ("a",), ("<s>", "a"), ("red", "star"), ("star", "a")]:
        total = sum(10 ** log_probability(history, word) for word in words)
        assert math.isclose(total, 1.0, abs_tol=2e-3), history


def _is_number(text: str) -> bool:
    return text.lstrip("-").replace(".", "", 1).isdigit()


def test_dictionary_and_common_words() -> None:
    lines = dictionary(["left_of", "the", "the"]).splitlines()
    assert lines == ["left_of L EH F T AH V", "the DH AH", "the(2) DH IY"]
    words, weights = common_words(50)
    assert {"the", "and"} <= set(words[:10]) and math.isclose(weights.sum(), 1.0)


def test_words_that_never_come_apart_are_one_token() -> None:
    sentences = [text.split() for text in _captions("train", 400, seed=0)]
    joined = join_phrases(sentences)
    tokens = {token for sentence in joined for token in sentence if "_" in token}
    assert tokens == {"to_the_left_of", "to_the_right_of", "there_is_a"}
    assert [[word for token in s for word in token.split("_")] for s in joined] == sentences
    assert join_phrases(sentences[:20]) == sentences[:20]  # too few to tell


def test_noise_is_seeded_and_of_the_size_asked_for() -> None:
    silence = np.zeros(16000, np.float32)
    samples = np.frombuffer(dithered(silence, 0.01, (0, 1)), "<i2") / 32767
    assert samples.std() == pytest.approx(0.01, rel=0.02)
    assert dithered(silence, 0.01, (0, 1)) == dithered(silence, 0.01, (0, 1))
    assert dithered(silence, 0.01, (0, 1)) != dithered(silence, 0.01, (0, 2))
