"""Reads pickles as data: arrays, numbers, text and plain containers, and never runs what they name.

A pickle is a program whose instructions may call any function by name. Here a name is looked up in a short
table of our own harmless stand-ins. Names of the packages that checkpoints are full of (scikit-learn,
fairseq, torch modules, Lightning, ...) become `Inert` objects: they keep arguments and state, and have no
code. Every other name is refused, and nothing of the file has been run by then.

Reads joblib's files as well, whose arrays lie as raw bytes between the pickle's instructions. Needs numpy only.
"""

import bz2
import gzip
import io
import lzma
import math
import pickle
import struct
import zlib
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError

MAX_ARRAY_BYTES = 8 << 30
"""An array that says it is larger is refused before memory is asked for."""

_CHUNK = 16 << 20

# Packages whose classes checkpoints carry along; what is named in them becomes an object without code.
INERT_PACKAGES = (
    *("sklearn", "scipy", "joblib", "numpy", "torch", "fairseq", "argparse", "omegaconf", "enhancing", "taming"),
    *("pytorch_lightning", "lightning", "lightning_fabric", "timm", "einops", "s3prl", "pathlib", "typing", "enum"),
)


class Inert:
    """An object of a foreign class: what it was made from, and no code. `path` is the class's full name."""

    path: ClassVar[str] = ""
    args: tuple[Any, ...]
    state: Any
    items: list[Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> "Inert":
        made = object.__new__(cls)
        made.args, made.state, made.items = (*args, *kwargs.values()), None, []
        return made

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Takes what the foreign class took."""

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items.append((key, value))

    def append(self, value: Any) -> None:
        """An element that the pickle gives to a list-like object."""
        self.items.append(value)

    def extend(self, values: list[Any]) -> None:
        """Elements that the pickle gives to a list-like object."""
        self.items.extend(values)

    @property
    def fields(self) -> dict[str, Any]:
        """The attributes that were pickled; empty when the state is something else."""
        state = self.state
        if isinstance(state, tuple) and len(state) == 2 and isinstance(state[0], dict | None):
            state = {**(state[0] or {}), **(state[1] or {})}
        if not isinstance(state, dict):
            return {}
        return {str(name): value for name, value in state.items()}


class Deferred:
    """Something that becomes a value once the whole file has been read."""

    def value(self) -> Any:
        """The finished value."""
        raise NotImplementedError


class _DType:
    """numpy.dtype by its name and byte order; only numbers and text have a `numpy` form."""

    def __init__(self, name: Any, *_: Any) -> None:
        self.name, self.order = str(name), "="

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, tuple) and len(state) > 1 and state[1] in ("<", ">", "|", "="):
            self.order = state[1]

    def numpy(self) -> np.dtype[Any]:
        """The real dtype. InputError unless it holds numbers or text."""
        try:
            dtype = np.dtype(self.name)
        except TypeError as error:
            raise InputError(f"an array of type {self.name!r} is not numbers or text") from error
        if dtype.kind not in "biufcSU":
            raise InputError(f"an array of type {self.name!r} is not numbers or text")
        return dtype if self.order in "|=" else dtype.newbyteorder(">" if self.order == ">" else "<")


class _Array(Deferred):
    """An array as numpy pickles it: made empty, then given its state."""

    def __init__(self, *_: Any) -> None:
        self.made: Any = np.zeros(0)

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, is_fortran, data = state
        if isinstance(data, list):  # an array of objects: its elements, as a list
            self.made = data
        else:
            self.made = build_array(data, dtype.numpy(), shape, "F" if is_fortran else "C")

    def value(self) -> Any:
        return self.made


class _Wrapper(Inert):
    """joblib's mark that the raw bytes of an array follow."""

    path = "joblib.numpy_pickle.NumpyArrayWrapper"


def build_array(data: Any, dtype: np.dtype[Any], shape: Any, order: str = "C") -> NDArray[Any]:
    """An array of bytes, checked against its shape. InputError when they do not fit."""
    shape = tuple(int(size) for size in shape)
    if isinstance(data, str):
        data = data.encode("latin1")
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != len(data):
        raise InputError(f"an array {shape} of {dtype} does not have {len(data)} bytes")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if order == "F" else "C")


def _scalar(dtype: Any, data: Any = b"") -> Any:
    return build_array(data, dtype.numpy(), ())[()] if isinstance(dtype, _DType) else None


def _from_buffer(data: Any, dtype: Any, shape: Any, order: str) -> NDArray[Any]:
    return build_array(bytes(data), dtype.numpy(), shape, order)


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise InputError(f"bytes as text in {encoding!r} instead of latin1")
    return str(text).encode("latin1")


def _reconstructor(cls: Any, *_: Any) -> Any:
    return cls() if isinstance(cls, type) and issubclass(cls, Inert) else _inert_class("object")()


def _default_dict(*_: Any) -> dict[Any, Any]:
    return {}


_KNOWN: dict[str, Any] = {
    "collections.OrderedDict": OrderedDict,
    "collections.defaultdict": _default_dict,
    "_codecs.encode": _encode,
    "copyreg._reconstructor": _reconstructor,
    "copy_reg._reconstructor": _reconstructor,
    "numpy.dtype": _DType,
    "joblib.numpy_pickle.NumpyArrayWrapper": _Wrapper,
    "sklearn.externals.joblib.numpy_pickle.NumpyArrayWrapper": _Wrapper,
}
for _core in ("numpy.core", "numpy._core"):
    _KNOWN |= {
        f"{_core}.multiarray._reconstruct": _Array,
        f"{_core}.multiarray.scalar": _scalar,
        f"{_core}.numeric._frombuffer": _from_buffer,
    }
for _name in ("dict", "list", "tuple", "set", "frozenset", "int", "float", "complex", "bool", "str"):
    _value = {"set": set, "frozenset": frozenset, "complex": complex}.get(_name)
    for _module in ("builtins", "__builtin__"):
        # The plain types are named as types only (a default factory, a type hint); nothing needs to call them.
        _KNOWN[f"{_module}.{_name}"] = _value or type(_name, (Inert,), {"path": _name})
_KNOWN |= {f"{module}.object": type("object", (Inert,), {"path": "object"}) for module in ("builtins", "__builtin__")}

_classes: dict[str, type[Inert]] = {}


def _inert_class(path: str) -> type[Inert]:
    return _classes.setdefault(path, type(path.rsplit(".", 1)[-1], (Inert,), {"path": path}))


class RestrictedUnpickler(pickle._Unpickler):
    """The pickle machine with our table of names in place of imports.

    known: further names and what stands for them. source: for messages. persistent: answers persistent ids.
    """

    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)

    def __init__(
        self,
        file: Any,
        source: str,
        known: dict[str, Any] | None = None,
        persistent: Callable[[Any], Any] | None = None,
    ) -> None:
        super().__init__(file, encoding="latin1")
        self._file, self._source = file, source
        self._known = {**_KNOWN, **(known or {})}
        self._persistent = persistent

    def find_class(self, module: str, name: str) -> Any:
        """What stands for a name. InputError for a name that no checkpoint needs."""
        path = f"{module}.{name}"
        if path in self._known:
            return self._known[path]
        if module.split(".")[0] in INERT_PACKAGES:
            return _inert_class(path)
        raise InputError(
            f"{self._source}: refused. It asks for {path}, which no checkpoint needs and which could run "
            "anything. Nothing was run; get the file from its publisher again and compare its sha256"
        )

    def get_extension(self, code: int) -> None:
        """Registered extensions name classes by number; no checkpoint uses them."""
        raise InputError(f"{self._source}: refused. It asks for the registered extension {code}; nothing was run")

    def persistent_load(self, pid: Any) -> Any:
        """Objects outside of the pickle: torch's storages."""
        if self._persistent is None:
            raise InputError(f"{self._source}: it refers to storages outside of it; is it a torch file?")
        return self._persistent(pid)

    def load_build(self) -> None:
        """BUILD for our stand-ins alone; an array of joblib's is read at once and takes its wrapper's place."""
        stack: list[Any] = self.stack  # type: ignore[attr-defined]
        state = stack.pop()
        if isinstance(stack[-1], Inert | _DType | _Array):
            stack[-1].__setstate__(state)
        elif not isinstance(stack[-1], dict):  # attributes of an OrderedDict are of no use to anyone here
            raise InputError(f"{self._source}: refused. It gives attributes to what has none; nothing was run")
        if isinstance(stack[-1], _Wrapper):
            stack[-1] = self._raw_array(stack[-1])

    dispatch[pickle.BUILD[0]] = load_build

    def _raw_array(self, wrapper: _Wrapper) -> NDArray[Any]:
        fields = wrapper.fields
        dtype, shape = fields["dtype"].numpy(), tuple(int(size) for size in fields["shape"])
        num_bytes = math.prod(shape) * dtype.itemsize
        if not 0 <= num_bytes <= MAX_ARRAY_BYTES:
            raise InputError(f"{self._source}: an array of {num_bytes} bytes is not believed")
        if fields.get("numpy_array_alignment_bytes") is not None:
            self._file.read(self._file.read(1)[0])
        parts = []
        while num_bytes > 0:
            part = self._file.read(min(_CHUNK, num_bytes))
            if not part:
                raise InputError(f"{self._source}: ends in the middle of an array; is the download complete?")
            parts.append(part)
            num_bytes -= len(part)
        return build_array(b"".join(parts), dtype, shape, str(fields.get("order", "C")))


def run_unpickler(unpickler: RestrictedUnpickler, source: str) -> Any:
    """Load, with every way in which a broken file can fail turned into an InputError that names the file."""
    try:
        return unpickler.load()
    except InputError as error:
        raise error if source in str(error) else InputError(f"{source}: {error}") from error
    except (
        *(pickle.UnpicklingError, EOFError, AttributeError, KeyError, IndexError, TypeError, ValueError),
        *(OverflowError, RecursionError, MemoryError, struct.error, zlib.error, lzma.LZMAError, OSError),
    ) as error:
        raise InputError(f"{source}: not a readable pickle ({type(error).__name__}: {error})") from error


def finish(value: Any, source: str) -> Any:
    """The value with every `Deferred` in it replaced; containers and `Inert` objects are changed in place."""
    try:
        return _finish(value, {})
    except RecursionError as error:
        raise InputError(f"{source}: nested too deeply to be a checkpoint") from error


def _finish(value: Any, seen: dict[int, Any]) -> Any:
    if isinstance(value, Deferred):
        return value.value()
    if id(value) in seen:
        return value
    if isinstance(value, tuple):
        return tuple(_finish(item, seen) for item in value)
    if isinstance(value, dict | list | Inert):
        seen[id(value)] = value
    if isinstance(value, dict):
        for key in list(value):
            value[key] = _finish(value[key], seen)
    elif isinstance(value, list):
        value[:] = [_finish(item, seen) for item in value]
    elif isinstance(value, Inert):
        value.args, value.items = _finish(value.args, seen), _finish(value.items, seen)
        value.state = _finish(value.state, seen)
    return value


def read_joblib(path: Path) -> Any:
    """What joblib.dump or pickle.dump wrote, compressed or not, as plain values, arrays and `Inert` objects.

    Raises InputError for a file that is not a pickle, that names anything unknown, or whose arrays lie in
    files beside it (joblib before 0.10).
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    with _opened(path) as file:
        return finish(run_unpickler(RestrictedUnpickler(file, str(path)), str(path)), str(path))


def _opened(path: Path) -> BinaryIO:
    with path.open("rb") as file:
        start = file.read(6)
    if start[:2] == b"ZF":
        raise InputError(f"{path}: compressed by joblib before 0.10; load it there and dump it with compress=0")
    if start[:2] == b"\x1f\x8b":
        return gzip.open(path, "rb")  # type: ignore[return-value]
    if start[:3] == b"BZh":
        return bz2.open(path, "rb")  # type: ignore[return-value]
    if start == b"\xfd7zXZ\x00" or start[:3] == b"\x5d\x00\x00":
        return lzma.open(path, "rb")  # type: ignore[return-value]
    if start[:1] == b"\x78":
        return io.BytesIO(_inflate(path))
    return path.open("rb")


def _inflate(path: Path) -> bytes:
    machine = zlib.decompressobj()
    try:
        data = machine.decompress(path.read_bytes(), MAX_ARRAY_BYTES)
    except zlib.error as error:
        raise InputError(f"{path}: not readable as zlib ({error})") from error
    if machine.unconsumed_tail:
        raise InputError(f"{path}: unpacks to more than {MAX_ARRAY_BYTES} bytes; not believed")
    return data
