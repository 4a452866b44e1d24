"""Random numbers that are pure functions: of a purpose, the seed, and the numbers that name a draw; no state anywhere.

SplitMix64 (Steele, Lea and Flood 2014, section 3); its bits belong to no library's version.
"""

import numpy as np
from numpy.typing import NDArray

UInts = NDArray[np.uint64]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

SHUFFLE, CAPTION, CROP, MODEL, MIX, SLOT, TURN = range(7)
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


def shuffled(purpose: int, seed: int, turn: int, numbers: Ints) -> Ints:
    """The positions of `numbers` in the order of this turn; each number's place depends on no other number."""
    return np.argsort(bits(purpose, seed, turn, numbers), kind="stable").astype(np.int64)


def _mix(value: UInts) -> UInts:
    value = value + np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))
