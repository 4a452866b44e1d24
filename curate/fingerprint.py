"""What two pictures that look alike have in common: a hash of their coarse structure, and a copy of a few pixels."""

from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image, Resampling

SIDE, KEPT = 32, 8
THUMB = 4
SCALE = 2**20


def phash(picture: Image) -> str:
    """64 bits as 16 hex digits: which of the 8x8 lowest frequencies of a 32x32 grey copy lie above their median.

    In whole numbers, so that the same picture gives the same bits on every machine, a plain one too.
    """
    grey = np.asarray(picture.convert("L").resize((SIDE, SIDE), Resampling.LANCZOS), np.int64)
    low = (_cosines() @ grey @ _cosines().T).ravel()
    middle = np.sort(low)[KEPT * KEPT // 2 - 1 : KEPT * KEPT // 2 + 1].sum()
    return np.packbits(2 * low > middle).tobytes().hex()


@cache
def _cosines() -> NDArray[np.int64]:
    """The first 8 rows of a cosine transform of 32 values, in units of 2^-20: rows 1 and up add up to exactly 0."""
    at, frequency = np.arange(SIDE), np.arange(KEPT)[:, None]
    exact: NDArray[np.float64] = SCALE * np.cos(np.pi * (2 * at + 1) * frequency / (2 * SIDE))
    return np.rint(exact).astype(np.int64)


def thumb(picture: Image) -> str:
    """A 4x4 copy as 96 hex digits: 2 a byte, rows from the top, red, green, blue."""
    return picture.resize((THUMB, THUMB), Resampling.BOX).tobytes().hex()
