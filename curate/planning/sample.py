"""A sample of a source: rows drawn from all of it where that is cheap, and how many rows there are in all.

Parquet tells its rows without reading them, so rows are drawn from the whole source, or, where its row groups are many, from a
few of them. Other files are read through: all of them up to BUDGET bytes, else the beginning of some, and `how` says so.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curate import columns
from curate.columns import Chunk
from curate.errors import UserError
from curate.sources import cut
from curate.sources.locations import FOLDER, PICTURES, SourceFile, SourceSettings, names_in
from curate.sources.samples import Seen

BUDGET = 1 << 28
"""Bytes of a source that a sample reads at most, but for the row groups it has to open."""
MOST_FILES, LEAST_GROUPS, MOST_GROUPS, MOST_FOOTERS = 16, 8, 64, 512
BATCH = 1000


@dataclass(frozen=True)
class Sample:
    """Some rows of a source, as its shards would hold them, in its order."""

    table: pa.Table
    rows: int
    """of the whole source"""
    exact: bool
    """whether `rows` was counted; else it is estimated by bytes"""
    how: str
    """how the rows were drawn, in words"""


class Group(NamedTuple):
    """A row group: the number of its file, its own number there, its rows, its bytes on disk."""

    file: int
    number: int
    rows: int
    bytes: int


@dataclass(frozen=True)
class Counted(SourceFile):
    """A file that knows how far it has been read."""

    streams: list[IO[bytes]] = field(default_factory=list, compare=False)

    def open(self) -> IO[bytes]:
        """See SourceFile."""
        self.streams.append(super().open())
        return self.streams[-1]

    @property
    def consumed(self) -> int:
        """Bytes read so far, in the file's own compression."""
        return 0 if not self.streams or self.streams[-1].closed else self.streams[-1].tell()


@dataclass
class Reservoir:
    """Chooses `size` of the rows that pass, each with the same chance: those with the smallest random keys."""

    size: int
    random: np.random.Generator
    keys: np.ndarray = field(default_factory=lambda: np.empty(0))
    passed: int = 0
    picture_bytes: int = 0
    limit: float = math.inf

    def __call__(self, chunk: Chunk) -> Sequence[int]:
        """The rows of a chunk that are chosen for now; `keep` tells later which of all these stay."""
        rows = int(min(chunk.rows, self.limit - self.passed))
        self.passed += rows
        self.picture_bytes += sum(p.length for p in (chunk.places or ())[:rows] if p)
        keys = self.random.random(rows)
        chosen = np.flatnonzero(keys < self._line)
        self.keys = np.concatenate([self.keys, keys[chosen]])
        return [int(i) for i in chosen]

    def keep(self) -> np.ndarray:
        """Which of the rows chosen so far stay, ascending."""
        return np.sort(np.argsort(self.keys, kind="stable")[:self.size])

    @property
    def _line(self) -> float:
        return float(np.partition(self.keys, self.size - 1)[self.size - 1]) if len(self.keys) >= self.size else 1.0


def draw(settings: SourceSettings, rows: int, seed: int = 0) -> Sample:
    """Up to `rows` rows of a source by a seed. Raises UserError for a source that is broken or holds no row."""
    files = cut.find_files(settings)
    random = np.random.default_rng(seed)
    if all(f.format == "parquet" and not f.is_gzip for f in files) and len(files) <= MOST_FOOTERS:
        tables, total, exact, how = _of_groups(settings, files, rows, random)
    else:
        tables, total, exact, how = _of_files(settings, files, rows, random)
    if not sum(map(len, tables)):
        raise UserError(f"'{files[0].shown}' holds no row" if len(files) == 1 else "the source holds no row")
    schema = pa.schema([pa.field(n, t) for n, t in cut.peek(settings).items()])
    for table in tables:
        schema = columns.merged(schema, table.schema)
    schema = columns.settled(schema)
    return Sample(pa.concat_tables([columns.conform(t, schema) for t in tables]), total, exact, how)


Drawn = tuple[list[pa.Table], int, bool, str]


def _of_groups(settings: SourceSettings, files: Sequence[SourceFile], rows: int, random: np.random.Generator) -> Drawn:
    """From parquet files by their footers."""
    groups = list(groups_of(files))
    total = sum(g.rows for g in groups)
    if settings.limit is not None and settings.limit < total:
        total = settings.limit
    most = int(np.clip(BUDGET * len(groups) // (sum(g.bytes for g in groups) or 1), LEAST_GROUPS, MOST_GROUPS))
    ends = np.cumsum([g.rows for g in groups])
    rows = min(rows, total)
    if len(groups) <= most:
        wanted = np.sort(random.choice(total, rows, replace=False)) if total else np.empty(0, np.int64)
        how = f"{rows:,} of {total:,} rows, drawn at random from all of them"
    else:
        wanted = _from_some(groups, ends, total, rows, most, random)
        how = (f"{len(wanted):,} of {total:,} rows, drawn at random from {most} of {len(groups):,} row groups; where rows of one "
               "group are alike the true intervals are wider")
    where = np.searchsorted(ends, wanted, side="right")
    tables = []
    for index in np.unique(where):
        group, first = groups[index], ends[index] - groups[index].rows
        tables.append(_of_group(settings, files[group.file], int(index), group, wanted[where == index] - first))
    return tables, total, True, how if rows < total else f"all {total:,} rows"


def _from_some(groups: Sequence[Group], ends: np.ndarray, total: int, rows: int, most: int,
               random: np.random.Generator) -> np.ndarray:
    """Row numbers from `most` groups, drawn systematically with a chance in proportion to their rows."""
    points = (np.arange(most) + random.random()) * (total / most)
    hits = Counter(np.searchsorted(ends, points, side="right").tolist())
    found = []
    for index, times in hits.items():
        first = int(ends[index]) - groups[index].rows
        there = min(groups[index].rows, total - first)
        found.append(first + random.choice(there, min(there, math.ceil(times * rows / most)), replace=False))
    return np.sort(np.concatenate(found))


def groups_of(files: Sequence[SourceFile]) -> Iterator[Group]:
    """The row groups of parquet files, from their footers. Raises UserError for a file that has none."""
    for number, file in enumerate(files):
        try:
            with file.open() as stream, pq.ParquetFile(stream) as parquet:
                found = parquet.metadata
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"cannot read '{file.shown}': {str(error).splitlines()[0]}") from None
        for index in range(found.num_row_groups):
            group = found.row_group(index)
            size = sum(group.column(c).total_compressed_size for c in range(group.num_columns))
            yield Group(number, index, group.num_rows, size)


def _of_group(settings: SourceSettings, file: SourceFile, index: int, group: Group, wanted: np.ndarray) -> pa.Table:
    """The wanted rows (ascending positions in the group)."""
    passed = 0

    def pick(chunk: Chunk) -> Sequence[int]:
        nonlocal passed
        inside = wanted[(wanted >= passed) & (wanted < passed + chunk.rows)] - passed
        passed += chunk.rows
        return [int(i) for i in inside]

    found = []
    with closing(cut.tables(settings, file, index, BATCH, Seen(), group.number, pick)) as tables:
        for table in tables:
            found.append(table)
            if passed > wanted[-1]:
                break
    return pa.concat_tables(found, promote_options="permissive")


def _of_files(settings: SourceSettings, files: Sequence[SourceFile], rows: int, random: np.random.Generator) -> Drawn:
    """From files that have to be read through to know what is in them."""
    sizes = [f.stamp().bytes for f in files]
    chosen = list(range(len(files)))
    if sum(sizes) > BUDGET and len(files) > MOST_FILES and settings.limit is None:
        step = len(files) / MOST_FILES
        chosen = [int((i + random.random()) * step) for i in range(MOST_FILES)]
    budget = BUDGET if settings.limit else BUDGET // len(chosen)
    reservoir = Reservoir(rows, random, limit=settings.limit or math.inf)
    tables: list[pa.Table] = []
    consumed, is_whole = 0, True
    for number in chosen:
        read, ended = _read(settings, files[number], number, sizes[number], budget, reservoir, tables)
        consumed, is_whole = consumed + read, is_whole and ended
        if reservoir.passed >= reservoir.limit:
            break
    exact = (is_whole and len(chosen) == len(files)) or reservoir.passed >= reservoir.limit
    total = reservoir.passed if exact else round(reservoir.passed * sum(sizes) / max(consumed, 1))
    total = int(min(total, reservoir.limit))
    return _kept(tables, reservoir.keep()), total, exact, _how(reservoir, total, exact, len(chosen), len(files), rows, is_whole)


def _read(settings: SourceSettings, file: SourceFile, number: int, size: int, budget: int, reservoir: Reservoir,
          tables: list[pa.Table]) -> tuple[int, bool]:
    """Pass a file, or its first `budget` bytes, through the reservoir; (bytes read, whether that was all of it)."""
    counted = Counted(file.path, file.format)
    before = reservoir.picture_bytes
    with closing(cut.tables(settings, counted, number, BATCH, Seen(), None, reservoir)) as found:
        for table in found:
            tables.append(table)
            at = reservoir.picture_bytes - before if file.format == FOLDER else counted.consumed
            if reservoir.passed >= reservoir.limit or budget <= at < size:
                return at, False
    return size, True


def _kept(tables: Sequence[pa.Table], keep: np.ndarray) -> list[pa.Table]:
    starts = np.cumsum([0, *map(len, tables)])
    return [t.take(pa.array(keep[(keep >= a) & (keep < b)] - a))
            for t, a, b in zip(tables, starts[:-1], starts[1:], strict=True)]


def _how(reservoir: Reservoir, total: int, exact: bool, chosen: int, files: int, rows: int, is_whole: bool) -> str:
    if exact:
        return f"{rows:,} of {total:,} rows, drawn at random from all of them" if rows < total else f"all {total:,} rows"
    part = "" if is_whole else "the beginning of "
    some = f"{chosen} of {files:,} files" if chosen < files else "each file" if files > 1 else "the file"
    return (f"{min(rows, reservoir.passed):,} of about {total:,} rows, drawn at random from {part}{some}; what lies elsewhere "
            "may differ, which the intervals do not know")


def count_rows(files: Sequence[SourceFile], rows: int, consumed: int, read: Sequence[SourceFile]) -> tuple[int, bool]:
    """Rows of all files, and whether that is exact: by footers or names, else from `rows` in `consumed` bytes of some."""
    if all(f.format == "parquet" and not f.is_gzip for f in files) and len(files) <= MOST_FOOTERS:
        return sum(g.rows for g in groups_of(files)), True
    if all(f.format == FOLDER for f in files):
        return sum(Path(n).suffix.lower() in PICTURES for f in files for n in names_in(Path(f.path))), True
    size = sum(f.stamp().bytes for f in files)
    if len(read) == len(files) and consumed >= size:
        return rows, True
    return round(rows * size / max(consumed, 1)), False
