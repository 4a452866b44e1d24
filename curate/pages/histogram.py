"""The distribution of one column of numbers, of the rows measured and the rows kept side by side: exact bins, quantiles.

Two passes over the values, in any batches, in memory that does not grow with rows. The first finds the quantiles, and with them
the range worth drawing; the second counts in bins with edges that people can read.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from curate.sketch import Sketch

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
MEASURED, KEPT = 0, 1
"""The two populations, in this order everywhere."""

_BINS = 28
"""At least so many where the range allows; up to twice as many, so that widths are 1, 2 or 5 times a power of ten."""
_TAIL = 0.005
"""Share of the rows at either end that may lie outside of the picture, as counts beside it."""
_LOG_FROM = 100
"""Highest over lowest from which the scale is logarithmic: two orders of magnitude."""
_FEW = 12
_HUGE = 1e300
"""Numbers beyond it are counted beside the picture: differences of those within stay finite."""


@dataclass(frozen=True)
class Histogram:
    """What `Distribution` found. Pairs and pairs of tuples are (measured, kept)."""

    rows: tuple[int, int]
    """rows that have a number, infinite ones included"""
    edges: tuple[float, ...]
    is_log: bool
    bins: tuple[tuple[int, ...], tuple[int, ...]]
    """rows in [edge, next edge), in the last bin [edge, next edge]"""
    below: tuple[int, int]
    above: tuple[int, int]
    low: tuple[float, float]
    high: tuple[float, float]
    quantiles: tuple[tuple[float, ...], tuple[float, ...]]
    """at QUANTILES: the smallest number that so many of the finite ones do not exceed, as exact as `Sketch` is; or empty"""
    is_whole: bool
    few: dict[float, tuple[int, int]] | None
    """rows by number, where there are no more than twelve of them"""


class Distribution:
    """Gathers a column: `see` every batch, `settle`, `see_again` every batch, `finish`."""

    def __init__(self) -> None:
        self.rows = [0, 0]
        self.low, self.high = [math.inf, math.inf], [-math.inf, -math.inf]
        self.is_whole = True
        self._sketches = (Sketch(), Sketch())
        self._few: tuple[Counter[float], Counter[float]] | None = (Counter(), Counter())

    def see(self, values: np.ndarray, kept: np.ndarray) -> None:
        """Pass one: float64 numbers without NaN, and which of their rows are kept."""
        for which, some in ((MEASURED, values), (KEPT, values[kept])):
            self.rows[which] += len(some)
            finite = some[np.isfinite(some)]
            if len(finite):
                self.low[which] = min(self.low[which], float(finite.min()))
                self.high[which] = max(self.high[which], float(finite.max()))
                self.is_whole = self.is_whole and bool((finite == np.floor(finite)).all())
                self._sketches[which].add(finite)
                self._count_few(which, finite)

    def settle(self, marks: Sequence[float] = ()) -> None:
        """Between the passes: choose the bins. `marks` are thresholds to be seen in the picture, where they are not far off."""
        low, high = self._robust()
        self._edges, self._is_log = edges_of(low, high, self.is_whole, marks)
        self._bins = np.zeros((2, len(self._edges) - 1), np.int64)
        self._below, self._above = [0, 0], [0, 0]

    def see_again(self, values: np.ndarray, kept: np.ndarray) -> None:
        """Pass two: the same values again."""
        edges = self._edges
        for which, some in ((MEASURED, values), (KEPT, values[kept])):
            self._below[which] += int((some < edges[0]).sum())
            self._above[which] += int((some > edges[-1]).sum())
            inside = some[(some >= edges[0]) & (some <= edges[-1])]
            place = np.minimum(np.searchsorted(edges, inside, side="right") - 1, len(edges) - 2)
            self._bins[which] += np.bincount(place, minlength=len(edges) - 1)

    def finish(self) -> Histogram:
        """The figures."""
        few = None
        if self._few is not None:
            few = {value: (n, self._few[KEPT][value]) for value, n in sorted(self._few[MEASURED].items())}
        return Histogram((self.rows[0], self.rows[1]), tuple(self._edges.tolist()), self._is_log,
                         (tuple(self._bins[0].tolist()), tuple(self._bins[1].tolist())), (self._below[0], self._below[1]),
                         (self._above[0], self._above[1]), (self.low[0], self.low[1]), (self.high[0], self.high[1]),
                         (self._quantiles(MEASURED), self._quantiles(KEPT)), self.is_whole, few)

    def _count_few(self, which: int, finite: np.ndarray) -> None:
        if self._few is None:
            return
        values, counts = np.unique(finite, return_counts=True)
        if len(values) <= _FEW:
            self._few[which].update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
        if len(values) > _FEW or len(self._few[which]) > _FEW:
            self._few = None

    def _robust(self) -> tuple[float, float]:
        """The range worth drawing: all of it, or, where tails are long, about 99 % of the rows."""
        near, far = self._sketches[MEASURED].quantile(_TAIL), self._sketches[MEASURED].quantile(1 - _TAIL)
        if near is None or far is None:
            return 0.0, 1.0
        low, high = self.low[MEASURED], self.high[MEASURED]
        return (low, high) if high - low <= 1.5 * (far - near) else (near, far)

    def _quantiles(self, which: int) -> tuple[float, ...]:
        found = (self._sketches[which].quantile(q) for q in QUANTILES)
        return tuple(value for value in found if value is not None)


def edges_of(low: float, high: float, is_whole: bool, marks: Sequence[float] = ()) -> tuple[np.ndarray, bool]:
    """Edges of bins over low..high, and whether they are logarithmic. Marks up to half the range away are taken in.

    Whole numbers stand in the middle of their bin, or some of them share one: edges lie halfway between. Where the scale is not
    logarithmic, the first mark is an edge, so that no bar stands on both sides of a threshold.
    """
    low, high = (min(max(end, -_HUGE), _HUGE) for end in (low, high))
    is_log = low > 0 and high / _LOG_FROM >= low
    first, last = (math.log(low), math.log(high)) if is_log else (low, high)
    for mark in marks:
        at = (math.log(mark) if mark > 0 else -math.inf) if is_log else mark
        if abs(at - (first + last) / 2) <= last - first:
            low, high = min(low, mark), max(high, mark)
    if is_log:
        edges = np.geomspace(low, high, 41)
        return np.unique(np.floor(np.append(edges[:-1], high + 1))) - 0.5 if is_whole else np.unique(edges), True
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        half = max(0.5, 1e-9 * abs(low)) if is_whole else abs(low) / 20 or 0.5
        return np.array([low - half, high + half]), False
    width = _nice((high - low) / _BINS)
    half, width = (0.5, max(1.0, width)) if is_whole else (0.0, width)
    zero = next((mark for mark in marks if low - half <= mark <= high + half), -half)
    first, last = math.floor((low - half - zero) / width), math.ceil((high + half - zero) / width)
    places = zero + np.arange(first, last + 1) * width
    digits = max(0, 1 - math.floor(math.log10(width)))
    return np.unique(places if zero != -half else np.round(places, digits)), False


def _nice(width: float) -> float:
    """The largest 1, 2 or 5 times a power of ten that is no wider."""
    power: float = 10.0 ** math.floor(math.log10(width))
    return max(m * power for m in (1, 2, 5) if m * power <= width * (1 + 1e-9))
