"""Opens every file that a corpus names: rows get sizes and hashes, or become rejects with a reason.

A missing, unreadable, silent or overlong recording costs its caption; a missing or unreadable image, or
having no caption left, costs the row. Nothing vanishes: rows in = rows out + row rejects, captions in =
captions out + caption rejects + captions beyond the cap.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from joblib import Parallel, delayed
from tqdm import tqdm

from pipeline.corpora.unchecked import UncheckedCaption, UncheckedRow, reader_reject
from pipeline.files import sha256_file
from pipeline.manifest import Caption, Image, Reject, Row
from pipeline.media import MediaError, decode_audio, read_image

CHUNK_ROWS = 32


@dataclass(frozen=True)
class Limits:
    """Which captions may stay: length in seconds, and how many an image (0: all); later ones are cut off."""

    min_seconds: float = 0.1
    max_seconds: float = 30.0
    max_captions: int = 0


@dataclass(frozen=True)
class Checked:
    """What became of one unchecked row: the row or None, its rejects, how many captions the cap cut off."""

    split: str
    row: Row | None
    rejects: tuple[Reject, ...]
    num_capped: int = 0


def reason_kind(reason: str) -> str:
    """A reason without the file that it speaks of in brackets: what is the same for many files."""
    return reason.split(" [", 1)[0]


def count_reasons(rejects: Iterable[Reject]) -> Counter[str]:
    """How often each kind of reason occurs."""
    return Counter(reason_kind(reject.reason) for reject in rejects)


def drop_repeated(rows: Iterable[UncheckedRow]) -> tuple[list[UncheckedRow], list[Reject]]:
    """Keep the first of rows with one key and of captions with one id; the others become rejects."""
    kept: list[UncheckedRow] = []
    rejects: list[Reject] = []
    keys: set[str] = set()
    ids: set[str] = set()
    for row in rows:
        if row.key in keys:
            rejects += _reject_row(row, "the key occurs before")
            continue
        keys.add(row.key)
        fresh = []
        for caption in row.captions:
            if caption.id in ids:
                rejects.append(reader_reject(row.key, f"the caption id occurs before [{caption.audio}]", caption.id))
            else:
                ids.add(caption.id)
                fresh.append(caption)
        kept.append(UncheckedRow(row.split, row.key, row.image, tuple(fresh)))
    return kept, rejects


def check_rows(root: Path, rows: Sequence[UncheckedRow], limits: Limits, num_workers: int) -> list[Checked]:
    """Open every file of ``rows``, in parallel; the result keeps the order of ``rows``."""
    chunks = [rows[start : start + CHUNK_ROWS] for start in range(0, len(rows), CHUNK_ROWS)]
    workers = max(1, min(num_workers, len(chunks)))
    results: Iterator[list[Checked]] = Parallel(n_jobs=workers, return_as="generator")(
        delayed(_check_chunk)(root, chunk, limits) for chunk in chunks
    )
    progress = tqdm(results, total=len(chunks), desc="checking", unit="chunk", disable=None)
    return [checked for chunk in progress for checked in chunk]


def _check_chunk(root: Path, rows: Sequence[UncheckedRow], limits: Limits) -> list[Checked]:
    return [check_row(root, row, limits) for row in rows]


def check_row(root: Path, row: UncheckedRow, limits: Limits) -> Checked:
    """Open the files of one row. Paths in reasons are relative to ``root``."""
    try:
        image = None if row.image is None else _check_image(root, row.image)
    except MediaError as error:
        return Checked(row.split, None, tuple(_reject_row(row, _reason(root, row.image or "", error))))
    captions: list[Caption] = []
    rejects: list[Reject] = []
    num_capped = 0
    for caption in row.captions:
        if limits.max_captions and len(captions) == limits.max_captions:
            num_capped += 1
            continue
        try:
            captions.append(_check_caption(root, caption, limits))
        except MediaError as error:
            rejects.append(reader_reject(row.key, _reason(root, caption.audio, error), caption.id))
    if not captions:
        rejects.append(reader_reject(row.key, "no caption is left"))
        return Checked(row.split, None, tuple(rejects))
    return Checked(row.split, Row(row.key, image, tuple(captions)), tuple(rejects), num_capped)


def _reject_row(row: UncheckedRow, reason: str) -> list[Reject]:
    """A reject for the row and one for each of its captions, so that both counts add up."""
    lost = [reader_reject(row.key, f"row rejected: {reason}", caption.id) for caption in row.captions]
    return [reader_reject(row.key, reason), *lost]


def _reason(root: Path, path: str, error: MediaError) -> str:
    # A reason goes into an output, and outputs hold no path of this machine.
    return f"{str(error).removeprefix(f'{root / path}: ')} [{path}]"


def _inside(root: Path, path: str) -> Path:
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts:
        raise MediaError(f"{root / path}: lies outside the corpus root")
    return root / path


def _check_image(root: Path, path: str) -> Image:
    file = _inside(root, path)
    width, height = read_image(file).size
    return Image(path=path, width=width, height=height, sha256=sha256_file(file))


def _check_caption(root: Path, caption: UncheckedCaption, limits: Limits) -> Caption:
    file = _inside(root, caption.audio)
    waveform, rate = decode_audio(file)
    seconds = len(waveform) / rate
    if not np.any(waveform):
        raise MediaError(f"{file}: silent, every sample is zero")
    if seconds < limits.min_seconds:
        raise MediaError(f"{file}: shorter than {limits.min_seconds:g} s")
    if seconds > limits.max_seconds:
        raise MediaError(f"{file}: longer than {limits.max_seconds:g} s")
    return Caption(
        id=caption.id,
        audio=caption.audio,
        num_samples=len(waveform),
        sample_rate=rate,
        sha256=sha256_file(file),
        speaker=caption.speaker,
        text=caption.text,
    )
