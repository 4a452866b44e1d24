"""Which source each pair of a batch comes from: shares of the pairs seen, in closed form, so that a step needs no step before."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import numpy as np

from train.draws import MIX, Ints, shuffled

MOST_PARTS = 1000
"""Shares without a smaller common denominator are rounded to thousandths."""


@dataclass(frozen=True)
class Mix:
    """How many pairs each source has given before each step."""

    parts: tuple[int, ...]
    """of each source, in parts of their sum"""
    batch: int
    seed: int
    whole: bool = False
    """a batch is of one source: `mix: batch`"""

    def before(self, step: int) -> Ints:
        """(num_sources,): pairs of each source in all steps before `step`.

        Pairs mixed in a batch: the rounded share of all pairs up to here, so never one off. Whole batches: every sum(parts)
        steps each source has as many as it has parts, shuffled.
        """
        if not self.whole:
            edges = [step * self.batch * edge // sum(self.parts) for edge in np.cumsum([0, *self.parts]).tolist()]
            return np.array(edges[1:], np.int64) - np.array(edges[:-1], np.int64)
        cycle, at = divmod(step, sum(self.parts))
        counts = np.array(self.parts, np.int64) * cycle
        if at:
            counts += np.bincount(_cycle(self.parts, self.seed, cycle)[:at], minlength=len(self.parts))
        return counts * self.batch

    def most(self, source: int) -> int:
        """Pairs of one source in a step, at most."""
        if self.whole or len(self.parts) == 1:
            return self.batch
        return min(self.batch, math.ceil(self.batch * self.parts[source] / sum(self.parts)) + 1)

    def least(self, source: int) -> float:
        """Pairs of one source in a step, in the mean."""
        return self.batch * self.parts[source] / sum(self.parts)


def whole_parts(shares: Sequence[float]) -> tuple[int, ...]:
    """The smallest whole numbers that are as `shares` are, or thousandths, each source at least one."""
    exact = [Fraction(str(share)) for share in shares]
    total = sum(exact)
    unit = math.lcm(*((share / total).denominator for share in exact))
    if unit <= MOST_PARTS:
        return tuple(int(share / total * unit) for share in exact)
    return tuple(max(1, round(share / total * MOST_PARTS)) for share in exact)


@lru_cache(maxsize=8)
def _cycle(parts: tuple[int, ...], seed: int, cycle: int) -> Ints:
    """The sources of the steps of one cycle."""
    sources = np.repeat(np.arange(len(parts), dtype=np.int64), parts)
    return sources[shuffled(MIX, seed, cycle, np.arange(len(sources), dtype=np.int64))]
