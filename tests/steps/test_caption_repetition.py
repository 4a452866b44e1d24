import string
import time
from collections import Counter

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.steps import caption_repetition as module
from curate.steps.caption_repetition import caption_repetition

NAMES = ("unique_word_ratio", "repeated_word_share", "repeated_bigram_share", "max_word_share")


def measure(captions: list[str]) -> list[tuple[float, ...]]:
    values = caption_repetition(pa.array(captions, pa.string()))
    return list(zip(*(values[name].tolist() for name in NAMES), strict=True))


def plainly(caption: str) -> tuple[float, ...]:
    """The definition, word by word."""
    words = [w for w in (piece.strip(string.punctuation) for piece in caption.lower().split()) if w]
    single, pairs = Counter(words), Counter(zip(words, words[1:], strict=False))
    total, total_pairs = max(len(words), 1), max(sum(pairs.values()), 1)
    return (len(single) / total, sum(n for n in single.values() if n > 1) / total,
            sum(n for n in pairs.values() if n > 1) / total_pairs, max(single.values(), default=0) / total)


@pytest.mark.parametrize(("caption", "expected"), [
    ("a dog runs", (1, 0, 0, 1 / 3)),
    ("sale Sale SALE!", (1 / 3, 1, 1, 1)),
    ("a dog and a cat", (4 / 5, 2 / 5, 0, 2 / 5)),
    ("red car red car blue", (3 / 5, 4 / 5, 2 / 4, 2 / 5)),
    ("shoe, shoes | shoe - shoes", (2 / 4, 1, 2 / 3, 2 / 4)),
    ("don't (don't)", (1 / 2, 1, 0, 1)),
    ("dog", (1, 0, 0, 1)),
    ("", (0, 0, 0, 0)),
    (" - | ... ", (0, 0, 0, 0)),
    ("犬 犬", (1 / 2, 1, 0, 1)),
    ("null\0 null\0", (1 / 2, 1, 0, 1)),
    ("\u202eab ab", (1, 0, 0, 1 / 2)),
    ("=cmd()|' /C calc'!A0", (1, 0, 0, 1 / 3)),
])
def test_exact(caption: str, expected: tuple[float, ...]) -> None:
    assert measure([caption]) == [expected] == [plainly(caption)]


def test_a_share_on_the_published_boundary_passes_it() -> None:
    """CC12M keeps <= 0.2, so 2 of 10 words must not come out a little above 0.2."""
    assert measure(["a b c d e f g h i a"])[0][1] == 0.2


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.text("aAbB cd.- \u00e9\u3000\0", max_size=30), max_size=12))
def test_batches_follow_the_definition(captions: list[str]) -> None:
    assert measure(captions) == [plainly(c) for c in captions]


def test_too_many_different_words_for_one_number(monkeypatch: pytest.MonkeyPatch) -> None:
    captions = ["a b a", "", "x x", "one two one two", "dog"]
    whole = measure(captions)
    monkeypatch.setattr(module, "KEY_LIMIT", 30)
    assert measure(captions) == whole


def test_empty_batch() -> None:
    assert measure([]) == []


def test_linear_time() -> None:
    begin = time.perf_counter()
    assert measure(["a" + "\u0301" * 10**6, "a " * 300_000, " ".join(map(str, range(200_000)))]) == [
        (1, 0, 0, 1), (1 / 300_000, 1, 1, 1), (1, 0, 0, 1 / 200_000)]
    assert time.perf_counter() - begin < 5
