"""Vectors of half precision in an unnamed file, as many as the disk holds: unit vectors of some, exact cosines of pairs."""

import os
import tempfile

import numpy as np
from numpy.typing import NDArray

from curate.errors import RunStopped
from curate.units import size

Matrix = NDArray[np.float32]
Ints = NDArray[np.int64]

PAIRS = 4096
"""Pairs whose products lie in memory at once."""
SLACK = 2e-5
"""By how much two ways to sum the products of one pair of unit vectors may differ at most (512 products: some 1e-6)."""


class VectorFile:
    """Places 0 to rows - 1, each with a vector of `dims` half-precision numbers, in the folder for temporary files (TMPDIR).

    `squares` holds each vector's squared length, 0 where it has no direction (zero, NaN, infinite). Memory: 16 bytes a vector,
    and what the system keeps of the file while there is room.
    """

    def __init__(self, rows: int, dims: int) -> None:
        self.dims, self.squares = dims, np.zeros(rows, np.float64)
        self._hashes = np.zeros(rows, np.uint64)
        self._factors = np.random.default_rng(0).integers(1 << 63, size=dims, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
        self._half = _mapped(rows, dims)

    def put(self, places: Ints, vectors: NDArray[np.float16]) -> None:
        """Write vectors at their places; a minus zero becomes a zero, so that equal vectors have equal bytes."""
        for start in range(0, len(places), PAIRS):
            part, at = vectors[start : start + PAIRS] + np.float16(0), places[start : start + PAIRS]
            with np.errstate(invalid="ignore", over="ignore"):
                squares = _sum_of_products(part, part)
            self.squares[at] = np.where(np.isfinite(squares), squares, 0)
            self._hashes[at] = (part.view(np.uint16) * self._factors).sum(axis=1, dtype=np.uint64)
            self._half[at] = part

    def first_equal(self) -> Ints:
        """For each place the first one with the same bytes: its own where there is none before it."""
        _, first, group = np.unique(self._hashes, return_index=True, return_inverse=True)
        leader = first[group]
        again = np.flatnonzero(leader != np.arange(len(leader)))
        for start in range(0, len(again), PAIRS):
            part = again[start : start + PAIRS]
            wrong = (self.stored(part).view(np.uint16) != self.stored(leader[part]).view(np.uint16)).any(axis=1)
            leader[part[wrong]] = part[wrong]
        return leader

    def stored(self, places: Ints) -> NDArray[np.float16]:
        """The vectors as they lie there, (places, dims)."""
        return np.asarray(self._half[places])

    def unit(self, places: Ints) -> Matrix:
        """The vectors at places with a direction, scaled to length 1 in single precision."""
        wide = self.stored(places).astype(np.float32)
        wide /= np.sqrt(self.squares[places]).astype(np.float32)[:, None]
        return wide

    def cosines(self, one: Ints, other: Ints) -> Matrix:
        """Of each pair of places, -1 to 1: the exact products summed in double precision in one order, then rounded once.

        So a pair has the same bits whatever else is compared with it, in whatever block or thread.
        """
        found = np.empty(len(one), np.float32)
        for start in range(0, len(one), PAIRS):
            part = slice(start, start + PAIRS)
            found[part] = cosines(self.stored(one[part]), self.stored(other[part]))
        return found


def cosines(one: NDArray[np.float16], other: NDArray[np.float16]) -> Matrix:
    """Of each pair of rows, both with a direction: see `VectorFile.cosines`."""
    squares = _sum_of_products(one, one) * _sum_of_products(other, other)
    found: Matrix = np.clip(_sum_of_products(one, other) / np.sqrt(squares), -1, 1).astype(np.float32)
    return found


def _mapped(rows: int, dims: int) -> NDArray[np.float16]:
    """An unnamed file as an array. Its whole length is reserved now: a disk that is full later would kill the process."""
    num_bytes = 2 * rows * dims
    with tempfile.TemporaryFile(prefix="curate-") as file:
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, num_bytes)
        except OSError as error:
            raise RunStopped(f"{size(num_bytes)} of vectors do not fit into {tempfile.gettempdir()} ({error.strerror}); "
                             "let TMPDIR name a larger folder") from error
        return np.memmap(file, np.float16, "w+", shape=(rows, dims))


def _sum_of_products(one: NDArray[np.float16], other: NDArray[np.float16]) -> NDArray[np.float64]:
    summed: NDArray[np.float64] = (one.astype(np.float64) * other.astype(np.float64)).sum(axis=1)
    return summed
