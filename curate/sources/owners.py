"""The two joins over all rows of a source: which rows come a second time, and which shard holds a shared picture first.

    repeats.parquet    shard, row           a row whose uid an earlier row has; sorted by (shard, row)
    owners.parquet     image_id, owner, shard    a picture of several shards: the first (`owner`) and each other; sorted by shard
    borrowers.parquet  the same rows, sorted by owner

DuckDB computes them in at most MEMORY (mostly the smaller), with what is more in the source's folder. 64-bit hashes are grouped
first, so that only ids that may be there twice are ever held as text.
"""

import glob
import shutil
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curate import files

if TYPE_CHECKING:
    import duckdb

MEMORY = ("256MB", "1GB")
"""What DuckDB may take: the first does for 10 million rows, as fast as the last; where it runs out, the next is tried."""
THREADS = 2
SPILL = ".spill"

ROWS = """
create temp view rows as
select regexp_extract(filename, '([0-9]+)[.]parquet$', 1)::integer as shard, file_row_number::integer as row, uid, image_id
from read_parquet('{pattern}', filename = true, file_row_number = true)
"""
NO_ROWS = "create temp view rows as select 0::integer as shard, 0::integer as row, '' as uid, '' as image_id limit 0"
POSITION = "(shard::bigint << 32 | row)"
REPEATS = f"""
with maybe as (select hash(uid) as h from rows group by h having count(*) > 1),
     twice as (select uid, min({POSITION}) as first from rows semi join maybe on hash(uid) = h group by uid having count(*) > 1)
select shard, row from rows join twice using (uid) where {POSITION} > first order by shard, row
"""
OWNERS = """
create temp table owners as
with own as (select image_id, shard from rows anti join read_parquet('{repeats}') using (shard, row) where image_id is not null),
     maybe as (select hash(image_id) as h from own group by h having min(shard) < max(shard)),
     shared as (select image_id, min(shard) as owner from own semi join maybe on hash(image_id) = h
                group by image_id having min(shard) < max(shard))
select distinct image_id, owner, shard from own join shared using (image_id) where shard > owner
"""
REPEATS_SCHEMA = pa.schema([("shard", pa.int32()), ("row", pa.int32())])
OWNERS_SCHEMA = pa.schema([("image_id", pa.string()), ("owner", pa.int32()), ("shard", pa.int32())])


def write(folder: Path, shards: int, attempt: str) -> int:
    """Compute the three files anew from the `shards` source shards in `folder`; the number of repeated rows."""
    import duckdb

    for memory in MEMORY[:-1]:
        with suppress(duckdb.OutOfMemoryException):
            return _joined(folder, shards, attempt, memory)
    return _joined(folder, shards, attempt, MEMORY[-1])


def _joined(folder: Path, shards: int, attempt: str, memory: str) -> int:
    import duckdb

    repeats, owners, borrowers = (folder / f"{n}.parquet" for n in ("repeats", "owners", "borrowers"))
    spill = folder / SPILL
    shutil.rmtree(spill, ignore_errors=True)
    config: dict[str, str | bool | int | float | list[str]] = {
        "memory_limit": memory, "threads": THREADS, "temp_directory": str(spill), "preserve_insertion_order": False}
    with duckdb.connect(config=config) as connection:
        connection.execute(ROWS.format(pattern=_quoted(glob.escape(str(folder)) + "/[0-9]*.parquet")) if shards else NO_ROWS)
        num_repeated = _write(connection, REPEATS, repeats, REPEATS_SCHEMA, attempt)
        connection.execute(OWNERS.format(repeats=_quoted(glob.escape(str(repeats)))))
        _write(connection, "from owners order by shard, image_id", owners, OWNERS_SCHEMA, attempt)
        _write(connection, "from owners order by owner, shard, image_id", borrowers, OWNERS_SCHEMA, attempt)
    shutil.rmtree(spill, ignore_errors=True)
    return num_repeated


def _write(connection: "duckdb.DuckDBPyConnection", query: str, path: Path, schema: pa.Schema, attempt: str) -> int:
    rows = 0
    with files.atomic(path, attempt) as file, pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for batch in connection.sql(query).to_arrow_reader(65536):
            writer.write_batch(batch.cast(schema), row_group_size=65536)
            rows += len(batch)
    return rows


def _quoted(text: str) -> str:
    return text.replace("'", "''")


def repeated(folder: Path, shard: int) -> np.ndarray[Any, np.dtype[np.int32]]:
    """The rows of a shard whose uid an earlier row has, ascending."""
    rows: np.ndarray[Any, np.dtype[np.int32]] = _of(folder / "repeats.parquet", "shard", shard, "row").column("row").to_numpy()
    return rows


def owned_elsewhere(folder: Path, shard: int) -> dict[str, int]:
    """image_id → the earlier shard that holds it first, for the shared pictures of a shard."""
    table = _of(folder / "owners.parquet", "shard", shard, "image_id", "owner")
    return dict(zip(table.column("image_id").to_pylist(), table.column("owner").to_pylist(), strict=True))


def borrowers(folder: Path, shard: int) -> dict[int, list[str]]:
    """Later shard → the pictures of this shard that it holds too."""
    table = _of(folder / "borrowers.parquet", "owner", shard, "image_id", "shard")
    found: dict[int, list[str]] = {}
    for image_id, other in zip(table.column("image_id").to_pylist(), table.column("shard").to_pylist(), strict=True):
        found.setdefault(other, []).append(image_id)
    return found


def _of(path: Path, key: str, shard: int, *columns: str) -> pa.Table:
    """The rows where `key` is `shard`, by which they are sorted: only the row groups that can hold any are read."""
    with pq.ParquetFile(path) as file:
        place = file.schema_arrow.get_field_index(key)
        spans = ((n, file.metadata.row_group(n).column(place).statistics) for n in range(file.num_row_groups))
        groups = [n for n, span in spans if span is None or span.min <= shard <= span.max]    # none: a takedown left no row
        return file.read_row_groups(groups, [key, *columns]).filter(pc.field(key) == shard)
