"""Whether a caption is built like a sentence: determiner, noun, preposition, and how many of its words are nouns."""

import json
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import AfterValidator

from curate import spacy_models
from curate.step import bool_, float64, int32, step
from curate.words import words_of

ADDS = {"has_determiner": bool_, "has_noun": bool_, "has_preposition": bool_, "noun_ratio": float64, "num_nouns": int32,
        "num_proper_nouns": int32}
STAND_IN = "stand_in"
Tagger = Annotated[str, AfterValidator(lambda value: spacy_models.checked(value, STAND_IN))]
NONE, WORD, DETERMINER, PREPOSITION, NOUN, PROPER = range(6)
OF_SPACY = {"DET": DETERMINER, "ADP": PREPOSITION, "NOUN": NOUN, "PROPN": PROPER, "PUNCT": NONE, "SPACE": NONE, "SYM": NONE}
NO_NOUN = r"(?:\pL(?:ly|ous|ful|less|able|ible|ish|ical)|[^aeiou]ed|i[sz]ed|\pL\pLing|\pL\pLest|\pL\pL\pLive)$"
"""Endings of adverbs, adjectives, participles; our choice."""


@step(adds=ADDS, batch=10_000)
class CaptionTags:
    """Whether the caption has a determiner, a noun, a preposition; the share of nouns among its words, 0 to 1, and how many.

    CC3M (ACL P18-1238, section 3) drops a text without any one of the three, or with a high noun ratio (no number is given);
    CC12M (arXiv 2102.08981) one without a noun or without a determiner; COYO-700M (README) one without a noun. Proper nouns are
    nouns. English only: keep lang = 'en' first.

    `tagger: stand_in`, the default, is no part-of-speech tagger and reads no context. Determiners, prepositions and other closed
    classes are lists (caption_tags_words.json, which names its sources); any other word of letters is a noun unless its ending
    or a short list of ours says adjective, adverb or verb; a capital after the first word makes it a proper noun. One
    reader, who saw its answers, found the three right in all of 50 random alt texts of LAION-400M, and about 9 of 10 words
    rightly nouns or not: a rough check, no measurement against tagged text.
    `tagger: spacy:en_core_web_sm`, or another model of spaCy's by name or folder, is a real tagger (DET, ADP, NOUN, PROPN). A
    run's card names the tagger among the settings of the step.
    """

    def __init__(self, *, tagger: Tagger = STAND_IN) -> None:
        words = json.loads((Path(__file__).parent / "caption_tags_words.json").read_text())
        classes = (("noun", NOUN), ("other", WORD), ("preposition", PREPOSITION), ("determiner", DETERMINER))
        closed = {word: kind for name, kind in classes for word in words[name].split()}
        self._words, self._classes = pa.array(closed), list(closed.values())
        self._spacy = None if tagger == STAND_IN else spacy_models.load(tagger, "caption_tags", ["ner", "parser", "lemmatizer"])

    def __call__(self, caption: pa.Array) -> dict[str, NDArray[np.generic]]:
        row, tag = self._by_lists(caption) if self._spacy is None else self._by_spacy(caption.to_pylist())
        counts = [np.bincount(row[tag == kind], minlength=len(caption)) for kind in range(6)]
        nouns = counts[NOUN] + counts[PROPER]
        return {"has_determiner": counts[DETERMINER] > 0, "has_noun": nouns > 0, "has_preposition": counts[PREPOSITION] > 0,
                "noun_ratio": nouns / np.maximum(sum(counts[WORD:]), 1), "num_nouns": nouns, "num_proper_nouns": counts[PROPER]}

    def _by_lists(self, caption: pa.Array) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        row, kind, kinds = words_of(caption, lower=False)
        low = pc.utf8_lower(kinds)
        letters = _true(pc.match_substring_regex(kinds, r"\p{L}")) & ~_true(pc.match_substring_regex(kinds, r"\p{N}"))
        open_noun = letters & ~_true(pc.match_substring_regex(low, NO_NOUN))
        guess = np.where(open_noun, np.where(_true(pc.match_substring_regex(kinds, r"^\p{Lu}")), PROPER, NOUN), WORD)
        listed = pc.fill_null(pc.index_in(low, self._words), len(self._words)).to_numpy()
        of_list = np.array([*self._classes, NONE])[listed]
        tag = np.where(of_list == NONE, guess, of_list)[kind]
        is_first = np.diff(row, prepend=-1) > 0
        return row, np.where(is_first & (tag == PROPER), NOUN, tag)

    def _by_spacy(self, captions: list[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        assert self._spacy is not None
        tags = [[OF_SPACY.get(token.pos_, WORD) for token in doc] for doc in self._spacy.pipe(captions)]
        row = np.repeat(np.arange(len(tags)), [len(t) for t in tags])
        return row, np.array([t for line in tags for t in line], np.int64)


def _true(mask: pa.Array) -> NDArray[np.bool_]:
    values: NDArray[np.bool_] = mask.to_numpy(zero_copy_only=False)
    return values
