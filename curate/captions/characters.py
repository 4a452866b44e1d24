"""What the characters of many texts are, all at once: letters, capitals, white space; and where in them words begin.

The rules are those of Python's `str` (isupper, islower, isalnum, isspace); each code point is asked once a process.
"""

import sys
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

SPACE, UPPER, LOWER, ALNUM, SEEN = 1, 2, 4, 8, 16
CHARS_AT_ONCE = 4_000_000
"""Above this a batch is done in halves: some 20 bytes of memory a character."""
_kind_of_code = np.zeros(sys.maxunicode + 1, np.uint8)
"""What each code point is, a sum of the above; 0 before it was met for the first time."""


class Characters(NamedTuple):
    """The characters of many texts, one text behind the other."""

    kinds: NDArray[np.uint8]
    """of each character: SPACE, UPPER (title case too), LOWER, ALNUM (letters and digits), or their sums, and SEEN"""
    bounds: NDArray[np.int64]
    """where in `kinds` each text begins, and where the last one ends"""
    data: bytes
    """the texts themselves, as UTF-8"""


def characters(texts: pa.Array) -> Characters:
    """The characters of texts, none of which is null."""
    data, offsets = _data(texts)
    if data.isascii():
        return Characters(np.frombuffer(data.translate(_ASCII), np.uint8), offsets, data)
    bounds = np.concatenate([[0], np.cumsum(pc.utf8_length(texts).to_numpy(zero_copy_only=False), dtype=np.int64)])
    return Characters(_kinds(np.frombuffer(data.decode().encode("utf-32-le"), np.uint32)), bounds, data)


def word_starts(texts: pa.Array) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """At which byte each word begins, counted from the first text's first; and how many words each text has.

    A word is what white space separates, as in `str.split`.
    """
    offsets = _data(texts)[1]
    if len(texts) > 1 and offsets[-1] > CHARS_AT_ONCE:
        half = len(texts) // 2
        (first, few), (second, many) = word_starts(texts[:half]), word_starts(texts[half:])
        return np.concatenate([first, second + offsets[half]]), np.concatenate([few, many])
    found = characters(texts)
    starts = first_of_words(found)
    counts = np.diff(np.searchsorted(starts, found.bounds))
    if len(found.kinds) < len(found.data):
        starts = np.flatnonzero((np.frombuffer(found.data, np.uint8) & 0xC0) != 0x80)[starts]   # of a character's bytes the first
    return starts, counts


def first_of_words(found: Characters) -> NDArray[np.int64]:
    """The characters at which words begin."""
    space, heads = (found.kinds & SPACE).view(np.bool_), found.bounds[:-1]
    begins = np.ones(len(space), np.bool_)
    begins[1:] = space[:-1]
    begins[heads[heads < len(space)]] = True
    return np.flatnonzero(begins > space)


def _data(texts: pa.Array) -> tuple[bytes, NDArray[np.int64]]:
    """The UTF-8 of texts, one behind the other, and where in it each begins, and the end."""
    if not len(texts):
        return b"", np.zeros(1, np.int64)
    _, ends, data = texts.buffers()
    offsets = np.frombuffer(ends, np.int32)[texts.offset : texts.offset + len(texts) + 1].astype(np.int64)
    first, last = int(offsets[0]), int(offsets[-1])
    return data.slice(first, last - first).to_pybytes() if data is not None else b"", offsets - first


def _kinds(codes: NDArray[np.uint32]) -> NDArray[np.uint8]:
    kinds: NDArray[np.uint8] = np.take(_kind_of_code, codes)
    if not kinds.all():
        for code in np.unique(codes[kinds == 0]).tolist():
            _kind_of_code[code] = _kind(chr(code))
        kinds = np.take(_kind_of_code, codes)
    return kinds


def _kind(char: str) -> int:
    is_upper = char.isupper() or char.istitle()
    return SEEN | SPACE * char.isspace() | UPPER * is_upper | LOWER * char.islower() | ALNUM * char.isalnum()


_kind_of_code[:128] = [_kind(chr(code)) for code in range(128)]
_ASCII = _kind_of_code[:256].tobytes()
