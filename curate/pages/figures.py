"""The numbers of a run, column by column and stage by stage; no HTML. Source shards are read one after the other, twice.

A column is described by what it holds: numbers by `curate.histogram`, truths and texts with few values by counts, everything
else (identifiers, captions, pictures, vectors) not at all. Two populations throughout: rows that have a value, and rows kept.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from curate import files
from curate.errors import UserError
from curate.folder import Folder
from curate.pages.histogram import Distribution, Histogram
from curate.pages.thresholds import Decision, Line
from curate.plan import Column
from curate.store import ALIVE, DROPPED, QUARANTINED, REMOVED, Kept

NOT_MEASURED = frozenset({"uid", "image_id", "url", "caption", "source_error"})
"""Columns of every source that say which row it is, not what it is like."""
SOURCE_STAGE = "source"
MAX_COLUMNS = 120
"""So many columns are described at most; a source may bring thousands (our choice)."""
_MAX_VALUES, _MAX_DRAWN = 2000, 200
"""A text column with more different values is no longer counted; with more than the second it is not drawn."""
_IDENTIFIER = re.compile(r"[0-9a-f]{16,}|[0-9A-Za-z_-]{22,}")


Mask = NDArray[np.bool_]
"""One entry a row of a shard."""


@dataclass(frozen=True)
class Rows:
    """One source shard: some columns of all its rows, and what became of each row."""

    number: int
    table: pa.Table
    kept: Kept

    @property
    def is_kept(self) -> Mask:
        """The rows kept."""
        mask: Mask = self.kept.state == ALIVE
        return mask

    def passed(self, stage: int, clause: int = -1) -> Mask:
        """The rows that came to a stage and stayed (in one clause of it): those kept, and those that left later."""
        left, at = self.kept.stage, self.kept.clause
        later: Mask = (left > stage) | ((left == stage) & (at > clause) & (clause >= 0))
        mask: Mask = self.is_kept | (later & (self.kept.state != REMOVED))
        return mask

    def dropped(self, stage: int, clause: int) -> Mask:
        """The rows that a clause dropped (unknown is something else)."""
        mask: Mask = (self.kept.state == DROPPED) & (self.kept.stage == stage) & (self.kept.clause == clause)
        return mask

    def quarantined(self, stage: int) -> Mask:
        """The rows that a step could not measure."""
        mask: Mask = (self.kept.state == QUARANTINED) & (self.kept.stage == stage)
        return mask


@dataclass(frozen=True)
class Values:
    """A column of truths or of few texts: rows by value, (with the value, and kept), most frequent first."""

    rows: tuple[int, int]
    counts: dict[str, tuple[int, int]]


@dataclass(frozen=True)
class ColumnFigures:
    """One column: where it comes from, how many rows have a value, and what the values are like."""

    name: str
    own: str
    """what the step calls it"""
    stage: str
    type: str
    rows: tuple[int, int]
    nulls: tuple[int, int]
    shape: Histogram | Values | None
    """None where no row has a value, or where a picture of it says nothing"""
    lines: tuple[Line, ...] = ()


def rows_of(folder: Folder, names: Sequence[str]) -> Iterator[Rows]:
    """The source shards in order, each with the columns named. Only one is in memory at a time."""
    for number in range(folder.source.num_shards):
        yield rows_at(folder, number, names)


def rows_at(folder: Folder, number: int, names: Sequence[str]) -> Rows:
    """One source shard with the columns named."""
    shard = folder.shard(number)
    columns = {n: shard.column(folder.columns[n]) for n in names}
    return Rows(number, pa.table(columns) if columns else pa.table({}), shard.kept)


def check_finished(folder: Folder, funnel: Sequence[Mapping[str, Any]]) -> None:
    """Raises UserError unless the funnel is of this run as it is, through all its stages."""
    shards = range(folder.source.num_shards)
    through = sum(folder.is_through(n) for n in shards)
    status = f"; see 'curate status {folder.root}'"
    if through < len(shards):
        raise UserError(f"{folder.root} is not finished: {through} of {len(shards)} shards are through all stages{status}")
    kept = sum(folder.store.kept_footer(folder.chain, n)[1] for n in shards)
    stages = [s["what"] for s in folder.stages]
    if [e["what"] for e in funnel][1 : len(stages) + 1] != stages or funnel[-1]["kept"] != kept:
        raise UserError(f"{folder.root} is not finished: its funnel is of an earlier attempt{status}")


def measured_columns(folder: Folder) -> dict[str, str]:
    """Name → stage of every column that a figure could be drawn of, in the order of the pipeline, the source's own first."""
    made = {name: entry["what"] for entry in folder.stages for name in entry.get("adds", {}).values()}
    known = {n: c for n, c in folder.columns.items() if n not in NOT_MEASURED and _kind(c.type)}
    return {n: made.get(n, SOURCE_STAGE) for n in known}


def describe(folder: Folder, decisions: Iterable[Decision]) -> list[ColumnFigures]:
    """The figures of every measured column, in order."""
    places = dict(list(measured_columns(folder).items())[:MAX_COLUMNS])
    lines = {name: tuple(dict.fromkeys(x for d in decisions for x in d.lines if x.column == name)) for name in places}
    gathered = {name: _Gathered(folder.columns[name]) for name in places}
    for rows in rows_of(folder, list(places)):
        for name, column in gathered.items():
            column.see(rows.table[name], rows.is_kept)
    numeric = {n: g for n, g in gathered.items() if g.numbers is not None and g.rows[0]}
    for name, column in numeric.items():
        column.settle([_drawn_at(line, column) for line in lines[name]])
    for rows in rows_of(folder, list(numeric)):
        for name, column in numeric.items():
            column.see_again(rows.table[name], rows.is_kept)
    return [g.finish(name, places[name], lines[name]) for name, g in gathered.items()]


def identity(folder: Folder) -> dict[str, str]:
    """The digests that tell this run from others, in full, in the order of the way: source, chain, kept rows, shards."""
    manifest = files.read_json(folder.store.shards / "manifest.json") or {}
    source, chain = folder.source.digest, folder.chain
    found = {"source": source, "chain": chain, "kept rows": files.digest([source, chain])}
    return found | ({"shards": manifest["digest"]} if manifest.get("digest") else {})


def as_numbers(column: pa.Array | pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """A column of numbers as float64, and a mask of the rows that have one: neither null nor NaN."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    valid = array.is_valid().to_numpy(zero_copy_only=False)
    if pa.types.is_decimal(array.type):
        array = array.cast(pa.float64())
    if not pa.types.is_floating(array.type):
        array = pc.fill_null(array, 0)
    values = np.asarray(array.to_numpy(zero_copy_only=False), np.float64)
    return values, valid & ~np.isnan(values)


@dataclass
class _Gathered:
    """A column while it is read."""

    column: Column
    rows: list[int] = field(default_factory=lambda: [0, 0])
    nulls: list[int] = field(default_factory=lambda: [0, 0])
    numbers: Distribution | None = None
    texts: tuple[Counter[str], Counter[str]] | None = None

    def __post_init__(self) -> None:
        kind = _kind(self.column.type)
        self.numbers = Distribution() if kind == "number" else None
        self.texts = (Counter(), Counter()) if kind in ("boolean", "text") else None

    def see(self, column: pa.ChunkedArray, kept: np.ndarray) -> None:
        valid = column.is_valid().to_numpy()
        for which, mask in enumerate((np.ones(len(kept), bool), kept)):
            self.rows[which] += int((mask & valid).sum())
            self.nulls[which] += int((mask & ~valid).sum())
        if self.numbers is not None:
            values, has = as_numbers(column)
            self.numbers.see(values[has], kept[has])
        elif self.texts is not None:
            self._count(column, kept)

    def settle(self, marks: Sequence[float]) -> None:
        assert self.numbers is not None
        self.numbers.settle(marks)

    def see_again(self, column: pa.ChunkedArray, kept: np.ndarray) -> None:
        assert self.numbers is not None
        values, has = as_numbers(column)
        self.numbers.see_again(values[has], kept[has])

    def finish(self, name: str, stage: str, lines: tuple[Line, ...]) -> ColumnFigures:
        rows, nulls = (self.rows[0], self.rows[1]), (self.nulls[0], self.nulls[1])
        return ColumnFigures(name, self.column.name, stage, str(self.column.type), rows, nulls, self._shape(rows), lines)

    def _shape(self, rows: tuple[int, int]) -> Histogram | Values | None:
        if not rows[0]:
            return None
        if self.numbers is not None:
            return self.numbers.finish()
        if self.texts is None or not _worth_drawing(self.texts[0]):
            return None
        order = sorted(self.texts[0].items(), key=lambda item: (-item[1], item[0]))
        return Values(rows, {value: (n, self.texts[1][value]) for value, n in order})

    def _count(self, column: pa.ChunkedArray, kept: np.ndarray) -> None:
        assert self.texts is not None
        texts = column.cast(pa.string())
        for which, some in enumerate((texts, texts.filter(pa.array(kept)))):
            for entry in pc.value_counts(some.drop_null()).to_pylist():
                self.texts[which][entry["values"]] += entry["counts"]
        if len(self.texts[0]) > _MAX_VALUES:
            self.texts = None


def _kind(kind: pa.DataType) -> str:
    """`number`, `boolean`, `text`, `nothing` (a column of nulls alone); empty for what no figure is drawn of."""
    if pa.types.is_dictionary(kind):
        return _kind(kind.value_type)
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return "number"
    if pa.types.is_boolean(kind):
        return "boolean"
    if pa.types.is_null(kind):
        return "nothing"
    return "text" if pa.types.is_string(kind) or pa.types.is_large_string(kind) else ""


def _worth_drawing(counts: Counter[str]) -> bool:
    """Whether texts are categories: few, repeated, and no hashes."""
    if len(counts) > _MAX_DRAWN or 2 * len(counts) > counts.total() + 2:
        return False
    return not any(_IDENTIFIER.fullmatch(value) for value in counts)


def _drawn_at(line: Line, column: _Gathered) -> float:
    assert column.numbers is not None
    return boundary(line, column.numbers.is_whole)


def boundary(line: Line, is_whole: bool) -> float:
    """Where a line is drawn: at the lowest number of its upper side; among whole numbers halfway between the two sides."""
    value_is_low = (line.keeps == "below") == line.inclusive
    if is_whole and line.value == int(line.value):
        return line.value + (0.5 if value_is_low else -0.5)
    return float(np.nextafter(line.value, np.inf)) if value_is_low else line.value
