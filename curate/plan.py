"""From stages to work: every column gets its identity, every run of stages its segment.

A column's id is a hash of what made it: step, version, settings (files and weights by content), ids of what it reads. It does
not know the keeps before it, so a threshold changed re-measures nothing. A chain's id is a hash of all stages so far, so "this
shard is through" is one file's existence. A barrier's id also holds the digests of the rows alive, known only when it is reached.
"""

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from curate import files
from curate.keep import Keep
from curate.sources.locations import content
from curate.stages import KeepUse, Stage, StepUse, TopUse
from curate.step import Operational, Setting, Spec, load_step

SegmentKind = Literal["cpu", "model", "fetch"]


@dataclass(frozen=True)
class Column:
    """Where a column is found: in the source, or under `folder` by row or by image."""

    name: str
    type: pa.DataType
    id: str
    folder: str = ""
    by_image: bool = False


@dataclass(frozen=True)
class BoundStep:
    """A step ready for a worker: no code objects, only names and values."""

    index: int
    label: str
    step: str
    base: Path
    settings: Mapping[str, Any]
    reads: Mapping[str, Column]
    types: Mapping[str, pa.DataType]
    id: str
    folder: str
    whole: bool = False

    def spec(self) -> Spec:
        """The step's code."""
        return load_step(self.step, self.base)


@dataclass(frozen=True)
class BoundKeep:
    """A keep with the places of its columns. Without an expression it goes by the column `mask`: false drops, null is unknown."""

    index: int
    label: str
    keep: Keep | None
    columns: Mapping[str, Column]


@dataclass(frozen=True)
class BoundTop:
    """A rank decision: a barrier that adds the column `in_top`."""

    index: int
    label: str
    by: Column
    fraction: float
    source_rows: int | None
    id: str
    folder: str


Bound = BoundStep | BoundKeep
Barrier = BoundStep | BoundTop


@dataclass(frozen=True)
class Segment:
    """Stages that one task does for one shard, and the chain before and after them."""

    kind: SegmentKind
    stages: tuple[Bound, ...]
    chain_in: str
    chain_out: str
    fetched: tuple[int, Column] | None = None
    """the fetch just before it that has a status: its stage, and where that status stands"""


WeightsId = Callable[[Spec, Mapping[str, Any], str], Sequence[str]]


class Binder:
    """Gives stages their ids, in order. Holds which columns exist so far and the chain so far."""

    def __init__(self, source_columns: Mapping[str, pa.DataType], base: Path, weights_id: WeightsId) -> None:
        self.columns = {n: Column(n, t, f"source.{n}") for n, t in source_columns.items()}
        self.chain = ""
        self._fetched: tuple[int, Column] | None = None
        self._base = base
        self._weights_id = weights_id

    def segments(self, stages: Sequence[tuple[int, Stage | BoundKeep]]) -> list[Segment]:
        """Bind the stages between two barriers and cut them where the kind of resource changes."""
        bound = [self._bind(index, stage) for index, stage in stages]
        result = []
        for kind, group in _cut(bound):
            chain_out = files.digest([self.chain, [_chain_part(b) for b in group]])
            result.append(Segment(kind, tuple(group), self.chain, chain_out, self._fetched))
            self.chain, self._fetched = chain_out, _fetched(group[0]) if kind == "fetch" else None
        return result

    def barrier(self, index: int, stage: StepUse | TopUse, alive: str, source_rows: int) -> tuple[Barrier, BoundKeep | None]:
        """Bind a barrier; `alive` is the digest of the alive rows of all shards. A `top` also gives the keep on its mask."""
        if isinstance(stage, StepUse):
            bound = self._step(index, stage, alive)
            self._add(stage, bound)
            return bound, None
        by = self.columns[stage.by]
        total = source_rows if stage.of_source else None
        identity = files.digest(["top", 1, stage.fraction, total, by.id, alive])
        top = BoundTop(index, stage.label, by, stage.fraction, total, identity, f"top-{identity}")
        mask = Column("in_top", pa.bool_(), f"{identity}.in_top", top.folder)
        return top, BoundKeep(index, stage.label, None, {"mask": mask})

    def _bind(self, index: int, stage: Stage | BoundKeep) -> Bound:
        if isinstance(stage, BoundKeep):
            return stage
        if isinstance(stage, KeepUse):
            names = {c for clause in stage.keep.clauses for c in clause.columns}
            return BoundKeep(index, stage.label, stage.keep, {n: self.columns[n] for n in sorted(names)})
        assert isinstance(stage, StepUse), "a barrier is never inside a segment"
        bound = self._step(index, stage, "")
        self._add(stage, bound)
        return bound

    def _step(self, index: int, stage: StepUse, alive: str) -> BoundStep:
        spec = stage.spec
        reads = {p: self.columns[c] for p, c in stage.reads.items()}
        settings = {n: self._setting_id(spec, s, stage.settings) for n, s in spec.settings.items() if Operational not in s.tags}
        inputs = {p: c.id for p, c in reads.items()}
        identity = files.digest([spec.name, spec.version, _code_id(stage.name, spec), settings, inputs, alive])
        return BoundStep(index, stage.label, stage.name, self._base, stage.settings, reads, stage.types, identity,
                         f"{spec.name}-{identity}", spec.kind == "whole")

    def _setting_id(self, spec: Spec, setting: Setting, settings: Mapping[str, Any]) -> Any:
        value = settings[setting.name]
        if value is not None and "weights" in setting.tags:
            return self._weights_id(spec, settings, setting.name)
        if value is not None and "file" in setting.tags:
            return content(value)
        return str(value) if isinstance(value, Path) else value

    def _add(self, stage: StepUse, bound: BoundStep) -> None:
        for own, name in stage.adds.items():
            if own not in stage.spec.volatile:
                self.columns[name] = Column(own, stage.types[own], f"{bound.id}.{own}", bound.folder, stage.spec.kind == "fetch")


def spans(stages: Sequence[Stage]) -> Iterator[tuple[list[tuple[int, Stage]], tuple[int, StepUse | TopUse] | None]]:
    """Runs of row-wise stages, each with the barrier that ends it (None at the end)."""
    run: list[tuple[int, Stage]] = []
    for index, stage in enumerate(stages):
        if isinstance(stage, TopUse) or (isinstance(stage, StepUse) and stage.spec.kind == "whole"):
            yield run, (index, stage)
            run = []
        else:
            run.append((index, stage))
    yield run, None


def _cut(bound: Sequence[Bound]) -> Iterator[tuple[SegmentKind, list[Bound]]]:
    kind: SegmentKind | None = None
    group: list[Bound] = []
    for stage in bound:
        wanted = _kind(stage)
        fits = kind == wanted or (isinstance(stage, BoundKeep) and kind in ("cpu", "model"))
        if not fits and group:
            assert kind is not None
            yield kind, group
            group = []
        if not fits:
            kind = wanted
        group.append(stage)
        if kind == "fetch":
            yield kind, group
            kind, group = None, []
    if group:
        assert kind is not None
        yield kind, group


def _fetched(stage: Bound) -> tuple[int, Column] | None:
    if not isinstance(stage, BoundStep) or "status" not in stage.types:
        return None
    return stage.index, Column("status", stage.types["status"], f"{stage.id}.status", stage.folder, True)


def _kind(stage: Bound) -> SegmentKind:
    if isinstance(stage, BoundKeep):
        return "cpu"
    spec = stage.spec()
    return "fetch" if spec.kind == "fetch" else "model" if spec.gpus else "cpu"


def _chain_part(stage: Bound) -> Any:
    if isinstance(stage, BoundStep):
        return stage.id
    texts = [c.text for c in stage.keep.clauses] if stage.keep else []
    return [texts, {n: c.id for n, c in stage.columns.items()}]


def _code_id(name: str, spec: Spec) -> str | None:
    """A user's own step has no version discipline: its module's text is part of its identity."""
    if ":" not in name:
        return None
    return files.digest(inspect.getsource(sys.modules[spec.target.__module__]))


