"""What a worker does: take one shard through one segment. Measure what is missing, decide, record.

This is the spine. A step never sees a null it did not ask for, a row it raises on is quarantined with the reason, and a shard's
states are written once, at the end of the segment.
"""

import errno
import sys
import time
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curate import step
from curate.decoding.pictures import Pictures, read_ahead
from curate.errors import CurateError, RunStopped
from curate.keep import DROPPED as SAYS_NO
from curate.keep import KEPT as SAYS_YES
from curate.keep import evaluate
from curate.plan import BoundKeep, BoundStep, Column, Segment
from curate.sources.source import Source
from curate.step import Spec
from curate.store import (
    ALIVE,
    DROPPED,
    ERROR,
    QUARANTINED,
    REMOVED,
    REPEATED,
    TAKEN,
    UNKNOWN,
    Kept,
    Store,
    newest,
    positions,
    take_or_null,
)
from curate.tombstones import REMOVED as THROWN_AWAY

ALL_FAIL = 8
"""From so many rows on, a step that raises on every one of them is broken, not the data (our choice)."""
SINGLES_AHEAD = 64
"""So many rows' pictures are read at once where a batch is measured row by row and they lie in an object store."""
_NOT_THE_DATA = {errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE}


class BadAnswer(TypeError):
    """A step gave back other columns than it declares, or another number of values than rows: the program is wrong."""


@dataclass
class Report:
    """What one task did: rows measured by step and the seconds they took (models loaded before), rows alive at its end."""

    key: tuple[Any, ...]
    measured: dict[str, int] = field(default_factory=dict)
    step_seconds: dict[str, float] = field(default_factory=dict)
    alive: int = 0
    seconds: float = 0.0
    gpu_peak_bytes: int = 0
    """the most memory that torch ever held on this process's GPU; 0 without one"""
    schema: pa.Schema | None = None
    """of a source shard that was written: the columns of its rows"""


class Shard:
    """One source shard inside a task: the states of its rows, and its columns, each read once."""

    def __init__(self, store: Store, source: Source, number: int, kept: Kept) -> None:
        self.store, self.source, self.number, self.kept = store, source, number, kept
        self._parts: dict[str, tuple[pa.Table | None, np.ndarray]] = {}
        self._own: dict[str, pa.Array] = {}

    @classmethod
    def at(cls, store: Store, source: Source, number: int, chain: str) -> "Shard":
        """The shard as a chain left it; the empty chain is the source itself, where only repeated rows are out."""
        if chain:
            return cls(store, source, number, store.read_kept(chain, number))
        kept = Kept.fresh(source.rows(number))
        kept.leave(source.repeated(number), DROPPED, -1)
        kept.leave(source.taken_down(number), REMOVED, REPEATED, TAKEN)
        return cls(store, source, number, kept)

    def column(self, ref: Column) -> pa.Array:
        """All rows of a column, null where it was not measured."""
        if not ref.folder:
            if ref.name not in self._own:
                self._own[ref.name] = _one(self.source.table(self.number, [ref.name])[ref.name])
            return self._own[ref.name]
        table, where = self._laid_out(ref)
        return pa.nulls(len(where), ref.type) if table is None else take_or_null(table[ref.name], where)

    def errors(self, bound: BoundStep) -> pa.Array:
        """Why each row of a step is quarantined, null where it isn't."""
        return self.column(Column(ERROR, pa.string(), "", bound.folder, bound.spec().kind == "fetch"))

    def measured(self, folder: str) -> np.ndarray:
        """Which rows a step has measured, as a mask."""
        return self._laid_out(Column("", pa.null(), "", folder))[1] >= 0

    def laid_over(self, folder: str, part: pa.Table) -> None:
        """A part was added to a column folder that has been looked at: it is here already, so nobody reads it again."""
        before, _ = self._parts[folder]
        table = part if before is None else pa.concat_tables([before, part])
        self._parts[folder] = table.combine_chunks(), newest(table["row"].to_numpy(), self.source.rows(self.number))

    def _laid_out(self, ref: Column) -> tuple[pa.Table | None, np.ndarray]:
        if ref.folder not in self._parts:
            self._parts[ref.folder] = self._by_image(ref) if ref.by_image else self._by_row(ref)
        return self._parts[ref.folder]

    def _by_row(self, ref: Column) -> tuple[pa.Table | None, np.ndarray]:
        rows = self.source.rows(self.number)
        table = self.store.read_parts(ref.folder, self.number)
        return table, newest(table["row"].to_numpy() if table is not None else np.empty(0, np.int64), rows)

    def _by_image(self, ref: Column) -> tuple[pa.Table | None, np.ndarray]:
        """Images that an earlier shard owns were fetched there."""
        homes = [self.number, *sorted(set(self.source.owners(self.number).values()))]
        tables = [t for t in (self.store.read_parts(ref.folder, home) for home in homes) if t is not None]
        wanted = _one(self.source.table(self.number, ["image_id"])["image_id"])
        if not tables:
            return None, np.full(len(wanted), -1, np.int64)
        table = pa.concat_tables(tables)
        where = positions(_one(table["image_id"]), wanted)
        return table, np.where(pc.is_valid(wanted).to_numpy(zero_copy_only=False), where, -1)


class Worker:
    """Holds what a process builds once: the store, the source, and the instances of steps that hold a model."""

    def __init__(self, root: Path, attempt: str) -> None:
        self.store = Store(root, attempt)
        self._instances: dict[str, Any] = {}

    @cached_property
    def source(self) -> Source:
        """The source, once all of it was read: a worker may have had its hands in that."""
        return Source.open(self.store.source)

    def instance(self, bound: BoundStep) -> Any:
        """The step's class with its settings, built on first use; None for a function."""
        key = f"{bound.id} {sorted(bound.settings.items(), key=str)}"
        if key not in self._instances:
            spec = bound.spec()
            self._instances[key] = spec.target(**bound.settings) if spec.is_model else None
        return self._instances[key]

    def run_segment(self, segment: Segment, number: int, retry: bool = False) -> Report:
        """Take a shard through a segment, or find that it is through already. `retry` measures quarantined rows again."""
        begin = time.perf_counter()
        report = Report((segment.chain_out, number))
        if not retry and self.store.has_kept(segment.chain_out, number):
            report.alive = self.store.kept_footer(segment.chain_out, number)[1]
            return report
        shard = Shard.at(self.store, self.source, number, segment.chain_in)
        if segment.fetched is not None:
            throw_away(shard, *segment.fetched)
        for stage in segment.stages:
            if isinstance(stage, BoundStep):
                self.measure(stage, shard, retry, report)
            else:
                decide(stage, shard)
        self.finish(segment, shard, report, begin)
        return report

    def finish(self, segment: Segment, shard: Shard, report: Report, begin: float) -> None:
        """Record the states at the end of a segment: from here on the shard is through it."""
        uids = _one(self.source.table(shard.number, ["uid"])["uid"])
        self.store.write_kept(segment.chain_out, shard.number, shard.kept, uids)
        report.alive = len(shard.kept.alive)
        report.seconds = time.perf_counter() - begin
        report.gpu_peak_bytes = _gpu_peak_bytes()

    def measure(self, bound: BoundStep, shard: Shard, retry: bool, report: Report) -> None:
        """Measure the alive rows that have every input and no value yet; `report` is told how many these were."""
        spec = bound.spec()
        rows = self._missing(bound, spec, shard, retry)
        report.measured[bound.label] = len(rows)
        if len(rows):
            call = _caller(bound, spec, self.instance(bound))
            begin = time.perf_counter()
            batches = (rows[i : i + spec.batch] for i in range(0, len(rows), spec.batch))
            sees = any(ref.type == step.image for ref in bound.reads.values())
            with self.source.unchanged(shard.number) if sees else nullcontext():
                parts = [self._batch(bound, spec, shard, batch, call) for batch in batches]
            report.step_seconds[bound.label] = time.perf_counter() - begin
            table = pa.concat_tables(parts)
            _refuse_total_failure(bound, table)
            self.store.write_part(bound.folder, shard.number, table)
            shard.laid_over(bound.folder, table)
        quarantine(bound, shard)

    def _missing(self, bound: BoundStep, spec: Spec, shard: Shard, retry: bool) -> np.ndarray:
        has = shard.measured(bound.folder)
        if retry and has.any():
            has &= pc.is_null(shard.errors(bound)).to_numpy(zero_copy_only=False)
        rows = shard.kept.alive
        rows = rows[~has[rows]]
        for parameter, ref in bound.reads.items():
            if len(rows) and parameter not in spec.optional:
                valid = pc.is_valid(shard.column(ref)).to_numpy(zero_copy_only=False)
                rows = rows[valid[rows]]
        return _same_image_together(bound, shard, rows)

    def _batch(self, bound: BoundStep, spec: Spec, shard: Shard, rows: np.ndarray, call: Callable[..., Any]) -> pa.Table:
        """Measure a batch at once; where that raises, row by row, and what raises alone is quarantined."""
        columns = {p: shard.column(ref).take(pa.array(rows)) for p, ref in bound.reads.items()}
        try:
            values = call(_forms(spec, columns, Pictures(self.store.root)))
            return part_table(bound, rows, values, [None] * len(rows))
        except (CurateError, BadAnswer):
            raise
        except Exception as error:  # noqa: BLE001  a step may raise anything; what is not about the data goes on up
            _reraise_machine_trouble(bound, error)
        singles = list(self._singles(bound, spec, columns, len(rows), call))
        good = [v for v, _ in singles]
        merged = {own: [None if v is None else v[own][0] for v in good] for own in bound.types}
        return part_table(bound, rows, merged, [e for _, e in singles])

    def _singles(self, bound: BoundStep, spec: Spec, columns: Mapping[str, pa.Array], rows: int,
                 call: Callable[..., Any]) -> Iterator[tuple[dict[str, Any] | None, str | None]]:
        for at in range(0, rows, SINGLES_AHEAD):
            few = {p: c.slice(at, SINGLES_AHEAD) for p, c in columns.items()}
            refs = (ref for c in few.values() if c.type == step.image for ref in c.to_pylist() if ref)
            ahead = read_ahead(refs, self.store.root)
            for i in range(min(SINGLES_AHEAD, rows - at)):
                one = {p: c.slice(i, 1) for p, c in few.items()}
                yield self._single(bound, spec, one, Pictures(self.store.root, ahead), call)

    def _single(self, bound: BoundStep, spec: Spec, one: Mapping[str, pa.Array], pictures: Pictures,
                call: Callable[..., Any]) -> tuple[dict[str, Any] | None, str | None]:
        try:
            values = call(_forms(spec, one, pictures))
            part_table(bound, np.array([0]), values, [None])
            return values, None
        except (CurateError, BadAnswer):
            raise
        except Exception as error:  # noqa: BLE001  the reason goes into the row
            _reraise_machine_trouble(bound, error)
            return None, f"{type(error).__name__}: {error}"[:500]


def decide(bound: BoundKeep, shard: Shard) -> None:
    """Let a keep decide over the alive rows."""
    alive = shard.kept.alive
    index = pa.array(alive)
    if bound.keep is None:
        says = shard.column(bound.columns["mask"]).take(index)
        valid = pc.is_valid(says).to_numpy(zero_copy_only=False)
        shard.kept.leave(alive[~valid], UNKNOWN, bound.index, 0)
        if pa.types.is_boolean(says.type):
            no = pc.equal(says, False).fill_null(False).to_numpy(zero_copy_only=False)
            shard.kept.leave(alive[no], DROPPED, bound.index, 0)
        return
    table = pa.table({name: shard.column(ref).take(index) for name, ref in bound.columns.items()})
    verdicts = evaluate(bound.keep, table)
    gone = verdicts.state != SAYS_YES
    state = np.where(verdicts.state[gone] == SAYS_NO, DROPPED, UNKNOWN)
    shard.kept.state[alive[gone]] = state
    shard.kept.stage[alive[gone]] = bound.index
    shard.kept.clause[alive[gone]] = verdicts.clause[gone]


def throw_away(shard: Shard, stage: int, status: Column) -> None:
    """Alive rows whose picture was one that had been taken down leave as removed, at the stage of its fetch."""
    came = pc.fill_null(pc.equal(shard.column(status), THROWN_AWAY), False).to_numpy(zero_copy_only=False)
    shard.kept.leave(np.flatnonzero(came & (shard.kept.state == ALIVE)), REMOVED, stage)


def quarantine(bound: BoundStep, shard: Shard) -> None:
    """Alive rows that the step could not measure leave, with the reason in its column folder."""
    errors = shard.errors(bound)
    if errors.null_count == len(errors):
        return
    wrong = pc.is_valid(errors).to_numpy(zero_copy_only=False)
    shard.kept.leave(np.flatnonzero(wrong & (shard.kept.state == ALIVE)), QUARANTINED, bound.index)


def as_form(array: pa.Array, annotation: Any, pictures: Pictures) -> Any:
    """A column in the form that a parameter's annotation asks for (see `curate.step`)."""
    inner = next((a for a in typing.get_args(annotation) if a is not type(None)), annotation) \
        if type(None) in typing.get_args(annotation) else annotation
    if array.type == step.image:
        element = (typing.get_args(inner) or (None,))[0]
        return pictures.of(array.to_pylist(), element is bytes)
    if inner is pa.Array or inner is pa.StringArray:
        return array
    if inner is np.ndarray or typing.get_origin(inner) is np.ndarray or array.type == step.vector:
        return matrix(array) if array.type == step.vector else array.to_numpy(zero_copy_only=False)
    return array.to_pylist()


def matrix(array: pa.Array) -> np.ndarray:
    """A vector column without nulls as a float32 matrix (rows, dimensions)."""
    if not len(array):
        return np.empty((0, 0), np.float32)
    flat: np.ndarray = array.flatten().to_numpy(zero_copy_only=False)
    return flat.astype(np.float32).reshape(len(array), -1)


def to_column(values: Any, kind: pa.DataType) -> pa.Array:
    """What a step returned for one column as Arrow; a matrix becomes a vector column."""
    if isinstance(values, np.ndarray) and values.ndim == 2:
        flat = pa.array(np.ascontiguousarray(values, np.float16).reshape(-1))
        offsets = np.arange(len(values) + 1, dtype=np.int32) * int(values.shape[1])
        return pa.ListArray.from_arrays(pa.array(offsets), flat)
    if kind == step.vector:
        values = [None if v is None else np.asarray(v, np.float16) for v in values]
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    return values.cast(kind) if isinstance(values, pa.Array) else pa.array(values, kind)


def _forms(spec: Spec, columns: Mapping[str, pa.Array], pictures: Pictures) -> dict[str, Any]:
    return {p: as_form(c, spec.reads[p], pictures) for p, c in columns.items()}


def _caller(bound: BoundStep, spec: Spec, instance: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """The step as a function from forms to {column: values}; parameters that nothing is bound to get None."""
    def call(forms: dict[str, Any]) -> dict[str, Any]:
        positional = [forms.get(p) for p in spec.reads]
        values = instance(*positional) if spec.is_model else spec.target(*positional, **bound.settings)
        if isinstance(values, Mapping):
            return dict(values)
        return {next(iter(bound.types)): values}
    return call


def part_table(bound: BoundStep, rows: np.ndarray, values: Mapping[str, Any], errors: Sequence[str | None]) -> pa.Table:
    if set(values) != set(bound.types):
        raise BadAnswer(f"step '{bound.label}' returned columns {sorted(values)}, it declares {sorted(bound.types)}")
    arrays = {own: to_column(values[own], kind) for own, kind in bound.types.items()}
    for own, array in arrays.items():
        if len(array) != len(rows):
            raise BadAnswer(f"step '{bound.label}' returned {len(array)} values of '{own}' for {len(rows)} rows")
    return pa.table({"row": pa.array(rows, pa.int32()), **arrays, ERROR: pa.array(errors, pa.string())})


def _refuse_total_failure(bound: BoundStep, table: pa.Table) -> None:
    errors = table[ERROR].drop_null()
    if len(errors) == table.num_rows >= ALL_FAIL:
        raise RunStopped(f"step '{bound.label}' fails on all {table.num_rows} rows of a shard, nothing of it was recorded; "
                         f"the first says {errors[0].as_py()}")


def _reraise_machine_trouble(bound: BoundStep, error: Exception) -> None:
    """Out of memory, disk or GPU trouble says nothing about the row: stop, record nothing."""
    trouble = isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in _NOT_THE_DATA)
    if trouble or type(error).__name__ in ("OutOfMemoryError", "AcceleratorError"):
        raise RunStopped(f"step '{bound.label}': {type(error).__name__}: {error}") from error


def _gpu_peak_bytes() -> int:
    """What torch held at most on this process's GPU; 0 where no step has touched one. Never loads torch."""
    torch = sys.modules.get("torch")
    return int(torch.cuda.max_memory_allocated()) if torch is not None and torch.cuda.is_initialized() else 0


def _same_image_together(bound: BoundStep, shard: Shard, rows: np.ndarray) -> np.ndarray:
    """Rows that share a picture stand side by side, so that a batch decodes and embeds it once."""
    if len(rows) < 2 or not any(ref.type == step.image for ref in bound.reads.values()):
        return rows
    ids = _one(shard.source.table(shard.number, ["image_id"])["image_id"]).take(pa.array(rows))
    groups = ids.dictionary_encode().indices.fill_null(-1).to_numpy(zero_copy_only=False)
    return rows[np.argsort(groups, kind="stable")]


def _one(column: pa.ChunkedArray) -> pa.Array:
    array = column.combine_chunks()
    return array if isinstance(array, pa.Array) else array.chunk(0) if array.num_chunks else pa.array([], column.type)


class WholeShard:
    """One shard inside a barrier: its alive rows that have every input the step needs."""

    def __init__(self, worker: Worker, bound: BoundStep, shard: Shard) -> None:
        self.shard, self._root = shard, worker.store.root
        rows = shard.kept.alive
        optional = bound.spec().optional
        for parameter, ref in bound.reads.items():
            if parameter not in optional:
                valid = pc.is_valid(shard.column(ref)).to_numpy(zero_copy_only=False)
                rows = rows[valid[rows]]
        self.rows = rows

    def form(self, ref: Column, annotation: Any) -> Any:
        """The rows of one column in the form its parameter asks for."""
        options = typing.get_args(annotation) if type(None) in typing.get_args(annotation) else (annotation,)
        wanted = next((a for option in options for a in typing.get_args(option)[1:]), pa.Array)
        return as_form(self.shard.column(ref).take(pa.array(self.rows)), wanted, Pictures(self._root))
