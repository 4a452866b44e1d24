"""Which picture, which caption and which crop come when: pure functions of seed, epoch and position, nothing else.

No random state is kept anywhere. So a killed training goes on with the very same samples, whatever the number of processes and
of loader threads, and two trainings with one seed see the same. Randomness is SplitMix64 (Steele, Lea and Flood 2014, section
3) over the numbers that name a draw; its bits belong to no library's version.
"""

import numpy as np
from numpy.typing import NDArray

UInts = NDArray[np.uint64]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

SHUFFLE, CAPTION, CROP, MODEL = range(4)
"""What a draw is for: each purpose has numbers of its own."""


def bits(purpose: int, seed: int, *parts: int | Ints | UInts) -> UInts:
    """64 random bits for each combination of the broadcast `parts`."""
    state = _mix(np.array([purpose + 1], np.uint64) * np.uint64(1 << 32) + np.uint64(seed & 0xFFFFFFFF))
    for part in parts:
        state = _mix(state ^ _mix(np.atleast_1d(np.asarray(part)).astype(np.uint64)))
    return state


def uniform(purpose: int, seed: int, *parts: int | Ints | UInts) -> Floats:
    """Numbers in [0, 1) with 53 random bits."""
    return (bits(purpose, seed, *parts) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(value: UInts) -> UInts:
    value = value + np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


class Order:
    """The batches of a training over `num_pictures` pictures: every epoch a new permutation, cut into whole batches.

    What does not fill a batch at an epoch's end is left out of that epoch (another share each time), so no batch ever holds
    a picture twice.
    """

    def __init__(self, num_pictures: int, batch: int, seed: int) -> None:
        self.num_pictures, self.batch, self.seed = num_pictures, batch, seed
        self.steps_per_epoch = num_pictures // batch
        self._epoch, self._permutation = -1, np.empty(0, np.int64)

    def epoch(self, step: int) -> int:
        """The epoch, from 0, that `step`, from 0, belongs to."""
        return step // self.steps_per_epoch

    def pictures(self, step: int) -> Ints:
        """The pictures of one step's batch, (batch,)."""
        epoch, at = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._permutation = permutation(self.num_pictures, self.seed, epoch)
            self._epoch = epoch
        return self._permutation[at * self.batch : (at + 1) * self.batch]

    def crops(self, step: int) -> Floats:
        """The random numbers of one step's crops, (batch, 5) in [0, 1): area, shape, left, top, flip."""
        slots = np.arange(self.batch, dtype=np.int64)[:, None]
        return uniform(CROP, self.seed, step, slots, np.arange(5, dtype=np.int64)[None])

    def model_seed(self, step: int, rank: int) -> int:
        """The seed of the model's own randomness (dropout) at one step on one rank."""
        return int(bits(MODEL, self.seed, step, rank)[0] >> np.uint64(1))


def permutation(num: int, seed: int, epoch: int) -> Ints:
    """0 .. num-1 in the order of this epoch."""
    return np.argsort(bits(SHUFFLE, seed, epoch, np.arange(num, dtype=np.int64)), kind="stable").astype(np.int64)


def caption_of(pictures: Ints, first: Ints, seed: int, epoch: int) -> Ints:
    """Which caption each of `pictures` shows in this epoch: its captions take turns, from a random one on.

    `first` (num_pictures + 1,): the captions of picture i are first[i] .. first[i + 1] - 1.
    """
    counts = first[pictures + 1] - first[pictures]
    start = (bits(CAPTION, seed, pictures) >> np.uint64(1)).astype(np.int64)
    return np.asarray(first[pictures] + (start % counts + epoch) % counts, np.int64)
