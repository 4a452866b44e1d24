"""Which letters of a caption are capitals: shouting, headlines, and what is no text at all."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from curate.captions.characters import ALNUM, CHARS_AT_ONCE, LOWER, UPPER, characters, first_of_words
from curate.step import bool_, float64, step


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
    found = characters(caption)
    bounds = found.bounds
    upper, lower, alnum = ((found.kinds & kind) != 0 for kind in (UPPER, LOWER, ALNUM))
    initial = _initials(alnum, first_of_words(found))
    first = np.searchsorted(initial, bounds)
    has_word = first[1:] > first[:-1]
    first_upper = np.zeros(rows, bool)
    first_upper[has_word] = upper[initial[first[:-1][has_word]]]
    cased = upper | lower
    capitals, cased_initials = (np.diff(np.searchsorted(initial[mask[initial]], bounds)) for mask in (upper, cased))
    return {"upper_ratio": _share(_count(upper, bounds), _count(cased, bounds)), "first_upper": first_upper,
            "capital_word_ratio": _share(capitals, cased_initials), "alnum_ratio": _share(_count(alnum, bounds), num_chars)}


def _initials(alnum: NDArray[np.bool_], starts: NDArray[np.int64]) -> NDArray[np.int64]:
    """The first letter or digit of each word that has one."""
    odd = np.flatnonzero(~alnum[starts])
    if not len(odd):
        return starts
    letters = np.append(np.flatnonzero(alnum), len(alnum))
    initial, ends = starts.copy(), np.append(starts[1:], len(alnum))
    initial[odd] = letters[np.searchsorted(letters[:-1], starts[odd])]
    return initial[initial < ends]


def _share(part: NDArray[np.int64], of: NDArray[np.int64]) -> NDArray[np.float64]:
    return part / np.maximum(of, 1)


def _count(mask: NDArray[np.bool_], bounds: NDArray[np.int64]) -> NDArray[np.int64]:
    """How often the mask is true between each bound and the next."""
    counts = np.zeros(len(bounds) - 1, np.int64)
    filled = bounds[1:] > bounds[:-1]
    if filled.any():
        counts[filled] = np.add.reduceat(mask.view(np.uint8), bounds[:-1][filled], dtype=np.int32)
    return counts
