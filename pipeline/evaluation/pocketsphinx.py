"""Recognition by pocketsphinx, whose wheel carries an American English model, so that a fresh offline
machine can hear.

Reads waveforms and the texts that the language model is made of; gives transcripts. Two things make
synthetic speech recognisable: faint noise over the whole utterance (digital silence is like nothing the
acoustic model has met), and a language model of the right domain. The noise falls with frequency as room
noise does; white noise is taken for fricatives ("the" for "a").
"""

import math
import tempfile
from collections import Counter
from collections.abc import Sequence
from functools import cache
from itertools import islice, pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.errors import InputError
from pipeline.evaluation.text import normalise, vocabulary

SAMPLE_RATE = 16_000
# Little silence before the speech: with more, a first "a" is often heard as "the"; with less, a first "the" as "a".
# Of 0 to 50 ms, 30 let it err least on 300 of the demo's validation recordings (9 wrong; 20 ms 11, 40 ms 10, 50 ms 13)
# and on their resynthesis (35; 46, 40, 62).
PADDING_SECONDS = (0.03, 0.3)
LANGUAGE_WEIGHT = 10.0
BACKOFF_SHARE = 0.15
_CHUNK = 16
_LONGEST_PHRASE = 4  # joints in a token of joined words
_MOST_PRONUNCIATIONS = 8  # of one token
_NOISE_CORNER = 200.0  # Hz; below it the noise is flat, above it falls by 6 dB an octave


@cache
def pronunciations() -> dict[str, list[str]]:
    """The dictionary of the wheel: word -> its pronunciations, in ARPAbet, most usual first."""
    from pocketsphinx import get_model_path

    words: dict[str, list[str]] = {}
    with open(get_model_path("en-us/cmudict-en-us.dict"), encoding="utf-8") as lines:
        for line in lines:
            head, phones = line.rstrip().split(" ", 1)
            words.setdefault(head.split("(")[0], []).append(phones)
    return words


def common_words(number: int = 20_000) -> tuple[list[str], npt.NDArray[np.float64]]:
    """The `number` most frequent words that the wheel's dictionary and language model share, and weights that
    sum to one: the square root of their frequency, so that rare words get their turn. One letter is no word here."""
    from pocketsphinx import Config, LogMath, NGramModel, get_model_path

    model = NGramModel(Config(), LogMath(), get_model_path("en-us/en-us.lm.bin"))
    usable = [word for word in pronunciations() if len(word) > 1 and word.isascii() and normalise(word) == word]
    ranked = sorted(((model.prob([word]), word) for word in usable), reverse=True)[:number]
    weights = np.exp(0.5 * math.log(1.0001) * np.array([log_probability for log_probability, _ in ranked]))
    return [word for _, word in ranked], weights / weights.sum()


def arpa(sentences: Sequence[Sequence[str]], order: int = 3, share: float = BACKOFF_SHARE) -> str:
    """An n-gram language model of `sentences` (lists of words) in ARPA format.

    Each order is interpolated with the one below: p(w|h) = (1 - share) c(hw) / c(h) + share p(w|h'), whatever the
    counts; so `share` is also the back-off weight. A model that trusted its counts more would refuse to hear
    combinations that no training caption has, and those are what a test of novelty is about.
    """
    counts: list[Counter[tuple[str, ...]]] = [Counter() for _ in range(order)]
    for sentence in sentences:
        words = ("<s>", *sentence, "</s>")
        for size in range(1, order + 1):
            counts[size - 1].update(words[i : i + size] for i in range(len(words) - size + 1))
    del counts[0][("<s>",)]
    probability: dict[tuple[str, ...], float] = {}
    backoff: dict[tuple[str, ...], float] = {}
    for size, table in enumerate(counts, start=1):
        total: Counter[tuple[str, ...]] = Counter()
        for gram, count in table.items():
            total[gram[:-1]] += count
        for gram, count in table.items():
            history = gram[:-1]
            lower = 1.0 / len(table) if size == 1 else probability[gram[1:]]
            probability[gram] = (1.0 - share) * count / total[history] + share * lower
        backoff.update({history: share for history in total if history})
    counts[0][("<s>",)] = 0
    lines = ["\\data\\", *(f"ngram {size}={len(table)}" for size, table in enumerate(counts, start=1))]
    for size, table in enumerate(counts, start=1):
        lines += ["", f"\\{size}-grams:"]
        for gram in sorted(table):
            chance = math.log10(probability[gram]) if gram in probability else -99.0
            weight = f" {math.log10(backoff[gram]):.4f}" if gram in backoff else ""
            lines.append(f"{chance:.4f} {' '.join(gram)}{weight}")
    return "\n".join([*lines, "", "\\end\\", ""])


def join_phrases(sentences: Sequence[Sequence[str]], min_count: int = 50) -> list[list[str]]:
    """Make one token ("to_the_left_of") of words that hardly ever come apart, so that an n-gram sees past them.

    Two neighbours are joined when they meet at least `min_count` times, and one of them has no other neighbour
    on that side in 98 % of its occurrences; joined tokens may be joined again.
    """
    joined = [list(sentence) for sentence in sentences]
    while True:
        words = Counter(word for sentence in joined for word in sentence)
        pairs = Counter(pair for sentence in joined for pair in pairwise(sentence))
        fixed = {
            pair: count
            for pair, count in pairs.items()
            if count >= max(min_count, 0.98 * min(words[pair[0]], words[pair[1]]))
            and "_".join(pair).count("_") <= _LONGEST_PHRASE
        }
        if not fixed:
            return joined
        first, second = min(fixed, key=lambda pair: (-fixed[pair], pair))
        for sentence in joined:
            for place in range(len(sentence) - 2, -1, -1):
                if sentence[place : place + 2] == [first, second]:
                    sentence[place : place + 2] = [f"{first}_{second}"]


def dictionary(tokens: Sequence[str]) -> str:
    """A pronouncing dictionary for `tokens` out of the wheel's; joined words are spoken one after the other.

    Every word must be known to the wheel's dictionary.
    """
    known, lines = pronunciations(), []
    for token in sorted(set(tokens)):
        ways = islice(product(*(known[word] for word in token.split("_"))), _MOST_PRONUNCIATIONS)
        for number, phones in enumerate(ways, start=1):
            lines.append(f"{token}{f'({number})' if number > 1 else ''} {' '.join(phones)}")
    return "\n".join([*lines, ""])


def dithered(waveform: npt.NDArray[np.float32], deviation: float, seed: Sequence[int]) -> bytes:
    """PCM16 of `waveform` with silence before and after it, under noise of standard deviation `deviation`."""
    before, after = (int(seconds * SAMPLE_RATE) for seconds in PADDING_SECONDS)
    padded = np.pad(np.asarray(waveform, dtype=np.float64), (before, after))
    spectrum = np.fft.rfft(np.random.default_rng(seed).standard_normal(len(padded)))
    frequencies = np.fft.rfftfreq(len(padded), 1.0 / SAMPLE_RATE)
    noise = np.fft.irfft(spectrum / np.maximum(frequencies, _NOISE_CORNER), len(padded))
    noisy = padded + deviation * noise / noise.std()
    return (np.clip(noisy, -1.0, 1.0) * 32767.0).astype("<i2").tobytes()


def decode(config: dict[str, Any], recordings: Sequence[bytes]) -> list[str]:
    """Transcripts of PCM16 recordings. The decoder forgets its running statistics before each of them."""
    from pocketsphinx import Config, Decoder

    decoder = Decoder(Config(loglevel="FATAL", **config))
    texts = []
    for number, recording in enumerate(recordings):
        if number:
            decoder.reinit()
        decoder.start_utt()
        decoder.process_raw(recording, no_search=False, full_utt=True)
        decoder.end_utt()
        best = decoder.hyp()
        texts.append(best.hypstr.replace("_", " ") if best else "")
    return texts


class PocketsphinxRecogniser:
    """pocketsphinx with a language model made of captions (closed vocabulary), its own general one, or a file.

    `missing_words` lists the words of the captions that the dictionary does not know; they cannot be heard.
    """

    def __init__(
        self,
        texts: Sequence[str] = (),
        *,
        language_model: str = "captions",
        ngram_order: int = 3,
        dither: float = 0.01,
        seed: int = 0,
        num_workers: int = 1,
    ) -> None:
        """texts: of the training captions. dither: standard deviation of the noise, full scale is 1."""
        self.dither, self.seed, self.num_workers = dither, seed, num_workers
        self.language_model: str | Path = (
            language_model if language_model in ("captions", "default") else Path(language_model)
        )
        self.missing_words: list[str] = []
        self._arpa = self._dictionary = ""
        if isinstance(self.language_model, Path) and not self.language_model.exists():
            raise InputError(f"language_model {language_model!r}: neither captions, nor default, nor a file")
        if language_model == "captions":
            sentences = [normalise(text).split() for text in texts]
            self.missing_words = sorted({word for words in sentences for word in words} - set(pronunciations()))
            unknown = set(self.missing_words)
            sentences = [words for s in sentences if (words := [word for word in s if word not in unknown])]
            if not sentences:
                raise InputError(
                    "language_model captions: no training caption has a word that the dictionary knows; "
                    "set evaluate.language_model to default, or to corpus where there is no training split"
                )
            # Every word stays by itself as well: nothing forces a phrase on who says only a part of it.
            alone = [[word] for word in vocabulary(texts) if word not in unknown]
            sentences = join_phrases(sentences) + alone
            self._dictionary = dictionary([token for sentence in sentences for token in sentence])
            self._arpa = arpa(sentences, ngram_order)

    def transcribe(self, waveforms: Sequence[npt.NDArray[np.float32]]) -> list[str]:
        """Transcripts of float32 waveforms [num_samples] at 16 kHz, in order, in lower case."""
        from joblib import Parallel, delayed

        recordings = [
            dithered(waveform, self.dither, (self.seed, number)) if len(waveform) else b""
            for number, waveform in enumerate(waveforms)
        ]
        heard = [number for number, recording in enumerate(recordings) if recording]
        chunks = [heard[i : i + _CHUNK] for i in range(0, len(heard), _CHUNK)]
        texts = [""] * len(recordings)
        with tempfile.TemporaryDirectory(prefix="im2speech-") as folder:
            config = self._config(Path(folder))
            jobs = Parallel(n_jobs=max(1, min(self.num_workers, len(chunks))))
            found = jobs(delayed(decode)(config, [recordings[i] for i in chunk]) for chunk in chunks)
        for chunk, transcripts in zip(chunks, found, strict=True):
            for number, text in zip(chunk, transcripts, strict=True):
                texts[number] = text
        return texts

    def _config(self, folder: Path) -> dict[str, Any]:
        from pocketsphinx import get_model_path

        config: dict[str, Any] = {"hmm": get_model_path("en-us/en-us"), "cmn": "batch"}
        if self.language_model == "captions":
            (folder / "captions.arpa").write_text(self._arpa, encoding="utf-8")
            (folder / "captions.dict").write_text(self._dictionary, encoding="utf-8")
            small = {"lm": str(folder / "captions.arpa"), "dict": str(folder / "captions.dict")}
            # The second and third pass change nothing with so few words, and cost half the time.
            return {**config, **small, "lw": LANGUAGE_WEIGHT, "fwdflat": False, "bestpath": False}
        model = get_model_path("en-us/en-us.lm.bin") if self.language_model == "default" else str(self.language_model)
        return {**config, "lm": model, "dict": get_model_path("en-us/cmudict-en-us.dict")}
