"""A moving average of the weights: less noisy than the last of them, so it is what gets evaluated and exported."""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace

import torch

from train.models.weights import Loaded


class Average:
    """The average of what `loaded.model` was after each step, as a model of its own: `Average(…).loaded`."""

    def __init__(self, loaded: Loaded, decay: float) -> None:
        self._decay, self._learning = decay, loaded.model
        self.loaded = replace(loaded, model=deepcopy(loaded.model).eval().requires_grad_(False))

    @torch.no_grad()
    def update(self, num_steps: int) -> None:
        """Take in the weights as they are after `num_steps` steps.

        The average keeps `decay` of itself, or (1 + n) / (10 + n) where that is less, so that the start is soon forgotten
        (TensorFlow's ExponentialMovingAverage, num_updates). Running statistics are averaged too, counters copied.
        """
        taken = 1 - decay_at(num_steps, self._decay)
        for mine, new in zip(_tensors(self.loaded.model), _tensors(self._learning), strict=True):
            if mine.is_floating_point():
                mine.lerp_(new, taken)
            else:
                mine.copy_(new)


def _tensors(model: torch.nn.Module) -> Iterator[torch.Tensor]:
    """What a checkpoint has, each tensor once, whatever the number of its names."""
    yield from {tensor.data_ptr(): tensor for tensor in model.state_dict().values()}.values()


def decay_at(num_steps: int, decay: float) -> float:
    """What the average keeps of itself when it takes in the weights after `num_steps` steps, 0 to 1."""
    return min(decay, (1 + num_steps) / (10 + num_steps))
