"""Where an interrupted training goes on: weights, optimiser, random state and best weights, without a pickle.

One safetensors file, replaced whole at each evaluation, named by a fingerprint of everything that decides
the run, so that a changed parameter never meets a stale checkpoint.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save

from pipeline.errors import InputError
from pipeline.files import atomic_path

Tensors = dict[str, torch.Tensor]


def save_checkpoint(
    path: Path, model: Tensors, best: Tensors, optimizer: torch.optim.Optimizer, facts: dict[str, Any]
) -> None:
    """Write the file. facts: anything JSON can hold, such as step and best score."""
    tensors = {f"model.{name}": value for name, value in model.items()}
    tensors |= {f"best.{name}": value for name, value in best.items()}
    for number, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{key}": torch.as_tensor(value) for key, value in state.items()}
    tensors["random"] = torch.get_rng_state()
    contiguous = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    with atomic_path(path) as temporary:
        temporary.write_bytes(save(contiguous, {"facts": json.dumps(facts, sort_keys=True)}))


def load_checkpoint(path: Path, optimizer: torch.optim.Optimizer) -> tuple[Tensors, Tensors, dict[str, Any]]:
    """(model weights, best weights, facts); puts the optimiser and torch's random state back.

    Raises InputError when the file is not a checkpoint of this model.
    """
    with safe_open(path, framework="pt") as tensors:
        facts = json.loads((tensors.metadata() or {}).get("facts", "{}"))
        loaded = {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118 (no iteration there)
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in loaded.items():
        if name.startswith("optimizer."):
            _, number, key = name.split(".", 2)
            state.setdefault(int(number), {})[key] = value
    if "random" not in loaded:
        raise InputError(f"{path}: not a training checkpoint; remove it to start anew")
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    torch.set_rng_state(loaded["random"])
    model = {name.removeprefix("model."): value for name, value in loaded.items() if name.startswith("model.")}
    best = {name.removeprefix("best."): value for name, value in loaded.items() if name.startswith("best.")}
    return model, best, facts
