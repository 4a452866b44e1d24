"""Quantiles of a column that never lies in memory as a whole."""

import numpy as np
from numpy.typing import NDArray

BITS = 10
"""Low bits of a float32 that a bucket leaves out: 13 bits of fraction stay, one part in 8,192 (our choice)."""


class Sketch:
    """Counts of the values of one column by bucket; a bucket keeps its lowest value, so a quantile is a value that occurs.

    Values that differ by more than one part in 8,192 never share a bucket, integers below 16,384 never do at all. The order in
    which values come does not matter. At most 8,192 buckets for each power of two that occurs, 24 bytes each.
    """

    def __init__(self) -> None:
        self._keys = np.empty(0, np.int64)
        self._counts = np.empty(0, np.int64)
        self._lows = np.empty(0, np.float64)

    def add(self, values: NDArray[np.floating] | NDArray[np.integer]) -> None:
        """Count `values`; NaN and infinities are left out."""
        exact = values.astype(np.float64)
        exact = exact[np.isfinite(exact)]
        keys = np.concatenate([self._keys, _bucket(exact)])
        counts = np.concatenate([self._counts, np.ones(len(exact), np.int64)])
        lows = np.concatenate([self._lows, exact])
        if not len(keys):
            return
        order = np.argsort(keys, kind="stable")
        starts = np.flatnonzero(np.diff(keys[order], prepend=keys[order[0]] - 1))
        self._keys = keys[order][starts]
        self._counts = np.add.reduceat(counts[order], starts)
        self._lows = np.minimum.reduceat(lows[order], starts)

    @property
    def count(self) -> int:
        """How many finite values there were."""
        return int(self._counts.sum())

    def quantile(self, share: float) -> float | None:
        """The smallest value that at least `share` (0 to 1) of all values do not exceed; None where there was none."""
        if not len(self._keys):
            return None
        rank = max(int(np.ceil(share * self.count)), 1)
        return float(self._lows[np.searchsorted(np.cumsum(self._counts), rank)])


def _bucket(values: NDArray[np.float64]) -> NDArray[np.int64]:
    """Integers that sort as the values do."""
    largest = float(np.finfo(np.float32).max)
    bits = np.clip(values, -largest, largest).astype(np.float32).view(np.int32).astype(np.int64)
    return np.where(bits >= 0, bits >> BITS, -((bits & 0x7FFFFFFF) >> BITS) - 1)
