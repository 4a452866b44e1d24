"""Names in the caption replaced by what they are: "Harrison Ford" by "actor", or every person by <PERSON>."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator

from curate import spacy_models
from curate.errors import UserError
from curate.step import File, int32, step, string
from curate.words import read_list

NO_NER = "none"
Ner = Annotated[str, AfterValidator(lambda value: spacy_models.checked(value, NO_NER))]
Spans = Iterator[tuple[int, int, str]]
TYPES = {"PERSON": "person", "GPE": "place", "LOC": "place", "FAC": "building", "ORG": "organization", "NORP": "group",
         "PRODUCT": "product", "EVENT": "event", "WORK_OF_ART": "work"}
"""What stands for a name of each of spaCy's types; our choice."""
SAME = re.compile(r"(?<!\w)([a-z]+)(?:(?:, and |, | and )\1(?!\w))+")


@step(adds={"caption_hypernym": string, "num_names": int32})
class Hypernym:
    """The caption with names replaced by their hypernyms, and how many were replaced, 0 or more.

    `table` is the user's: a line is a name, a tab, a hypernym. Names are found as they are written, whole words
    only, the longest first (Aho-Corasick, in linear time). `ner: spacy:en_core_web_sm` finds names the table lacks and puts their
    type (person, place, organization …). `person` takes the place of a person's type: "<PERSON>" as in CC12M; without a model,
    give the table's names that word as their hypernym. "actor and actor" becomes "actors".

    CC3M (ACL P18-1238, section 3) takes entities and hypernyms from Google's knowledge graph, and goes on to remove dates and
    modifiers, which this does not. CC12M (arXiv 2102.08981) has no hypernyms but <PERSON>, in a quarter of its texts.
    """

    def __init__(self, *, table: File | None = None, ner: Ner = NO_NER, person: str = "person") -> None:
        if table is None and ner == NO_NER:
            raise UserError("step 'hypernym' needs names: table: FILE, ner: spacy:MODEL, or both")
        self._table = None if table is None else _automaton(table)
        self._spacy = None if ner == NO_NER else spacy_models.load(ner, "hypernym", ["parser", "lemmatizer"])
        self._types = {**TYPES, "PERSON": person}

    def __call__(self, caption: list[str]) -> dict[str, list[str] | list[int]]:
        docs = self._spacy.pipe(caption) if self._spacy is not None else [None] * len(caption)
        answers = [_replaced(text, [*self._listed(text), *self._found(doc)]) for text, doc in zip(caption, docs, strict=True)]
        return {"caption_hypernym": [text for text, _ in answers], "num_names": [number for _, number in answers]}

    def _listed(self, text: str) -> Spans:
        for last, (length, hypernym) in self._table.iter(text) if self._table is not None else ():
            first = last + 1 - length
            if not (text[first - 1 : first].isalnum() or text[last + 1 : last + 2].isalnum()):
                yield first, last + 1, hypernym

    def _found(self, doc: Any) -> Spans:
        for entity in doc.ents if doc is not None else ():
            if entity.label_ in self._types:
                yield entity.start_char, entity.end_char, self._types[entity.label_]


def _replaced(text: str, spans: list[tuple[int, int, str]]) -> tuple[str, int]:
    """The leftmost and there the longest spans replaced (the table's before a model's), and how many these are."""
    parts, used, end = [], set(), 0
    for first, last, hypernym in sorted(spans, key=lambda span: (span[0], -span[1])):
        if first >= end:
            parts += [text[end:first], hypernym]
            used.add(hypernym)
            end = last
    joined = "".join([*parts, text[end:]])
    return SAME.sub(lambda m: f"{m[1]}s" if m[1] in used else m[0], joined), len(parts) // 2


def _automaton(table: Path) -> Any:
    import ahocorasick  # type: ignore[import-not-found]

    automaton = ahocorasick.Automaton()
    for where, line in read_list("hypernym", table):
        name, _, hypernym = (part.strip() for part in line.partition("\t"))
        if not (name and hypernym):
            raise UserError(f"'{line}' is no name, tab and hypernym", where)
        automaton.add_word(name, (len(name), hypernym))
    automaton.make_automaton()
    return automaton
