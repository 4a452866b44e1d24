"""The three kinds of stage a pipeline is a list of: a step measures, a keep decides by expression, a top decides by rank."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from curate.keep import Keep
from curate.step import Spec


@dataclass(frozen=True)
class StepUse:
    """A step in its place: settings checked, columns bound to names."""

    name: str
    spec: Spec = field(repr=False)
    settings: Mapping[str, Any]
    reads: Mapping[str, str]
    """parameter → column"""
    adds: Mapping[str, str]
    """the step's own name of a column → its name here"""
    types: Mapping[str, pa.DataType]
    """the step's own name of a column → type"""
    prefix: str
    line: int
    loop: bool = False
    """whether its columns depend on the weights that the loop trains"""
    first: str = ""
    """of a step that holds the loop's weights: what it uses before any training, a published tag or `raw`"""

    @property
    def label(self) -> str:
        """What the funnel and messages call it."""
        return f"{self.spec.name} as {self.prefix}" if self.prefix else self.spec.name


@dataclass(frozen=True)
class KeepUse:
    """A decision by expression."""

    keep: Keep
    line: int

    @property
    def label(self) -> str:
        """What the funnel and messages call it."""
        return f"keep {self.keep.text}"


@dataclass(frozen=True)
class TopUse:
    """A decision by rank: the best `fraction` of the alive rows (or of the source's rows) by a column; ties by uid."""

    fraction: float
    """the share that stays, of the rows that have a value"""
    by: str
    """the column to rank by: a number, the largest first"""
    of_source: bool
    """`source` takes the share of the source's rows instead of the rows that are still there"""
    line: int

    @property
    def label(self) -> str:
        """What the funnel and messages call it."""
        return f"keep top {self.fraction:g}{' of source' if self.of_source else ''} by {self.by}"


Stage = StepUse | KeepUse | TopUse
