"""Image tokens in SeiT's archives (Park et al. 2023, SeiT: Storage-efficient Vision Training with Tokens).

An archive is `<name>.data.bin.gz`, the tokens of all pictures one after the other, and `<name>.index.npy.gz`, int
`[n + 1]`: entry i is the bytes `index[i]` to `index[i + 1]` of the unpacked data. A token below 255 is one byte; from
255 on it is the byte 255 and then token - 255, so that no id above 509 can be written. An entry is a picture's grid,
row by row from the top left (SeiT's own: 32 x 32). Nothing in it says which pictures these are; a list of paths in the
same order does, one a line.

In: the data are unpacked into a file and looked at there, so memory holds the index, the names and one shard. Out:
one archive a split, in the manifest's order, with its list of names; equal tokens give equal bytes.
"""

import gzip
import io
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.files import atomic_path, write_text
from pipeline.manifest import Reject, Row, read_rows, shard_paths
from pipeline.runner import ShardResult
from pipeline.tokens.parts import ImagesPart, as_uint16, npy_bytes, read_images_part, write_images_part

ESCAPE = 255
"""The byte that adds 255 to the next one."""

MAX_TOKEN = ESCAPE + 254
"""Largest id that the coding reaches: the byte behind an escape is not an escape."""

DATA, INDEX = ".data.bin.gz", ".index.npy.gz"
_CHUNK = 2**20
_MAX_HEADER_BYTES = 2**16


def encode(tokens: NDArray[np.integer]) -> bytes:
    """Token ids of any shape, row by row, in SeiT's bytes. InputError for an id below 0 or above 509."""
    flat = np.asarray(tokens).reshape(-1).astype(np.int64)
    if flat.size and (int(flat.min()) < 0 or int(flat.max()) > MAX_TOKEN):
        found = int(flat.max()) if int(flat.max()) > MAX_TOKEN else int(flat.min())
        raise InputError(
            f"token {found}: SeiT's archives hold ids from 0 to {MAX_TOKEN}, codebooks of {MAX_TOKEN + 1} codes at most"
        )
    escaped = flat >= ESCAPE
    # Where each token's own byte goes: one further for itself and for every escape so far.
    places = np.arange(flat.size) + np.cumsum(escaped)
    coded = np.full(flat.size + int(escaped.sum()), ESCAPE, np.uint8)
    coded[places] = np.where(escaped, flat - ESCAPE, flat)
    return coded.tobytes()


def decode(data: NDArray[np.uint8], where: str) -> NDArray[np.int64]:
    """The token ids of one entry's bytes. InputError, beginning with `where`, for an escape that adds to nothing."""
    escapes = data == ESCAPE
    if escapes.size and (escapes[-1] or bool((escapes[1:] & escapes[:-1]).any())):
        raise InputError(f"{where}: the byte 255 is followed by no token; data and index do not belong together")
    values = data.astype(np.int64)
    values[1:] += ESCAPE * escapes[:-1]
    return values[~escapes]


# ------------------------------------------------------------------------------------------------- import


@dataclass(frozen=True)
class Archive:
    """An archive ready to be looked at: the unpacked data, `offsets` int64 [n + 1] and `names` [n] of its entries."""

    source: str
    data: Path
    offsets: NDArray[np.int64]
    names: tuple[str, ...]

    def entry(self, number: int) -> NDArray[np.int64]:
        """Token ids of one entry, flat; only its own bytes are read."""
        start, end = int(self.offsets[number]), int(self.offsets[number + 1])
        with self.data.open("rb") as stream:
            stream.seek(start)
            found = np.frombuffer(stream.read(end - start), np.uint8)
        return decode(found, f"{self.source}: entry {number} ({self.names[number]})")


def index_path(data: Path) -> Path:
    """The index that belongs to `<name>.data.bin.gz`. InputError for a file that is called otherwise."""
    if not data.name.endswith(DATA):
        raise InputError(f"{data}: an archive of SeiT's is called <name>{DATA}, beside <name>{INDEX}")
    return data.with_name(data.name.removesuffix(DATA) + INDEX)


@contextmanager
def open_archive(data: Path, names: Path, unpacked: Path) -> Iterator[Archive]:
    """Unpack `data` into the file `unpacked`, removed afterwards, and give the archive.

    Raises InputError naming the file: missing or cut short, an index that is not n + 1 rising offsets for n names,
    data that are longer or shorter than the index says. Nothing is unpickled, and nothing larger than the index
    says is ever unpacked.
    """
    listed = _read_names(names)
    offsets = _read_offsets(index_path(data), len(listed), names)
    with atomic_path(unpacked) as temporary:
        with _open_gzip(data) as stream, temporary.open("wb") as target:
            size = _copy(stream, target, int(offsets[-1]), data)
        if size != offsets[-1]:
            which = "more than" if size > offsets[-1] else f"{size:,}, not"
            raise InputError(
                f"{data}: unpacks to {which} the {int(offsets[-1]):,} bytes that {index_path(data).name} says; "
                "take data and index of one archive, and copy them again if they are"
            )
    try:
        yield Archive(data.name, unpacked, offsets, listed)
    finally:
        unpacked.unlink(missing_ok=True)


def _copy(stream: BinaryIO, target: BinaryIO, size: int, path: Path) -> int:
    """Bytes copied: all of the stream, or one chunk more than `size` at most."""
    copied = 0
    while copied <= size:
        chunk = _read(stream, _CHUNK, path)
        if not chunk:
            break
        target.write(chunk)
        copied += len(chunk)
    return copied


@contextmanager
def _open_gzip(path: Path) -> Iterator[BinaryIO]:
    if not path.is_file():
        raise InputError(f"{path}: no such file; an archive of SeiT's is <name>{DATA} beside <name>{INDEX}")
    with gzip.open(path) as stream:
        yield stream  # type: ignore[misc]


def _read(stream: BinaryIO, size: int, path: Path) -> bytes:
    try:
        return stream.read(size)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: not readable as gzip, or cut short ({error}); copy it again") from error


def _read_names(path: Path) -> tuple[str, ...]:
    """One path a line, each once."""
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; it lists the pictures of the archive, a path a line") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not text in UTF-8 ({error})") from error
    first: dict[str, int] = {}
    for number, name in enumerate(names, start=1):
        if not name:
            raise InputError(f"{path}:{number}: an empty line; every entry of the archive has a picture's path")
        if first.setdefault(name, number) != number:
            raise InputError(
                f"{path}:{number}: {name!r} stands on line {first[name]} too; write paths with their folders"
            )
    return tuple(names)


def _read_offsets(path: Path, num_entries: int, names: Path) -> NDArray[np.int64]:
    """int64 [num_entries + 1], rising from 0. The header is looked at before anything is allocated."""
    expected = (num_entries + 1,)
    with _open_gzip(path) as stream:
        data = _read(stream, 8 * expected[0] + _MAX_HEADER_BYTES, path)
    buffer = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(buffer)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = header(buffer)
    except (ValueError, EOFError) as error:
        raise InputError(f"{path}: not an npy array in gzip ({error})") from error
    if dtype.kind not in "iu" or len(shape) != 1:
        raise InputError(f"{path}: holds {dtype} {shape}; one row of whole numbers was expected, and nothing was run")
    if shape != expected:
        raise InputError(f"{path}: {shape[0]} offsets, but {names} names {num_entries} pictures: one more was expected")
    if len(data) - buffer.tell() != expected[0] * dtype.itemsize:
        raise InputError(f"{path}: cut short, or longer than its header says; copy it again")
    offsets = np.frombuffer(data, dtype, offset=buffer.tell()).astype(np.int64)
    if offsets[0] != 0 or bool((np.diff(offsets) < 0).any()):
        raise InputError(f"{path}: offsets have to rise from 0; this is not the index of an archive")
    return offsets


@dataclass(frozen=True)
class ImagesImport:
    """What `import_shard` needs: rows, the archive, and whose tokens these are.

    places: row key -> entry of the archive. grid: rows and columns that the tokenizer keeps; whole: those it makes, of
    which it keeps the centre. vocab: codes of its codebook.
    """

    manifests: Path
    archive: Archive
    places: Mapping[str, int]
    grid: tuple[int, int]
    whole: tuple[int, int]
    vocab: int


def match_names(rows: Iterable[Row], archive: Archive) -> dict[str, int]:
    """Row key -> entry, for every row with a picture that is there.

    A name is the picture's path below the corpus root, its file name, that without the ending, or the row's key.
    InputError when a name without its folder fits two pictures.
    """
    numbers = {name: number for number, name in enumerate(archive.names)}
    matched: dict[str, int] = {}
    taken: dict[str, str] = {}
    for row in rows:
        if row.image is None:
            continue
        path = PurePosixPath(row.image.path)
        name = next((name for name in (str(path), path.name, path.stem, row.key) if name in numbers), None)
        if name is None:
            continue
        if taken.setdefault(name, str(path)) != str(path):
            raise InputError(
                f"{archive.source}: {name!r} may be {taken[name]} or {path}; list paths with their folders"
            )
        matched[row.key] = numbers[name]
    return matched


def import_shard(work: ImagesImport, name: str, path: Path) -> ShardResult:
    """Write the tokens of the shard `name` ("train/00007") to `path`; for `runner.run_shards`."""
    keys: list[str] = []
    grids = [np.zeros((0, *work.grid), np.uint16)]
    rejects = []
    for row in read_rows(work.manifests / f"{name}.jsonl"):
        if row.image is None:
            continue
        number = work.places.get(row.key)
        tokens = None if number is None else work.archive.entry(number)
        if number is None or tokens is None or not tokens.size:
            reason = "not in the imported archive" if tokens is None else "empty in the imported archive"
            rejects.append(Reject(row.key, "", "images", reason))
            continue
        keys.append(row.key)
        grids.append(_grid(work, number, tokens)[None])
    part = ImagesPart(np.array(keys, dtype=np.str_), np.concatenate(grids))
    write_images_part(path, part)
    return ShardResult({"images": len(part), "tokens": part.tokens.size}, rejects)


def _grid(work: ImagesImport, number: int, tokens: NDArray[np.int64]) -> NDArray[np.uint16]:
    """uint16 [rows, columns] that the tokenizer keeps of one entry."""
    where = f"{work.archive.source}: entry {number} ({work.archive.names[number]})"
    shape = next((grid for grid in (work.grid, work.whole) if grid[0] * grid[1] == tokens.size), None)
    if shape is None:
        raise InputError(
            f"{where}: {tokens.size} tokens, but the tokenizer makes {work.whole[0]} x {work.whole[1]}; "
            "give --vqgan the tokenizer that made them"
        )
    if int(tokens.max()) >= work.vocab:
        raise InputError(
            f"{where}: token {int(tokens.max())} is not one of the codebook's {work.vocab}; "
            "give --vqgan the tokenizer that made them"
        )
    top, left = ((whole - kept) // 2 for whole, kept in zip(shape, work.grid, strict=True))
    kept = tokens.reshape(shape)[top : top + work.grid[0], left : left + work.grid[1]]
    return as_uint16(kept, where)


# ------------------------------------------------------------------------------------------------- export


def export_images(manifests: Path, images: Path, split: str, out: Path) -> list[Path]:
    """Write `<split>.data.bin.gz`, `<split>.index.npy.gz` and `<split>.names.txt`; gives the three paths.

    Pictures stand in the manifest's order, named by their paths below the corpus root; one that several rows have is
    written once, as the import wants it. Memory holds one shard and the names. Raises InputError for a codebook that
    the coding cannot hold and for a split without tokens.
    """
    data = out / f"{split}{DATA}"
    lengths: dict[str, int] = {}
    with _gzip_file(data) as packed:
        for image, tokens in _images_of(manifests, images, split):
            if image in lengths:
                continue
            try:
                coded = encode(tokens)
            except InputError as error:
                raise InputError(f"{images}: {image}: {error}") from error
            packed.write(coded)
            lengths[image] = len(coded)
        if not lengths:
            raise InputError(f"{manifests}: no image tokens of split {split!r} in {images}; run the stage images")
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(list(lengths.values()), dtype=np.int64)])
    with _gzip_file(index_path(data)) as packed:
        packed.write(npy_bytes(offsets))
    listed = out / f"{split}.names.txt"
    write_text(listed, "".join(f"{name}\n" for name in lengths))
    return [data, index_path(data), listed]


def _images_of(manifests: Path, images: Path, split: str) -> Iterator[tuple[str, NDArray[np.uint16]]]:
    """(path below the corpus root, uint16 [rows, columns]) of every picture with tokens, in the manifest's order."""
    for path in shard_paths(manifests, split):
        part = read_images_part(images / split / f"{path.stem}.npz")
        places = part.index()
        for row in read_rows(path):
            if row.image is not None and row.key in places:
                yield row.image.path, part.tokens[places[row.key]]


@contextmanager
def _gzip_file(path: Path) -> Iterator[gzip.GzipFile]:
    """A gzip to write to, without name and time in it, so that equal content gives equal bytes."""
    with (
        atomic_path(path) as temporary,
        temporary.open("wb") as stream,
        gzip.GzipFile("", "wb", 9, stream, mtime=0) as packed,
    ):
        yield packed
