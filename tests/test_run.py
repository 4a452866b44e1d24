"""The spine's contracts: identity of columns, conservation, resume, quarantine, barriers."""

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.errors import RunStopped, UserError
from curate.measure import BadAnswer
from curate.report import why
from tests.running import exits, run_here, stage, tree, write_pipeline, write_pool

MINE = '''\
"""Steps of a test."""
import numpy as np
import pyarrow as pa
from curate.step import Chunks, bool_, float32, int64, step, string, whole


@step(adds={"shouts": bool_}, batch=4)
def shouts(caption: list[str]):
    """Whether all letters are capitals."""
    return [text.isupper() for text in caption]


@step(adds={"inverse": float32}, batch=4)
def inverse(num_chars: np.ndarray):
    """One over the length; raises on a single letter."""
    if (num_chars == 1).any():
        raise ValueError("one letter is no caption")
    return 1 / num_chars


@step(adds={"never": bool_})
def never(caption: list[str]):
    """Raises on everything."""
    raise KeyError("nothing works")


@step(adds={"full": bool_})
def full_disk(caption: list[str]):
    """What a full disk looks like."""
    raise OSError(28, "No space left on device")


@step(adds={"two": int64})
def wrong_rows(caption: list[str]):
    """Returns too few values."""
    return [1]


@whole(adds={"rank": int64})
def rank(uid: Chunks, caption: Chunks):
    """The place of a row among all alive rows, by uid."""
    order = {u: i for i, u in enumerate(sorted(u for chunk in uid for u in chunk.to_pylist()))}
    for chunk in uid:
        yield {"rank": [order[u] for u in chunk.to_pylist()]}
'''


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with steps of a user's own."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(MINE)
    return tmp_path


def test_funnel_says_where_every_row_went(here: Path) -> None:
    """Each top-level `and` has its own count; nulls are unknown, repeated rows collapse."""
    write_pool(here, ["a cat", "a", None, "HELLO THERE", "two dogs run", "one fine day in may"] * 5)
    pool = pq.read_table("pool.parquet")
    pq.write_table(pa.concat_tables([pool, pool.slice(0, 3)]), "pool.parquet")
    file = write_pipeline(here, "caption_length", "./mine.py:shouts", "keep: num_words >= 2 and not shouts",
                          "keep: num_chars < 15")
    outcome = run_here(file, here / "out")
    assert [(e["what"], e["in"], e["kept"], e["dropped"], e["unknown"]) for e in outcome.funnel] == [
        ("source", 33, 30, 3, 0), ("caption_length", 30, 30, 0, 0), ("shouts", 30, 30, 0, 0),
        ("keep num_words >= 2 and not shouts", 30, 15, 10, 5), ("keep num_chars < 15", 15, 10, 5, 0)]
    assert exits(outcome) == {"repeated_row": 3, "num_words >= 2": 5, "not shouts": 5, "num_chars < 15": 5}
    assert pq.read_table(here / "out" / "subset.parquet").num_rows == 10


def test_second_run_measures_nothing(here: Path) -> None:
    """The same command again finds everything done and gives the same files."""
    write_pool(here, ["a cat sat", "A CAT", "dogs"] * 9)
    file = write_pipeline(here, "caption_length", "./mine.py:shouts", "keep: num_words >= 2", "./mine.py:rank", "keep: rank < 9")
    first = run_here(file, here / "out")
    before = tree(here / "out", "columns", "kept", "funnel.json", "subset.parquet")
    second = run_here(file, here / "out")
    assert +first.measured == {"caption_length": 27, "shouts": 27, "rank": 18}
    assert +second.measured == {}
    assert tree(here / "out", "columns", "kept", "funnel.json", "subset.parquet") == before


def test_threshold_costs_only_rows_newly_alive(here: Path) -> None:
    """Raising measures nothing row-wise, lowering only the rows that come back; the barrier below runs again."""
    write_pool(here, [" ".join(["word"] * n) for n in range(1, 31)])
    file = write_pipeline(here, "caption_length", "keep: num_words >= 10", "./mine.py:shouts", "./mine.py:rank")
    assert +run_here(file, here / "out").measured == {"caption_length": 30, "shouts": 21, "rank": 21}
    write_pipeline(here, "caption_length", "keep: num_words >= 20", "./mine.py:shouts", "./mine.py:rank")
    assert +run_here(file, here / "out").measured == {"rank": 11}
    write_pipeline(here, "caption_length", "keep: num_words >= 5", "./mine.py:shouts", "./mine.py:rank")
    assert +run_here(file, here / "out").measured == {"shouts": 5, "rank": 26}
    write_pipeline(here, "caption_length", "keep: num_words >= 10", "./mine.py:shouts", "./mine.py:rank")
    assert +run_here(file, here / "out").measured == {}


def test_code_of_a_users_step_is_part_of_its_identity(here: Path) -> None:
    """A step edited is a step measured again; the steps of ours beside it are not."""
    write_pool(here, ["a cat"] * 12)
    file = write_pipeline(here, "caption_length", "./mine.py:shouts")
    run_here(file, here / "out")
    (here / "mine.py").write_text(MINE.replace("isupper", "islower"))
    assert +run_here(file, here / "out").measured == {"shouts": 12}


def test_row_that_raises_is_quarantined_alone(here: Path) -> None:
    """Its neighbours are measured, the reason is kept, and it is not tried again unless asked."""
    write_pool(here, ["a cat", "x", "dogs", "two birds"] * 5)
    file = write_pipeline(here, "caption_length", "./mine.py:inverse", "keep: inverse > 0.1")
    outcome = run_here(file, here / "out")
    assert stage(outcome, "inverse")["quarantined"] == 5
    assert stage(outcome, "keep inverse > 0.1")["kept"] == 15
    said = list(why(here / "out", "http://site/1.jpg"))
    assert said[-1] == "quarantined at line 4: inverse (ValueError: one letter is no caption)"
    assert +run_here(file, here / "out").measured == {}
    again = run_here(file, here / "out", retry=True)
    assert +again.measured == {"inverse": 5}
    assert again.funnel == outcome.funnel


def test_step_that_fails_on_every_row_stops_the_run(here: Path) -> None:
    """It is the step, not the data: nothing of it is recorded."""
    write_pool(here, ["a cat"] * 10)
    file = write_pipeline(here, "./mine.py:never")
    with pytest.raises(RunStopped, match="step 'never' fails on all 10 rows of a shard.*KeyError: 'nothing works'"):
        run_here(file, here / "out")
    assert not list((here / "out" / "columns").rglob("*.parquet"))


def test_trouble_of_the_machine_is_not_the_rows_fault(here: Path) -> None:
    """A full disk stops the run instead of filling the quarantine."""
    write_pool(here, ["a cat"] * 10)
    with pytest.raises(RunStopped, match="step 'full_disk': OSError"):
        run_here(write_pipeline(here, "./mine.py:full_disk"), here / "out")


def test_step_with_other_row_count_is_a_fault_of_the_program(here: Path) -> None:
    """A step never drops a row."""
    write_pool(here, ["a cat"] * 10)
    with pytest.raises(BadAnswer, match="step 'wrong_rows' returned 1 values of 'two' for 10 rows"):
        run_here(write_pipeline(here, "./mine.py:wrong_rows"), here / "out")


def test_top_keeps_the_share_of_rows_that_have_a_value(here: Path) -> None:
    """floor(f * N) rows, ties by uid, no value is unknown; of: source counts the source's rows."""
    scores = [None if i % 5 == 0 else float(i % 4) for i in range(30)]
    write_pool(here, [f"caption {i}" for i in range(30)], score=scores)
    outcome = run_here(write_pipeline(here, "keep: {top: 0.3, by: score}"), here / "out")
    entry = stage(outcome, "keep top 0.3 by score")
    assert (entry["kept"], entry["dropped"], entry["unknown"]) == (7, 17, 6)
    table = pq.read_table(here / "pool.parquet").to_pydict()
    kept = pq.read_table(here / "out" / "subset.parquet")
    alike = run_here(write_pipeline(here, "keep: {top: 1, by: score}"), here / "other")
    uid_of = dict(zip(*pq.read_table(here / "other" / "subset.parquet").select(["url", "uid"]).to_pydict().values(), strict=True))
    best = sorted((-s, uid_of[u]) for u, s in zip(table["url"], table["score"], strict=True) if s is not None)
    assert sorted(kept["uid"].to_pylist()) == sorted(uid for _, uid in best[:7]) and alike.funnel[-1]["kept"] == 24
    of_source = run_here(write_pipeline(here, "keep: {top: 0.3, by: score, of: source}"), here / "third")
    assert of_source.funnel[-1]["kept"] == 9


def test_appended_file_adds_shards_and_changed_file_is_refused(here: Path) -> None:
    """A source only grows."""
    (here / "pools").mkdir()
    write_pool(here, ["a cat", "dogs"] * 6)
    shutil.move("pool.parquet", "pools/a.parquet")
    source = "source: {pairs: pools/*.parquet, url: url, caption: caption, shard_rows: 10}\n"
    file = write_pipeline(here, "caption_length", "./mine.py:rank", source=source)
    run_here(file, here / "out")
    pq.write_table(pa.table({"url": [f"http://else/{i}" for i in range(4)], "caption": ["new"] * 4}), "pools/b.parquet")
    assert +run_here(file, here / "out").measured == {"caption_length": 4, "rank": 16}
    write_pool(here / "pools", ["other"] * 12)
    shutil.move("pools/pool.parquet", "pools/a.parquet")
    with pytest.raises(UserError, match="changed"):
        run_here(file, here / "out")


def test_two_writers(here: Path) -> None:
    """A second run on the same folder is refused, by name of the first."""
    from curate.store import Store

    write_pool(here, ["a"] * 3)
    with Store(here / "out").lock(), pytest.raises(UserError, match=r"out is being written by another run \(process \d+ on"):
        run_here(write_pipeline(here, "caption_length"), here / "out")


def test_parts_then_the_whole(here: Path) -> None:
    """`--part` stops before a barrier; the run without it measures only what is left, to the same bytes."""
    write_pool(here, [" ".join(["word"] * (n % 7 + 1)) for n in range(45)])
    file = write_pipeline(here, "caption_length", "keep: num_words >= 3", "./mine.py:rank", "keep: rank < 20")
    run_here(file, here / "whole")
    assert +run_here(file, here / "out", part=(0, 2)).measured == {"caption_length": 25}
    half = run_here(file, here / "out", part=(1, 2))
    assert +half.measured == {"caption_length": 20} and half.unfinished
    assert +run_here(file, here / "out").measured == {"rank": 31}
    names = ("columns", "kept", "funnel.json", "subset.parquet", "subset.npy")
    assert tree(here / "out", *names) == tree(here / "whole", *names)


@settings(max_examples=25, deadline=None)
@given(captions=st.lists(st.one_of(st.none(), st.text(max_size=12)), min_size=1, max_size=40), low=st.integers(0, 6))
def test_every_row_ends_in_exactly_one_state(tmp_path_factory: pytest.TempPathFactory, captions: list[str | None],
                                             low: int) -> None:
    """in = kept + dropped + unknown + quarantined + removed, whatever the captions."""
    here = tmp_path_factory.mktemp("conserve")
    (here / "mine.py").write_text(MINE)
    write_pool(here, captions)
    source = f"source: {{pairs: {here}/pool.parquet, url: url, caption: caption, shard_rows: 7}}\n"
    file = write_pipeline(here, "caption_length", "./mine.py:inverse", f"keep: num_chars >= {low}", "keep: inverse < 0.5",
                          source=source)
    funnel = run_here(file, here / "out").funnel
    gone = sum(e[s] for e in funnel for s in ("dropped", "unknown", "quarantined", "removed"))
    assert funnel[0]["in"] == len(captions) == gone + funnel[-1]["kept"]
    assert pq.read_table(here / "out" / "subset.parquet").num_rows == funnel[-1]["kept"]
