"""The arithmetic of a head: a few layers over rows of float32, in numpy alone.

A row's numbers depend on nothing but the row: products are summed by einsum in one order on one thread, not by a BLAS whose
order depends on how many rows stand in the batch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float32]
Tensors = Mapping[str, NDArray[np.generic]]
MILLIONTHS = 1_000_000


class Layer(Protocol):
    """Rows (n, in) → rows (n, out)."""

    def __call__(self, rows: Matrix) -> Matrix:
        """The layer's output, a new array."""

    def width(self, before: int) -> int:
        """How many numbers come out of rows of `before`; ValueError where such rows do not fit."""

    def tensors(self) -> dict[str, NDArray[np.generic]]:
        """What the layer holds, by name; float32, keys of a table int64."""


@dataclass(frozen=True)
class Linear:
    """weight · row + bias."""

    weight: Matrix
    """(out, in)"""
    bias: Matrix
    """(out,)"""

    def __call__(self, rows: Matrix) -> Matrix:
        return np.asarray(np.einsum("ri,oi->ro", rows, self.weight) + self.bias, np.float32)

    def width(self, before: int) -> int:
        if self.weight.ndim != 2 or self.bias.shape != self.weight.shape[:1] or self.weight.shape[1] != before:
            raise ValueError(f"linear of weight {self.weight.shape} and bias {self.bias.shape} after rows of {before}")
        return int(self.weight.shape[0])

    def tensors(self) -> dict[str, NDArray[np.generic]]:
        return {"weight": self.weight, "bias": self.bias}


@dataclass(frozen=True)
class Relu:
    """Negative numbers become 0."""

    def __call__(self, rows: Matrix) -> Matrix:
        return np.maximum(rows, np.float32(0))

    def width(self, before: int) -> int:
        return before

    def tensors(self) -> dict[str, NDArray[np.generic]]:
        return {}


@dataclass(frozen=True)
class Norm:
    """(row - mean) / scale: Keras' Normalization, its scale the larger of the deviation and 1e-7."""

    mean: Matrix
    scale: Matrix

    def __call__(self, rows: Matrix) -> Matrix:
        return np.asarray((rows - self.mean) / self.scale, np.float32)

    def width(self, before: int) -> int:
        if self.mean.shape != (before,) or self.scale.shape != (before,) or not (self.scale > 0).all():
            raise ValueError(f"norm of mean {self.mean.shape} and scale {self.scale.shape}, all above 0, after rows of {before}")
        return before

    def tensors(self) -> dict[str, NDArray[np.generic]]:
        return {"mean": self.mean, "scale": self.scale}


@dataclass(frozen=True)
class Lookup:
    """Some columns are names, not numbers: printed with six decimals and looked up, 0 where the table has no such entry.

    That is what AutoKeras makes of a column with few different values (MultiCategoryEncoding, StringLookup). A key is the printed
    number in millionths. float32 times a million is exact in float64, so rounding half to even is what printf does.
    """

    tables: Mapping[int, tuple[NDArray[np.int64], Matrix]]
    """column → (keys, ascending; the value of each)"""

    def __call__(self, rows: Matrix) -> Matrix:
        out = rows.copy()
        for column, (keys, values) in self.tables.items():
            exact = rows[:, column].astype(np.float64)
            printed = np.rint(exact * MILLIONTHS)
            place = np.minimum(np.searchsorted(keys, printed), len(keys) - 1)
            known = (keys[place] == printed) & ~((printed == 0) & np.signbit(exact))    # "-0.000000" is another name
            out[:, column] = np.where(known, values[place], 0)
        return out

    def width(self, before: int) -> int:
        for column, (keys, values) in self.tables.items():
            if not 0 <= column < before or not keys.size or keys.shape != values.shape or (np.diff(keys) <= 0).any():
                raise ValueError(f"lookup in column {column} with {keys.size} ascending keys after rows of {before}")
        return before

    def tensors(self) -> dict[str, NDArray[np.generic]]:
        return {f"{kind}.{column}": pair[i] for column, pair in self.tables.items() for i, kind in enumerate(("keys", "values"))}


@dataclass(frozen=True)
class Softmax:
    """Shares of a whole: e^x over the sum of the row's e^x."""

    def __call__(self, rows: Matrix) -> Matrix:
        powers = np.exp(rows - rows.max(axis=1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=1, keepdims=True), np.float32)

    def width(self, before: int) -> int:
        return before

    def tensors(self) -> dict[str, NDArray[np.generic]]:
        return {}


OPS: Mapping[str, type] = {"linear": Linear, "relu": Relu, "norm": Norm, "lookup": Lookup, "softmax": Softmax}
"""What `op` may say in head.json."""


def built(op: str, tensors: Tensors) -> Layer:
    """The layer `op` of its tensors; ValueError where one is missing or too many."""
    if op == "lookup":
        columns = sorted({int(name.partition(".")[2]) for name in tensors})
        layer: Layer = Lookup({c: (_int(tensors, f"keys.{c}"), _float(tensors, f"values.{c}")) for c in columns})
    elif op == "linear":
        layer = Linear(_float(tensors, "weight"), _float(tensors, "bias"))
    elif op == "norm":
        layer = Norm(_float(tensors, "mean"), _float(tensors, "scale"))
    else:
        layer = OPS[op]()
    extra = tensors.keys() - layer.tensors().keys()
    if extra:
        raise ValueError(f"{op} has no tensor '{min(extra)}'")
    return layer


def sigmoid(raw: Matrix) -> Matrix:
    """1 / (1 + e^-x), without overflow."""
    small = np.exp(-np.abs(raw))
    return np.asarray(np.where(raw >= 0, 1 / (1 + small), small / (1 + small)), np.float32)


def _float(tensors: Tensors, name: str) -> Matrix:
    found = _one(tensors, name)
    if found.dtype != np.float32 or not np.isfinite(found).all():
        raise ValueError(f"tensor '{name}' is {found.dtype}; it takes float32, all of it finite" if found.dtype != np.float32 else
                         f"tensor '{name}' holds numbers that are not finite")
    return np.asarray(found, np.float32)


def _int(tensors: Tensors, name: str) -> NDArray[np.int64]:
    found = _one(tensors, name)
    if found.dtype != np.int64:
        raise ValueError(f"tensor '{name}' is {found.dtype}; it takes int64")
    return np.asarray(found, np.int64)


def _one(tensors: Tensors, name: str) -> NDArray[np.generic]:
    if name not in tensors:
        raise ValueError(f"tensor '{name}' is missing")
    return tensors[name]
