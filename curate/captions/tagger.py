"""Which kind each word of a caption is: by lists that stand in for a tagger, or by a model of spaCy's."""

import json
import re
import string
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import AfterValidator

from curate.captions import spacy_models
from curate.captions.words import words_of

STAND_IN = "stand_in"
Tagger = Annotated[str, AfterValidator(lambda value: spacy_models.checked(value, STAND_IN))]
"""A step's setting: `stand_in`, or `spacy:MODEL`."""
NONE, WORD, DETERMINER, PREPOSITION, NOUN, PROPER = range(6)
OF_SPACY = {"DET": DETERMINER, "ADP": PREPOSITION, "NOUN": NOUN, "PROPN": PROPER, "PUNCT": NONE, "SPACE": NONE, "SYM": NONE}
NO_NOUN = r"(?:\pL(?:ly|ous|ful|less|able|ible|ish|ical)|[^aeiou]ed|i[sz]ed|\pL\pLing|\pL\pLest|\pL\pL\pLive)$"
"""Endings of adverbs, adjectives, participles; our choice."""
PIECE = re.compile(r"\S+")
Tags = NDArray[np.int64]


class Word(NamedTuple):
    """A word of a caption: from character `first` to before `last`, and what it is."""

    first: int
    last: int
    tag: int
    text: str


class Name(NamedTuple):
    """What a model of spaCy's calls an entity: from character `first` to before `last`, and its label (DATE, PERSON, GPE …)."""

    first: int
    last: int
    label: str


class Lists:
    """The stand-in. Closed classes are lists; any other word of letters is a noun unless its ending says otherwise."""

    def __init__(self) -> None:
        words = json.loads((Path(__file__).parents[1] / "steps" / "caption_tags_words.json").read_text())
        classes = (("noun", NOUN), ("other", WORD), ("preposition", PREPOSITION), ("determiner", DETERMINER))
        closed = {word: kind for name, kind in classes for word in words[name].split()}
        self._words, self._classes = pa.array(closed), list(closed.values())

    def tags(self, captions: pa.Array) -> tuple[Tags, Tags]:
        """(row, tag) of every word of many captions, in order."""
        row, kind, kinds = words_of(captions, lower=False)
        tag = self._guess(kinds)[kind]
        is_first = np.diff(row, prepend=-1) > 0
        return row, np.where(is_first & (tag == PROPER), NOUN, tag)

    def words(self, captions: Sequence[str]) -> Iterator[tuple[list[Word], list[Name]]]:
        """The words of each caption, with their places; of one that begins with two capitals, the first is a name too."""
        pieces = [[(found.start(), found[0]) for found in PIECE.finditer(caption)] for caption in captions]
        stripped = {piece: piece.strip(string.punctuation) for line in pieces for _, piece in line}
        kinds = sorted(set(stripped.values()))
        tags = dict(zip(kinds, self._guess(pa.array(kinds, pa.string())).tolist(), strict=True))
        for line in pieces:
            words = [Word(at := first + piece.index(text), at + len(text), tags[text], text)
                     for first, piece in line if (text := stripped[piece])]
            if words and words[0].tag == PROPER and not (words[1:] and words[1].tag == PROPER):
                words[0] = words[0]._replace(tag=NOUN)
            yield words, []

    def _guess(self, kinds: pa.Array) -> Tags:
        """The tag of each distinct word, as if it were not the first of its caption."""
        low = pc.utf8_lower(kinds)
        letters = _true(pc.match_substring_regex(kinds, r"\p{L}")) & ~_true(pc.match_substring_regex(kinds, r"\p{N}"))
        open_noun = letters & ~_true(pc.match_substring_regex(low, NO_NOUN))
        guess = np.where(open_noun, np.where(_true(pc.match_substring_regex(kinds, r"^\p{Lu}")), PROPER, NOUN), WORD)
        listed = pc.fill_null(pc.index_in(low, self._words), len(self._words)).to_numpy()
        of_list = np.array([*self._classes, NONE])[listed]
        return np.where(of_list == NONE, guess, of_list)


class Spacy:
    """A model of spaCy's, without the parts that nobody asks here."""

    def __init__(self, tagger: str, step: str, *, names: bool = False) -> None:
        self._model = spacy_models.load(tagger, step, ["parser", "lemmatizer"] if names else ["ner", "parser", "lemmatizer"])

    def tags(self, captions: pa.Array) -> tuple[Tags, Tags]:
        """(row, tag) of every token of many captions, in order."""
        tags = [[OF_SPACY.get(token.pos_, WORD) for token in doc] for doc in self._model.pipe(captions.to_pylist())]
        row = np.repeat(np.arange(len(tags)), [len(line) for line in tags])
        return row, np.array([tag for line in tags for tag in line], np.int64)

    def words(self, captions: Sequence[str]) -> Iterator[tuple[list[Word], list[Name]]]:
        """The tokens of each caption, with their places, but for spaces and punctuation; and the names that the model finds."""
        for doc in self._model.pipe(captions):
            tokens = [Word(t.idx, t.idx + len(t.text), OF_SPACY.get(t.pos_, WORD), t.text) for t in doc]
            yield [t for t in tokens if t.tag != NONE], [Name(e.start_char, e.end_char, e.label_) for e in doc.ents]


def made(tagger: str, step: str, *, names: bool = False) -> Lists | Spacy:
    """What a checked setting names; `names`: with a model's entities."""
    return Lists() if tagger == STAND_IN else Spacy(tagger, step, names=names)


def _true(mask: pa.Array) -> NDArray[np.bool_]:
    values: NDArray[np.bool_] = mask.to_numpy(zero_copy_only=False)
    return values
