"""Where an interrupted training goes on: weights, optimiser, random states and best weights, without a pickle.

One safetensors file, replaced whole at each save, named by a fingerprint of everything that decides the run, so that
a changed parameter never meets a stale checkpoint. Tensors are `<group>.<name>`, with the groups `model`, `best`,
`average` (with EMA), `optimizer` and `random` (`random.<rank>`, and `cuda_random.<rank>` on GPUs). Weights that never
change are not in it. `facts` is what else there is to know, as JSON in the file's metadata.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from pipeline.errors import InputError
from pipeline.files import atomic_path

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds: tensors by group and name, and facts that JSON can hold, such as step and best score."""

    groups: dict[str, Tensors]
    facts: dict[str, Any]


def save_checkpoint(path: Path, groups: Mapping[str, Mapping[str, torch.Tensor]], facts: Mapping[str, Any]) -> None:
    """Write the file, whole or not at all."""
    tensors: Tensors = {}
    seen: set[int] = set()
    for group, members in groups.items():
        for name, value in members.items():
            plain = value.detach().cpu().contiguous()
            # safetensors refuses two names for one memory, as tied weights are.
            tensors[f"{group}.{name}"] = plain.clone() if plain.data_ptr() in seen else plain
            seen.add(plain.data_ptr())
    with atomic_path(path) as temporary:
        # Not sorted: figures keep the order in which they are told.
        save_file(tensors, temporary, {"facts": json.dumps(dict(facts))})


def load_checkpoint(path: Path) -> Checkpoint:
    """Read the file. Raises InputError when it is damaged or something else."""
    try:
        with safe_open(path, framework="pt") as tensors:
            facts = json.loads((tensors.metadata() or {})["facts"])
            loaded = {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118 (no iteration there)
    except (SafetensorError, KeyError, ValueError) as error:
        raise InputError(f"{path}: not a training checkpoint ({error}); remove it to start anew") from error
    groups: dict[str, Tensors] = {}
    for full, value in loaded.items():
        group, _, name = full.partition(".")
        groups.setdefault(group, {})[name] = value
    return Checkpoint(groups, facts)
