import random
from collections import Counter

import pyarrow as pa
import pytest

from curate.step import Chunks, string
from curate.steps.entity_count import entity_count

Shards = list[list[list[str]]]


def counts(shards: Shards, min_count: int) -> list[list[tuple[int, int]]]:
    """(rare, rarest) of each row."""
    lists = Chunks(lambda: iter([pa.array(shard, pa.list_(string)) for shard in shards]))
    found = entity_count(lists, min_count=min_count)
    return [list(zip(s["num_rare_entities"].tolist(), s["rarest_entity_count"].tolist(), strict=True)) for s in found]


def test_over_all_shards() -> None:
    shards: Shards = [[["actor", "dog"], []], [], [["dog"], ["cat", "dog"]]]
    assert counts(shards, 2) == [[(1, 1), (0, 0)], [], [(0, 3), (1, 1)]]
    assert counts(shards, 1) == [[(0, 1), (0, 0)], [], [(0, 3), (0, 1)]]


@pytest.mark.parametrize(("number", "rare"), [(100, 1), (101, 0)])
def test_cc3m_keeps_types_with_a_count_over_100(number: int, rare: int) -> None:
    lists = Chunks(lambda: iter([pa.array([["dog"]] * number, pa.list_(string))]))
    assert next(entity_count(lists))["num_rare_entities"].tolist() == [rare] * number


def test_as_counted_by_hand_whatever_the_shards() -> None:
    draw = random.Random(1)
    rows = [sorted({draw.choice("abcdefghij") * draw.randint(1, 3) for _ in range(draw.randint(0, 4))}) for _ in range(300)]
    number = Counter(name for row in rows for name in row)
    expected = [(sum(number[name] < 20 for name in row), min((number[name] for name in row), default=0)) for row in rows]
    cut = [rows[:7], rows[7:200], [], rows[200:]]
    assert sum(counts(cut, 20), []) == sum(counts([rows], 20), []) == expected
