"""How much a caption repeats itself: keyword spam, "sale sale sale", menus."""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from curate.captions.words import words_of
from curate.step import float64, step

Int64s = NDArray[np.int64]
KEY_LIMIT = 2**63
ADDS = {"unique_word_ratio": float64, "repeated_word_share": float64, "repeated_bigram_share": float64, "max_word_share": float64}


@step(adds=ADDS, batch=10_000)
def caption_repetition(caption: pa.Array) -> dict[str, NDArray[np.float64]]:
    """How far the words of a caption repeat, as shares from 0 (no word twice) to 1; unique_word_ratio falls as they rise.

    unique_word_ratio      different words / words
    repeated_word_share    occurrences of words that occur more than once / words
    repeated_bigram_share  the same over pairs of neighbouring words
    max_word_share         occurrences of the most frequent word / words

    Words: split at Unicode whitespace, lower case, ASCII punctuation stripped from both ends, empty ones left out. 0 where
    there is nothing to count. The bigram share is what data-juicer's word_repetition_filter measures with rep_len 2. CC12M
    (arXiv 2102.08981) keeps a word repetition of at most 0.2, CC3M (ACL P18-1238, section 3) a "high unique-word ratio" and no
    "high rate of token repetition", both without a number; how they count words is not printed, so all four are our reading.
    """
    row, word, distinct_words = words_of(caption)
    kinds = max(len(distinct_words), 1)
    if len(caption) > 1 and len(caption) * kinds**2 > KEY_LIMIT:  # too many different words for one number a bigram
        halves = [caption_repetition(half) for half in (caption[: len(caption) // 2], caption[len(caption) // 2 :])]
        return {name: np.concatenate([half[name] for half in halves]) for name in ADDS}
    total, distinct, repeated, most = _counts(row, word, kinds, len(caption))
    may_repeat = repeated[row] > 0  # in a text whose words all differ no bigram comes again
    some_row, some_word = row[may_repeat], word[may_repeat]
    inside = some_row[1:] == some_row[:-1]
    bigram = (some_word[:-1] * kinds + some_word[1:])[inside]
    _, _, repeated_bigrams, _ = _counts(some_row[1:][inside], bigram, kinds**2, len(caption))
    bigrams = np.maximum(total - 1, 1)
    return {"unique_word_ratio": distinct / total, "repeated_word_share": repeated / total,
            "repeated_bigram_share": repeated_bigrams / bigrams, "max_word_share": most / total}


def _counts(row: Int64s, what: Int64s, kinds: int, rows: int) -> tuple[Int64s, Int64s, Int64s, Int64s]:
    """Per row: occurrences (1 for none, to divide by), different ones, occurrences of what occurs again, of the most frequent."""
    keys = np.sort(row * kinds + what)
    begins = np.flatnonzero(np.diff(keys, prepend=-1))
    times = np.diff(begins, append=len(keys))
    row_of = keys[begins] // kinds
    most = np.zeros(rows, np.int64)
    np.maximum.at(most, row_of, times)
    distinct = np.bincount(row_of, minlength=rows)
    twice = times > 1
    repeated = np.bincount(row_of[twice], weights=times[twice], minlength=rows).astype(np.int64)
    return np.maximum(np.bincount(row, minlength=rows), 1), distinct, repeated, most

