"""Steps that need every row: read shard by shard, written shard by shard, one task for all.

A barrier's id holds the digest of the rows alive, so its columns are right for exactly these rows; `done.json` is written last.
What a step returns at its end (a dict of plain data: how it searched, what it found) stands in it under `facts`.
"""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curate import files
from curate.measure import Report, Shard, WholeShard, Worker, part_table
from curate.plan import BoundStep, BoundTop, Column
from curate.step import Chunks
from curate.store import ALIVE, ERROR, Store

MEMORY = "1GB"


def is_done(store: Store, bound: BoundStep | BoundTop) -> bool:
    """Whether an earlier attempt measured a barrier over exactly these rows."""
    return _done(store, bound).exists()


def _done(store: Store, bound: BoundStep | BoundTop) -> Path:
    return store.root / "columns" / bound.folder / "done.json"


def run_barrier(worker: Worker, bound: BoundStep | BoundTop, chain: str) -> Report:
    """Measure a barrier over all rows alive at the end of `chain`, unless it is done already."""
    begin = time.perf_counter()
    report = Report((bound.id,))
    done = _done(worker.store, bound)
    if not done.exists():
        measured, facts = 0, dict[str, Any]()
        for number, table in enumerate(answers(worker, bound, chain, facts)):
            files.write_table(done.parent / f"{number:05d}.000.parquet", table, worker.store.attempt)
            measured += table.num_rows
        told = {"facts": facts} if facts else {}
        files.write_json(done, {"rows": measured, "shards": worker.source.num_shards, **told}, worker.store.attempt)
        report.measured[bound.label] = measured
        report.step_seconds[bound.label] = time.perf_counter() - begin
    report.seconds = time.perf_counter() - begin
    return report


def answers(worker: Worker, bound: BoundStep | BoundTop, chain: str, facts: dict[str, Any] | None = None) -> Iterator[pa.Table]:
    """What a barrier measures, a table a source shard; nothing is written. `facts` gets what the step returns at its end."""
    return _top(worker, bound, chain) if isinstance(bound, BoundTop) else _whole(worker, bound, chain, facts)


def _whole(worker: Worker, bound: BoundStep, chain: str, facts: dict[str, Any] | None) -> Iterator[pa.Table]:
    spec = bound.spec()
    latest: dict[int, WholeShard] = {}

    def at(number: int) -> WholeShard:
        """The columns of one step are read side by side: keep the shard at hand, and only that."""
        if number not in latest:
            latest.clear()
            latest[number] = WholeShard(worker, bound, Shard.at(worker.store, worker.source, number, chain))
        return latest[number]

    def reader(ref: Column, annotation: Any) -> Chunks:
        return Chunks(lambda: (at(n).form(ref, annotation) for n in range(worker.source.num_shards)))

    columns = [reader(bound.reads[p], a) if p in bound.reads else None for p, a in spec.reads.items()]
    answers = _with_facts(spec.target(*columns, **bound.settings), {} if facts is None else facts)
    for number, values in zip(range(worker.source.num_shards), answers, strict=True):
        rows = at(number).rows
        yield part_table(bound, rows, values, [None] * len(rows))


def _with_facts(answers: Any, facts: dict[str, Any]) -> Iterator[Any]:
    facts |= (yield from answers) or {}


def _top(worker: Worker, bound: BoundTop, chain: str) -> Iterator[pa.Table]:
    """The best rows by (value descending, uid), found by an external sort: `floor(fraction * N)` of those with a value."""
    def shard_values(number: int) -> tuple[np.ndarray, pa.Table]:
        shard = Shard.at(worker.store, worker.source, number, chain)
        values = shard.column(bound.by).cast(pa.float64())
        uids = worker.source.table(number, ["uid"])["uid"].combine_chunks()
        usable = pc.and_(pc.is_valid(values), pc.invert(pc.fill_null(pc.is_nan(values), True))).to_numpy(zero_copy_only=False)
        rows = np.flatnonzero(usable & (shard.kept.state == ALIVE))
        return rows, pa.table({"value": values.take(pa.array(rows)), "uid": uids.take(pa.array(rows))})

    numbers = range(worker.source.num_shards)
    total = sum(len(shard_values(n)[0]) for n in numbers)
    schema = pa.schema([("value", pa.float64()), ("uid", pa.string())])
    batches = (batch for n in numbers for batch in shard_values(n)[1].cast(schema).to_batches())
    count = min(int(np.floor(bound.fraction * (bound.source_rows if bound.source_rows is not None else total))), total)
    line = _last_in(pa.RecordBatchReader.from_batches(schema, batches), count, worker) if count else None
    for number in numbers:
        rows, table = shard_values(number)
        yield pa.table({"row": pa.array(rows, pa.int32()), "in_top": _above(table, line),
                        ERROR: pa.nulls(len(rows), pa.string())})


def _last_in(reader: pa.RecordBatchReader, count: int, worker: Worker) -> tuple[float, str]:
    """The value and uid of the last row that is in."""
    spill = worker.store.root / f".spill.{worker.store.attempt}{files.TEMPORARY}"
    with duckdb.connect(config={"memory_limit": MEMORY, "threads": 1, "temp_directory": str(Path(spill))}) as connection:
        connection.register("pool", reader)
        query = "SELECT value, uid FROM pool ORDER BY value DESC, uid LIMIT 1 OFFSET ?"
        found = connection.execute(query, [count - 1]).fetchone()
    assert found is not None
    return found[0], found[1]


def _above(table: pa.Table, line: tuple[float, str] | None) -> pa.Array:
    if line is None:
        return pa.array(np.zeros(table.num_rows, bool))
    value, uid = line
    better = pc.greater(table["value"], value)
    tied = pc.and_(pc.equal(table["value"], value), pc.less_equal(table["uid"], uid))
    return pc.or_(better, tied).combine_chunks()
