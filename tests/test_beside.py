"""What a fetch step reads besides the url, through a whole run, with a step that answers what it was told."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curate.errors import UserError
from curate.pipeline import load
from tests.running import run_here, write_pipeline

STEP = '''
import json
from typing import Any
from curate.step import fetch, image, string

@fetch(adds={"image": image, "status": string, "heard": string})
class Asks:
    async def one(self, url: str, notes: list[Any] | None = None, marks: list[Any] | None = None):
        return {"status": "ok", "heard": json.dumps([notes, marks])}, None
'''
SOURCE = "source: {pairs: pool.parquet, url: url, caption: caption, shard_rows: 3}\n"


def pool(folder: Path, rows: list[tuple[str, str, Any]], name: str = "notes") -> None:
    urls, captions, notes = zip(*rows, strict=True)
    table = {"url": [f"http://site/{u}" for u in urls], "caption": captions, name: notes}
    pq.write_table(pa.table(table), folder / "pool.parquet")
    (folder / "asks.py").write_text(STEP)


def heard(out: Path) -> dict[str, Any]:
    """caption → what the step was told for the row's image."""
    told = {}
    for table in (pq.read_table(p) for p in sorted(out.glob("columns/asks-*/*.parquet"))):
        told |= dict(zip(table["image_id"].to_pylist(), map(json.loads, table["heard"].to_pylist()), strict=True))
    rows = pa.concat_tables([pq.read_table(p, columns=["image_id", "caption"]) for p in (out / "source").glob("0*.parquet")])
    return {c: told.get(i) for i, c in zip(rows["image_id"].to_pylist(), rows["caption"].to_pylist(), strict=True)}


def test_all_rows_of_an_image_speak_whichever_shard_they_lie_in(tmp_path: Path) -> None:
    pool(tmp_path, [("a", "one", [1]), ("b", "two", None), ("a", "three", [2]), ("c", "four", []), ("a", "five", [3])])
    run_here(write_pipeline(tmp_path, "./asks.py:asks", source=SOURCE), tmp_path / "out")
    assert heard(tmp_path / "out") == {
        "one": [[[1], [2], [3]], None], "two": [[None], None], "three": [[[1], [2], [3]], None], "four": [[[]], None],
        "five": [[[1], [2], [3]], None]}


def test_a_dropped_row_speaks_where_it_has_something_to_say(tmp_path: Path) -> None:
    pool(tmp_path, [("a", "kept", [1]), ("a", "no", [2]), ("a", "no way", None), ("b", "no", [4])])
    pipeline = write_pipeline(tmp_path, "caption_length", "keep: caption like 'k%'", "./asks.py:asks", source=SOURCE)
    run_here(pipeline, tmp_path / "out")
    assert heard(tmp_path / "out")["kept"] == [[[1], [2]], None]


def test_without_the_column_nothing_is_said_and_another_can_be_named(tmp_path: Path) -> None:
    pool(tmp_path, [("a", "one", [1])], name="remarks")
    run_here(write_pipeline(tmp_path, "./asks.py:asks", source=SOURCE), tmp_path / "plain")
    assert heard(tmp_path / "plain") == {"one": [None, None]}
    named = write_pipeline(tmp_path, "./asks.py:asks: {reads: {marks: remarks}}", source=SOURCE)
    run_here(named, tmp_path / "named")
    assert heard(tmp_path / "named") == {"one": [None, [[1]]]}
    ids = [next((tmp_path / name / "columns").iterdir()).name for name in ("plain", "named")]
    assert ids[0] != ids[1], "what is read is part of what a column is"
    with pytest.raises(UserError, match="reads column 'remrks', which nothing before it adds"):
        load(write_pipeline(tmp_path, "./asks.py:asks: {reads: {marks: remrks}}", source=SOURCE))
