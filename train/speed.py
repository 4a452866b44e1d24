"""Faster or in less memory, where a model knows how: patch dropout, checkpointed activations, torch.compile."""

from typing import Any

from open_clip.transformer import PatchDropout, Transformer, VisionTransformer
from torch import nn

from train.config import Config
from train.errors import ConfigError


def prepare(model: Any, config: Config) -> None:
    """Switch on what the settings ask for. Raises ConfigError where the model does not know it."""
    if config.patch_dropout:
        drop_patches(model, config.patch_dropout)
    if config.checkpoint_activations:
        checkpoint_activations(model, config.model)


def drop_patches(model: Any, share: float) -> None:
    """Training drops this share of each picture's patches, others every time (FLIP, Li et al. 2022, arXiv 2212.00794)."""
    visual = getattr(model, "visual", None)
    if not isinstance(visual, VisionTransformer):
        raise ConfigError(f"patch_dropout: {type(visual).__name__} has no patches to drop, only open_clip's own ViT has")
    visual.patch_dropout = PatchDropout(share)


def checkpoint_activations(model: Any, name: str) -> None:
    """Blocks remember only what comes into them, and compute the rest once more on the way back."""
    if not any(isinstance(module, Transformer) for module in model.modules()):
        raise ConfigError(f"checkpoint_activations: {name} has no blocks of open_clip's that can be computed twice")
    model.set_grad_checkpointing(True)


def compiled(objective: nn.Module, config: Config) -> nn.Module:
    """The objective, compiled in place where the settings ask for it: names of parameters stay as they are.

    Random numbers are drawn as without compiling, so gradient caching finds the same ones again.
    """
    if config.compile:
        import torch._inductor.config as inductor

        inductor.fallback_random = True
        objective.compile()
    return objective


def forwards(config: Config, chunked: bool) -> int:
    """How often a pair goes forward in a step."""
    return 1 + int(chunked) + int(config.checkpoint_activations)
