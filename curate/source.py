"""A source becomes source shards in the run's folder: once, in order, and only ever more of them.

    source/00000.parquet   uid, image_id, url, caption, image (pictures that lie here), source_error, the user's other columns
    source/source.json     which files were read, as what, into which shards; written when a file is complete
    source/repeats.parquet, owners.parquet, borrowers.parquet   see `curate.owners`

Every row of the source is a row of exactly one shard. One without url (and picture) keeps its captions and columns, has a null
url and image_id and a uid of its position; steps do not measure it and a keep counts it as unknown. `source_error` says why.
"""

import bisect
import functools
import itertools
import time
import zlib
from base64 import b64decode, b64encode
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curate import columns, files, locations, owners, readers, remote, samples, tombstones
from curate.columns import Chunk, Unreadable
from curate.errors import UserError, did_you_mean
from curate.locations import SourceFile, SourceSettings, Stamp, parse_source
from curate.rows import shard_table
from curate.tar import BadTar

PEEK_ROWS = 100
Pick = Callable[[Chunk], Sequence[int]]
"""Chooses rows of a chunk, ascending."""
ANEW = "a source only grows; use another --out"

__all__ = ["Part", "Source", "SourceSettings", "find_files", "ingest", "ingest_sample", "parse_source", "peek", "tables"]

def find_files(settings: SourceSettings) -> list[SourceFile]:
    """The files a source consists of now, in order. Raises UserError where there is none."""
    formats = locations.TARS if settings.kind == "shards" else locations.TABLES
    found = locations.find(settings.where, settings.base, formats, pictures=settings.kind == "images")
    for file in found:
        if settings.header and file.format not in ("csv", "tsv"):
            raise UserError(f"source: header names the columns of csv and tsv files, not of '{file.shown}'")
    return found


def peek(settings: SourceSettings) -> dict[str, pa.DataType]:
    """The columns of the source and their types, from the first rows of its first file that has any; reads nothing else.

    A later row may still widen a type (int64 → float64 → string); `Source.schema` is the final word.
    """
    schema = None
    for number, file in enumerate(find_files(settings)):
        with closing(tables(settings, file, number, PEEK_ROWS, samples.Seen())) as found:
            table = next(found)
        schema = columns.merged(schema, table.schema)
        if len(table):
            break
    return {f.name: f.type for f in columns.settled(schema)}


def tables(settings: SourceSettings, file: SourceFile, number: int, rows: int, seen: samples.Seen, group: int | None = None,
           pick: Pick | None = None) -> Generator[pa.Table, None, None]:
    """The shards of file `number` of the source, as tables of `rows` rows; the first comes even if it is empty.

    `group` reads one row group of a parquet file only. With `pick` a table holds those rows of each chunk that it chooses: what
    a sample leaves out is not hashed. Raises UserError, naming the file, where it is broken or lacks a column.
    """
    root = locations.find_folder(settings.root, settings.base) if settings.root else Path(file.path).parent
    with refusing(file):
        first = 0
        for chunk in _chunks(settings, file, rows, seen, group):
            if first == 0:
                _check_columns(settings, file, chunk)
            read = chunk.rows
            if pick is not None:
                chunk = chunk.take(pick(chunk))
            if settings.path and file.format != locations.FOLDER:
                chunk = samples.with_pictures(chunk, settings.path, root)
            yield shard_table(chunk, settings.names, number, first, settings.ignore)
            first += read


def _chunks(settings: SourceSettings, file: SourceFile, rows: int, seen: samples.Seen,
            group: int | None = None) -> Iterator[Chunk]:
    reader = samples.READERS.get(file.format)
    if reader is None:
        return readers.read_table(file, rows, settings.header, group)
    return reader(file, rows, samples.Wanted(settings.caption, settings.url), seen)


@contextmanager
def refusing(file: SourceFile) -> Iterator[None]:
    """Everything that a broken file makes a reader raise, as one line for the user."""
    try:
        yield
    except pa.ArrowMemoryError:
        raise
    except (Unreadable, BadTar, pa.ArrowException, EOFError, zlib.error, *remote.trouble()) as error:
        raise UserError(f"cannot read '{file.shown}': {remote.reason(error)}") from None


def _check_columns(settings: SourceSettings, file: SourceFile, chunk: Chunk) -> None:
    """Refuse a file without a column that the user named. A tar's .json may lack a url, and an empty file everything."""
    if file.format in samples.READERS:
        required = {settings.caption, settings.uid, settings.url if settings.url != "url" else None}
    else:
        required = {settings.names.url, settings.names.caption, settings.uid, settings.path}
    missing = sorted(n for n in required if n and n not in chunk.fields)
    if missing and (chunk.fields or chunk.rows):
        raise UserError(f"'{file.shown}' has no column '{missing[0]}'{did_you_mean(missing[0], chunk.fields)}")


def _fingerprint(settings: SourceSettings, file: SourceFile) -> str:
    """sha256 of a local file; of a tar or folder, of all that the source takes from it (`samples.Seen`)."""
    if file.format not in samples.READERS:
        return files.file_digest(Path(file.path))
    seen = samples.Seen()
    with refusing(file):
        for _ in _chunks(settings, file, settings.shard_rows, seen):
            pass
    return seen.hexdigest()


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
    """shards there were when `curate.owners` last looked at them"""
    num_repeated: int = 0

    @classmethod
    def open(cls, folder: Path) -> "Source":
        """The source as the last `ingest` left it in `folder`. Raises UserError where there was none."""
        source = _stored(folder)
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


def _stored(folder: Path) -> Source | None:
    record = files.read_json(folder / "source.json")
    if record is None:
        return None
    schema = pa.ipc.read_schema(pa.py_buffer(b64decode(record["schema"])))
    parts = tuple(Part(**p) for p in record["files"])
    return Source(folder, record["settings"], parts, schema, record["joined"], record["repeated_rows"])


def _save(source: Source, attempt: str) -> None:
    files.write_json(source.folder / "source.json", {
        "settings": source.settings, "settings_digest": files.digest(source.settings), "rows": source.num_rows,
        "shards": source.num_shards, "joined": source.joined,
        "repeated_rows": source.num_repeated, "columns": {f.name: str(f.type) for f in source.schema},
        "schema": b64encode(source.stored.serialize().to_pybytes()).decode(), "files": [asdict(p) for p in source.parts],
    }, attempt)


def ingest(settings: SourceSettings, folder: Path, attempt: str, limit: int | None = None,
           progress: Callable[[int], None] | None = None) -> Source:
    """Bring `folder` up to what the source is now, and give it. Files read before are not read again; only the holder of the
    run's lock may call it.

    `limit` (before that of the settings) takes the first rows only. `progress` is told the rows so far after each shard. Raises
    UserError for a broken, changed or vanished file and for settings other than those the folder began with.
    """
    settings = settings if limit is None else replace(settings, limit=limit)
    source = _stored(folder) or Source(folder, settings.meaning, (), pa.schema([]))
    _check_settings(source, settings)
    found = find_files(settings)
    source = _check_files(source, settings, {f.path: f for f in found}, attempt)
    known = {p.path for p in source.parts}
    source = _append(source, settings, (f for f in found if f.path not in known), attempt, progress)
    if source.joined != source.num_shards:
        repeated = owners.write(folder, source.num_shards, attempt)
        source = replace(source, joined=source.num_shards, num_repeated=repeated)
        _save(source, attempt)
    return source


def _check_settings(source: Source, settings: SourceSettings) -> None:
    for name in {**source.settings, **settings.meaning}:
        before, now = source.settings.get(name), settings.meaning.get(name)
        if before != now:
            was, is_ = ("not set" if value is None else repr(value) for value in (before, now))
            raise UserError(f"source: {name} was {was} in '{source.folder.parent}', now it is {is_}; {ANEW}")


def _check_files(source: Source, settings: SourceSettings, found: Mapping[str, SourceFile], attempt: str) -> Source:
    """Refuse a source that lost or changed a file; take on new times of files that are the same inside."""
    parts = []
    for part in source.parts:
        file = found.get(part.path)
        if file is None:
            raise UserError(f"'{SourceFile(part.path, '').shown}' was part of the source and is not any more; {ANEW}")
        stamp = file.stamp()
        if stamp != part.stamp:
            if file.is_remote or stamp.bytes != part.bytes or part.sha256 is None or _fingerprint(settings, file) != part.sha256:
                raise UserError(f"'{file.shown}' has changed since this run read it; {ANEW}")
            part = replace(part, **stamp._asdict())
        parts.append(part)
    if tuple(parts) != source.parts:
        source = replace(source, parts=tuple(parts))
        _save(source, attempt)
    return source


def _append(source: Source, settings: SourceSettings, new: Iterable[SourceFile], attempt: str,
            progress: Callable[[int], None] | None) -> Source:
    """Read new files, one after the other. The record is saved after each, less often where saving takes its time."""
    saved, due = source, 0.0
    try:
        for file in new:
            if settings.limit is not None and source.num_rows >= settings.limit:
                break
            source = _read(source, settings, file, attempt, progress)
            if time.monotonic() >= due:
                began = time.monotonic()
                _save(source, attempt)
                saved, due = source, time.monotonic() + 20 * (time.monotonic() - began)
    finally:
        if saved is not source:
            _save(source, attempt)
        _remove_strays(source)
    return source


def _read(source: Source, settings: SourceSettings, file: SourceFile, attempt: str,
          progress: Callable[[int], None] | None) -> Source:
    """The source with one more file, whose shards are written."""
    stamp, seen, schema, rows = file.stamp(anew=True), samples.Seen(), source.stored, 0
    left = None if settings.limit is None else settings.limit - source.num_rows
    shards = itertools.count(source.num_shards)
    found = tables(settings, file, len(source.parts), settings.shard_rows, seen)
    listed = tombstones.read(source.folder.parent)
    with closing(found), ThreadPoolExecutor(1) as writer:  # one shard is written while the next one is hashed
        writing: Future[Any] = writer.submit(int)
        for table in found:
            table = table[:left - rows] if left is not None else table
            schema, rows = columns.merged(schema, table.schema), rows + len(table)
            writing.result()
            if len(table):
                number = next(shards)
                table = tombstones.barred_rows(table, listed, number)
                writing = writer.submit(files.write_table, source.path(number), table, attempt)
            if progress:
                progress(source.num_rows + rows)
            if rows == left:
                break
        writing.result()
    if file.stamp(anew=True) != stamp:
        raise UserError(f"'{file.shown}' changed while it was read; run the same command again")
    if rows == left or (file.is_remote and file.format not in samples.READERS):
        sha256 = None
    else:
        sha256 = seen.hexdigest() if file.format in samples.READERS else files.file_digest(Path(file.path))
    part = Part(file.path, *stamp, sha256, rows, source.num_shards, next(shards) - source.num_shards)
    return replace(source, parts=(*source.parts, part), stored=schema)


def ingest_sample(settings: SourceSettings, folder: Path, attempt: str, table: pa.Table) -> Source:
    """A source of only these rows in an empty `folder`: for `ingest` it is one whose files have all been read."""
    size = settings.shard_rows
    shards = [table[at:at + size] for at in range(0, len(table), size)]
    for number, shard in enumerate(shards):
        files.write_table(folder / f"{number:05d}.parquet", shard, attempt)
    first, *others = find_files(settings)
    parts = (Part(first.path, *first.stamp(), None, len(table), 0, len(shards)),
             *(Part(f.path, *f.stamp(), None, 0, len(shards), 0) for f in others))
    repeated = owners.write(folder, len(shards), attempt)
    source = Source(folder, settings.meaning, parts, table.schema.remove_metadata(), len(shards), repeated)
    _save(source, attempt)
    return source


def _remove_strays(source: Source) -> None:
    """Remove shards of a file that was not read to its end."""
    for path in source.folder.glob("[0-9]*.parquet"):
        if int(path.stem) >= source.num_shards:
            path.unlink()
