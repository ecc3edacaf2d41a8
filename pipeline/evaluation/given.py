"""What somebody else's system says of our images, to be scored without a captioner or a vocoder of ours.

Reads transcripts or recordings and gives utterances for the rung `prediction`:

    .json    COCO's results `[{"image_id": 391895, "caption": "..."}]`, or `{name: text}`, or `{name: [texts]}`
    .jsonl   an object a line; our own predictions.jsonl is one
    .csv     (.tsv) with a head line
    folder   of recordings (.wav, .flac) or of transcripts (.txt, one line each, as the reference's asr.py writes
             them), each named by its image

An image goes by its key, its path, the name of its file with or without the ending, or COCO's number. A record
names it in `key`, `image_id`, `image`, `file_name` or `name`, and holds `caption`, `transcript` or `text`, or in
`audio` or `wav` the path of a recording, relative to the table. Records of one image beyond the first are further
samples. What names no image of the manifest is a reject; an image without a record is an error, unless told.
"""

import csv
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import InputError
from pipeline.evaluation.ladder import Utterance
from pipeline.evaluation.recogniser import SAMPLE_RATE
from pipeline.evaluation.text import normalise
from pipeline.files import read_json, read_jsonl
from pipeline.manifest import Reject, Row
from pipeline.media import MediaError, read_audio

GIVEN = "given"  # stands for a recogniser where transcripts came as text
_NAMES = ("key", "image_id", "image", "file_name", "name")
_TEXTS = ("caption", "transcript", "text")
_SOUNDS = ("audio", "wav")
_RECORDINGS = (".wav", ".flac")
_COCO_NUMBER = re.compile(r"(?:COCO_[a-z]+\d{4}_)?(\d+)")


@dataclass(frozen=True)
class Said:
    """One record: where it stands, which image it names, and its text or the path of its recording."""

    where: str
    name: str
    text: str | None = None
    recording: Path | None = None


@dataclass
class Given:
    """{row key: what is said of it, in order}, what was left out, and how many records were of other splits."""

    said: dict[str, list[Said]] = field(default_factory=dict)
    rejects: list[Reject] = field(default_factory=list)
    num_elsewhere: int = 0

    @property
    def are_recordings(self) -> bool:
        """Whether there is anything to be listened to."""
        return any(one.recording is not None for found in self.said.values() for one in found)


def read_given(path: Path, scored: Sequence[Row], manifest: Iterable[Row]) -> Given:
    """Records of `path` for the rows `scored`; `manifest`: all rows, so that other splits' images are known.

    Raises InputError when the file is none of the formats, mixes texts and recordings, or names no row at all.
    """
    names = _names(manifest)
    wanted = {row.key for row in scored}
    given = Given()
    for one in _readable(path):
        keys = _find(one.name, names)
        if len(keys) == 1 and not keys & wanted:
            given.num_elsewhere += 1
        elif len(keys) != 1:
            reason = "names no image of the manifest" if not keys else f"names {len(keys)} images of the manifest"
            given.rejects.append(Reject(one.name, "", "evaluate", f"{one.where}: {reason}"))
        elif one.recording is not None and not one.recording.exists():
            given.rejects.append(Reject(one.name, "", "evaluate", f"{one.where}: {one.recording.name}: no such file"))
        else:
            given.said.setdefault(next(iter(keys)), []).append(one)
    if not given.said:
        others = f", {given.num_elsewhere} name images that are not scored here" if given.num_elsewhere else ""
        first = f" ({given.rejects[0].reason})" if given.rejects else ""
        raise InputError(
            f"{path}: nothing in it belongs to the {len(scored)} images that are scored{others}{first}; images go by "
            "key, by the name of their file or by COCO's number, and --splits says of which splits they are"
        )
    if len({one.recording is None for found in given.said.values() for one in found}) > 1:
        raise InputError(f"{path}: texts and recordings in one file; give them in two")
    return given


def utterances(given: Given, rows: Sequence[Row], missing: str, where: Path) -> tuple[list[Utterance], list[Utterance]]:
    """(the first sample of each row, the further samples). `missing`: what to do with a row of which nothing is
    said: refuse (InputError), leave_out, or silence. A recording that cannot be opened is left to `missing` too."""
    first: list[Utterance] = []
    further: list[Utterance] = []
    lacking = []
    for row in rows:
        samples = [u for one in given.said.get(row.key, []) if (u := _utterance(row, one, given.rejects)) is not None]
        if not samples:
            lacking.append(row.key)
            samples = [_silence(row, given.are_recordings)] if missing == "silence" else []
        first += samples[:1]
        further += samples[1:]
    if lacking and missing == "refuse":
        raise InputError(
            f"{where}: nothing for {len(lacking)} of {len(rows)} images, {lacking[0]} for one; give them all, or "
            "--missing-predictions leave_out (score the others) or silence (count them as nothing said)"
        )
    return first, further


def _utterance(row: Row, one: Said, rejects: list[Reject]) -> Utterance | None:
    if one.recording is None:
        text = one.text or ""
        heard = {GIVEN: normalise(text)}
        return Utterance(row, row.key, "", np.zeros(0, np.float32), transcripts=heard, raw={GIVEN: text})
    try:
        return Utterance(row, row.key, "", read_audio(one.recording, SAMPLE_RATE))
    except MediaError as error:
        rejects.append(Reject(row.key, "", "evaluate", f"{one.where}: {error}"))
        return None


def _silence(row: Row, recorded: bool) -> Utterance:
    heard = {} if recorded else {GIVEN: ""}
    return Utterance(row, row.key, "", np.zeros(0, np.float32), transcripts=dict(heard), raw=dict(heard))


def _names(rows: Iterable[Row]) -> dict[str, set[str]]:
    """{what an image may be called: keys of the rows that it may mean}."""
    names: dict[str, set[str]] = {}
    for row in rows:
        called = {row.key}
        if row.image is not None:
            path = Path(row.image.path)
            called |= {row.image.path, path.name, path.stem}
            if number := _COCO_NUMBER.fullmatch(path.stem):
                called.add(str(int(number[1])))
        for name in called:
            names.setdefault(name, set()).add(row.key)
    return names


def _find(name: str, names: Mapping[str, set[str]]) -> set[str]:
    path = Path(name)
    for called in (name, str(path.parent / path.stem), path.name, path.stem):
        if called in names:
            return names[called]
    return names.get(str(int(name)), set()) if name.isascii() and name.isdigit() else set()


def _readable(path: Path) -> Iterator[Said]:
    """`_records`, of a file that is text."""
    try:
        yield from _records(path)
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: not readable as text in UTF-8 ({error})") from error


def _records(path: Path) -> Iterator[Said]:
    if path.is_dir():
        yield from _folder(path)
    elif not path.exists():
        raise InputError(f"{path}: no such file or folder of predictions")
    elif path.suffix == ".json":
        yield from _json(path, read_json(path))
    elif path.suffix == ".jsonl":
        for number, record in enumerate(read_jsonl(path), start=1):
            yield from _said(f"{path.name}:{number}", record, path.parent)
    elif path.suffix in (".csv", ".tsv"):
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ",")
            for record in reader:
                yield from _said(f"{path.name}:{reader.line_num}", record, path.parent)
    else:
        raise InputError(f"{path}: predictions are .json, .jsonl, .csv, .tsv or a folder")


def _folder(folder: Path) -> Iterator[Said]:
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (*_RECORDINGS, ".txt"))
    if not files:
        raise InputError(f"{folder}: no .wav, .flac or .txt files in it")
    for path in files:
        name = str(path.relative_to(folder).with_suffix(""))
        if path.suffix.lower() in _RECORDINGS:
            yield Said(path.name, name, recording=path)
        else:
            lines = path.read_text(encoding="utf-8").splitlines()
            yield Said(path.name, name, text=lines[0].strip() if lines else "")


def _json(path: Path, content: Any) -> Iterator[Said]:
    if isinstance(content, dict):
        content = [{"key": name, "text": text} for name, text in content.items()]
    if not isinstance(content, list):
        raise InputError(f"{path}: a list of records or an object {{name: text}} was expected")
    for number, record in enumerate(content):
        if not isinstance(record, dict):
            raise InputError(f"{path}: record {number} is not an object")
        yield from _said(f"{path.name}, record {number}", record, path.parent)


def _said(where: str, record: Mapping[str, Any], folder: Path) -> Iterator[Said]:
    name = next((record[field] for field in _NAMES if record.get(field) not in (None, "")), None)
    texts = next((record[field] for field in _TEXTS if record.get(field) is not None), None)
    sound = next((record[field] for field in _SOUNDS if record.get(field)), None)
    if name is None or (texts is None and not isinstance(sound, str)):
        raise InputError(
            f"{where}: a record names its image ({', '.join(_NAMES)}) and holds a text ({', '.join(_TEXTS)}) or the "
            f"path of a recording ({', '.join(_SOUNDS)}); found {', '.join(map(str, record)) or 'nothing'}"
        )
    if texts is None:
        yield Said(where, str(name), recording=folder / str(sound))
        return
    for text in texts if isinstance(texts, list) else [texts]:
        if not isinstance(text, str):
            raise InputError(f"{where}: the text of {name} must be a string, not {text!r}")
        yield Said(where, str(name), text=text)
