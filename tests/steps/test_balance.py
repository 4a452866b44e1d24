import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from curate.step import Chunks
from curate.steps.balance import balance
from tests.running import run_here, stage, write_pipeline, write_pool

Rows = Sequence[tuple[str, Sequence[str]]]


def drawn(shards: Sequence[Rows], t: int, seed: int = 0) -> tuple[dict[str, tuple[bool, float]], dict[str, Any]]:
    """uid → (kept, probability), and the facts."""
    concepts = Chunks(lambda: (pa.array([c for _, c in rows], pa.list_(pa.string())) for rows in shards))
    uids = Chunks(lambda: (pa.array([u for u, _ in rows], pa.string()) for rows in shards))
    answers, found = balance(concepts, uids, t=t, seed=seed), {}
    for rows in shards:
        values = next(answers)
        pairs = zip(values["balance_kept"].tolist(), values["balance_prob"].tolist(), strict=True)
        found |= {uid: pair for (uid, _), pair in zip(rows, pairs, strict=True)}
    with pytest.raises(StopIteration) as end:
        next(answers)
    return found, end.value.value


def test_probabilities() -> None:
    found, facts = drawn([[("1", ["a", "b"]), ("2", ["a"]), ("3", [])], [], [("4", ["a"]), ("5", ["a", "c"])]], t=2)
    assert {uid: p for uid, (_, p) in found.items()} == {"1": 1, "2": 0.5, "3": 0, "4": 0.5, "5": 1}
    assert found["1"][0] and found["5"][0] and not found["3"][0]
    assert facts == {"entries": 3, "drawn": sum(k for k, _ in found.values()), "tail_share": 2 / 6}


@pytest.mark.parametrize(("t", "probability"), [(999, .999), (1000, 1), (1001, 1)])
def test_an_entry_that_occurs_t_times_is_kept_whole(t: int, probability: float) -> None:
    found, _ = drawn([[(str(i), ["a"]) for i in range(1000)]], t)
    assert {round(p, 12) for _, p in found.values()} == {probability}


def test_two_chances_are_more_than_one() -> None:
    rows = [(str(i), ["a", "b"]) for i in range(4000)]
    found, _ = drawn([rows], t=2000)
    assert {round(p, 12) for _, p in found.values()} == {.75}
    assert abs(np.mean([k for k, _ in found.values()]) - .75) < .03


def test_shares_come_out_as_they_should() -> None:
    found, _ = drawn([[(str(i), ["a"]) for i in range(20_000)]], t=5000)
    assert abs(sum(k for k, _ in found.values()) - 5000) < 200


def pool() -> list[tuple[str, list[str]]]:
    draw = random.Random(1)
    return [(str(i), sorted({f"e{int(draw.random() ** 3 * 40)}" for _ in range(draw.randrange(4))})) for i in range(2000)]


def test_neither_order_nor_shards_matter() -> None:
    rows = pool()
    one, facts = drawn([rows], t=30)
    backwards = list(reversed(rows))
    assert drawn([backwards[i : i + 300] for i in range(0, 2000, 300)], t=30) == (one, facts)
    assert drawn([rows], t=30, seed=1)[0] != one


def test_more_keeps_what_less_kept() -> None:
    less, more = (drawn([pool()], t=t)[0] for t in (20, 40))
    assert all(more[uid][0] for uid, (kept, _) in less.items() if kept)
    assert sum(k for k, _ in more.values()) > sum(k for k, _ in less.values())


def test_no_rows() -> None:
    assert drawn([[], []], t=5) == drawn([], t=5) == ({}, {"entries": 0, "drawn": 0, "tail_share": 0})


def test_in_a_pipeline(tmp_path: Path) -> None:
    (tmp_path / "entries.txt").write_text("dog\ncat\n")
    write_pool(tmp_path, ["a dog"] * 30 + ["a cat"] * 3 + ["a bird"])
    matched = f"concept_match: {{entries: {tmp_path}/entries.txt}}"
    file = write_pipeline(tmp_path, matched, "balance: {t: 3}", "keep: balance_kept")
    outcome = run_here(file, tmp_path / "out")
    kept = stage(outcome, "keep balance_kept")["kept"]
    assert 3 <= kept < 20
