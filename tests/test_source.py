"""A source: every row counted, the same shards however often and in however many goes they were made."""

import hashlib
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate import files
from curate.columns import Chunk
from curate.errors import UserError
from curate.measure import Report, Worker
from curate.schedule import spread
from curate.sources import owners, readers
from curate.sources.cut import peek
from curate.sources.ingest import ingest
from curate.sources.locations import parse_source
from curate.sources.source import Source
from curate.work import Kind, Task, execute
from tests.sources import ROWS, TABLES, expected_uids, pid, rows_of, settings_of, take, uid, urls, write_pairs


def tree(folder: Path) -> dict[str, bytes]:
    """Every file of a source folder but the record, which holds times."""
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.name != "source.json"}


def test_columns_that_are_called_like_ours(tmp_path: Path) -> None:
    theirs = {"URL": "u", "TEXT": "t", "Caption": 1, "url": 2, "source_url": 3, "uid": 4, "a.b": 5, "A.B": 6}
    path = write_pairs(tmp_path / "a.parquet", [theirs])
    row = rows_of(take(path, tmp_path))[0]
    del row["uid"], row["image_id"]
    assert row == {"url": "u", "caption": "t", "source_error": None, "source_Caption": 1, "source_url": 2, "source_source_url": 3,
                   "source_uid": 4, "a.b": 5, "source_A.B": 6}


def test_the_users_own_uids(tmp_path: Path) -> None:
    ids: list[tuple[str, int | None]] = [("x", 17), ("x", 18), ("y", None)]
    rows = [{"URL": "http://a", "TEXT": text, "id": number} for text, number in ids]
    source = take(write_pairs(tmp_path / "a.parquet", rows), tmp_path, uid="id")
    assert rows_of(source, "uid") == ["17", "18", uid("http://a", "y")]
    assert source.columns.keys() == {"uid", "image_id", "url", "caption", "source_error"}
    assert source.repeated(0).tolist() == []


def test_a_column_may_mean_two_things(tmp_path: Path) -> None:
    source = take(write_pairs(tmp_path / "a.parquet", urls(1)), tmp_path, uid="URL")
    assert rows_of(source, "uid", "url") == [("http://a.org/1.jpg", "http://a.org/1.jpg")]


def test_the_same_text_in_other_bytes_is_the_same_row(tmp_path: Path) -> None:
    texts = ["Caf\u00e9 \u212b", "Cafe\u0301 \u00c5", " Caf\u00e9 A\u030a\u3000\n", "Cafe \u00c5"]
    source = take(write_pairs(tmp_path / "a.parquet", [{"URL": "http://a", "TEXT": t} for t in texts]), tmp_path)
    assert rows_of(source, "caption") == texts
    assert len(set(rows_of(source, "uid"))) == 2
    assert source.repeated(0).tolist() == [1, 2]
    assert source.num_distinct == 2


def test_rows_without_url_or_caption_are_rows(tmp_path: Path) -> None:
    pairs = [(None, "a"), (" ", "a"), ("http://a", ""), ("", None), ("http://a", "\t")]
    rows = [{"URL": url, "TEXT": caption} for url, caption in pairs]
    source = take(write_pairs(tmp_path / "a.parquet", rows), tmp_path)
    assert rows_of(source, "url", "image_id", "caption", "source_error") == [
        (None, None, "a", "no url"), (None, None, "a", "no url"), ("http://a", pid("http://a"), None, "no caption"),
        (None, None, None, "no url; no caption"), ("http://a", pid("http://a"), None, "no caption")]
    uids = rows_of(source, "uid")
    assert len(set(uids)) == 4
    assert uids[2] == uids[4] == uid("http://a", "")
    assert source.repeated(0).tolist() == [4]


def test_rows_without_url_keep_their_uid_whatever_the_shards(tmp_path: Path) -> None:
    for n in range(2):
        write_pairs(tmp_path / f"{n}.parquet", [{"URL": None, "TEXT": "a"}] * 5)
    few, many = (rows_of(take(tmp_path / "*.parquet", tmp_path / str(size), shard_rows=size), "uid") for size in (2, 100))
    assert few == many
    assert len(set(few)) == 10


@pytest.fixture
def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three files of 5, 0 and 4 rows; the third has a picture of the first."""
    monkeypatch.chdir(tmp_path)
    for name, rows in (("a", urls(1, 2, 3, 4, 5)), ("b", []), ("c", [*urls(6, 2, 7), *urls(1, caption="other")])):
        pq.write_table(pa.Table.from_pylist(rows, pa.schema({"URL": pa.string(), "TEXT": pa.string()})), f"{name}.parquet")
    return tmp_path


def test_a_second_ingest_reads_nothing(pool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = take("*.parquet", pool, shard_rows=2)
    before = {p: p.stat().st_mtime_ns for p in (pool / "source").iterdir()}
    monkeypatch.setattr(readers, "read_table", None)
    monkeypatch.setattr(owners, "write", None)
    assert take("*.parquet", pool, shard_rows=2) == source
    assert {p: p.stat().st_mtime_ns for p in (pool / "source").iterdir()} == before
    assert Source.open(pool / "source") == source


def test_shards_never_span_files(pool: Path) -> None:
    source = take("*.parquet", pool, shard_rows=2)
    assert [source.rows(n) for n in range(source.num_shards)] == [2, 2, 1, 2, 2]
    assert [Path(source.part(n).path).name for n in range(source.num_shards)] == ["a.parquet"] * 3 + ["c.parquet"] * 2
    assert [(Path(p.path).name, p.rows, p.first_shard, p.shards) for p in source.parts] == [
        ("a.parquet", 5, 0, 3), ("b.parquet", 0, 3, 0), ("c.parquet", 4, 3, 2)]
    with pytest.raises(IndexError, match="no source shard 5, there are 5"):
        source.rows(5)


def test_the_record_says_what_was_read(pool: Path) -> None:
    source = take("*.parquet", pool, shard_rows=2)
    record = json.loads((pool / "source/source.json").read_text())
    path = pool / "a.parquet"
    assert record["files"][0] == {
        "path": str(path), "bytes": path.stat().st_size, "mtime_ns": path.stat().st_mtime_ns, "version": None,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "rows": 5, "first_shard": 0, "shards": 3}
    assert (record["rows"], record["shards"], record["repeated_rows"]) == (9, 5, 1)
    assert record["columns"] == dict.fromkeys(("uid", "image_id", "url", "caption", "source_error"), "string")
    assert len(source.digest) == 32


def test_the_digest_is_of_what_the_files_hold(pool: Path, tmp_path: Path) -> None:
    digest = take("*.parquet", pool, shard_rows=2).digest
    (tmp_path / "moved").mkdir()
    for name in "abc":
        (tmp_path / "moved" / f"{name}.parquet").write_bytes((pool / f"{name}.parquet").read_bytes())
    assert take("moved/*.parquet", tmp_path / "moved_out", shard_rows=2).digest == digest
    assert take("moved/*.parquet", tmp_path / "other_out", shard_rows=3).digest != digest
    assert take("moved/[ab].parquet", tmp_path / "fewer_out", shard_rows=2).digest != digest


def test_a_new_file_adds_shards(pool: Path) -> None:
    before = take("*.parquet", pool, shard_rows=2)
    shards = {name: data for name, data in tree(pool / "source").items() if name[0] == "0"}
    write_pairs(pool / "Before.parquet", [*urls(7, 8), *urls(1, caption="third")])
    after = take("*.parquet", pool, shard_rows=2)
    assert (before.num_shards, after.num_shards, after.num_rows, after.num_repeated) == (5, 7, 12, 2)
    assert shards.items() <= tree(pool / "source").items()
    assert rows_of(after, "url")[9:] == [f"http://a.org/{n}.jpg" for n in (7, 8, 1)]
    assert after.repeated(5).tolist() == [0]
    assert after.owners(6) == {pid("http://a.org/1.jpg"): 0}
    assert after.digest != before.digest


def test_a_file_with_a_new_time_but_the_same_bytes_is_the_same(pool: Path) -> None:
    source = take("*.parquet", pool)
    os.utime(pool / "a.parquet", ns=(1, 1))
    again = take("*.parquet", pool)
    assert again.parts[0].mtime_ns == 1
    assert again.digest == source.digest
    assert take("*.parquet", pool) == again


def test_a_changed_or_vanished_file_is_refused(pool: Path) -> None:
    take("*.parquet", pool)
    shards = tree(pool / "source")
    write_pairs(pool / "a.parquet", urls(9))
    with pytest.raises(UserError) as error:
        take("*.parquet", pool)
    assert str(error.value) == "'a.parquet' has changed since this run read it; a source only grows; use another --out"
    (pool / "a.parquet").unlink()
    with pytest.raises(UserError) as error:
        take("*.parquet", pool)
    assert str(error.value) == "'a.parquet' was part of the source and is not any more; a source only grows; use another --out"
    assert tree(pool / "source") == shards


@pytest.mark.parametrize(("more", "message"), [
    ({"url": "TEXT"}, "source: url was 'URL' in '{}', now it is 'TEXT'"),
    ({"caption": "URL"}, "source: caption was 'TEXT' in '{}', now it is 'URL'"),
    ({"uid": "URL"}, "source: uid was not set in '{}', now it is 'URL'"),
    ({"shard_rows": 7}, "source: shard_rows was 10000 in '{}', now it is 7"),
    ({"limit": 3}, "source: limit was not set in '{}', now it is 3")])
def test_changed_settings_are_refused(pool: Path, more: dict[str, Any], message: str) -> None:
    take("*.parquet", pool)
    with pytest.raises(UserError) as error:
        ingest(parse_source({"pairs": "*.parquet", "url": "URL", "caption": "TEXT", **more}), pool / "source", "attempt")
    assert str(error.value) == message.format(pool) + "; a source only grows; use another --out"


@pytest.mark.parametrize(("limit", "rows", "shards"), [(1, 1, 1), (4, 4, 2), (5, 5, 3), (7, 7, 4), (100, 9, 5)])
def test_a_limit_takes_the_first_rows(pool: Path, limit: int, rows: int, shards: int) -> None:
    whole = rows_of(take("*.parquet", pool / "whole", shard_rows=2), "uid")
    source = ingest(settings_of("*.parquet", shard_rows=2), pool / "source", "a", limit)
    assert rows_of(source, "uid") == whole[:rows]
    assert (source.num_rows, source.num_shards) == (rows, shards)
    assert ingest(settings_of("*.parquet", shard_rows=2, limit=limit), pool / "source", "b") == source


def test_progress_is_told_after_each_shard(pool: Path) -> None:
    told: list[int] = []
    ingest(settings_of("*.parquet", shard_rows=2), pool / "source", "a", progress=told.append)
    assert told == [2, 4, 5, 5, 7, 9]


@pytest.mark.parametrize("written", range(8))
def test_an_ingest_that_stops_anywhere_goes_on_to_the_same_bytes(pool: Path, monkeypatch: pytest.MonkeyPatch,
                                                                 written: int) -> None:
    take("*.parquet", pool / "whole", shard_rows=2)
    whole = tree(pool / "whole/source")
    left = written
    atomic = files.atomic

    def failing(path: Path, attempt: str) -> Any:
        nonlocal left
        left -= path.suffix == ".parquet"
        if left < 0 and path.suffix == ".parquet":
            raise OSError(28, "no space left")
        return atomic(path, attempt)

    with monkeypatch.context() as patch:
        patch.setattr(files, "atomic", failing)
        with pytest.raises(OSError, match="no space left"):
            take("*.parquet", pool, shard_rows=2)
    assert take("*.parquet", pool, shard_rows=2).num_rows == 9
    assert tree(pool / "source") == whole


KILLED = """
import os, sys
from pathlib import Path
from curate import files
from curate.sources.ingest import ingest
from curate.sources.locations import parse_source

replace, left = os.replace, int(sys.argv[1])
def until(source, target):
    global left
    left -= 1
    replace(source, target) if left >= 0 else os._exit(9)
os.replace = until
ingest(parse_source({"pairs": "*.parquet", "url": "URL", "caption": "TEXT", "shard_rows": 2}), Path("source"), "killed")
"""


@pytest.mark.parametrize("renames", [2, 7])
def test_a_killed_ingest_goes_on_to_the_same_bytes(pool: Path, renames: int) -> None:
    take("*.parquet", pool / "whole", shard_rows=2)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    assert subprocess.run([sys.executable, "-c", KILLED, str(renames)], cwd=pool, env=environment).returncode == 9
    assert files.sweep(pool / "source") == 1
    take("*.parquet", pool, shard_rows=2)
    assert tree(pool / "source") == tree(pool / "whole/source")


def test_a_file_that_changes_while_it_is_read_is_refused(pool: Path) -> None:
    with pytest.raises(UserError) as error:
        ingest(settings_of("a.parquet"), pool / "source", "a", progress=lambda _: os.utime(pool / "a.parquet", ns=(1, 1)))
    assert str(error.value) == "'a.parquet' changed while it was read; run the same command again"
    assert not list(pool.glob("source/*"))


def test_a_source_goes_to_workers_by_pickle(pool: Path) -> None:
    source = take("*.parquet", pool, shard_rows=2)
    assert len(source.digest) == 32
    assert pickle.loads(pickle.dumps(source)).table(4).equals(source.table(4))


def test_a_piece_of_a_file_goes_to_workers_without_the_rest_of_it() -> None:
    whole = Chunk({"a": pa.array(["x" * 1000] * 1000), "b": pa.array([None] * 1000)}, 1000)
    few = Chunk({name: column[7:9] for name, column in whole.fields.items()}, 2, {1: "odd"})
    assert len(pickle.dumps(few)) < 4000
    assert pickle.loads(pickle.dumps(few)) == few
    assert pickle.loads(pickle.dumps(Chunk({}, 3))) == Chunk({}, 3)


class Backwards:
    """A pool that answers first what it was given last; tasks go to its worker by pickle."""

    def __init__(self, root: Path) -> None:
        self._worker, self._tasks = Worker(root, "a"), list[Task]()

    def capacity(self, kind: Kind) -> int:
        return 3

    def submit(self, task: Task) -> None:
        self._tasks.append(pickle.loads(pickle.dumps(task)))

    def next(self) -> tuple[Task, Report]:
        task = self._tasks.pop()
        return task, execute(self._worker, task)

    def close(self) -> None:
        assert not self._tasks


@pytest.mark.parametrize("limit", [None, 4])
def test_shards_written_by_workers_are_those_of_one_process(pool: Path, limit: int | None) -> None:
    ingest(settings_of("*.parquet", shard_rows=2), pool / "one/source", "a", limit)
    workers, told = Backwards(pool / "two"), list[int]()
    many = ingest(settings_of("*.parquet", shard_rows=2), pool / "two/source", "a", limit, told.append, spread(workers))
    workers.close()
    assert tree(pool / "two/source") == tree(pool / "one/source")
    assert many.digest == Source.open(pool / "one/source").digest
    assert told == [n for n in (2, 4, 5, 5, 7, 9) if limit is None or n <= limit]


def test_no_source_yet(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="^'.*' holds no source; `curate run` makes it$"):
        Source.open(tmp_path / "source")


def test_repeated_rows_and_shared_pictures(tmp_path: Path) -> None:
    def row(url: int | None, caption: str) -> dict[str, Any]:
        return {"URL": url and f"http://{url}", "TEXT": caption}

    rows = [row(1, "a"), row(1, "b"), row(2, "a"),          # shard 0
            row(1, "a"), row(2, "b"), row(3, "a"),          # shard 1: its first row is a repeat, so it does not hold picture 1
            row(3, "b"), row(1, "c"), row(None, "a"),       # shard 2
            row(None, "a"), row(3, "a"), row(2, "b"),       # shard 3: two repeats, nothing else of pictures 2 and 3
            row(2, "c"), row(4, "a"), row(4, "a")]          # shard 4
    source = take(write_pairs(tmp_path / "a.parquet", rows), tmp_path, shard_rows=3)
    assert [source.repeated(n).tolist() for n in range(5)] == [[], [0], [], [1, 2], [2]]
    assert (source.num_rows, source.num_repeated, source.num_distinct) == (15, 4, 11)
    one, two, three = pid("http://1"), pid("http://2"), pid("http://3")
    assert [source.owners(n) for n in range(5)] == [{}, {two: 0}, {three: 1, one: 0}, {}, {two: 0}]
    assert [source.borrowers(n) for n in range(5)] == [{1: [two], 2: [one], 4: [two]}, {2: [three]}, {}, {}, {}]
    assert [source.depends(n) for n in range(5)] == [set(), {0}, {0, 1}, set(), {0}]


def test_the_joins_take_more_memory_where_little_does_not_do(pool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given, tried = owners._joined, list[str]()

    def short_of_memory(folder: Path, shards: int, attempt: str, memory: str) -> int:
        tried.append(memory)
        if memory == "256MB":
            raise duckdb.OutOfMemoryException("failed to allocate")
        return given(folder, shards, attempt, memory)

    monkeypatch.setattr(owners, "_joined", short_of_memory)
    assert take("*.parquet", pool, shard_rows=2).num_repeated == 1
    assert tried == ["256MB", "1GB"]


def test_a_folder_whose_name_is_a_pattern(tmp_path: Path) -> None:
    source = take(write_pairs(tmp_path / "a.parquet", urls(1, 1)), tmp_path / "it's [1] x=*")
    assert source.repeated(0).tolist() == [1]
    assert take(tmp_path / "a.parquet", tmp_path / "it's [1] x=*") == source


def test_a_source_without_rows(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("URL,TEXT\n")
    source = take(tmp_path / "a.csv", tmp_path)
    assert (source.num_shards, source.num_rows) == (0, 0)
    assert list(source.columns) == ["uid", "image_id", "url", "caption", "source_error"]


@given(rows=TABLES, size=st.integers(1, 7), suffix=st.sampled_from(["parquet", "jsonl", "json"]))
@settings(max_examples=25, deadline=None)
def test_no_row_is_lost_or_invented(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str | None, str | None]],
                                    size: int, suffix: str) -> None:
    path = tmp_path_factory.mktemp("source") / f"a.{suffix}"
    table = [{"URL": url, "TEXT": caption} for url, caption in rows]
    if suffix == "parquet":
        pq.write_table(pa.Table.from_pylist(table, pa.schema({"URL": pa.string(), "TEXT": pa.string()})), path)
    else:
        lines = [json.dumps(row, ensure_ascii=False) for row in table]
        path.write_text("".join(f"{line}\n" for line in lines) if suffix == "jsonl" else f"[{','.join(lines)}]")
    source = take(path, path.parent, shard_rows=size)
    uids = expected_uids(rows)
    assert rows_of(source, "uid") == uids
    assert source.num_shards == -(-len(rows) // size)
    repeated = {(n, row) for n in range(source.num_shards) for row in source.repeated(n).tolist()}
    assert repeated == {divmod(i, size) for i, one in enumerate(uids) if one in uids[:i]}
    assert source.num_repeated == len(repeated)


def test_columns_that_are_ignored_stay_out(tmp_path: Path) -> None:
    """A step may then measure what is called the same. Which these are is part of what the source is."""
    write_pairs(tmp_path / "a.parquet", ROWS)
    source = take(tmp_path / "a.parquet", tmp_path / "out", ignore=["WIDTH", "gone"])
    assert list(source.columns) == ["uid", "image_id", "url", "caption", "source_error", "SCORE", "TAG"]
    assert peek(settings_of(tmp_path / "a.parquet", ignore=["WIDTH", "gone"])) == source.columns
    assert take(tmp_path / "a.parquet", tmp_path / "out", ignore=["gone", "WIDTH"]).digest == source.digest
    with pytest.raises(UserError, match="ignore was .*, now it is not set; a source only grows; use another --out"):
        take(tmp_path / "a.parquet", tmp_path / "out")
