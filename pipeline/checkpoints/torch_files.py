"""torch.save's files as numpy arrays, without torch and without running anything that they name.

Reads both formats: the zip archive (since torch 1.6) and the older stream. Tensors become arrays (bfloat16
widens to float32), modules become `Inert` objects whose tensors `module_tensors` collects.
"""

import io
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.checkpoints.unpickle import (
    MAX_ARRAY_BYTES,
    Deferred,
    Inert,
    RestrictedUnpickler,
    finish,
    run_unpickler,
)
from pipeline.errors import InputError

Tensors = dict[str, NDArray[Any]]

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_BFLOAT16 = "bfloat16"
_STORAGES = {
    "DoubleStorage": "f8",
    "FloatStorage": "f4",
    "HalfStorage": "f2",
    "BFloat16Storage": _BFLOAT16,
    "LongStorage": "i8",
    "IntStorage": "i4",
    "ShortStorage": "i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}


class _StorageType:
    def __init__(self, name: str) -> None:
        self.dtype = _STORAGES[name]

    @property
    def itemsize(self) -> int:
        return 2 if self.dtype == _BFLOAT16 else np.dtype(self.dtype).itemsize


class _Storage:
    """One block of numbers; several tensors may look into it."""

    def __init__(self, kind: _StorageType, key: str, numel: int) -> None:
        self.kind, self.key, self.numel = kind, key, numel
        self.data: bytes | None = None
        self.big_endian = False

    def array(self, source: str) -> NDArray[Any]:
        if self.data is None or len(self.data) < self.numel * self.kind.itemsize:
            raise InputError(f"{source}: storage {self.key} is cut short; is the download complete?")
        sign: Literal["<", ">"] = ">" if self.big_endian else "<"
        if self.kind.dtype != _BFLOAT16:
            return np.frombuffer(self.data, np.dtype(self.kind.dtype).newbyteorder(sign), self.numel)
        high = np.frombuffer(self.data, f"{sign}u2", self.numel).astype(np.uint32)
        return (high << 16).view(np.float32)


class _Tensor(Deferred):
    def __init__(self, source: str, storage: Any, offset: Any, size: Any, stride: Any) -> None:
        self.source, self.storage = source, storage
        self.offset, self.size, self.stride = int(offset), _ints(size), _ints(stride)

    def value(self) -> NDArray[Any]:
        if not isinstance(self.storage, _Storage) or len(self.size) != len(self.stride):
            raise InputError(f"{self.source}: a tensor without its numbers")
        flat = self.storage.array(self.source)
        count = int(np.prod(self.size, dtype=object)) if self.size else 1
        if min((*self.size, *self.stride, self.offset), default=0) < 0 or count > len(flat):
            raise InputError(f"{self.source}: a tensor {self.size} does not fit its storage of {len(flat)} numbers")
        if count == 0:
            return np.zeros(self.size, flat.dtype)
        last = self.offset + sum((size - 1) * step for size, step in zip(self.size, self.stride, strict=True))
        if last >= len(flat):
            raise InputError(f"{self.source}: a tensor {self.size} does not fit its storage of {len(flat)} numbers")
        steps = tuple(step * flat.itemsize for step in self.stride)
        view = np.lib.stride_tricks.as_strided(flat[self.offset :], self.size, steps, writeable=False)
        return np.ascontiguousarray(view.astype(view.dtype.newbyteorder("="), copy=False)).reshape(self.size)


def _ints(values: Any) -> tuple[int, ...]:
    if isinstance(values, Inert):  # torch.Size
        values = values.args[0] if values.args else ()
    return tuple(int(value) for value in values)


def read_torch(path: Path) -> Any:
    """What torch.save wrote: plain values, numpy arrays for tensors, `Inert` objects for modules.

    Raises InputError for a file that is no torch file, is cut short, is a TorchScript program, or names
    anything outside the known packages; nothing of it is run.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    with path.open("rb") as file:
        start = file.read(4)
        file.seek(0)
        if start[:2] == b"PK":
            return _read_zip(file, str(path))
        if start[:1] != b"\x80":
            raise InputError(f"{path}: not a file of torch.save (it starts with {start!r}); is the download complete?")
        return _read_legacy(file, str(path))


def _names(source: str) -> dict[str, Any]:
    def rebuild(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> _Tensor:
        return _Tensor(source, storage, offset, size, stride)

    def parameter(data: Any, *_: Any) -> Any:
        return data

    names: dict[str, Any] = {
        "torch._utils._rebuild_tensor_v2": rebuild,
        "torch._utils._rebuild_tensor": rebuild,
        "torch._utils._rebuild_parameter": parameter,
        "torch._utils._rebuild_parameter_with_state": parameter,
    }
    return names | {f"torch.{name}": _StorageType(name) for name in _STORAGES}


def _storage(pid: Any, source: str, storages: dict[str, _Storage]) -> Any:
    if isinstance(pid, tuple) and pid[:1] == ("module",):
        return pid[1]
    if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage" or not isinstance(pid[1], _StorageType):
        raise InputError(f"{source}: a storage of an unknown kind ({str(pid)[:80]})")
    if pid[1].itemsize * int(pid[4]) > MAX_ARRAY_BYTES:
        raise InputError(f"{source}: a storage of {pid[4]} numbers is not believed")
    return storages.setdefault(str(pid[2]), _Storage(pid[1], str(pid[2]), int(pid[4])))


def _read_zip(file: BinaryIO, source: str) -> Any:
    try:
        with zipfile.ZipFile(file) as archive:
            names = set(archive.namelist())
            pickles = [name for name in names if name == "data.pkl" or name.endswith("/data.pkl")]
            if len(pickles) != 1:
                raise InputError(f"{source}: a zip archive, but not one of torch.save (no data.pkl)")
            prefix = pickles[0].removesuffix("data.pkl")
            if f"{prefix}constants.pkl" in names:
                raise InputError(f"{source}: a TorchScript program; its state dict is needed instead")
            storages: dict[str, _Storage] = {}
            unpickler = RestrictedUnpickler(
                io.BytesIO(_member(archive, pickles[0], source)),
                source,
                _names(source),
                lambda pid: _storage(pid, source, storages),
            )
            value = run_unpickler(unpickler, source)
            is_big = f"{prefix}byteorder" in names and archive.read(f"{prefix}byteorder") == b"big"
            for key, storage in storages.items():
                storage.data = _member(archive, f"{prefix}data/{key}", source)
                storage.big_endian = is_big
    except InputError:
        raise
    except (
        *(zipfile.BadZipFile, KeyError, NotImplementedError, RuntimeError, OSError, EOFError),
        *(ValueError, OverflowError, struct.error, zlib.error),
    ) as error:
        raise InputError(f"{source}: a broken archive ({error}); is the download complete?") from error
    return finish(value, source)


def _member(archive: zipfile.ZipFile, name: str, source: str) -> bytes:
    info = archive.getinfo(name)
    # torch stores without compression; a compressed member could unpack to any size.
    if info.compress_type != zipfile.ZIP_STORED or info.file_size > MAX_ARRAY_BYTES:
        raise InputError(f"{source}: the member {name} is compressed or too large; torch.save writes neither")
    return archive.read(name)


def _read_legacy(file: BinaryIO, source: str) -> Any:
    known = _names(source)
    storages: dict[str, _Storage] = {}

    def load() -> Any:
        return run_unpickler(
            RestrictedUnpickler(file, source, known, lambda pid: _storage(pid, source, storages)), source
        )

    first = load()
    if first != _LEGACY_MAGIC:
        raise InputError(f"{source}: a pickle, but not one of torch.save; `import kmeans` reads joblib's files")
    load(), load()  # format number, sizes of the writer's machine
    value = load()
    for key in load():
        if str(key) not in storages:
            raise InputError(f"{source}: storage {key} belongs to no tensor")
        storage = storages[str(key)]
        head = file.read(8)
        (numel,) = struct.unpack("<q", head) if len(head) == 8 else (-1,)
        if numel != storage.numel:
            raise InputError(f"{source}: storage {key} is cut short; is the download complete?")
        storage.data = file.read(numel * storage.kind.itemsize)
    return finish(value, source)


def module_tensors(module: Any, prefix: str = "") -> Tensors:
    """The state dict of a pickled module (parameters and buffers, by their dotted names)."""
    if not isinstance(module, Inert):
        return {}
    fields = module.fields
    found: Tensors = {}
    for group in ("_parameters", "_buffers"):
        for name, tensor in _mapping(fields.get(group)).items():
            if isinstance(tensor, np.ndarray):
                found[f"{prefix}{name}"] = tensor
    for name, child in _mapping(fields.get("_modules")).items():
        found |= module_tensors(child, f"{prefix}{name}.")
    return found


def _mapping(value: Any) -> Mapping[Any, Any]:
    return value if isinstance(value, Mapping) else {}


def tensors_in(value: Any) -> Tensors:
    """The tensors of a mapping or of a pickled module; other entries are passed over."""
    if isinstance(value, Inert):
        return module_tensors(value)
    return {str(name): item for name, item in _mapping(value).items() if isinstance(item, np.ndarray)}
