import random
import string
import time
from collections import Counter
from collections.abc import Sequence

import pyarrow as pa
import pytest

from curate.step import Chunks
from curate.steps.rare_words import rare_words

Row = tuple[int, int, int, int]
Found = tuple[list[list[Row]], dict[str, int | bool]]


def rare(shards: Sequence[Sequence[str]], vocab_size: int = 10**8, min_count: int = 1) -> Found:
    """(rare words, rare bigrams, count of the rarest word, of the rarest bigram) of each row, and the facts."""
    answers = rare_words(Chunks(lambda: (pa.array(rows, pa.string()) for rows in shards)), vocab_size=vocab_size,
                         min_count=min_count, memory_gb=1)
    found = []
    while True:
        try:
            values = next(answers)
        except StopIteration as end:
            return found, end.value
        found.append(list(zip(*(values[name].tolist() for name in (
            "num_rare_words", "num_rare_bigrams", "rarest_word_count", "rarest_bigram_count")), strict=True)))


def plainly(captions: Sequence[str], vocab_size: int, min_count: int) -> list[Row]:
    """The definition, word by word."""
    words = [[w for w in (piece.strip(string.punctuation) for piece in c.lower().split()) if w] for c in captions]
    counts: Counter[str | tuple[str, str]] = Counter()
    for line in words:
        counts.update([*line, *zip(line, line[1:], strict=False)])
    ranked = sorted(counts.values(), reverse=True)
    below = max(min_count, ranked[vocab_size - 1] if vocab_size <= len(ranked) else 0)
    of_words = [[counts[w] for w in line] for line in words]
    of_pairs = [[counts[p] for p in zip(line, line[1:], strict=False)] for line in words]
    return [(sum(n < below for n in w), sum(n < below for n in p), min(w, default=0), min(p, default=0))
            for w, p in zip(of_words, of_pairs, strict=True)]


def test_exact() -> None:
    assert rare([["a dog", "A dog! runs", ""], [], ["a cat"]], min_count=2) == (
        [[(0, 0, 2, 2), (1, 1, 1, 1), (0, 0, 0, 0)], [], [(1, 1, 1, 1)]], {"rare_below": 2, "nothing_is_rare": False})


@pytest.mark.parametrize(("vocab_size", "rare_rows"), [(1, 4), (2, 2), (3, 2), (4, 0), (6, 0), (7, 0)])
def test_the_rank_of_align(vocab_size: int, rare_rows: int) -> None:
    """Of words and bigrams together: a 3, dog 2, a-dog 2, then cat, a-cat and b once; equals are in."""
    (rows,), facts = rare([["a dog", "a dog", "a cat", "b"]], vocab_size)
    assert sum(words > 0 or pairs > 0 for words, pairs, _, _ in rows) == rare_rows
    assert facts["nothing_is_rare"] is (rare_rows == 0)


def test_a_small_pool_has_nothing_rare() -> None:
    assert rare([["a dog", "xyzzy"]]) == ([[(0, 0, 1, 1), (0, 0, 1, 0)]], {"rare_below": 1, "nothing_is_rare": True})


@pytest.mark.parametrize("size", [400, 90, 33])
def test_many_rows_however_they_are_sharded(size: int) -> None:
    draw = random.Random(0)
    captions = [" ".join(f"w{int(draw.random() ** 3 * 60)}" for _ in range(draw.randrange(9))) for _ in range(400)]
    found, _ = rare([captions[i : i + size] for i in range(0, 400, size)], vocab_size=80, min_count=3)
    assert [row for shard in found for row in shard] == plainly(captions, 80, 3)


def test_no_rows() -> None:
    nothing = {"rare_below": 1, "nothing_is_rare": True}
    assert rare([[], []]) == ([[], []], nothing)
    assert rare([]) == ([], nothing)


def test_linear_time() -> None:
    begin = time.perf_counter()
    rare([["a" + "\u0301" * 10**6, "a " * 250_000, " ".join(map(str, range(100_000)))]])
    assert time.perf_counter() - begin < 10
