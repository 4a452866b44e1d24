"""How many words of a caption stand in a list of the user's: a vocabulary, or names of things one wants to see."""

from typing import Annotated

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import Field

from curate.captions.words import folded, read_list, words_of
from curate.errors import UserError
from curate.step import File, int32, step


@step(adds={"num_list_words": int32, "num_unlisted_words": int32}, batch=10_000)
class WordList:
    """How many words of the caption, counted as often as they stand there, are in a list and how many are not; 0 or more.

    The list has one word a line, or a word, a tab and how often it occurs elsewhere: then only those with min_count or more are
    in it. Words are compared in lower case without ASCII punctuation at their ends; a listed form is found, other forms
    (plurals) are not.

    DataComp's text based filter (baselines/apply_filter.py) keeps a caption with a word whose first WordNet synset is in
    ImageNet-21k: list those words, `keep: num_list_words >= 1`. CC3M (ACL P18-1238, section 3) drops a text with a word that
    occurs less than 5 times in English Wikipedia, CC12M (arXiv 2102.08981) less than 20 times: a list with counts,
    `keep: num_unlisted_words = 0`. How words are cut is our choice. `rare_words` takes the counts from the captions themselves.
    """

    def __init__(self, *, words: File, min_count: Annotated[int, Field(ge=1)] = 1) -> None:
        chosen = []
        for where, line in read_list("word_list", words):
            word, _, count = line.partition("\t")
            if count and not count.strip().isdecimal():
                raise UserError(f"'{count}' is no count; a line is a word, or a word, a tab and a count", where)
            if len(word.split()) > 1:
                raise UserError(f"'{word}' is more than one word; concept_match finds phrases", where)
            if not count or int(count) >= min_count:
                chosen.append(word)
        self._words = pc.unique(folded(pa.array(chosen, pa.string())))

    def __call__(self, caption: pa.Array) -> dict[str, NDArray[np.int64]]:
        row, kind, kinds = words_of(caption)
        is_listed = pc.is_in(kinds, self._words).to_numpy(zero_copy_only=False)[kind]
        return {name: np.bincount(row[where], minlength=len(caption))
                for name, where in (("num_list_words", is_listed), ("num_unlisted_words", ~is_listed))}
