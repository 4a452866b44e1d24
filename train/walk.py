"""One source, epoch by epoch: every epoch a new permutation of its pictures, a subset of them where weights or a curriculum say.

What an epoch has left at its end that does not fill the next batch is left out of it (another share each time), so no batch ever
holds a picture twice.
"""

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from train.draws import SHUFFLE, TURN, Floats, Ints, bits, shuffled

PARTS = 1 << 20
"""Weights are rounded to this share of the largest."""
GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True)
class Growth:
    """The share of the best pictures that an epoch draws from: `start` at step 0, all from step `until` on, linear between."""

    start: float
    until: float

    def share(self, step: int) -> float:
        """Of the epoch that begins with `step`."""
        return min(1.0, self.start + (1 - self.start) * step / max(self.until, 1e-9))


class Walk:
    """The pictures `first` .. `first` + `num` - 1 in the order they are seen."""

    def __init__(self, first: int, num: int, seed: int, before: Callable[[int], int], *, weight: Floats | None = None,
                 rank: Floats | None = None, growth: Growth | None = None) -> None:
        """`before`: how many pairs of this source are seen before a step. `weight` and `rank` are of its pictures."""
        self._first, self._seed, self._before, self._growth = first, seed, before, growth
        self._best = None if growth is None or rank is None else _best_first(rank)
        self._num = num
        self._parts = None if weight is None else np.maximum(1, np.round(weight / weight.max() * PARTS)).astype(np.int64)
        self._begins = [0]
        self._epoch, self._permutation = -1, np.empty(0, np.int64)

    def size(self, step: int) -> int:
        """Pictures of an epoch that begins with `step`."""
        among = self._among(step)
        if self._parts is None:
            return self._num if among is None else len(among)
        return int((self._parts if among is None else self._parts[among]).sum()) // PARTS

    def epoch(self, step: int) -> int:
        """The epoch, from 0, that this source is in at `step`."""
        while self._begins[-1] <= step:
            self._begins.append(self._end(self._begins[-1], step))
        return bisect_right(self._begins, step) - 1

    def pictures(self, step: int) -> Ints:
        """This source's pictures in one step, in their order."""
        epoch = self.epoch(step)
        begin = self._begins[epoch]
        if epoch != self._epoch:
            self._permutation, self._epoch = self._permuted(epoch, begin), epoch
        skipped = self._before(begin)
        return self._permutation[self._before(step) - skipped : self._before(step + 1) - skipped]

    def _end(self, begin: int, step: int) -> int:
        """The first step behind the epoch that begins with `begin`: the last to which its pictures suffice."""
        most, seen = self.size(begin), self._before(begin)
        low, high = begin + 1, begin + 2
        while self._before(high) - seen <= most:
            low, high = high, begin + 2 * (high - begin)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._before(middle) - seen <= most else (low, middle)
        return low

    def _permuted(self, epoch: int, begin: int) -> Ints:
        members = self._members(epoch, begin)
        return members[shuffled(SHUFFLE, self._seed, epoch, members)]

    def _members(self, epoch: int, begin: int) -> Ints:
        """The pictures of one epoch, each once.

        With weights the pictures stand around a circle, each as long as its weight, and points as far apart as the heaviest is
        long pick those of this epoch (systematic sampling); from epoch to epoch they turn by the golden section, so that over
        the epochs each picture comes as often as its weight says.
        """
        among = self._among(begin)
        if self._parts is None:
            return self._first + (np.arange(self._num, dtype=np.int64) if among is None else among)
        numbers = np.arange(self._num, dtype=np.int64) if among is None else among
        numbers = numbers[shuffled(TURN, self._seed, 0, self._first + numbers)]
        ends = np.cumsum(self._parts[numbers])
        total, size = int(ends[-1]), int(ends[-1]) // PARTS
        start = (int(bits(TURN, self._seed, self._first)[0]) + epoch * round(GOLDEN * total)) % total
        points = (start + np.arange(size, dtype=np.int64) * PARTS) % total
        return self._first + np.sort(numbers[np.searchsorted(ends, points, side="right")])

    def _among(self, begin: int) -> Ints | None:
        """The numbers of the pictures, within the source, that an epoch draws from; None for all."""
        share = 1.0 if self._growth is None else self._growth.share(begin)
        if self._best is None or share >= 1:
            return None
        return np.sort(self._best[: round(share * self._num)])


def _best_first(rank: Floats) -> Ints:
    """Pictures from the best to the worst, those without a figure last, ties in their order."""
    return np.argsort(np.where(np.isnan(rank), np.inf, -rank), kind="stable").astype(np.int64)
