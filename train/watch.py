"""A watch over the loss: a batch whose loss is no number, or far above what was usual, is not learnt from.

A suspect batch ends the attempt before the optimizer moves. Its pictures go into OUT/suspects.jsonl, the training goes on from
its last checkpoint, and the batch is passed over: its step is there, without learning. What was passed over is read from that
file, so a training that is killed goes on as one that was not. A learning rate that is too high makes one batch after the other
suspect; `rollbacks` bounds that.
"""

import math
from collections import deque
from collections.abc import Sequence
from statistics import median

from train.choices import Spike

MAD_TO_DEVIATION = 1.4826
"""Of a normal distribution, the standard deviation by the median absolute deviation."""
LEAST_DEVIATION = 0.01
"""Share of the median that counts as a deviation at least, so that a loss that hardly moves has no spikes. Ours."""


class Suspect(Exception):
    """The batch of this step, from 0, is not to be learnt from."""

    def __init__(self, step: int, reason: str) -> None:
        super().__init__(reason)
        self.step, self.reason = step, reason


class Watch:
    """What is usual of the loss so far, and whether a new one is."""

    def __init__(self, spike: Spike | None, losses: Sequence[float] = ()) -> None:
        """`losses`: the last ones, as `state` of a checkpoint has them."""
        self._spike = spike
        self._losses = deque(losses, maxlen=spike.window if spike else 0)

    @property
    def state(self) -> dict[str, list[float]]:
        """What a checkpoint's card says of it: the losses that the next one will be compared with, if any will be."""
        return {"losses": list(self._losses)} if self._spike else {}

    def check(self, step: int, loss: float, grad_norm: float) -> None:
        """Take in the loss of a batch. Raises Suspect where loss or gradient is no number, or the loss a spike."""
        if not math.isfinite(loss):
            raise Suspect(step, f"the loss is {loss}")
        if not math.isfinite(grad_norm):
            raise Suspect(step, f"the gradient's norm is {grad_norm}")
        if self._spike is not None and len(self._losses) == self._spike.window:
            z = robust_z(loss, self._losses)
            if z > self._spike.z:
                raise Suspect(step, f"the loss is {loss:.4g}, {z:.1f} deviations above the last {self._spike.window}")
        self._losses.append(loss)


def robust_z(value: float, others: Sequence[float]) -> float:
    """Deviations of `value` above the median of `others`; a deviation is 1.4826 times their median distance from it, and at
    least a hundredth of it."""
    middle = median(others)
    deviation = MAD_TO_DEVIATION * median(abs(other - middle) for other in others)
    return (value - middle) / max(deviation, LEAST_DEVIATION * abs(middle), 1e-12)
