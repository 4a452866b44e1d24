"""How fast a training is and where the time goes: samples a second, the part of it spent waiting for data, and of the device's
arithmetic the part that was used."""

import time
from collections.abc import Iterator
from typing import NamedTuple, TypeVar

from train.flops import Cost

T = TypeVar("T")


class Arithmetic(NamedTuple):
    """What `mfu` and `hfu` are parts of."""

    cost: Cost | None
    peak: float | None
    """operations a second, of all processes' devices together"""
    forwards: int
    """how often a pair goes forward: once, and again for gradient caching and for checkpointed activations"""

    def used(self, samples_per_second: float) -> dict[str, float | None]:
        """mfu: operations that the model needs, by those the device could do, 0 to 1 (as PaLM counts, Chowdhery et al. 2022,
        arXiv 2204.02311, appendix B). hfu: with those done twice to save memory. null where cost or peak is not known."""
        if self.cost is None or not self.peak:
            return {"mfu": None, "hfu": None}
        needed, share = self.cost.forward + self.cost.backward, samples_per_second / self.peak
        return {"mfu": needed * share, "hfu": (needed + (self.forwards - 1) * self.cost.forward) * share}


class Clock:
    """Samples a second since the start, the first steps (which warm caches) not counted once there are more."""

    WARM = 3

    def __init__(self, first: int, batch: int, arithmetic: Arithmetic) -> None:
        self._from, self._batch, self._since = first, batch, time.perf_counter()
        self._arithmetic = arithmetic
        self._waited, self._asked = 0.0, self._since

    def rate(self, done: int) -> float:
        """Samples a second, `done` steps being done."""
        now = time.perf_counter()
        found = (done - self._from) * self._batch / max(1e-9, now - self._since)
        if done - self._from == self.WARM and self._from >= 0:
            self._from, self._since = done, now
        return found

    def watched(self, batches: Iterator[T]) -> Iterator[T]:
        """The same batches; how long each was waited for is remembered."""
        while True:
            start = time.perf_counter()
            batch = next(batches, None)
            self._waited += time.perf_counter() - start
            if batch is None:
                return
            yield batch

    def since_asked(self, samples_per_second: float) -> dict[str, float | None]:
        """data_wait: share of the time since the last asking that went into waiting for batches, 0 to 1; mfu and hfu."""
        now = time.perf_counter()
        waited = self._waited / max(1e-9, now - self._asked)
        self._waited, self._asked = 0.0, now
        return {"data_wait": waited, **self._arithmetic.used(samples_per_second)}
