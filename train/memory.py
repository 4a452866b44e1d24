"""How many pairs go through the towers at once: as many as fit, so that no batch is too large.

`micro_batch: auto` halves the batch until what a part of it leaves behind fits: on a CPU into `memory_mb`, on a GPU into what is
free there. A guess can be wrong, so a step that meets a full GPU halves once more and is done again.
"""

import math
from collections.abc import Callable

import torch
from torch import nn

from train.config import Config
from train.dist import Ranks
from train.errors import ConfigError
from train.flops import Cost

OF_FREE = 0.8
"""Share of a GPU's free memory that a part of the batch may take. Ours: the rest is what kernels need besides."""
BF16_SHARE = 0.6
"""What autocast to bf16 leaves of the memory of fp32: products are halved, norms and their like are not. Ours."""
STATE = 3
"""Gradients and Adam's two moments: copies of the weights that are not there yet when the free memory is asked for."""


class AtOnce:
    """Pairs that go through the towers at once in this process."""

    def __init__(self, size: int, may_halve: bool) -> None:
        self.size, self._may_halve = size, may_halve

    def halve(self) -> bool:
        """Half as many from now on; False where that is not allowed, or not possible."""
        if not self._may_halve or self.size == 1:
            return False
        self.size = math.ceil(self.size / 2)
        return True


def free_bytes(device: torch.device) -> int:
    """Of a GPU, what this process holds without using it counted as free."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def at_once(config: Config, model: nn.Module, cost: Cost | None, ranks: Ranks, precision: str,
            free: Callable[[torch.device], int] = free_bytes) -> AtOnce:
    """What the settings say, or what fits. Raises ConfigError where `auto` cannot be told for this model.

    Several processes take the smallest of what they found, and do not halve later: they would not do so together.
    """
    share = config.batch // ranks.num_ranks
    if config.micro_batch is None or isinstance(config.micro_batch, int):
        return AtOnce(min(config.micro_batch or share, share), False)
    if cost is None:
        raise ConfigError(f"micro_batch: auto: how much memory a pair of {config.model} takes cannot be told; give a number")
    if ranks.device.type == "cuda":
        weights = sum(p.numel() * p.element_size() for p in model.parameters())
        budget = OF_FREE * (free(ranks.device) - STATE * weights)
    else:
        budget = config.memory_mb * 2**20
    size = fitting(share, budget, cost.saved_bytes * (BF16_SHARE if precision == "bf16" else 1))
    return AtOnce(ranks.least(size), ranks.num_ranks == 1)


def fitting(num_pairs: int, budget_bytes: float, bytes_per_pair: float) -> int:
    """`num_pairs`, halved until they fit; at least 1."""
    while num_pairs > 1 and num_pairs * bytes_per_pair > budget_bytes:
        num_pairs = math.ceil(num_pairs / 2)
    return num_pairs
