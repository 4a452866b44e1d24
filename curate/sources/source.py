"""What a source is once it was read: its shards in the run's folder, and the record of which files became which.

    source/00000.parquet   uid, image_id, url, caption, image (pictures that lie here), source_error, the user's other columns
    source/source.json     which files were read, as what, into which shards; written when a file is complete
    source/repeats.parquet, owners.parquet, borrowers.parquet   see `curate.sources.owners`

Every row of the source is a row of exactly one shard. One without url (and picture) keeps its captions and columns, has a null
url and image_id and a uid of its position; steps do not measure it and a keep counts it as unknown. `source_error` says why.
"""

import bisect
import functools
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curate import columns, files, remote, tombstones
from curate.errors import UserError
from curate.sources import owners
from curate.sources.locations import SourceFile, Stamp

DISTINCT = ("uid", "image_id", "url", "caption")
"""Columns in which a value seldom comes again: a dictionary of them saves nothing in a parquet file, and takes its time."""


@dataclass(frozen=True)
class Part:
    """One file of the source as it was read, and the shards it became."""

    path: str
    bytes: int
    mtime_ns: int | None
    version: str | None
    sha256: str | None
    rows: int
    first_shard: int
    shards: int

    @property
    def stamp(self) -> Stamp:
        """What the file looked like when it was read."""
        return Stamp(self.bytes, self.mtime_ns, self.version)


@dataclass(frozen=True)
class Source:
    """The source shards of a run. Holds a few numbers a file; rows are read when asked for. Can be pickled to workers."""

    folder: Path
    settings: Mapping[str, Any]
    parts: tuple[Part, ...]
    stored: pa.Schema
    joined: int = -1
    """shards there were when `curate.sources.owners` last looked at them"""
    num_repeated: int = 0

    @classmethod
    def open(cls, folder: Path) -> "Source":
        """The source as the last `ingest` left it in `folder`. Raises UserError where there was none."""
        source = stored(folder)
        if source is None:
            raise UserError(f"'{folder.parent}' holds no source; `curate run` makes it")
        return source

    @property
    def num_shards(self) -> int:
        """Shards are numbered from 0 and never change their number."""
        return self.parts[-1].first_shard + self.parts[-1].shards if self.parts else 0

    @functools.cached_property
    def num_rows(self) -> int:
        """Rows of the whole source, repeated ones included."""
        return sum(p.rows for p in self.parts)

    @property
    def num_distinct(self) -> int:
        """Rows without the repeated ones."""
        return self.num_rows - self.num_repeated

    @property
    def columns(self) -> dict[str, pa.DataType]:
        """Name → type of every column of a shard, ours first."""
        return {f.name: f.type for f in self.schema}

    @functools.cached_property
    def schema(self) -> pa.Schema:
        """The columns of every shard, as `table` gives them."""
        return columns.settled(self.stored)

    @property
    def has_images(self) -> bool:
        """Whether the pictures lie here already (column `image`) instead of behind urls."""
        return bool(self.settings["kind"] != "pairs")

    @functools.cached_property
    def digest(self) -> str:
        """The identity of the source: what its files hold and how they are read, not where they lie (32 hex)."""
        return files.digest([dict(self.settings), [[p.sha256 or list(p.stamp), p.rows] for p in self.parts]])

    @functools.cached_property
    def _filled(self) -> tuple[list[int], list[Part]]:
        filled = [p for p in self.parts if p.shards]
        return [p.first_shard for p in filled], filled

    def part(self, shard: int) -> Part:
        """The file that a shard comes from."""
        if not 0 <= shard < self.num_shards:
            raise IndexError(f"no source shard {shard}, there are {self.num_shards}")
        firsts, filled = self._filled
        return filled[bisect.bisect_right(firsts, shard) - 1]

    def rows(self, shard: int) -> int:
        """Rows of a shard, repeated ones included."""
        part, size = self.part(shard), int(self.settings["shard_rows"])
        return min(size, part.rows - (shard - part.first_shard) * size)

    def path(self, shard: int) -> Path:
        """The parquet file of a shard. Its own types may be narrower than `schema`: read it with `table`."""
        return self.folder / f"{shard:05d}.parquet"

    def table(self, shard: int, names: Sequence[str] | None = None) -> pa.Table:
        """A shard's rows in file order, all columns or the named ones, in the types of `schema`."""
        schema = self.schema if names is None else pa.schema([self.schema.field(n) for n in names])
        with pq.ParquetFile(self.path(shard)) as parquet:
            wanted = {n.lower() for n in schema.names}
            stored = [n for n in parquet.schema_arrow.names if n.lower() in wanted]
            return columns.conform(parquet.read(stored), schema)

    def repeated(self, shard: int) -> np.ndarray[Any, np.dtype[np.int32]]:
        """Rows of a shard whose uid came earlier in the source, ascending: they collapse into that one, as `repeated_row`."""
        return owners.repeated(self.folder, shard)

    def taken_down(self, shard: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Rows of a shard that were taken down, ascending: they are blank, and nothing measures or keeps them."""
        return tombstones.blank_rows(self.path(shard))

    def owners(self, shard: int) -> dict[str, int]:
        """image_id → the earlier shard that fetches it, for those pictures of a shard that another one holds first."""
        return owners.owned_elsewhere(self.folder, shard)

    def borrowers(self, shard: int) -> dict[int, list[str]]:
        """Later shard → its pictures that this shard fetches for it."""
        return owners.borrowers(self.folder, shard)

    def unchanged(self, shard: int) -> AbstractContextManager[None]:
        """Pictures read in the block, where they lie in an object store, are those that were scanned; else UserError."""
        part = self.part(shard)
        if not self.has_images or part.version is None or not SourceFile(part.path, "").is_remote:
            return nullcontext()
        return remote.unchanged(part.path, (part.bytes, part.version))

    def depends(self, shard: int) -> set[int]:
        """The earlier shards that fetch pictures of this one."""
        return set(self.owners(shard).values())


def stored(folder: Path) -> Source | None:
    """The source as it was last saved in `folder`; None where it never was."""
    record = files.read_json(folder / "source.json")
    if record is None:
        return None
    schema = pa.ipc.read_schema(pa.py_buffer(b64decode(record["schema"])))
    parts = tuple(Part(**p) for p in record["files"])
    return Source(folder, record["settings"], parts, schema, record["joined"], record["repeated_rows"])


def save(source: Source, attempt: str) -> None:
    """Write the record."""
    files.write_json(source.folder / "source.json", {
        "settings": source.settings, "settings_digest": files.digest(source.settings), "rows": source.num_rows,
        "shards": source.num_shards, "joined": source.joined,
        "repeated_rows": source.num_repeated, "columns": {f.name: str(f.type) for f in source.schema},
        "schema": b64encode(source.stored.serialize().to_pybytes()).decode(), "files": [asdict(p) for p in source.parts],
    }, attempt)
