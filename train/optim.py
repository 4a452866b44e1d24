"""AdamW in groups, and the learning rate of a step.

Gains, biases and the scale (parameters of fewer than two dimensions) have no weight decay, as in OpenAI's and open_clip's
training. What share of the learning rate a parameter has is in `train.layers`; a share of 0 freezes it.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from train.config import Config
from train.errors import ConfigError
from train.layers import shares

SCALE_MAX = math.log(100)
"""logit_scale is kept from 0 to this under CLIP's loss (Radford et al. 2021, section 2.5); SigLIP knows no such limit."""


def make_optimizer(model: nn.Module, config: Config) -> torch.optim.AdamW:
    """AdamW over the parameters that learn; its groups carry `share`, the part of the learning rate they take.

    Raises ConfigError where the settings ask for layers of a model whose layers are not known.
    """
    parameters = dict(model.named_parameters())
    groups: dict[tuple[float, float], list[Tensor]] = {}
    for name, share in shares(list(parameters), config).items():
        parameter = parameters[name].requires_grad_(share > 0)
        if share > 0:
            decay = config.weight_decay if parameter.ndim >= 2 else 0.0
            groups.setdefault((share, decay), []).append(parameter)
    settings = [{"params": found, "weight_decay": decay, "share": share} for (share, decay), found in groups.items()]
    return torch.optim.AdamW(settings, lr=config.lr, betas=config.betas, fused=True)


def learning_rate(step: int, num_steps: int, config: Config) -> float:
    """Of `step`, counted from 0: up in a straight line for the warm-up, then down half a cosine to 0 at the end."""
    warmup = config.warmup * num_steps if config.warmup < 1 else config.warmup
    if step < warmup:
        return config.lr * (step + 1) / (math.floor(warmup) + 1)
    return config.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1.0, num_steps - warmup)))


def check_warmup(num_steps: int, config: Config) -> None:
    """Raises ConfigError for a warm-up that ends behind the training, whose learning rate would never come to `lr`."""
    if config.warmup >= 1 and config.warmup > num_steps:
        raise ConfigError(f"warmup: {config.warmup:g} steps, and the training has {num_steps}; below 1 it is a share of them")


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group its share of `rate`."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["share"]


def clip_gradients(parameters: Iterable[Tensor], largest: float | None) -> Tensor:
    """Scale all gradients together down to norm `largest` (None: leave them); the norm before."""
    return torch.nn.utils.clip_grad_norm_(list(parameters), math.inf if largest is None else largest)
