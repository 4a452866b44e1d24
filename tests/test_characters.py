"""Characters and words of many texts at once are those of each text alone, by Python's own rules."""

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.captions import characters as module
from curate.captions.characters import ALNUM, LOWER, SPACE, UPPER, characters, word_starts
from curate.captions.words import words_of

ODD = "aB1. \t\n\x1c\x85\u00a0\u3000\u2028\u00e9\u0301\u01c5\U0001f415"
TEXTS = st.lists(st.one_of(st.text(max_size=20), st.text(ODD, max_size=12), st.text("aB. \t\x1f", max_size=12)), max_size=8)
"""Any text, text of odd white space and letters, and plain ASCII."""


@given(TEXTS, st.integers(0, 3))
@settings(max_examples=150, deadline=None, derandomize=True)
def test_words_are_those_of_split(texts: list[str], skip: int) -> None:
    column = pa.array(texts, pa.string())[skip:]
    texts = texts[skip:]
    starts, counts = word_starts(column)
    assert counts.tolist() == [len(text.split()) for text in texts]
    data = "".join(texts).encode()
    words = [word for text in texts for word in text.split()]
    assert [data[at:].decode()[:len(word)] for at, word in zip(starts.tolist(), words, strict=True)] == words
    found = words_of(column, lower=False)
    assert [found.kinds[kind].as_py() for kind in found.kind.tolist()] == [w for word in words if (w := word.strip(PUNCTUATION))]
    assert found.row.tolist() == [row for row, text in enumerate(texts) for w in text.split() if w.strip(PUNCTUATION)]


PUNCTUATION = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"


@given(TEXTS)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_kinds_are_those_of_python(texts: list[str]) -> None:
    found = characters(pa.array(texts, pa.string()))
    together = "".join(texts)
    for kind, rule in ((SPACE, str.isspace), (LOWER, str.islower), (ALNUM, str.isalnum)):
        assert [bool(k & kind) for k in found.kinds.tolist()] == [rule(char) for char in together]
    assert [bool(k & UPPER) for k in found.kinds.tolist()] == [char.isupper() or char.istitle() for char in together]
    assert [together[a:b] for a, b in zip(found.bounds[:-1], found.bounds[1:], strict=True)] == texts


def test_a_large_batch_is_done_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    column = pa.array(["a bc", "", " d\u00e9 ", "e", "f g\u3000h"])
    whole = word_starts(column)
    monkeypatch.setattr(module, "CHARS_AT_ONCE", 4)
    assert [part.tolist() for part in word_starts(column)] == [part.tolist() for part in whole]
