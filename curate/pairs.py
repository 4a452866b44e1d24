"""Tables for training and judging: which pictures with which captions, without copying a picture.

A table has uid, image_id, image (file relative to the run's folder, offset, length), caption and maybe a list of captions, which
then are what is learnt; `train` reads it with `{table: …, root: RUN}`. Written shard by shard, in source order, so the same rows
give the same bytes. What the rows were checked for (`curate.certificate`) stands in the file's metadata as JSON, under
`decontaminated`.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curate import files, step
from curate.measure import Shard
from curate.plan import Column
from curate.shards import packed_columns
from curate.sources.source import Source
from curate.store import Store

SCHEMA = pa.schema([("uid", step.string), ("image_id", step.string), ("caption", step.string), ("image", step.image)])
SEVERAL = pa.field("captions", pa.list_(step.string))
LARGE = pa.large_list(pa.large_string())
"""The same as some writers of tables have it."""
Chooser = Callable[[Shard], np.ndarray]
"""Which rows of a shard, as indices."""


def of_source(columns: Mapping[str, Column]) -> dict[str, Column]:
    """The columns of a table with the source's captions."""
    return {name: columns[name] for name in SCHEMA.names}


def as_packed(columns: Mapping[str, Column], caption: str) -> dict[str, Column]:
    """The columns of a table with the captions that `shards: {caption: …}` packs."""
    return {**of_source(columns), **captions_of(columns, caption)}


def captions_of(columns: Mapping[str, Column], caption: str) -> dict[str, Column]:
    """What shards have to say of a picture: that column, and a list `captions` where there is one. Before the step that adds the
    column there is only the source's caption."""
    packed = dict(packed_columns(columns, caption if caption in columns else "caption"))
    return {n: c for n, c in packed.items()
            if n == "caption" or (n == SEVERAL.name and c.type in (SEVERAL.type, LARGE))}


def identity(rows: str, columns: Mapping[str, Column]) -> str:
    """The digest of a table of the rows of that digest: theirs, unless the table has other captions than the source's."""
    chosen = {n: c.id for n, c in columns.items() if n in ("caption", SEVERAL.name) and c.id != "source.caption"}
    return files.digest([rows, chosen]) if chosen else rows


def write_pairs(store: Store, source: Source, columns: Mapping[str, Column], chain: str, path: Path, choose: Chooser,
                decontaminated: Sequence[Mapping[str, Any]] = ()) -> int:
    """Write these columns of the chosen rows that have a picture and a caption; how many they are. A table that is there already
    is right."""
    if path.exists():
        return int(pq.read_metadata(path).num_rows)
    rows = 0
    plain = SCHEMA.append(SEVERAL) if SEVERAL.name in columns else SCHEMA
    schema = plain.with_metadata({"decontaminated": json.dumps(list(decontaminated))}) if decontaminated else plain
    with files.atomic(path, store.attempt) as file, pq.ParquetWriter(file, schema, compression="zstd") as out:
        for number in range(source.num_shards):
            shard = Shard.at(store, source, number, chain)
            index = pa.array(choose(shard))
            table = pa.table({name: shard.column(columns[name]).take(index) for name in plain.names}, schema=plain)
            table = table.filter(pc.and_(pc.is_valid(table["image"]), _has_caption(table)))
            out.write_table(table.replace_schema_metadata(schema.metadata))
            rows += table.num_rows
    return rows


def _has_caption(table: pa.Table) -> pa.ChunkedArray:
    """Whether there is a text to learn: in `captions` where that is there, else in `caption`."""
    one = pc.is_valid(table["caption"])
    if SEVERAL.name not in table.column_names:
        return one
    several = table[SEVERAL.name]
    return pc.if_else(pc.is_valid(several), pc.greater(pc.list_value_length(several), 0), one)


def kept(shard: Shard) -> np.ndarray:
    """The rows alive at the end of the chain."""
    return shard.kept.alive


def left_at(stage: int) -> Chooser:
    """The rows that left at a stage: what `keep: not held_out` sets aside."""
    return lambda shard: np.flatnonzero(shard.kept.stage == stage)
