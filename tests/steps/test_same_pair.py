from collections.abc import Sequence

import pyarrow as pa

from curate.step import Chunks
from curate.steps.same_pair import same_pair

Shard = Sequence[tuple[str, str]]


def again(*shards: Shard) -> list[list[bool]]:
    """Shards of (phash, caption) → is_same_pair."""
    hashes, captions = ([pa.array([row[i] for row in shard], pa.string()) for shard in shards] for i in (0, 1))
    answers = same_pair(Chunks(lambda: iter(hashes)), Chunks(lambda: iter(captions)))
    return [answer["is_same_pair"].tolist() for answer in answers]


def test_the_first_of_equal_pairs_stays_also_across_shards() -> None:
    assert again([("aa", "a dog"), ("bb", "a dog"), ("aa", "a dog")], [("aa", "A dog"), ("aa", "a dog"), ("bb", "a dog")]) == [
        [False, False, True], [False, True, True]]


def test_a_picture_with_another_text_is_another_pair() -> None:
    """COYO-700M: both equal; neither alone, nor the two run together."""
    assert again([("aa", "b c"), ("aa", "b d"), ("aab", " c"), ("aa", "b c\0")]) == [[False] * 4]


def test_nothing_and_empty_shards() -> None:
    assert again() == []
    assert again([], [("aa", "x")], []) == [[], [False], []]
