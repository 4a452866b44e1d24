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
    bounds = np.concatenate([[0], np.cumsum(num_chars, dtype=np.int64)])
    upper, lower, alnum, space = _kinds(caption)
    begins_row = np.zeros(len(alnum) + 1, bool)
    begins_row[bounds] = True
    begins_row = begins_row[:-1]
    begins_run = np.flatnonzero(alnum & ~(np.concatenate([[False], alnum[:-1]]) & ~begins_row))
    word = np.cumsum(space | begins_row, dtype=np.int32)
    initial = begins_run[np.diff(word[begins_run], prepend=-1) > 0]
    first = np.searchsorted(initial, bounds)
    has_word = first[1:] > first[:-1]
    first_upper = np.zeros(rows, bool)
    first_upper[has_word] = upper[initial[first[:-1][has_word]]]
    cased = upper | lower
    capitals, cased_initials = (np.diff(np.searchsorted(initial[mask[initial]], bounds)) for mask in (upper, cased))
    return {"upper_ratio": _share(_count(upper, bounds), _count(cased, bounds)), "first_upper": first_upper,
            "capital_word_ratio": _share(capitals, cased_initials), "alnum_ratio": _share(_count(alnum, bounds), num_chars)}


def _share(part: NDArray[np.int64], of: NDArray[np.int64]) -> NDArray[np.float64]:
    return part / np.maximum(of, 1)


def _count(mask: NDArray[np.bool_], bounds: NDArray[np.int64]) -> NDArray[np.int64]:
    """How often the mask is true between each bound and the next."""
    return np.diff(np.concatenate([[0], np.cumsum(mask, dtype=np.int32)])[bounds])


def _kinds(caption: pa.Array) -> tuple[NDArray[np.bool_], ...]:
    """Masks over the characters of all captions: upper or title case, lower case, letter or digit, whitespace."""
    _, ends, data = caption.buffers()
    ends = np.frombuffer(ends, np.int32)[caption.offset : caption.offset + len(caption) + 1] if len(caption) else np.zeros(1, int)
    text = bytes(data)[ends[0] : ends[-1]] if data is not None else b""
    codes = np.frombuffer(text, np.uint8) if text.isascii() else np.frombuffer(text.decode().encode("utf-32-le"), np.uint32)
    kinds = np.take(_kind_of_code, codes)
    for code in np.unique(codes[kinds == 0]).tolist():
        char = chr(code)
        is_upper = char.isupper() or char.istitle()
        _kind_of_code[code] = SEEN | UPPER * is_upper | LOWER * char.islower() | ALNUM * char.isalnum() | SPACE * char.isspace()
    if not kinds.all():
        kinds = np.take(_kind_of_code, codes)
    return tuple((kinds & kind) != 0 for kind in (UPPER, LOWER, ALNUM, SPACE))
