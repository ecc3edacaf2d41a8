"""Where an interrupted training goes on: weights, optimisers, random state and anything JSON can hold. No pickle.

A folder of `state.json` and `step-N.safetensors`. The number of the step is in the file's name and state.json is
written after it, so that a kill at any moment leaves one pair that belongs together.
"""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from pipeline import arithmetic, media
from pipeline.errors import InputError
from pipeline.files import atomic_path, fingerprint, read_json, write_json
from pipeline.runner import code_fingerprint


def run_fingerprint(decides: Mapping[str, Any], code: Iterable[ModuleType]) -> str:
    """Names a training by all that decides its result, so that a checkpoint is only gone on from by the same.

    decides: parameters and fingerprints of data and of starting weights, as JSON holds them. code: the modules or
    whole packages that train; what all trainings share is added to them.
    """
    return fingerprint({**decides, "code": code_fingerprint([*code, arithmetic, media, Path(__file__)])})


def save_state(
    folder: Path,
    step: int,
    settings: Mapping[str, Any],
    modules: Mapping[str, nn.Module],
    optimizers: Mapping[str, torch.optim.Optimizer],
    facts: Mapping[str, Any],
) -> None:
    """Write the state after `step` steps and remove the one before. settings: what must be the same on return.

    Random numbers are those of the device of the first module.
    """
    tensors = {f"random.{name}": value for name, value in random_states(_device(modules)).items()}
    for name, module in modules.items():
        tensors |= {f"module.{name}.{key}": value for key, value in module.state_dict().items()}
    for name, optimizer in optimizers.items():
        tensors |= {f"optimizer.{name}.{key}": value for key, value in optimizer_tensors(optimizer).items()}
    # Copies, because safetensors refuses tensors that share memory.
    kept = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    with atomic_path(folder / _name(step)) as temporary:
        temporary.write_bytes(save(kept))
    write_json(folder / "state.json", {"step": step, "settings": fingerprint(dict(settings)), "facts": dict(facts)})
    for path in folder.glob("step-*.safetensors"):
        if path.name != _name(step):
            path.unlink()


def load_state(
    folder: Path,
    settings: Mapping[str, Any],
    modules: Mapping[str, nn.Module],
    optimizers: Mapping[str, torch.optim.Optimizer],
) -> tuple[int, dict[str, Any]] | None:
    """Put everything back; gives (steps done, facts), or None when the folder holds no state.

    InputError for a state of other settings, or one that is broken or does not fit.
    """
    if not (folder / "state.json").exists():
        return None
    state = read_json(folder / "state.json")
    if state["settings"] != fingerprint(dict(settings)):
        raise InputError(f"{folder}: a checkpoint of other training settings; remove the folder to start again")
    path = folder / _name(state["step"])
    try:
        with safe_open(path, framework="pt") as stored:
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    except (FileNotFoundError, SafetensorError) as error:
        raise InputError(f"{path}: not readable ({error}); remove the folder {folder} to start again") from error
    try:
        for name, module in modules.items():
            module.load_state_dict(_under(tensors, f"module.{name}."))
    except RuntimeError as error:
        raise InputError(f"{path}: of another model ({error}); remove the folder {folder} to start again") from error
    for name, optimizer in optimizers.items():
        restore_optimizer(optimizer, _under(tensors, f"optimizer.{name}."))
    restore_random_states(_under(tensors, "random."), _device(modules))
    return int(state["step"]), dict(state["facts"])


def random_states(device: torch.device) -> dict[str, Tensor]:
    """The states of torch's generators that a training on `device` draws from, uint8."""
    states = {"random": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda_random"] = torch.cuda.get_rng_state(device)
    return states


def restore_random_states(states: Mapping[str, Tensor], device: torch.device) -> None:
    """Put back what `random_states` took, as far as it is there."""
    if "random" in states:
        torch.set_rng_state(states["random"].clone())  # torch misreads a row of a table
    if device.type == "cuda" and "cuda_random" in states:
        torch.cuda.set_rng_state(states["cuda_random"].clone(), device)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state as `<number of the parameter>.<key>`."""
    states = optimizer.state_dict()["state"].items()
    return {f"{number}.{key}": torch.as_tensor(value) for number, state in states for key, value in state.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` took; rates and decay stay the optimiser's own."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        number, key = name.split(".", 1)
        state.setdefault(int(number), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def check_finite(training: str, step: int, losses: Mapping[str, float], remedy: str) -> None:
    """InputError when a loss is infinite or not a number, since nothing comes right after it; `remedy` may help."""
    if lost := [name for name, value in losses.items() if not math.isfinite(value)]:
        raise InputError(f"{training}: the loss is not a number at step {step} ({', '.join(lost)}); {remedy} may help")


def _device(modules: Mapping[str, nn.Module]) -> torch.device:
    return next(next(iter(modules.values())).parameters()).device


def _name(step: int) -> str:
    return f"step-{step}.safetensors"


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
