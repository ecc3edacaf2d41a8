"""Speech units in the text formats of fairseq and textlesslib, and the `.unit` files of Image-to-Speech.

In, by name of the utterance (the file name of its recording without the ending):

- `fairseq`: `name|u1 u2 u3` a line (GSLM's quantize_with_kmeans). It strips *characters* of the ending off the
  names, so that `calf_wav.wav` is called `calf_`; such names are recognised.
- `textless`: `name<tab>u1 u2 u3` a line, and durations in a second file of the same form, if any.
- `km`: one line an utterance without names (fairseq's simple_kmeans), named by its `.tsv` (`root`, then
  `path<tab>samples` a line).
- `unit`: a folder of `.unit` files, arrays that torch.save wrote; read as data, see `pipeline.checkpoints`.
- `npy`: features in place of units: fairseq's dump (`X.npy` float `[frames, D]`, `X.len` with the frames of each
  utterance) with its `.tsv`; each frame takes its nearest centroid.

Out: the first three. Units are frame by frame in all of them unless neighbouring repeats were removed.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from pipeline.checkpoints.torch_files import read_torch
from pipeline.errors import InputError
from pipeline.files import read_json, write_text
from pipeline.manifest import Caption, Reject, Row, read_rows, shard_paths
from pipeline.runner import ShardResult
from pipeline.tokens.parts import UnitsPart, as_uint16, deduplicate, read_units_part, restore, write_units_part

FORMATS = ("fairseq", "textless", "km", "unit", "npy")

Frames = dict[str, NDArray[np.int64]]


@dataclass(frozen=True)
class ForeignUnits:
    """Units by utterance name; `durations` where they came with them (then `units` has no repeats)."""

    units: Frames
    durations: Frames = field(default_factory=dict)
    source: str = ""


def read_foreign_units(
    source: Path, format: str, *, tsv: Path | None = None, durations: Path | None = None
) -> ForeignUnits:
    """Read one file or folder in one of `FORMATS`. InputError names file and line of what cannot be read."""
    if format not in FORMATS:
        raise InputError(f"units: format {format!r}; known are {', '.join(FORMATS)}")
    if not source.exists():
        raise InputError(f"{source}: no such file or folder")
    if format == "unit":
        return ForeignUnits(dict(_unit_files(source)), source=source.name)
    if format == "km":
        if tsv is None:
            raise InputError(f"{source}: a .km file has no names; give its .tsv with --tsv")
        names = _tsv_names(tsv)
        lines = list(_lines(source))
        if len(names) != len(lines):
            raise InputError(f"{source}: {len(lines)} lines, but {tsv} names {len(names)} recordings")
        found = {name: _ids(text, where) for name, (where, text) in zip(names, lines, strict=True)}
        return ForeignUnits(found, source=source.name)
    mark = "|" if format == "fairseq" else "\t"
    runs = dict(_named(durations, mark)) if durations is not None else {}
    return ForeignUnits(dict(_named(source, mark)), runs, source=source.name)


def read_features(
    source: Path, tsv: Path | None, assign: Callable[[NDArray[np.float32]], NDArray[np.int64]]
) -> ForeignUnits:
    """Units of fairseq's feature dump: `source` and the `.len` beside it, named by `tsv`; memory: one utterance.

    assign: float32 [frames, D] -> nearest centroids [frames]. InputError when the three files do not agree.
    """
    lengths_path = source.with_suffix(".len")
    if tsv is None or not lengths_path.is_file():
        raise InputError(f"{source}: its {lengths_path.name} beside it and its .tsv (--tsv) are needed")
    names, lengths = _tsv_names(tsv), [int(_ids(text, where)[0]) for where, text in _lines(lengths_path) if text]
    try:
        features = np.load(source, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{source}: not a readable array ({error})") from error
    if len(names) != len(lengths) or features.ndim != 2 or sum(lengths) != len(features):
        raise InputError(
            f"{source}: {features.shape} features, {lengths_path.name} has {len(lengths)} utterances of {sum(lengths)} "
            f"frames, {tsv.name} names {len(names)}; these files do not belong together"
        )
    ends = np.cumsum(lengths)
    found = {
        name: assign(np.asarray(features[end - length : end], dtype=np.float32))
        for name, length, end in zip(names, lengths, ends, strict=True)
    }
    return ForeignUnits(found, source=source.name)


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        yield f"{path}:{number}", line


def _named(path: Path, mark: str) -> Iterator[tuple[str, NDArray[np.int64]]]:
    seen: set[str] = set()
    for where, line in _lines(path):
        name, found, text = line.rpartition(mark)
        if not found or not name:
            raise InputError(f"{where}: '<name>{'|' if mark == '|' else '<tab>'}<units>' was expected")
        name = PurePosixPath(name).name
        if name in seen:
            raise InputError(f"{where}: {name!r} occurs before; names of several folders collide in this format")
        seen.add(name)
        yield name, _ids(text, where)


def _ids(text: str, where: str) -> NDArray[np.int64]:
    try:
        return np.array(text.split(), dtype=np.int64)
    except ValueError as error:
        raise InputError(f"{where}: whole numbers between spaces were expected, found {text[:40]!r}") from error


def _tsv_names(path: Path) -> list[str]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return [PurePosixPath(line.split("\t")[0]).stem for line in lines[1:] if line.strip()]


def _unit_files(folder: Path) -> Iterator[tuple[str, NDArray[np.int64]]]:
    paths = sorted(folder.rglob("*.unit")) if folder.is_dir() else [folder]
    if not paths:
        raise InputError(f"{folder}: no .unit files in it")
    for path in paths:
        value = read_torch(path)
        if not isinstance(value, np.ndarray) or value.ndim != 1 or value.dtype.kind not in "iu":
            raise InputError(f"{path}: one row of whole numbers was expected")
        yield path.stem, value.astype(np.int64)


def has_repeats(found: ForeignUnits) -> bool:
    """Whether any utterance says a unit twice in a row: then it is frame by frame, and durations are known."""
    return any(bool((units[1:] == units[:-1]).any()) for units in found.units.values())


# ------------------------------------------------------------------------------------------------- import


@dataclass(frozen=True)
class UnitsImport:
    """What `import_shard` needs: rows, and where each caption's units are (caption id -> name)."""

    manifests: Path
    found: ForeignUnits
    names: Mapping[str, str]
    num_units: int


def match_names(rows: Iterable[Row], found: ForeignUnits) -> dict[str, str]:
    """Caption id -> name in `found`, for every caption that is there.

    A name is the recording's file name without its ending, the caption's id, or what fairseq makes of the file
    name. InputError when such a shortened name fits two recordings.
    """
    matched: dict[str, str] = {}
    shortened: dict[str, str] = {}
    for row in rows:
        for caption in row.captions:
            file = PurePosixPath(caption.audio).name
            exact = next((name for name in (PurePosixPath(file).stem, caption.id, file) if name in found.units), None)
            if exact is not None:
                matched[caption.id] = exact
                continue
            name = file.rstrip(PurePosixPath(file).suffix)  # characters, not the ending: fairseq's own mistake
            if name in found.units:
                if name in shortened:
                    raise InputError(
                        f"{found.source}: {name!r} may be {shortened[name]!r} or {caption.id!r}: fairseq stripped "
                        "letters of the ending off both; write the units again with names that end in a digit"
                    )
                shortened[name] = caption.id
                matched[caption.id] = name
    return matched


def import_shard(work: UnitsImport, name: str, path: Path) -> ShardResult:
    """Write the units of the shard `name` ("train/00007") to `path`; for `runner.run_shards`."""
    ids, units, durations, rejects = [], [], [], []
    for row in read_rows(work.manifests / f"{name}.jsonl"):
        for caption in row.captions:
            spoken = work.found.units.get(work.names.get(caption.id, ""))
            if spoken is None or not len(spoken):
                reason = "no units in the imported file" if spoken is None else "empty in the imported file"
                rejects.append(Reject(row.key, caption.id, "units", reason))
                continue
            if int(spoken.max()) >= work.num_units or int(spoken.min()) < 0:
                raise InputError(f"{caption.id}: unit {int(spoken.max())} is not one of {work.num_units}")
            kept, runs = _with_durations(work, caption, spoken)
            ids.append(caption.id)
            units.append(kept)
            durations.append(runs)
    part = UnitsPart.from_utterances(ids, units, durations)
    write_units_part(path, part)
    return ShardResult({"units": len(part.units), "utterances": len(ids)}, rejects)


def _with_durations(
    work: UnitsImport, caption: Caption, spoken: NDArray[np.int64]
) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
    given = work.found.durations.get(work.names[caption.id])
    if given is None:
        return deduplicate(spoken)
    if len(given) != len(spoken) or (len(given) and int(given.min()) < 1):
        raise InputError(f"{caption.id}: {len(spoken)} units but {len(given)} durations of at least one frame")
    return deduplicate(restore(as_uint16(spoken, caption.id), as_uint16(given, caption.id)))


# ------------------------------------------------------------------------------------------------- export


def export_units(manifests: Path, units: Path, split: str, format: str, out: Path, *, root: str = ".") -> list[Path]:
    """Write one split for fairseq or textlesslib, in the manifest's order; gives the files.

    `fairseq`: `<split>.txt`; `textless`: `<split>.tsv` and `<split>.durations.tsv`, repeats removed; `km`:
    `<split>.tsv` with `root` in its first line, `<split>.km` and `dict.km.txt`, as fairseq's tasks read them.
    Names are whole file names without their ending. InputError when two recordings have one name.
    """
    lines: dict[str, list[str]] = {"names": [], "frames": [], "runs": [], "lengths": [], "paths": []}
    seen: dict[str, str] = {}
    for path in shard_paths(manifests, split):
        part = read_units_part(units / split / f"{path.stem}.npz")
        places = part.index()
        for caption in (caption for row in read_rows(path) for caption in row.captions if caption.id in places):
            kept, runs = part.utterance(places[caption.id])
            name = PurePosixPath(caption.audio).stem
            if format != "km" and seen.setdefault(name, caption.audio) != caption.audio:
                raise InputError(
                    f"{split}: {caption.audio} and {seen[name]} are both called {name!r}; only format km keeps folders"
                )
            lines["names"].append(name)
            lines["frames"].append(" ".join(map(str, restore(kept, runs))))
            lines["runs"].append(f"{name}\t{' '.join(map(str, runs))}")
            lines["lengths"].append(f"{name}\t{' '.join(map(str, kept))}")
            lines["paths"].append(f"{caption.audio}\t{caption.num_samples}")
    if not lines["names"]:
        raise InputError(f"{manifests}: no unit of split {split!r} in {units}")
    if format == "fairseq":
        return [
            _write(out / f"{split}.txt", [f"{n}|{u}" for n, u in zip(lines["names"], lines["frames"], strict=True)])
        ]
    if format == "textless":
        return [
            _write(out / f"{split}.tsv", lines["lengths"]),
            _write(out / f"{split}.durations.tsv", lines["runs"]),
        ]
    if format == "km":
        vocabulary = [f"{unit} 1" for unit in range(int(read_json(units / "units.json")["num_units"]))]
        return [
            _write(out / f"{split}.tsv", [root, *lines["paths"]]),
            _write(out / f"{split}.km", lines["frames"]),
            _write(out / "dict.km.txt", vocabulary),
        ]
    raise InputError(f"units: format {format!r} is not written; known are fairseq, textless, km")


def _write(path: Path, lines: list[str]) -> Path:
    write_text(path, "\n".join(lines) + "\n")
    return path
