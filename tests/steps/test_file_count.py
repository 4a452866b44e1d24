"""Placeholders: one file under many urls and hosts."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pytest

from curate.step import Chunks
from curate.steps.file_count import file_count
from tests.running import exits, run_here, write_pipeline, write_pool


def count(*shards: Sequence[tuple[str, str]]) -> list[list[tuple[int, int]]]:
    """(file_urls, file_hosts) of (sha256, url) rows."""
    files = Chunks(lambda: (pa.array([f for f, _ in rows], pa.string()) for rows in shards))
    urls = Chunks(lambda: (pa.array([u for _, u in rows], pa.string()) for rows in shards))
    answers = file_count(files, urls, memory_gb=1)
    return [list(zip(v["file_urls"].tolist(), v["file_hosts"].tolist(), strict=True)) for v in answers]


def test_exact_over_shards() -> None:
    assert count([("x", "http://a.org/1"), ("x", "http://a.org/2"), ("y", "http://a.org/3")], [],
                 [("x", "http://b.org/1"), ("x", "http://a.org/1"), ("z", "http://c.org/1")]) == [
        [(3, 2), (3, 2), (1, 1)], [], [(3, 2), (3, 2), (1, 1)]]


@pytest.mark.parametrize(("one", "other", "hosts"), [
    ("http://a.org/1", "https://A.ORG:8080/2", 1), ("http://a.org/1", "http://a.org./2", 1),
    ("http://a.org/1", "http://b.a.org/1", 2), ("http://user@a.org/1", "http://a.org/1", 1),
    ("http://a.org/1", "http://[::1]/1", 2), ("http://[broken/1", "no url", 1),
])
def test_hosts(one: str, other: str, hosts: int) -> None:
    assert count([("x", one), ("x", other)]) == [[(2, hosts), (2, hosts)]]


def test_no_rows_and_no_shards() -> None:
    assert count([], []) == [[], []]
    assert count() == []


def test_a_keep_lets_all_copies_of_a_placeholder_go(tmp_path: Path) -> None:
    write_pool(tmp_path, [f"picture {n}" for n in range(25)], sha256=["placeholder" if n % 2 else f"own {n}" for n in range(25)])
    file = write_pipeline(tmp_path, "file_count", "keep: file_urls <= 10")
    outcome = run_here(file, tmp_path / "out")
    assert exits(outcome) == {"file_urls <= 10": 12}
    assert outcome.funnel[-1]["kept"] == 13
