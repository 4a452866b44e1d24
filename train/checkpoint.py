"""Checkpoints: a folder that is there whole or not at all, read by open_clip, with everything a training needs to go on.

    OUT/checkpoints/00000500/   open_clip_model.safetensors  open_clip_config.json  train.json  optimizer.safetensors
    OUT/model/                  the same without the optimizer: what the training was for, written last

A BLIP has transformers' files instead of the first two. Where a moving average is kept, it is what open_clip reads; a checkpoint
has the weights that learn in learning.safetensors, and what a loss keeps besides the model in loss.safetensors.

`train.json`: what `train.purpose` says of the training, step, digest of these weights, figures. No pickles, no times.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from train.files import new_folder, read_json, sweep, write_json
from train.models.folder import CARD
from train.models.weights import Loaded, format_of, tensors_digest
from train.objectives import Objective
from train.purpose import Purpose

OPTIMIZER, LEARNING, LOSS = "optimizer.safetensors", "learning.safetensors", "loss.safetensors"


@dataclass(frozen=True)
class Going:
    """What changes from step to step."""

    loaded: Loaded
    """the model that learns"""
    optimizer: torch.optim.Optimizer
    average: Loaded | None = None
    """the model of its moving average, in the process that keeps one"""
    objective: Objective | None = None
    """the loss, where it keeps something of its own"""

    @property
    def result(self) -> Loaded:
        """What is evaluated and exported."""
        return self.average or self.loaded


def write_model(folder: Path, loaded: Loaded) -> str:
    """The weights and what belongs to them into `folder`, as the model's kind lies there; the digest of the weights."""
    tensors, kind = _model_tensors(loaded), format_of(loaded.name)
    save_file(tensors, folder / kind.weights, metadata={"format": "pt"})
    kind.write(folder, loaded)
    return tensors_digest(tensors)


def save(out: Path, step: int, samples_seen: int, going: Going, purpose: Purpose, keep: int,
         said: Mapping[str, Any] = MappingProxyType({})) -> Path:
    """A checkpoint of this step below `out`; all but the last `keep` are removed. What is `said` goes into its card."""
    path = out / "checkpoints" / f"{step:08d}"
    with new_folder(path) as folder:
        digest = write_model(folder, going.result)
        if going.average is not None:
            save_file(_model_tensors(going.loaded), folder / LEARNING)
        save_file(_optimizer_tensors(going.loaded, going.optimizer), folder / OPTIMIZER)
        if going.objective is not None and (beside := going.objective.beside()):
            save_file(_once_each_name(beside), folder / LOSS)
        write_json(folder / CARD, {**purpose.card(going.loaded.name, step, samples_seen, digest, {}), **said})
    for old in _checkpoints(out)[:-keep]:
        shutil.rmtree(old)
    return path


def save_model(path: Path, step: int, samples_seen: int, loaded: Loaded, purpose: Purpose, figures: Mapping[str, float],
               said: Mapping[str, Any] = MappingProxyType({})) -> Path:
    """A model without what a training goes on with, in the folder `path`; its figures and what else is `said` in its card."""
    with new_folder(path) as folder:
        digest = write_model(folder, loaded)
        write_json(folder / CARD, {**purpose.card(loaded.name, step, samples_seen, digest, figures), **said})
    return path


def resume(out: Path, going: Going, purpose: Purpose) -> int:
    """Load the last checkpoint below `out` into models and optimizer; its step, 0 where there is none.

    Raises ConfigError where it belongs to another training.
    """
    found = _checkpoints(out)
    if not found:
        return 0
    card = read_json(found[-1] / CARD) or {}
    purpose.check(card, found[-1])
    device, averaged = str(going.loaded.device), (found[-1] / LEARNING).exists()
    weights = format_of(going.loaded.name).weights
    going.loaded.model.load_state_dict(load_file(found[-1] / (LEARNING if averaged else weights), device=device))
    if going.average is not None:
        going.average.model.load_state_dict(load_file(found[-1] / weights, device=device))
    if going.objective is not None and going.objective.beside():
        going.objective.load_state_dict(load_file(found[-1] / LOSS, device=device), strict=False)
    _restore(going.optimizer, load_file(found[-1] / OPTIMIZER, device=device), _named(going.loaded, going.optimizer))
    return int(card["step"])


def said(out: Path, what: str) -> Any:
    """What was said in the card of the last checkpoint below `out`, or None."""
    found = _checkpoints(out)
    return (read_json(found[-1] / CARD) or {}).get(what) if found else None


def tidy(out: Path) -> None:
    """Remove what a killed training left half-written."""
    sweep(out)
    sweep(out / "checkpoints")


def _checkpoints(out: Path) -> list[Path]:
    return sorted(path for path in (out / "checkpoints").glob("[0-9]*") if path.is_dir())


def _named(loaded: Loaded, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's parameters by name, in its order."""
    names = {id(parameter): name for name, parameter in loaded.model.named_parameters()}
    return {names[id(parameter)]: parameter for group in optimizer.param_groups for parameter in group["params"]}


def _model_tensors(loaded: Loaded) -> dict[str, Tensor]:
    return _once_each_name(loaded.model.state_dict())


def _once_each_name(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """For a file of tensors: one that goes by two names (BLIP's decoder has the encoder's) is there twice."""
    found: dict[str, Tensor] = {}
    taken: set[int] = set()
    for name, tensor in tensors.items():
        again = tensor.data_ptr() in taken
        taken.add(tensor.data_ptr())
        found[name] = tensor.detach().cpu().clone() if again else tensor.detach().cpu().contiguous()
    return found


def _optimizer_tensors(loaded: Loaded, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    state: Mapping[int, Mapping[str, Tensor]] = optimizer.state_dict()["state"]
    return {f"{name}:{key}": tensor.detach().cpu().contiguous() for i, name in enumerate(_named(loaded, optimizer))
            for key, tensor in state.get(i, {}).items()}


def _restore(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], named: Mapping[str, Tensor]) -> None:
    """Give the optimizer its state back, each tensor in its parameter's memory layout: the fused AdamW walks them side by side
    in memory, and would mix up the elements of a channels-last parameter and a contiguous moment without a word."""
    numbers = {name: i for i, name in enumerate(named)}
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        name, _, part = key.rpartition(":")
        alike = named[name].shape == tensor.shape
        restored = torch.empty_like(named[name], dtype=tensor.dtype).copy_(tensor) if alike else tensor.clone()
        state.setdefault(numbers[name], {})[part] = restored.detach()
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
