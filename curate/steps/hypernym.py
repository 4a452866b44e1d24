"""Names in the caption replaced by what they are: "Harrison Ford" by "actor", or every person by <PERSON>."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator

from curate.captions import spacy_models
from curate.captions.words import read_list
from curate.errors import UserError
from curate.step import File, int32, step, string

NO_NER = "none"
Ner = Annotated[str, AfterValidator(lambda value: spacy_models.checked(value, NO_NER))]
Spans = Iterator[tuple[int, int, str]]
TYPES = {"PERSON": "person", "GPE": "place", "LOC": "place", "FAC": "building", "ORG": "organization", "NORP": "group",
         "PRODUCT": "product", "EVENT": "event", "WORK_OF_ART": "work"}
"""What stands for a name of each of spaCy's types; our choice."""
Type = Literal["PERSON", "GPE", "LOC", "FAC", "ORG", "NORP", "PRODUCT", "EVENT", "WORK_OF_ART"]
BEFORE = re.compile(r"(?:(?<=\s)|\A)(?:in|at|near|from|around|outside|inside|across|over|above|throughout|to|of)\s(?:the\s)?\Z",
                    re.IGNORECASE)
""""in Los Angeles": what goes with a place; our choice."""
LISTED = re.compile(r",?\s?\Z")
SAME = re.compile(r"(?<!\w)([a-z]+)(?:(?:, and |, | and )\1(?!\w))+")


@step(adds={"caption_hypernym": string, "num_names": int32})
class Hypernym:
    """The caption with names replaced by their hypernyms, and how many were replaced, 0 or more.

    `table` is the user's: a line is a name, a tab, a hypernym. Names are found as they are written, whole words
    only, the longest first (Aho-Corasick, in linear time). `ner: spacy:en_core_web_sm` finds names the table lacks and puts their
    type (person, place, organization …), of all that it knows or only of `types`. `person` takes the place of a person's type:
    "<PERSON>" as in CC12M; without a model, give the table's names that word as their hypernym. "actor and actor" becomes
    "actors". A name whose hypernym is in `cut` goes with the preposition before it, and with what a comma adds ("in Los Angeles,
    California"); one without a preposition is replaced as any other.

    CC3M (ACL P18-1238, section 3.4) takes entities and hypernyms from Google's knowledge graph; places behind a preposition it
    removes (`cut: [place, city, country]`, ours), and before that dates and modifiers: caption_trim. CC12M (arXiv 2102.08981) has
    no hypernyms but <PERSON>, in a quarter of its texts: `types: [PERSON]`.
    """

    def __init__(self, *, table: File | None = None, ner: Ner = NO_NER, types: list[Type] | None = None, person: str = "person",
                 cut: list[str] | None = None) -> None:
        if table is None and ner == NO_NER:
            raise UserError("step 'hypernym' needs names: table: FILE, ner: spacy:MODEL, or both")
        self._table = None if table is None else _automaton(table)
        self._spacy = None if ner == NO_NER else spacy_models.load(ner, "hypernym", ["parser", "lemmatizer"])
        self._types = {t: {**TYPES, "PERSON": person}[t] for t in types or TYPES}
        self._cut = frozenset(cut or ())

    def __call__(self, caption: list[str]) -> dict[str, list[str] | list[int]]:
        docs = self._spacy.pipe(caption) if self._spacy is not None else [None] * len(caption)
        answers = [_replaced(text, [*self._listed(text), *self._found(doc)], self._cut)
                   for text, doc in zip(caption, docs, strict=True)]
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


def _replaced(text: str, spans: list[tuple[int, int, str]], cut: frozenset[str]) -> tuple[str, int]:
    """The leftmost and there the longest spans replaced (the table's before a model's) or cut, and how many these are."""
    parts, used, end, number, was_cut = [""], set(), 0, 0, False
    for first, last, hypernym in sorted(spans, key=lambda span: (span[0], -span[1])):
        if first < end:
            continue
        between = text[end:first]
        before = BEFORE.search(between[-20:]) if hypernym in cut else None
        listed = LISTED.match(between) if was_cut and hypernym in cut else None
        was_cut = before is not None or listed is not None
        if was_cut:
            parts.append("" if before is None else between[: len(between) - len(before[0])].rstrip())
        else:
            parts += [between, hypernym]
            used.add(hypernym)
        end, number = last, number + 1
    joined = "".join([*parts, text[end:]])
    joined = joined.strip() if cut else joined
    return SAME.sub(lambda m: f"{m[1]}s" if m[1] in used else m[0], joined), number


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
