"""Real handwriting with real voices: makes a small image-to-speech corpus from two collections of digits.

Reads scikit-learn's `load_digits` (1,797 handwritten digits, in the package) and the Free Spoken Digit
Dataset, a folder or tar of ``recordings/<digit>_<speaker>_<n>.wav`` at 8 kHz. Writes a folder for the
`table` reader: ``images/*.png`` (one to three digits side by side), ``wavs/*.wav`` (one speaker reads them,
recordings joined with short pauses, 8 kHz, 16 bits), ``table.jsonl`` and ``digits.json`` (counts). The
bytes follow from the recordings and the seed.

What is learnt from and what is tested on share nothing: handwritten digits are divided among the splits;
recordings 0 to 4 are the data set's official test part and stay in `test`, 5 to 7 in `val`; one speaker is
heard in `test_speaker` only.
"""

import re
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.errors import InputError
from pipeline.files import write_json, write_jsonl
from pipeline.media import MediaError, decode_audio, resample, write_wav

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SAMPLE_RATE = 8000
PEAK = 0.5  # recordings differ in loudness up to forty times
_NAME = re.compile(r"(\d)_([A-Za-z0-9]+)_(\d+)\.wav")
_OFFICIAL_TEST, _VAL = range(0, 5), range(5, 8)
# Share of the handwritten digits of each split.
_SHARES = {"train": 0.6, "val": 0.1, "test": 0.15, "test_speaker": 0.15}

Recordings = dict[str, dict[str, list[list[NDArray[np.float32]]]]]
"""split -> speaker -> digit -> its recordings, float32 [num_samples] at SAMPLE_RATE."""


@dataclass(frozen=True)
class DigitsSize:
    """How much to make; `held_out_speaker` is heard in `test_speaker` only. image_size in pixels."""

    num_train_images: int = 2400
    num_val_images: int = 60
    num_test_images: int = 200
    num_test_speaker_images: int = 200
    captions_per_train_image: int = 2
    max_digits: int = 3
    image_size: int = 128
    held_out_speaker: str = "george"
    seed: int = 0


def write_digits(source: Path, out: Path, size: DigitsSize) -> dict[str, Any]:
    """Make the corpus in ``out`` (replaced when all is written) from the recordings in ``source``.

    ``source`` is a tar, a folder with ``recordings/`` or wavs in it, or a folder with one such tar. Returns
    the counts. Raises InputError when recordings are missing for a split, speaker and digit.
    """
    recordings, unreadable = read_recordings(source, size.held_out_speaker)
    glyphs = _divide_glyphs(size.seed)
    building = out.with_name(f".{out.name}.building")
    shutil.rmtree(building, ignore_errors=True)
    counts = {
        "train": size.num_train_images,
        "val": size.num_val_images,
        "test": size.num_test_images,
        "test_speaker": size.num_test_speaker_images,
    }
    lines = [
        _make_row(building, split, index, recordings[split], glyphs[split], size)
        for split, count in counts.items()
        for index in range(count)
    ]
    write_jsonl(building / "table.jsonl", lines)
    note = {
        "captions": sum(len(line["captions"]) for line in lines),
        "images": counts,
        "seed": size.seed,
        "speakers": {split: sorted(speakers) for split, speakers in recordings.items()},
        "unreadable": unreadable,
    }
    write_json(building / "digits.json", note)
    if out.exists():
        shutil.rmtree(out)
    building.rename(out)
    return note


# ----------------------------------------------------------------------------------------------------
# recordings


def read_recordings(source: Path, held_out_speaker: str) -> tuple[Recordings, list[str]]:
    """Recordings by split, speaker and digit, and the names of files that could not be read.

    Raises InputError when there are none, the held-out speaker is unknown, or a split lacks a digit of a
    speaker.
    """
    found: dict[tuple[str, str, int], list[NDArray[np.float32]]] = {}
    unreadable = []
    with _folder(source) as folder:
        paths = sorted(
            (path for path in folder.iterdir() if _NAME.fullmatch(path.name)),
            key=lambda path: _parse(path.name),
        )
        for path in paths:
            digit, speaker, number = _parse(path.name)
            try:
                waveform, rate = decode_audio(path)
            except MediaError:
                unreadable.append(path.name)
                continue
            split = _split_of(speaker, number, held_out_speaker)
            found.setdefault((split, speaker, digit), []).append(resample(waveform, rate, SAMPLE_RATE))
    speakers = sorted({speaker for _, speaker, _ in found})
    if held_out_speaker not in speakers or len(speakers) < 2:
        have = ", ".join(speakers) or "nobody"
        raise InputError(f"{source}: recordings of {held_out_speaker!r} and others are needed; there is {have}")
    recordings: Recordings = {}
    for split in _SHARES:
        readers = [name for name in speakers if (name == held_out_speaker) == (split == "test_speaker")]
        recordings[split] = {name: [_take(found, split, name, d, source) for d in range(10)] for name in readers}
    return recordings, unreadable


def _parse(name: str) -> tuple[int, str, int]:
    match = _NAME.fullmatch(name)
    if match is None:
        raise InputError(f"{name}: a recording is named <digit>_<speaker>_<n>.wav")
    return int(match[1]), match[2], int(match[3])


def _split_of(speaker: str, number: int, held_out_speaker: str) -> str:
    if speaker == held_out_speaker:
        return "test_speaker"
    return "test" if number in _OFFICIAL_TEST else "val" if number in _VAL else "train"


def _take(
    found: dict[tuple[str, str, int], list[NDArray[np.float32]]],
    split: str,
    speaker: str,
    digit: int,
    source: Path,
) -> list[NDArray[np.float32]]:
    waveforms = found.get((split, speaker, digit))
    if not waveforms:
        raise InputError(f"{source}: no readable recording of '{WORDS[digit]}' by {speaker} for the split {split}")
    return waveforms


@contextmanager
def _folder(source: Path) -> Iterator[Path]:
    """The folder with the wavs; of a tar, a temporary one with the recordings in it."""
    tars = [source] if source.is_file() else []
    if source.is_dir():
        for folder in (source / "recordings", source):
            if folder.is_dir() and any(_NAME.fullmatch(path.name) for path in folder.iterdir()):
                yield folder
                return
        tars = sorted(path for path in source.iterdir() if re.search(r"\.(tar|tar\.gz|tgz)$", path.name))
    if len(tars) != 1:
        looked = "recordings/<digit>_<speaker>_<n>.wav, the same without recordings/, or one .tar of them"
        raise InputError(f"{source}: no spoken digits found; looked for {looked}")
    with tempfile.TemporaryDirectory() as name:
        _unpack(tars[0], Path(name))
        yield Path(name)


def _unpack(tar: Path, folder: Path) -> None:
    # Only plain files with the right name are taken, under that name alone: a tar can hold any path.
    try:
        with tarfile.open(tar) as archive:
            for member in archive:
                name = Path(member.name).name
                stream = archive.extractfile(member) if member.isfile() and _NAME.fullmatch(name) else None
                if stream is not None:
                    (folder / name).write_bytes(stream.read())
    except (tarfile.TarError, EOFError, OSError) as error:
        raise InputError(f"{tar}: cannot be read as a tar: {error}") from error


# ----------------------------------------------------------------------------------------------------
# pictures and readings


def _divide_glyphs(seed: int) -> dict[str, list[NDArray[np.float64]]]:
    """split -> digit -> handwritten digits ``[n, 8, 8]`` in [0, 1], each in one split only."""
    from sklearn.datasets import load_digits

    data = load_digits()
    divided: dict[str, list[NDArray[np.float64]]] = {split: [] for split in _SHARES}
    for digit in range(10):
        glyphs = data.images[data.target == digit] / 16.0
        glyphs = glyphs[np.random.default_rng([seed, digit]).permutation(len(glyphs))]
        ends = np.round(np.cumsum(list(_SHARES.values())) * len(glyphs)).astype(int)
        for split, part in zip(_SHARES, np.split(glyphs, ends[:-1]), strict=True):
            divided[split].append(part)
    return divided


def _make_row(
    out: Path,
    split: str,
    index: int,
    speakers: dict[str, list[list[NDArray[np.float32]]]],
    glyphs: list[NDArray[np.float64]],
    size: DigitsSize,
) -> dict[str, Any]:
    """Draw one picture, have it read, and return its line of the table."""
    rng = np.random.default_rng([size.seed, list(_SHARES).index(split), index])
    digits = [int(digit) for digit in rng.integers(0, 10, int(rng.integers(1, size.max_digits + 1)))]
    key = f"{split}_{index:05d}"
    path = out / "images" / f"{key}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    _draw([glyphs[digit][rng.integers(len(glyphs[digit]))] for digit in digits], rng, size).save(path)
    count = size.captions_per_train_image if split == "train" else 1
    names = sorted(speakers)
    captions = []
    for place, chosen in enumerate(rng.permutation(len(names))[:count]):
        speaker = names[int(chosen)]
        audio = f"wavs/{key}_{place}.wav"
        parts = [speakers[speaker][digit][rng.integers(len(speakers[speaker][digit]))] for digit in digits]
        write_wav(out / audio, _join(parts, rng), SAMPLE_RATE)
        text = " ".join(WORDS[digit] for digit in digits)
        captions.append({"audio": audio, "speaker": speaker, "text": text})
    return {"captions": captions, "image": f"images/{key}.png", "key": key, "split": split}


def _draw(glyphs: list[NDArray[np.float64]], rng: np.random.Generator, size: DigitsSize) -> Image.Image:
    """White on black as in other sets of digits, from left to right, none quite in its place.

    Empty columns beside a digit are cut off, so that three have room and none is small.
    """
    side = size.image_size
    width = side / max(size.max_digits, 3)
    height = round(1.5 * width)
    paper = Image.new("L", (side, side), 20)
    start = (side - width * len(glyphs)) / 2
    for place, glyph in enumerate(glyphs):
        inked = np.flatnonzero(glyph.max(axis=0) > 0)
        strokes = glyph[:, inked[0] : inked[-1] + 1] if len(inked) else glyph
        wide = min(round(height * strokes.shape[1] / len(strokes)), int(width))
        ink = Image.fromarray(np.round(strokes * 255).astype(np.uint8)).resize((wide, height), Image.Resampling.BICUBIC)
        x = start + width * place + rng.uniform(0, width - wide)
        y = (side - height) / 2 + rng.uniform(-0.1, 0.1) * side
        paper.paste(235, (round(x), round(y)), ink)
    return paper.convert("RGB")


def _join(parts: list[NDArray[np.float32]], rng: np.random.Generator) -> NDArray[np.float32]:
    """The recordings one after another, pauses of 60 to 160 ms between, over faint noise."""
    pieces: list[NDArray[np.float32]] = []
    for part in parts:
        pieces.append(np.zeros(round(rng.uniform(0.06, 0.16) * SAMPLE_RATE), dtype=np.float32))
        pieces.append(part * np.float32(PEAK / max(float(np.abs(part).max()), 1e-4)))
    pieces.append(np.zeros(round(0.1 * SAMPLE_RATE), dtype=np.float32))
    joined = np.concatenate(pieces)
    return joined + rng.normal(0, 5e-4, len(joined)).astype(np.float32)
