"""Rows of linear layers as others save them: torch's `.pth` of tensors, safetensors, `.npz`, and prompt pairs as `.npy`.

A file of tensors does not say what stands between its linear layers, so that has to be told: nothing (then they are one linear
layer, and are made one) or ReLU. Nothing is unpickled that is more than tensors.
"""

import pickle
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors

from curate.errors import UserError
from curate.heads.layers import Layer, Linear, Matrix, Relu

MOST_BYTES = 1 << 28
TEMPERATURE = 100.0
"""What CLIP multiplies cosines by before a softmax: the limit its `logit_scale` was trained to (Radford et al. 2021, 2.5)."""
Pairs = list[tuple[Matrix, Matrix]]


@dataclass(frozen=True)
class Stack:
    """(weight (out, in), bias (out,)) of linear layers, the first first, and whether ReLU stands between them."""

    pairs: Pairs
    relu: bool

    @property
    def dim(self) -> int:
        """Numbers a row that it takes."""
        return int(self.pairs[0][0].shape[1])

    @property
    def layers(self) -> tuple[Layer, ...]:
        """As a head has them: what has nothing in between becomes one layer, multiplied in double precision."""
        if self.relu:
            found: list[Layer] = [layer for w, b in self.pairs for layer in (Linear(w, b), Relu())]
            return tuple(found[:-1])
        weight, bias = self.pairs[0][0].astype(np.float64), self.pairs[0][1].astype(np.float64)
        for w, b in self.pairs[1:]:
            weight, bias = w.astype(np.float64) @ weight, w.astype(np.float64) @ bias + b
        return (Linear(weight.astype(np.float32), bias.astype(np.float32)),)

    def reference(self, rows: Matrix) -> NDArray[np.float64]:
        """What the layers give one after the other, in double precision."""
        found: NDArray[np.float64] = rows.astype(np.float64)
        for i, (w, b) in enumerate(self.pairs):
            found = (np.maximum(found, 0) if self.relu and i else found) @ w.T.astype(np.float64) + b
        return found[:, 0]


def read(path: Path, between: str | None) -> Stack:
    """The linear layers in a file. UserError of one line where they are none, or it is not said what stands between them."""
    pairs = _prompts(path) if path.suffix == ".npy" else _linear(_tensors(path), path)
    for (before, _), (after, _) in zip(pairs, pairs[1:], strict=False):
        if after.shape[1] != before.shape[0]:
            raise UserError(f"{path}: a layer gives {before.shape[0]} numbers and the next takes {after.shape[1]}")
    if pairs[-1][0].shape[0] != 1:
        raise UserError(f"{path}: its last layer gives {pairs[-1][0].shape[0]} numbers; a head gives one")
    if len(pairs) > 1 and between is None:
        raise UserError(f"{path}: {len(pairs)} linear layers, and a file of tensors does not say what stands between them; "
                        "say --between none or --between relu")
    return Stack(pairs, between == "relu")


def _tensors(path: Path) -> Mapping[str, NDArray[np.generic]]:
    if path.stat().st_size > MOST_BYTES:
        raise UserError(f"{path} has more than {MOST_BYTES >> 20} MB, so it is no head")
    if path.suffix == ".npz":
        return _npz(path)
    if path.suffix == ".safetensors":
        try:
            return dict(load_tensors(path.read_bytes()))
        except SafetensorError as error:
            raise UserError(f"{path}: not a safetensors file: {error}") from None
    return _torch(path)


def _npz(path: Path) -> Mapping[str, NDArray[np.generic]]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (ValueError, OSError, EOFError) as error:
        raise UserError(f"{path}: not an npz of numbers: {_line(error)}") from None


def _torch(path: Path) -> Mapping[str, NDArray[np.generic]]:
    import torch

    try:
        with warnings.catch_warnings(action="ignore", category=UserWarning):    # of pickles that it then refuses
            found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(f"{path} is broken, or holds more than tensors, which could run code, so it was not read") from None
    except (RuntimeError, ValueError, EOFError, OSError, LookupError, AttributeError, TypeError, AssertionError) as error:
        raise UserError(f"{path}: not a file of tensors: {_line(error)}") from None
    if not isinstance(found, dict) or not all(isinstance(v, torch.Tensor) for v in found.values()):
        raise UserError(f"{path}: not a state_dict, a map of names to tensors")
    return {str(name): tensor.float().numpy() for name, tensor in found.items()}


def _linear(tensors: Mapping[str, NDArray[np.generic]], path: Path) -> Pairs:
    """Pairs of weight and bias by the numbers in their names: layers.0.weight, layers.2.weight, …"""
    starts = sorted({name.rpartition(".")[0] for name in tensors}, key=lambda s: [int(n) for n in re.findall(r"\d+", s)])
    pairs = []
    for start in starts:
        names = [f"{start}.{kind}".lstrip(".") for kind in ("weight", "bias")]
        missing = next((n for n in names if n not in tensors), None)
        if missing is not None:
            raise UserError(f"{path} has no tensor '{missing}'; a head takes weight and bias of each linear layer, nothing else")
        weight, bias = (np.asarray(tensors[n], np.float32) for n in names)
        if weight.ndim != 2 or bias.shape != weight.shape[:1] or not (np.isfinite(weight).all() and np.isfinite(bias).all()):
            raise UserError(f"{path}: '{names[0]}' of {weight.shape} and '{names[1]}' of {bias.shape} are no linear layer of "
                            "finite numbers")
        pairs.append((weight, bias))
    if not pairs or len(tensors) != 2 * len(pairs):
        raise UserError(f"{path} holds no linear layers")
    return pairs


def _prompts(path: Path) -> Pairs:
    """Two rows, the text embeddings of "not" and "yes": the softmax of the two cosines is a sigmoid of their difference."""
    try:
        found = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise UserError(f"{path}: not an npy of numbers: {_line(error)}") from None
    if not isinstance(found, np.ndarray) or found.ndim != 2 or len(found) != 2 or found.dtype.kind != "f":
        raise UserError(f"{path}: prompts are two rows of numbers, the embeddings of what is not meant and of what is")
    unit = found.astype(np.float64)
    lengths = np.linalg.norm(unit, axis=1, keepdims=True)
    if not (np.isfinite(lengths).all() and (lengths > 0).all()):
        raise UserError(f"{path}: a prompt's embedding is all zeros or not finite")
    unit /= lengths
    return [((TEMPERATURE * (unit[1:] - unit[:1])).astype(np.float32), np.zeros(1, np.float32))]


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
