"""Which weights learn, and how fast: the optimiser's groups, the units' own weights, training mode."""

import torch
from torch import nn

from pipeline.captioner.model import Captioner


def make_optimizer(
    model: Captioner, learning_rate: float, pretrained_rate_scale: float, weight_decay: float
) -> torch.optim.Optimizer:
    """AdamW on what is trained, weight decay on matrices only; each group keeps its peak rate as `initial_lr`.

    pretrained_rate_scale: rate of what stood in the pretrained model over that of the units' own weights.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            scale = 1.0 if is_new(name) else pretrained_rate_scale
            decay = weight_decay if parameter.ndim > 1 else 0.0
            groups.setdefault((scale, decay), []).append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "lr": learning_rate * scale,
                "initial_lr": learning_rate * scale,
                "weight_decay": decay,
            }
            for (scale, decay), parameters in groups.items()
        ],
        betas=(0.9, 0.98),
    )


def is_new(name: str) -> bool:
    """Whether a weight belongs to the units and not to what was pretrained."""
    return name.startswith(("git.embeddings.word_embeddings.", "output."))


def train_mode(model: Captioner, only_new: bool = False) -> None:
    """Training mode, but a tower that does not learn, as while `only_new` weights do, keeps its batch statistics and
    drops nothing."""
    model.train()
    tower = model.git.image_encoder
    if only_new or not any(parameter.requires_grad for parameter in tower.parameters()):
        tower.eval()
