"""A source becomes source shards in the run's folder: once, in order, and only ever more of them.

Files are read one after the other in this process; their shards are hashed and written wherever `spread` sends them.
"""

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import pyarrow as pa

from curate import columns, files, tombstones
from curate.block_list import BlockList
from curate.errors import UserError
from curate.sources import cut, owners, samples
from curate.sources.cut import Cut
from curate.sources.locations import SourceFile, SourceSettings
from curate.sources.source import DISTINCT, Part, Source, save, stored

ANEW = "a source only grows; use another --out"
AHEAD = 2
"""Shards that are read before the first of them is written, where one process does it all."""


@dataclass(frozen=True)
class NewShard:
    """A shard that is to be written: the first `rows` rows of a cut."""

    cut: Cut
    number: int
    rows: int


Written = Generator[tuple[int, pa.Schema]]
Spread = Callable[[Iterable[NewShard], Path, str], Written]
"""(shards, the folder of the source, attempt) → (rows, columns) of each, in order, once it is written (`write_shard`)."""


def write_shard(shard: NewShard, folder: Path, attempt: str) -> pa.Schema:
    """Write one shard of the source in `folder`; the columns of its cut. One without rows leaves no file."""
    table = shard.cut.table()
    if shard.rows:
        listed = _tombstones(folder.parent, tombstones.state_of(folder.parent))
        barred = tombstones.barred_rows(table[:shard.rows], listed, shard.number)
        again = [name for name in barred.column_names if name not in DISTINCT]
        files.write_table(folder / f"{shard.number:05d}.parquet", barred, attempt, dictionary=again)
    schema: pa.Schema = table.schema
    return schema


@lru_cache(1)
def _tombstones(root: Path, _state: tuple[bool, int]) -> BlockList | None:
    return tombstones.read(root)


def in_a_thread(shards: Iterable[NewShard], folder: Path, attempt: str) -> Written:
    """Write shards in this process, one while the next is read. See Spread."""
    with ThreadPoolExecutor(1) as writer:
        writing = deque[tuple[int, Future[pa.Schema]]]()
        for shard in shards:
            writing.append((shard.rows, writer.submit(write_shard, shard, folder, attempt)))
            if len(writing) == AHEAD:
                rows, written = writing.popleft()
                yield rows, written.result()
        for rows, written in writing:
            yield rows, written.result()


def ingest(settings: SourceSettings, folder: Path, attempt: str, limit: int | None = None,
           progress: Callable[[int], None] | None = None, spread: Spread = in_a_thread) -> Source:
    """Bring `folder` up to what the source is now, and give it. Files read before are not read again; only the holder of the
    run's lock may call it.

    `limit` (before that of the settings) takes the first rows only. `progress` is told the rows so far after each shard. Raises
    UserError for a broken, changed or vanished file and for settings other than those the folder began with.
    """
    settings = settings if limit is None else replace(settings, limit=limit)
    source = stored(folder) or Source(folder, settings.meaning, (), pa.schema([]))
    _check_settings(source, settings)
    found = cut.find_files(settings)
    source = _check_files(source, settings, {f.path: f for f in found}, attempt)
    known = {p.path for p in source.parts}
    source = _append(source, settings, (f for f in found if f.path not in known), attempt, spread, progress)
    if source.joined != source.num_shards:
        repeated = owners.write(folder, source.num_shards, attempt)
        source = replace(source, joined=source.num_shards, num_repeated=repeated)
        save(source, attempt)
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
            same = not file.is_remote and stamp.bytes == part.bytes and part.sha256 is not None
            if not same or cut.fingerprint(settings, file) != part.sha256:
                raise UserError(f"'{file.shown}' has changed since this run read it; {ANEW}")
            part = replace(part, **stamp._asdict())
        parts.append(part)
    if tuple(parts) != source.parts:
        source = replace(source, parts=tuple(parts))
        save(source, attempt)
    return source


def _append(source: Source, settings: SourceSettings, new: Iterable[SourceFile], attempt: str, spread: Spread,
            progress: Callable[[int], None] | None) -> Source:
    """Read new files, one after the other. The record is saved after each, less often where saving takes its time."""
    saved, due = source, 0.0
    try:
        for file in new:
            if settings.limit is not None and source.num_rows >= settings.limit:
                break
            source = _read(source, settings, file, attempt, spread, progress)
            if time.monotonic() >= due:
                began = time.monotonic()
                save(source, attempt)
                saved, due = source, time.monotonic() + 20 * (time.monotonic() - began)
    finally:
        if saved is not source:
            save(source, attempt)
        _remove_strays(source)
    return source


def _read(source: Source, settings: SourceSettings, file: SourceFile, attempt: str, spread: Spread,
          progress: Callable[[int], None] | None) -> Source:
    """The source with one more file, whose shards are written."""
    stamp, seen, schema, rows = file.stamp(anew=True), samples.Seen(), source.stored, 0
    left = None if settings.limit is None else settings.limit - source.num_rows
    with closing(_shards(source, settings, file, seen, left)) as shards, \
            closing(spread(shards, source.folder, attempt)) as written:
        for count, found in written:
            schema, rows = columns.merged(schema, found), rows + count
            if progress:
                progress(source.num_rows + rows)
    if file.stamp(anew=True) != stamp:
        raise UserError(f"'{file.shown}' changed while it was read; run the same command again")
    if rows == left or (file.is_remote and file.format not in samples.READERS):
        sha256 = None
    else:
        sha256 = seen.hexdigest() if file.format in samples.READERS else files.file_digest(Path(file.path))
    part = Part(file.path, *stamp, sha256, rows, source.num_shards, -(-rows // settings.shard_rows))
    return replace(source, parts=(*source.parts, part), stored=schema)


def _shards(source: Source, settings: SourceSettings, file: SourceFile, seen: samples.Seen,
            left: int | None) -> Generator[NewShard]:
    """The shards of one file, of its first `left` rows; one without a row tells the columns of an empty file."""
    with closing(cut.cuts(settings, file, len(source.parts), settings.shard_rows, seen)) as found:
        for number, piece in enumerate(found, source.num_shards):
            rows = piece.chunk.rows if left is None else min(piece.chunk.rows, left)
            yield NewShard(piece, number, rows)
            left = None if left is None else left - rows
            if left == 0:
                break


def ingest_sample(settings: SourceSettings, folder: Path, attempt: str, table: pa.Table) -> Source:
    """A source of only these rows in an empty `folder`: for `ingest` it is one whose files have all been read."""
    size = settings.shard_rows
    shards = [table[at:at + size] for at in range(0, len(table), size)]
    for number, shard in enumerate(shards):
        files.write_table(folder / f"{number:05d}.parquet", shard, attempt)
    first, *others = cut.find_files(settings)
    parts = (Part(first.path, *first.stamp(), None, len(table), 0, len(shards)),
             *(Part(f.path, *f.stamp(), None, 0, len(shards), 0) for f in others))
    repeated = owners.write(folder, len(shards), attempt)
    source = Source(folder, settings.meaning, parts, table.schema.remove_metadata(), len(shards), repeated)
    save(source, attempt)
    return source


def _remove_strays(source: Source) -> None:
    """Remove shards of a file that was not read to its end."""
    for path in source.folder.glob("[0-9]*.parquet"):
        if int(path.stem) >= source.num_shards:
            path.unlink()
