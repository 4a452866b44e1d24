import gzip
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curate.errors import UserError
from curate.step import load_step, string, vector
from curate.steps.join import Join
from tests.running import run_here, write_pipeline, write_pool


@pytest.fixture
def parquet(tmp_path: Path) -> str:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({
        "uid": ["c", "a", "b"],
        "score": pa.array([3.5, 1.5, None]),
        "count": pa.array([3, 1, 2], pa.int8()),
        "good": [True, False, None],
        "text": ["three\0", None, "zwei"],
        "emb": pa.array([[3, 4], [1, 2], None], pa.list_(pa.float32(), 2)),
    }), path)
    return str(path)


def joined(join: Join, *keys: str) -> dict[str, list[Any]]:
    columns = join(pa.array(keys, pa.string()))
    plain = {name: values if isinstance(values, list) else values.to_pylist() for name, values in columns.items()}
    return {name: [v.tolist() if isinstance(v, np.ndarray) else v for v in values] for name, values in plain.items()}


def test_exact(parquet: str) -> None:
    assert joined(Join(file=parquet), "a", "nobody", "b", "a", "c") == {
        "score": [1.5, None, None, 1.5, 3.5],
        "count": [1, None, 2, 1, 3],
        "good": [False, None, None, False, True],
        "text": [None, None, "zwei", None, "three\0"],
        "emb": [[1, 2], None, None, [1, 2], [3, 4]],
    }


def test_types(parquet: str) -> None:
    spec = load_step("join")
    assert spec.columns({"file": parquet, "on": "uid", "columns": None}) == {
        "score": pa.float64(), "count": pa.int8(), "good": pa.bool_(), "text": string, "emb": vector}
    assert spec.columns({"file": parquet, "on": "text", "columns": ["emb", "uid"]}) == {"emb": vector, "uid": string}
    assert {n: s.tags for n, s in spec.settings.items()} == {"file": ("file",), "on": (), "columns": ()}


def test_one_column_by_another_key(parquet: str) -> None:
    assert joined(Join(file=parquet, on="text", columns=["uid"]), "zwei", "a") == {"uid": ["b", None]}


def test_what_becomes_text_and_what_a_vector(tmp_path: Path) -> None:
    pq.write_table(pa.table({
        "uid": pa.array(["a"]).dictionary_encode(), "kind": pa.array(["x"]).dictionary_encode(), "day": [date(2024, 5, 1)],
        "half": pa.array(np.array([0.5], np.float16)), "big": pa.array(["y"], pa.large_string()), "nothing": pa.nulls(1),
        "emb": pa.array([[0.1, 2.0]], pa.large_list(pa.float64())),
    }), tmp_path / "a.parquet")
    assert joined(Join(file=str(tmp_path / "a.parquet")), "a") == {
        "kind": ["x"], "day": ["2024-05-01"], "half": [0.5], "big": ["y"], "nothing": [None],
        "emb": [[float(np.float16(0.1)), 2.0]]}


def test_csv(tmp_path: Path) -> None:
    """A key is text even where it looks like a number; an empty number is null."""
    (tmp_path / "a.csv").write_text("uid,score,text\n007,0.5,\n7,,=cmd()\n")
    (tmp_path / "b.csv.gz").write_bytes(gzip.compress(b"uid,score,text\nx,2.0,\xe7\x8a\xac\n"))
    assert joined(Join(file=str(tmp_path / "*.csv*")), "007", "7", "x", "70") == {
        "score": [0.5, None, 2.0, None], "text": ["", "=cmd()", "犬", None]}


def test_number_keys(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": [12, 13], "x": [1, 2]}), tmp_path / "a.parquet")
    join = Join(file=str(tmp_path / "a.parquet"), on="id")
    assert joined(join, "13", "012") == {"x": [2, None]}
    assert join(pa.array([12, 14], pa.int32()))["x"].to_pylist() == [1, None]


def test_rows_without_a_key_are_left_out(tmp_path: Path) -> None:
    pq.write_table(pa.table({"uid": [None, "a", None], "x": [1, 2, 3]}), tmp_path / "a.parquet")
    assert joined(Join(file=str(tmp_path / "a.parquet")), "a", "None", "") == {"x": [2, None, None]}


def test_many_batches(tmp_path: Path) -> None:
    """More rows than a batch of the mapped copy holds, in three files."""
    for part in range(3):
        numbers = np.arange(part * 30_000, (part + 1) * 30_000)
        emb = pa.FixedSizeListArray.from_arrays(pa.array(np.repeat(numbers % 100, 4).astype(np.float32)), 4)
        pq.write_table(pa.table({"uid": [f"k{n}" for n in numbers], "x": numbers, "emb": emb}), tmp_path / f"{part}.parquet")
    join = Join(file=str(tmp_path / "*.parquet"))
    wanted = np.random.default_rng(0).integers(0, 100_000, 2000).tolist()
    values = joined(join, *(f"k{n}" for n in wanted))
    assert values["x"] == [n if n < 90_000 else None for n in wanted]
    assert values["emb"] == [[n % 100] * 4 if n < 90_000 else None for n in wanted]


def test_empty_batch_and_empty_file(parquet: str, tmp_path: Path) -> None:
    assert joined(Join(file=parquet)) == {"score": [], "count": [], "good": [], "text": [], "emb": []}
    pq.write_table(pq.read_table(parquet)[:0], tmp_path / "none.parquet")
    empty = Join(file=str(tmp_path / "none.parquet"), columns=["score", "emb"])
    assert joined(empty, "a", "b") == {"score": [None, None], "emb": [None, None]}


def test_nothing_is_left_behind(parquet: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    join = Join(file=parquet)
    assert list(folder.iterdir()) == []
    assert joined(join, "a")["score"] == [1.5]


def mistake(folder: Path, **settings: Any) -> str:
    with pytest.raises(UserError) as caught:
        Join(**settings)
    return str(caught.value).replace(str(folder), "DIR")


def test_mistakes(parquet: str, tmp_path: Path) -> None:
    assert mistake(tmp_path, file=str(tmp_path / "b*.parquet")) == "step 'join': no file DIR/b*.parquet"
    assert mistake(tmp_path, file=parquet, on="UID") == (
        "step 'join': DIR/a.parquet has no column 'UID'; there is count, emb, good, score, text, uid")
    assert mistake(tmp_path, file=parquet, columns=["scor"]) == (
        "step 'join': DIR/a.parquet has no column 'scor'; did you mean 'score'?")
    with pytest.raises(UserError, match="has no column 'scor'; did you mean 'score'"):
        load_step("join").columns({"file": parquet, "on": "uid", "columns": ["scor"]})


def test_a_key_that_stands_twice(tmp_path: Path) -> None:
    for name, keys in (("a", ["x", "y"]), ("b", ["z", "y"])):
        pq.write_table(pa.table({"uid": keys, "x": [1, 1]}), tmp_path / f"{name}.parquet")
    assert mistake(tmp_path, file=str(tmp_path / "*.parquet")) == (
        "step 'join': key 'y' stands twice in column 'uid' of DIR/*.parquet")


def test_files_that_do_not_fit(parquet: str, tmp_path: Path) -> None:
    pq.write_table(pa.table({"uid": ["z"], "score": [1.0]}), tmp_path / "b.parquet")
    assert mistake(tmp_path, file=str(tmp_path / "*.parquet")) == (
        "step 'join': DIR/b.parquet has no column 'count'; there is score, uid")
    pq.write_table(pa.table({"uid": ["z"], "where": [{"x": 1}]}), tmp_path / "c.parquet")
    assert mistake(tmp_path, file=str(tmp_path / "c.parquet")) == (
        "step 'join': column 'where' is struct<x: int64>; a run holds numbers, truth values, texts and vectors")
    (tmp_path / "d.parquet").write_bytes(b"PAR1 cut short")
    assert mistake(tmp_path, file=str(tmp_path / "d.parquet")).startswith("step 'join': cannot read DIR/d.parquet: ")
    (tmp_path / "e.csv").write_text("uid,x\na,1\n")
    (tmp_path / "f.csv").write_text("uid,x\nb,many\n")
    assert mistake(tmp_path, file=str(tmp_path / "[ef].csv")).startswith("step 'join': cannot read DIR/[ef].csv: ")


def test_on_in_a_pipeline_is_a_word(tmp_path: Path) -> None:
    """YAML 1.1 reads the key `on` as true; a pipeline file means the word."""
    write_pool(tmp_path, ["a dog", "a cat"])
    pq.write_table(pa.table({"url": ["http://site/1.jpg"], "rating": [7]}), tmp_path / "ratings.parquet")
    join = f"join: {{file: {tmp_path}/ratings.parquet, on: url, reads: {{uid: url}}, as: their}}"
    file = write_pipeline(tmp_path, join, "keep: their_rating >= 5")
    assert run_here(file, tmp_path / "out").funnel[-1]["kept"] == 1
