"""A running mean of the weights over the steps (EMA), which is often a little better than the last weights."""

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class WeightAverage:
    """The mean of `parameters`: what was, times `decay`, and the rest from what is. The first steps forget sooner."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self._parameters = dict(parameters)
        self._decay = decay
        self.weights = {name: value.detach().clone() for name, value in parameters.items()}

    def update(self, step: int) -> None:
        """Take in the weights behind `step`, which counts from 1."""
        decay = min(self._decay, (1 + step) / (10 + step))
        now = [value.detach() for value in self._parameters.values()]
        get_ema_multi_avg_fn(decay)(list(self.weights.values()), now, step)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """While entered, the model has the mean weights."""
        kept = {name: value.detach().clone() for name, value in self._parameters.items()}
        self._copy(self.weights)
        try:
            yield
        finally:
            self._copy(kept)

    def restore(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Go on from a checkpoint's mean."""
        for name, value in self.weights.items():
            value.copy_(weights[name])

    @torch.no_grad()
    def _copy(self, weights: Mapping[str, torch.Tensor]) -> None:
        for name, parameter in self._parameters.items():
            parameter.copy_(weights[name])
