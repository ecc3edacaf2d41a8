"""Weights of a checkpoint as arrays, whatever file holds them; and whether they fit the model that wants them."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from pipeline.checkpoints.torch_files import Tensors, read_torch, tensors_in
from pipeline.errors import InputError


def find_weights(folder: Path) -> Path:
    """The weights file of a Hugging Face folder, safetensors before the pickled one."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return folder / name
    if (folder / "model.safetensors.index.json").is_file() or (folder / "pytorch_model.bin.index.json").is_file():
        raise InputError(f"{folder}: its weights are cut into several files, which is not supported; join them first")
    raise InputError(f"{folder}: no model.safetensors and no pytorch_model.bin in it; is the download complete?")


def read_weights(path: Path) -> Tensors:
    """The tensors of a .safetensors, or of a state dict or module that torch.save wrote."""
    if path.suffix != ".safetensors":
        found = read_torch(path)
        if isinstance(found, Mapping) and isinstance(found.get("state_dict"), Mapping):
            found = found["state_dict"]
        return tensors_in(found)
    try:
        return dict(load_file(path))
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except SafetensorError as error:
        raise InputError(f"{path}: not readable as safetensors ({error})") from error


def strip_prefix(tensors: Mapping[str, NDArray[Any]], *prefixes: str) -> Tensors:
    """The tensors under the first of `prefixes` that any of them has, without it; else all as they are."""
    for prefix in prefixes:
        inside = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        if inside:
            return inside
    return dict(tensors)


def check_fit(
    tensors: Mapping[str, NDArray[Any]], expected: Mapping[str, Iterable[int]], source: Path
) -> tuple[Tensors, list[str]]:
    """The tensors that a model expects, and the names of those that it has no use for.

    Raises InputError that names the first missing and misshapen ones.
    """
    wanted = {name: tuple(int(size) for size in shape) for name, shape in expected.items()}
    missing = [name for name in wanted if name not in tensors]
    wrong = [
        f"{name} {tensors[name].shape} instead of {shape}"
        for name, shape in wanted.items()
        if name in tensors and tensors[name].shape != shape
    ]
    if missing or wrong:
        parts = [f"missing {', '.join(missing[:4])}" if missing else "", "; ".join(wrong[:4])]
        more = max(0, len(missing) - 4) + max(0, len(wrong) - 4)
        listed = "; ".join(part for part in parts if part) + (f"; and {more} more" if more else "")
        raise InputError(f"{source}: its weights do not fit: {listed}")
    return {name: tensors[name] for name in wanted}, sorted(set(tensors) - set(wanted))
