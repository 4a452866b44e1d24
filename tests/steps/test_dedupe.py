"""Near-duplicates by embeddings: what may go, who is the witness, and that nothing of it depends on shards, blocks or threads."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate import alike
from curate.errors import UserError
from curate.measure import to_column
from curate.step import Chunks, load_step, vector
from curate.steps.dedupe import dedupe
from tests.running import exits, run_here, tree, write_pipeline, write_pool


class Row(NamedTuple):
    uid: str
    emb: tuple[float, ...]
    quality: float | None = None


class Answer(NamedTuple):
    is_dup: bool | None
    dup_of: str | None
    dup_cos: float | None
    dup_group: str | None
    dup_group_size: int | None


NOWHERE = Answer(None, None, None, None, None)


def kept(uid: str, size: int = 1) -> Answer:
    return Answer(False, None, None, uid, size)


def told(shards: Sequence[Sequence[Row]], cos: float = 0.96, **how: Any) -> tuple[list[list[Answer]], dict[str, Any]]:
    """The answers of every shard, and what the step returns at its end."""
    embs = Chunks(lambda: (to_column([r.emb for r in rows], vector) for rows in shards))
    uids = Chunks(lambda: (pa.array([r.uid for r in rows], pa.string()) for rows in shards))
    qualities = Chunks(lambda: (pa.array([r.quality for r in rows], pa.float32()) for rows in shards))
    found = dedupe(embs, uids, qualities, cos=cos, threads=how.get("threads", 1))
    answers = []
    while True:
        try:
            columns = next(found)
        except StopIteration as end:
            return answers, end.value
        values = (columns[name].to_pylist() for name in Answer._fields)
        answers.append([Answer(*row) for row in zip(*values, strict=True)])


def measure(shards: Sequence[Sequence[Row]], cos: float = 0.96, **how: Any) -> list[list[Answer]]:
    return told(shards, cos, **how)[0]


def exact_cos(one: Sequence[float], other: Sequence[float]) -> np.float32:
    a, b = (np.array(v, np.float16).astype(np.float64) for v in (one, other))
    return np.float32(min(1.0, (a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum())))


def greedily(rows: Sequence[Row], cos: float) -> dict[str, Answer]:
    """The definition, every row against every kept one."""
    stay: list[Row] = []
    by: dict[str, tuple[str, float]] = {}
    for row in sorted(rows, key=lambda r: (r.quality is None, -(r.quality or 0), r.uid)):
        near = next((k for k in stay if exact_cos(k.emb, row.emb) >= np.float32(cos)), None)
        if near is None:
            stay.append(row)
        else:
            by[row.uid] = near.uid, float(exact_cos(near.emb, row.emb))
    sizes = {k.uid: 1 + sum(w == k.uid for w, _ in by.values()) for k in stay}
    return {r.uid: Answer(True, by[r.uid][0], by[r.uid][1], by[r.uid][0], sizes[by[r.uid][0]]) if r.uid in by
            else kept(r.uid, sizes[r.uid]) for r in rows}


def at(degrees: float) -> tuple[float, float]:
    return float(np.cos(np.radians(degrees))), float(np.sin(np.radians(degrees)))


def test_exact() -> None:
    rows = [Row("a", (3, 4), 0.5), Row("b", (4, 3), 0.9), Row("c", (3, 4), 0.7), Row("d", (0, 1), None), Row("e", (0.5, 0), 0.1)]
    assert measure([rows], 0.96) == [[
        Answer(True, "b", pytest.approx(0.96), "b", 3), kept("b", 3), Answer(True, "b", pytest.approx(0.96), "b", 3),
        kept("d"), kept("e")]]


def test_at_the_threshold_a_row_goes() -> None:
    """(3, 4) and (4, 3) are 24/25 apart, to the last bit."""
    rows = [[Row("a", (3, 4)), Row("b", (4, 3))]]
    assert [a.is_dup for a in measure(rows, 0.96)[0]] == [False, True]
    assert [a.is_dup for a in measure(rows, 0.9601)[0]] == [False, False]


def test_the_best_stays_then_the_first_uid_then_those_without_quality() -> None:
    same = (1.0, 2.0)
    rows = [Row("d", same), Row("c", same, float("nan")), Row("b", same, -1.0), Row("a", same, -2.0)]
    assert {a.dup_group for a in measure([rows])[0]} == {"b"}
    assert {a.dup_group for a in measure([rows[:2]])[0]} == {"c"}
    assert {a.dup_group for a in measure([[rows[3], rows[2]._replace(quality=-2.0)]])[0]} == {"a"}


def test_a_chain_of_drift_keeps_a_witness_for_each() -> None:
    """Ten degrees apart, 15 are near: every second one goes. Components would keep one of ten, 90 degrees from the last."""
    chain = [Row(f"{i}", at(10 * i), -i) for i in range(10)]
    cos = float(np.cos(np.radians(15)))
    answers = measure([chain], cos)[0]
    assert [a.is_dup for a in answers] == [False, True] * 5
    assert [a.dup_of for a in answers[1::2]] == ["0", "2", "4", "6", "8"]


def test_the_witness_is_the_best_that_is_near_not_the_nearest() -> None:
    rows = [Row("a", at(0), 3), Row("b", at(24), 2), Row("c", at(14), 1)]
    assert [a.dup_of for a in measure([rows], float(np.cos(np.radians(15))))[0]] == [None, None, "a"]


def test_what_a_removed_row_is_near_to_may_stay() -> None:
    """b goes for a; c is near to b alone, so it stays."""
    rows = [Row("a", at(0), 3), Row("b", at(12), 2), Row("c", at(24), 1)]
    assert [a.is_dup for a in measure([rows], float(np.cos(np.radians(15))))[0]] == [False, True, False]


def test_no_direction_is_no_answer() -> None:
    nan, inf = float("nan"), float("inf")
    rows = [Row("a", (0, 0)), Row("b", (nan, 1)), Row("c", (inf, 1)), Row("d", (1, 1)), Row("e", (0, 0)), Row("f", (2, 2)),
            Row("g", (-0.0, 0))]
    answers, facts = told([rows])
    assert answers == [[NOWHERE, NOWHERE, NOWHERE, kept("d", 2), NOWHERE, Answer(True, "d", 1.0, "d", 2), NOWHERE]]
    assert facts == {"rows": 7, "without_direction": 5, "different": 2, "cos": 0.96, "how": "exact"}


def test_a_minus_zero_is_a_zero() -> None:
    assert told([[Row("a", (1, 0)), Row("b", (1, -0.0))]])[1]["different"] == 1


def test_very_small_and_very_large_vectors_have_a_direction() -> None:
    rows = [Row("a", (6e-8, 0)), Row("b", (65504, 0)), Row("c", (0, 65504))]
    assert [a.is_dup for a in measure([rows])[0]] == [False, True, False]


def test_no_rows_and_no_shards() -> None:
    assert measure([]) == []
    assert measure([[], []]) == [[], []]
    assert measure([[], [Row("a", (1, 0))], []]) == [[], [kept("a")], []]
    assert measure([[Row("a", (0, 0))]]) == [[NOWHERE]]


def test_vectors_of_two_models_are_a_mistake() -> None:
    with pytest.raises(UserError, match="^step 'dedupe': image_emb has vectors of 2 and of 3 numbers; of: names one model's$"):
        measure([[Row("a", (1, 0))], [Row("b", (1, 0, 0))]])


def test_quality_must_be_a_number() -> None:
    found = dedupe(Chunks(lambda: iter([to_column([(1.0, 0.0)], vector)])), Chunks(lambda: iter([pa.array(["a"])])),
                   Chunks(lambda: iter([pa.array(["good"])])))
    with pytest.raises(UserError, match="^step 'dedupe': quality is string, not a number; 'reads: {quality: COLUMN}' names"):
        next(found)


def test_vectors_without_numbers_are_a_mistake() -> None:
    with pytest.raises(UserError, match="^step 'dedupe': image_emb has vectors of no numbers$"):
        measure([[Row("a", ())]])


@pytest.mark.parametrize("cos", [0, -1, 1.01])
def test_settings_are_checked(cos: float) -> None:
    with pytest.raises(ValueError, match="should be"):
        load_step("dedupe").settings["cos"].check(cos)


EMB = st.lists(st.integers(-3, 3), min_size=3, max_size=3).filter(any)
ROWS = st.lists(st.tuples(EMB, st.sampled_from([None, 0.0, 1.0, 2.0])), max_size=30)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(ROWS, st.sampled_from([0.5, 0.8, 0.9, 0.96, 1.0]), st.integers(1, 4), st.randoms(use_true_random=False))
def test_the_definition_whatever_the_shards(drawn: list[tuple[list[int], float | None]], cos: float, shards: int,
                                            mix: Any) -> None:
    rows = [Row(f"{i:02}", tuple(emb), quality) for i, (emb, quality) in enumerate(drawn)]
    expected = greedily(rows, cos)
    for _ in range(2):
        parts = [rows[i::shards] for i in range(shards)]
        assert measure(parts, cos) == [[expected[r.uid] for r in part] for part in parts]
        mix.shuffle(rows)


def scattered(number: int, dims: int = 16, seed: int = 0) -> list[Row]:
    """Rows around a few centres, many of them near each other, some equal."""
    draw = np.random.default_rng(seed)
    centres = draw.standard_normal((number // 8, dims))
    vectors = centres[draw.integers(0, len(centres), number)] + 0.25 * draw.standard_normal((number, dims))
    vectors[draw.integers(0, number, number // 10)] = vectors[0]
    return [Row(f"{i:05}", tuple(v), q) for i, (v, q) in enumerate(zip(vectors.tolist(), draw.integers(0, 9, number).tolist(),
                                                                       strict=True))]


def check_promises(rows: Sequence[Row], answers: Sequence[Answer], cos: float) -> None:
    """Every removed row names a kept, better witness at or above the threshold, and groups count their rows."""
    by_uid = {r.uid: (r, a) for r, a in zip(rows, answers, strict=True)}
    for row, answer in by_uid.values():
        if answer.is_dup:
            witness, its = by_uid[str(answer.dup_of)]
            assert its.is_dup is False
            assert answer.dup_cos == exact_cos(row.emb, witness.emb) >= np.float32(cos)
            assert (-(witness.quality or 0), witness.uid) < (-(row.quality or 0), row.uid)
        assert answer.dup_group_size == sum(a.dup_group == answer.dup_group for a in answers)


@pytest.fixture
def small_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that has a size is small, so that 600 rows take the way of millions."""
    for name, value in {"EXACT": 50, "BLOCK": 128, "ROWS": 16, "COLUMNS": 24, "SMALL": 8, "MOST": 40, "AT_ONCE": 2}.items():
        monkeypatch.setattr(alike, name, value)


@pytest.mark.usefixtures("small_cells")
def test_cells_find_what_brute_force_finds() -> None:
    rows = scattered(600)
    answers, facts = told([rows], 0.9)
    expected = greedily(rows, 0.9)
    check_promises(rows, answers[0], 0.9)
    assert answers[0] == [expected[r.uid] for r in rows]
    assert (facts["how"], facts["rows"], facts["cells"]) == ("cells", 600, 46)
    assert facts["recall"]["value"] >= 0.99
    assert facts["recall"]["pairs"] > 100


@pytest.mark.usefixtures("small_cells")
def test_neither_shards_nor_order_nor_blocks_nor_threads_show(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = scattered(500, seed=1)
    expected = dict(zip((r.uid for r in rows), measure([rows], 0.9)[0], strict=True))
    for shards, block, threads in ((1, 500, 1), (3, 128, 3), (7, 33, 2)):
        monkeypatch.setattr(alike, "BLOCK", block)
        parts = [rows[::-1][i::shards] for i in range(shards)]
        assert measure(parts, 0.9, threads=threads) == [[expected[r.uid] for r in part] for part in parts]


@pytest.mark.usefixtures("small_cells")
def test_where_few_cells_are_not_enough_more_are_looked_into() -> None:
    """Vectors without any structure, and a low threshold: the nearest eight cells of 46 miss pairs."""
    draw = np.random.default_rng(0)
    rows = [Row(f"{i:03}", tuple(v)) for i, v in enumerate(draw.standard_normal((600, 6)).tolist())]
    answers, facts = told([rows], 0.5)
    assert facts["probes"] > 8
    assert facts["recall"]["value"] >= 0.99
    check_promises(rows, answers[0], 0.5)


def test_ten_thousand_copies_of_one_vector_cost_nothing() -> None:
    rows = [Row(f"{i:05}", (1.0, 2.0, 3.0), i) for i in range(10_000)]
    begin = time.perf_counter()
    answers, facts = told([rows])
    assert facts["different"] == 1
    assert {a.dup_group for a in answers[0]} == {"09999"}
    assert {a.dup_group_size for a in answers[0]} == {10_000}
    assert time.perf_counter() - begin < 5


def test_ten_thousand_nearly_equal_ones_are_no_hundred_million_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """More pairs than MOST: blocks are halved until the first of the kept ones stands, and the rest goes beside it."""
    monkeypatch.setattr(alike, "MOST", 100_000)
    draw = np.random.default_rng(0)
    vectors = np.array([1.0] * 8) + 0.01 * draw.standard_normal((10_000, 8))
    emb = to_column(vectors, vector)
    uids = pa.array([f"{i:05}" for i in range(10_000)])
    begin = time.perf_counter()
    found = next(dedupe(Chunks(lambda: iter([emb])), Chunks(lambda: iter([uids])), None))
    assert found["is_dup"].true_count == 9_999
    assert set(found["dup_of"].drop_null().to_pylist()) == {"00000"}
    assert time.perf_counter() - begin < 10


SOURCE = "source: {pairs: pool.parquet, url: url, caption: caption, uid: name, shard_rows: SHARD}\n"


def dedupe_run(folder: Path, shard_rows: int = 10, order: int = 1, **options: Any) -> Path:
    """A run over 40 rows: pairs of equal directions, one without any, one null."""
    folder.mkdir()
    embs: list[list[float] | None] = [list(at(9 * (i // 2))) for i in range(40)]
    embs[38], embs[39] = [0.0, 0.0], None
    names = [f"n{i:02}" for i in range(40)]
    write_pool(folder, [f"caption {i}" for i in range(40)][::order], name=names[::order],
               image_emb=pa.array(embs, pa.list_(pa.float32())).take(pa.array(range(40)[::order])),
               clip_cos=[float(i) for i in range(40)][::order])
    file = write_pipeline(folder, "dedupe: {cos: 0.99, reads: {quality: clip_cos}}", "keep: not is_dup",
                          source=SOURCE.replace("SHARD", str(shard_rows)))
    outcome = run_here(file, folder / "out", **options)
    assert exits(outcome) == {"not is_dup": 19}
    assert outcome.funnel[-1] | {"clauses": None} == outcome.funnel[-1] | {"in": 40, "kept": 19, "unknown": 2, "clauses": None}
    return folder / "out"


def test_in_a_pipeline(tmp_path: Path) -> None:
    out = dedupe_run(tmp_path / "one")
    done = json.loads(next(out.glob("columns/dedupe-*/done.json")).read_text())
    assert done == {"rows": 39, "shards": 4, "facts": {"rows": 39, "without_direction": 1, "different": 19, "cos": 0.99,
                                                      "how": "exact"}}


@pytest.mark.slow
def test_same_bytes_whatever_the_workers(tmp_path: Path) -> None:
    one, other = dedupe_run(tmp_path / "one"), dedupe_run(tmp_path / "two", workers=2)
    assert tree(one, "columns", "kept", "subset.parquet") == tree(other, "columns", "kept", "subset.parquet")


def test_the_same_rows_stay_whatever_the_shards(tmp_path: Path) -> None:
    one, other = dedupe_run(tmp_path / "one"), dedupe_run(tmp_path / "two", shard_rows=7, order=-1)
    assert tree(one, "subset.npy") == tree(other, "subset.npy")
