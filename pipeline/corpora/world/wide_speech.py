"""Speech on a wide vocabulary, for pretraining: random words of the CMU dictionary in every voice.

The word list is the pronunciation dictionary inside the pocketsphinx wheel. The demo's captions are not
used, so that what is learned here is speech, not the demo.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import joblib
import numpy as np
import numpy.typing as npt

from pipeline.corpora.world import espeak

_FUNCTION_WORDS = ("the", "a", "of", "and", "to", "in", "is", "on", "with", "for", "by", "there", "at", "it")


@dataclass(frozen=True)
class Utterance:
    """One text in some voice and in the reference voice, each int16 [num_samples] at 16 kHz.

    `phonemes` and `reference_phonemes`: [(first sample, name), ...] of either.
    """

    waveform: npt.NDArray[np.int16]
    phonemes: list[tuple[int, str]]
    reference: npt.NDArray[np.int16]
    reference_phonemes: list[tuple[int, str]]
    voice: str
    text: str


@lru_cache(maxsize=2)
def vocabulary(num_words: int, seed: int) -> tuple[str, ...]:
    """`num_words` words drawn from the dictionary, by seed."""
    import pocketsphinx

    path = Path(pocketsphinx.get_model_path()) / "en-us" / "cmudict-en-us.dict"
    words = (line.split(" ", 1)[0] for line in path.read_text(encoding="utf-8").splitlines())
    usable = sorted({word for word in words if word.isalpha() and word.isascii() and 2 <= len(word) <= 11})
    chosen = np.random.default_rng([seed, 0]).choice(len(usable), size=num_words, replace=False)
    return tuple(usable[i] for i in sorted(chosen))


def sentence(rng: np.random.Generator, words: tuple[str, ...]) -> str:
    """Three to eight words, some of them function words."""
    return " ".join(
        str(rng.choice(_FUNCTION_WORDS)) if rng.random() < 0.25 else words[rng.integers(len(words))]
        for _ in range(rng.integers(3, 9))
    )


def _speak(index: int, seed: int, num_words: int) -> Utterance:
    rng = np.random.default_rng([seed, 1, index])
    text = sentence(rng, vocabulary(num_words, seed))
    voice = espeak.VOICES[rng.integers(len(espeak.VOICES))]
    rate, pitch = int(rng.integers(130, 200)), int(rng.integers(15, 86))
    # Asking for another sampling rate and reading it as 16 kHz shifts formants as well: other heads.
    stretch = float(rng.uniform(0.88, 1.12))
    speech = espeak.synthesize(text, voice, rate, pitch, sample_rate=round(espeak.SAMPLE_RATE * stretch))
    reference = espeak.synthesize(text, espeak.VOICES[0], rate)
    return Utterance(
        _int16(speech.waveform), speech.phonemes, _int16(reference.waveform), reference.phonemes, voice, text
    )


def _int16(waveform: npt.NDArray[np.float32]) -> npt.NDArray[np.int16]:
    return (np.clip(waveform, -1, 1) * 32767).astype(np.int16)


def utterances(num_utterances: int, seed: int, num_words: int = 8000, num_workers: int = 1) -> list[Utterance]:
    """Speak `num_utterances` random sentences; the same for any number of workers."""
    parallel = joblib.Parallel(n_jobs=num_workers)
    return list(parallel(joblib.delayed(_speak)(i, seed, num_words) for i in range(num_utterances)))
