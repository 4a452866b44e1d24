"""The files of a source, cut into what becomes a source shard each: read in order, checked, and told what is wrong with them.

Reading is one after the other and quick. What a cut becomes, hashes and all, is worked out wherever it is sent (`Cut.table`).
"""

import zlib
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from curate import columns, files, remote
from curate.columns import Chunk, Unreadable
from curate.errors import UserError, did_you_mean
from curate.sources import locations, readers, samples
from curate.sources.locations import SourceFile, SourceSettings
from curate.sources.rows import shard_table
from curate.tar import BadTar

PEEK_ROWS = 100
Pick = Callable[[Chunk], Sequence[int]]
"""Chooses rows of a chunk, ascending."""


@dataclass(frozen=True)
class Cut:
    """Rows of a file as they were read, and what it takes to make the table of a shard of them. Can be pickled to a worker."""

    settings: SourceSettings
    file: SourceFile
    number: int
    """of the file in the source"""
    first: int
    """the row of the file that is the first of these"""
    root: Path
    """where names of pictures start from"""
    chunk: Chunk

    def table(self) -> pa.Table:
        """The rows with their ids. Raises UserError, naming the file, where a column with a meaning is none."""
        with refusing(self.file):
            chunk = self.chunk
            if self.settings.path and self.file.format != locations.FOLDER:
                chunk = samples.with_pictures(chunk, self.settings.path, self.root)
            return shard_table(chunk, self.settings.names, self.number, self.first, self.settings.ignore)


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
    with closing(cuts(settings, file, number, rows, seen, group, pick)) as found:
        for cut in found:
            yield cut.table()


def cuts(settings: SourceSettings, file: SourceFile, number: int, rows: int, seen: samples.Seen, group: int | None = None,
         pick: Pick | None = None) -> Generator[Cut, None, None]:
    """What `tables` are made of, as fast as the file can be read."""
    root = locations.find_folder(settings.root, settings.base) if settings.root else Path(file.path).parent
    with refusing(file):
        first = 0
        for chunk in _chunks(settings, file, rows, seen, group):
            if first == 0:
                _check_columns(settings, file, chunk)
            read = chunk.rows
            if pick is not None:
                chunk = chunk.take(pick(chunk))
            yield Cut(settings, file, number, first, root, chunk)
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


def fingerprint(settings: SourceSettings, file: SourceFile) -> str:
    """sha256 of a local file; of a tar or folder, of all that the source takes from it (`samples.Seen`)."""
    if file.format not in samples.READERS:
        return files.file_digest(Path(file.path))
    seen = samples.Seen()
    with refusing(file):
        for _ in _chunks(settings, file, settings.shard_rows, seen):
            pass
    return seen.hexdigest()
