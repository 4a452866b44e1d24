"""Which letters of a caption are capitals: shouting, headlines, and what is no text at all."""

import sys

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from curate.step import bool_, float64, step

UPPER, LOWER, ALNUM, SPACE, SEEN = 1, 2, 4, 8, 16
CHARS_AT_ONCE = 4_000_000
_kind_of_code = np.zeros(sys.maxunicode + 1, np.uint8)
"""What each code point is, a sum of the above; 0 before it was met for the first time."""


@step(adds={"upper_ratio": float64, "first_upper": bool_, "capital_word_ratio": float64, "alnum_ratio": float64}, batch=10_000)
def caption_case(caption: pa.Array) -> dict[str, NDArray[np.generic]]:
    """Shares of capitals, capitalised words, letters and digits in the caption, 0 to 1, and whether it begins with a capital.

    upper_ratio         capitals among the letters that have case
    first_upper         whether the first letter or digit is a capital; false in scripts without capitals
    capital_word_ratio  words that begin with a capital among those that begin with a letter that has case
    alnum_ratio         letters and digits among all characters; spaces and combining marks are neither

    A word is a run of anything but whitespace and begins at its first letter or digit; 0 where there is nothing to count. CC3M
    (ACL P18-1238, section 3) drops a text whose first word is not capitalised or whose ratio of capitalised words is too high,
    without a number. upper_ratio and alnum_ratio are our choice.
    """
    rows = len(caption)
    num_chars = pc.utf8_length(caption).to_numpy(zero_copy_only=False)
    if rows > 1 and num_chars.sum() > CHARS_AT_ONCE:
        halves = [caption_case(half) for half in (caption[: rows // 2], caption[rows // 2 :])]
        return {name: np.concatenate([half[name] for half in halves]) for name in halves[0]}
    row = np.repeat(np.arange(rows), num_chars)
    upper, lower, alnum, space = _kinds("".join(caption.to_pylist()))

    def count(where: NDArray[np.generic]) -> NDArray[np.int64]:
        return np.bincount(row[where], minlength=rows)

    begins_row = np.diff(row, prepend=-1) > 0
    word = np.cumsum(space | begins_row)
    solid = np.flatnonzero(alnum)
    initial = solid[np.diff(word[solid], prepend=-1) > 0]
    first = initial[np.diff(row[initial], prepend=-1) > 0]
    first_upper = np.zeros(rows, bool)
    first_upper[row[first]] = upper[first]
    cased = upper | lower
    return {"upper_ratio": _share(count(upper), count(cased)), "first_upper": first_upper,
            "capital_word_ratio": _share(count(initial[upper[initial]]), count(initial[cased[initial]])),
            "alnum_ratio": _share(count(solid), num_chars)}


def _share(part: NDArray[np.int64], of: NDArray[np.int64]) -> NDArray[np.float64]:
    return part / np.maximum(of, 1)


def _kinds(text: str) -> tuple[NDArray[np.bool_], ...]:
    """Masks over the characters of a text: upper or title case, lower case, letter or digit, whitespace."""
    codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    kinds = _kind_of_code[codes]
    for code in np.unique(codes[kinds == 0]).tolist():
        char = chr(code)
        is_upper = char.isupper() or char.istitle()
        _kind_of_code[code] = SEEN | UPPER * is_upper | LOWER * char.islower() | ALNUM * char.isalnum() | SPACE * char.isspace()
    if not kinds.all():
        kinds = _kind_of_code[codes]
    return tuple((kinds & kind) != 0 for kind in (UPPER, LOWER, ALNUM, SPACE))
