"""`shards: none`: the rows that a run kept, as one table and as the sorted list of their uids, in flat memory.

    subset.parquet   the columns that shards would hold, in source order
    subset.npy       DataComp's form of a subset: sorted pairs of uint64

Shards of the source are read ahead in threads while the table is written; DuckDB sorts the uids, on disk where they are many.
"""

import re
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curate import files
from curate.measure import Shard
from curate.plan import Column
from curate.shards import UID_BYTES, UID_PAIR, packed_columns, uid_bytes
from curate.sources.source import DISTINCT, Source
from curate.store import Store

MEMORY = "256MB"
READERS = 2
"""Threads that read; each holds one source shard, and the writer another."""
_PAIR = pa.schema([("f0", pa.uint64()), ("f1", pa.uint64())])


def write_subset(store: Store, source: Source, chain: str, columns: Mapping[str, Column], folder: Path) -> int:
    """Write both files into `folder`; the number of rows."""
    chosen = packed_columns(columns)
    schema = pa.schema([(name, ref.type) for name, ref in chosen])
    again = [name for name in schema.names if name not in DISTINCT]

    def rows_of(number: int) -> pa.Table:
        shard = Shard.at(store, source, number, chain)
        alive, every = pa.array(shard.kept.alive), len(shard.kept.state)
        found = {name: shard.column(ref) for name, ref in chosen}
        return pa.table({n: c if len(alive) == every else c.take(alive) for n, c in found.items()}, schema=schema)

    rows = 0
    with files.atomic(folder / "subset.parquet", store.attempt) as file, \
            pq.ParquetWriter(file, schema, compression="zstd", use_dictionary=again) as out:
        for table in _ahead(rows_of, source.num_shards):
            out.write_table(table)
            rows += len(table)
    with files.atomic(folder / "subset.npy", store.attempt) as file:
        header = {"descr": np.lib.format.dtype_to_descr(UID_PAIR), "fortran_order": False, "shape": (rows,)}
        np.lib.format.write_array_header_1_0(file, header)
        for pairs in _sorted(folder / "subset.parquet", store):
            file.write(pairs.tobytes())
    return rows


def _ahead(make: Callable[[int], pa.Table], number: int) -> Iterator[pa.Table]:
    """make(0), make(1), … in order, some of them made before they are asked for."""
    with ThreadPoolExecutor(READERS) as pool:
        coming = deque[Future[pa.Table]]()
        for n in range(number):
            coming.append(pool.submit(make, n))
            if len(coming) > READERS:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()


def _sorted(subset: Path, store: Store) -> Iterator[np.ndarray]:
    """The uids of a table as pairs in order, some at a time."""
    spill = store.root / f".spill.{store.attempt}{files.TEMPORARY}"
    with pq.ParquetFile(subset) as parquet, \
            duckdb.connect(config={"memory_limit": MEMORY, "threads": 1, "temp_directory": str(spill)}) as connection:
        batches = (_pairs(batch.column(0)) for batch in parquet.iter_batches(columns=["uid"]))
        connection.register("uids", pa.RecordBatchReader.from_batches(_PAIR, batches))
        for batch in connection.sql("select f0, f1 from uids order by f0, f1").to_arrow_reader(65536):
            pairs = np.empty(len(batch), UID_PAIR)
            pairs["f0"], pairs["f1"] = batch.column(0), batch.column(1)
            yield pairs
    shutil.rmtree(spill, ignore_errors=True)


def _pairs(uids: pa.Array) -> pa.RecordBatch:
    halves = _as_bytes(uids).view(">u8").astype(np.uint64).reshape(-1, 2)
    return pa.record_batch([np.ascontiguousarray(halves[:, 0]), np.ascontiguousarray(halves[:, 1])], schema=_PAIR)


def _as_bytes(uids: pa.Array) -> np.ndarray:
    """`uid_bytes` of a column; where all are 32 hex digits no text is made of each."""
    if pc.all(pc.equal(pc.binary_length(uids), 32)).as_py():
        digits = pc.binary_join(pa.ListArray.from_arrays(pa.array([0, len(uids)], pa.int32()), uids), "")[0].as_py()
        if re.fullmatch("[0-9a-f]*", digits):
            return np.frombuffer(bytes.fromhex(digits), UID_BYTES)
    return uid_bytes(uids.to_pylist())
