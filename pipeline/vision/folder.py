"""An image tokenizer's folder, `config.json` and `model.safetensors`: read whole, or told which file is wrong."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open

from pipeline.errors import InputError
from pipeline.files import read_json

Model = TypeVar("Model", bound=torch.nn.Module)


def load_folder(
    folder: Path,
    kind: str,
    build: Callable[[dict[str, Any]], Model],
    device: str | torch.device,
    left_out: tuple[str, ...] = (),
) -> Model:
    """The model saved in `folder`, in evaluation mode.

    kind: the model_type that config.json has to carry. build: that config's values -> the model, to be filled.
    left_out: beginnings of the names of weights that are not the model's. InputError when something is missing or
    does not fit.
    """
    config, path = folder / "config.json", folder / "model.safetensors"
    values = read_json(config)
    found = values.get("model_type") if isinstance(values, dict) else None
    if found != kind:
        raise InputError(f"{config}: model_type is {found!r}, not {kind!r}; give the folder of such a tokenizer")
    try:
        model = build(values)
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise InputError(f"{config}: not the config of a {kind} ({error})") from error
    try:
        with safe_open(path, framework="pt") as weights:
            names = [name for name in weights.keys() if not name.startswith(left_out)]  # noqa: SIM118
            model.load_state_dict({name: weights.get_tensor(name) for name in names})
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except SafetensorError as error:
        raise InputError(f"{path}: not readable as safetensors ({error})") from error
    except RuntimeError as error:
        raise InputError(f"{path}: weights do not fit config.json ({error})") from error
    return model.to(device).eval()
