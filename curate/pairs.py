"""Tables for training and judging: which pictures with which captions, without copying a picture.

A table has uid, image_id, caption and image (file relative to the run's folder, offset, length); `train` reads it with
`{table: …, root: RUN}`. Written shard by shard, in source order, so the same rows give the same bytes. What the rows were checked
for (`curate.certificate`) stands in the file's metadata as JSON, under `decontaminated`.
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
from curate.sources.source import Source
from curate.store import Store

SCHEMA = pa.schema([("uid", step.string), ("image_id", step.string), ("caption", step.string), ("image", step.image)])
Chooser = Callable[[Shard], np.ndarray]
"""Which rows of a shard, as indices."""


def write_pairs(store: Store, source: Source, columns: Mapping[str, Column], chain: str, path: Path, choose: Chooser,
                decontaminated: Sequence[Mapping[str, Any]] = ()) -> int:
    """Write the chosen rows that have a picture and a caption; how many they are. A table that is there already is right."""
    if path.exists():
        return int(pq.read_metadata(path).num_rows)
    rows = 0
    schema = SCHEMA.with_metadata({"decontaminated": json.dumps(list(decontaminated))}) if decontaminated else SCHEMA
    with files.atomic(path, store.attempt) as file, pq.ParquetWriter(file, schema, compression="zstd") as out:
        for number in range(source.num_shards):
            shard = Shard.at(store, source, number, chain)
            index = pa.array(choose(shard))
            table = pa.table({name: shard.column(columns[name]).take(index) for name in SCHEMA.names}, schema=SCHEMA)
            table = table.filter(pc.and_(pc.is_valid(table["image"]), pc.is_valid(table["caption"])))
            out.write_table(table.replace_schema_metadata(schema.metadata))
            rows += table.num_rows
    return rows


def kept(shard: Shard) -> np.ndarray:
    """The rows alive at the end of the chain."""
    return shard.kept.alive


def left_at(stage: int) -> Chooser:
    """The rows that left at a stage: what `keep: not held_out` sets aside."""
    return lambda shard: np.flatnonzero(shard.kept.stage == stage)
