"""The driver: stages to segments, segments to tasks, tasks to an executor, and a funnel that adds up.

A sample's way through the code: `source` → segments of steps and keeps (`measure`), with barriers (`barrier`) between them →
`shards`. The driver holds no rows: it hands out tasks, waits for reports, and reads footers.
"""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from curate import files, funnel
from curate.barrier import is_done
from curate.certificate import certified
from curate.errors import UserError
from curate.heal import reopen
from curate.needs import note
from curate.pace import Pace
from curate.pipeline import OWN_COLUMNS, Pipeline
from curate.plan import Binder, BoundKeep, BoundStep, Column, Segment, WeightsId, spans
from curate.schedule import Tasks, drain, segment_tasks, spread
from curate.shards import Block, is_packed, plan_blocks, write_manifest
from curate.sources.ingest import ingest
from curate.sources.locations import parse_source
from curate.sources.source import Source
from curate.stages import KeepUse, Stage, StepUse, TopUse
from curate.store import Store
from curate.subset import write_subset
from curate.verdict import Verdict, ended, judge, least_of
from curate.work import Pool, Task, Told


class Watcher(Protocol):
    """What shows progress."""

    def stage(self, name: str, total: int, done: int) -> None:
        """A group of tasks begins: how many it has, how many an earlier attempt did."""

    def task(self, task: Task, seconds: float) -> None:
        """A task is done."""

    def told(self, statuses: Counter[str]) -> None:
        """So many images ended in these statuses."""


@dataclass
class Outcome:
    """What a run did: the funnel, the rows measured by step in this attempt and what they took, the state at the end."""

    funnel: list[dict[str, Any]]
    measured: Counter[str]
    chain: str
    columns: dict[str, Column]
    pace: Pace
    manifest: dict[str, Any] | None = None
    unfinished: str = ""

    def data_digest(self, source: Source) -> str:
        """The identity of the rows kept at the end: of the source, and of all that was decided."""
        return files.digest([source.digest, self.chain])


@dataclass
class Run:
    """One attempt at a run: what the driver passes around."""

    pipeline: Pipeline
    store: Store
    source: Source
    pool: Pool
    binder: Binder
    watcher: Watcher
    part: tuple[int, int] | None = None
    retry: bool = False
    heal: bool = False
    measured: Counter[str] = field(default_factory=Counter)
    pace: Pace = field(default_factory=Pace)
    needs: set[str] = field(default_factory=set)
    """folders below the run's that the pipeline went through"""

    def drain(self, name: str, tasks: Tasks) -> None:
        """Run a group of tasks and show it."""
        self.watcher.stage(name, tasks.total, tasks.skipped)
        verdict = Verdict(least_of(self.pipeline.stages))
        for answer in drain(self.pool, tasks):
            if isinstance(answer, Told):
                self.watcher.told(answer.statuses)
                verdict.told(answer.statuses)
            else:
                self.measured.update(answer[1].measured)
                self.pace.add(answer[1])
                self.watcher.task(answer[0], answer[1].seconds)

    def shards_of_part(self) -> list[int]:
        """The source shards that this attempt works on."""
        index, count = self.part or (0, 1)
        return [s for s in range(self.source.num_shards) if s % count == index]


def run(pipeline: Pipeline, store: Store, pool: Pool, weights_id: WeightsId, watcher: Watcher, *, limit: int | None = None,
        part: tuple[int, int] | None = None, retry: bool = False, heal: bool = False, pack: bool = True) -> Outcome:
    """Take a pipeline from its source to shards. Does only what an earlier attempt has not done. The caller holds the lock."""
    _look_at_weights(pipeline, weights_id)
    with store.ingest_lock():
        source = ingest(parse_source(pipeline.source, pipeline.path.parent), store.source, store.attempt, limit,
                        spread=spread(pool))
    binder = Binder({**OWN_COLUMNS, **source.columns}, pipeline.path.parent, weights_id)
    state = Run(pipeline, store, source, pool, binder, watcher, part, retry, heal)
    decided = _stages(state)
    outcome = Outcome([], state.measured, binder.chain, binder.columns, state.pace)
    if not decided:
        outcome.unfinished = "this part is done as far as it goes without the others; run without --part when all parts are"
        return outcome
    outcome.funnel = funnel.count(store, source, binder.chain, pipeline.stages)
    if part is None:
        files.write_json(store.root / "funnel.json", outcome.funnel, store.attempt)
        if pack:
            outcome.manifest = _pack(state)
            _check_packed(outcome)
        note(store, state.needs, finished=pack)
    return outcome


def _look_at_weights(pipeline: Pipeline, weights_id: WeightsId) -> None:
    """Those that are missing, or another model's, stop a run before it has begun: steps behind a barrier are bound late. Raises
    UserError."""
    from train.errors import TrainError

    for stage in pipeline.stages:
        if isinstance(stage, StepUse):
            for name, setting in stage.spec.settings.items():
                if "weights" in setting.tags and stage.settings[name] not in (None, "loop"):
                    try:
                        weights_id(stage.spec, stage.settings, name)
                    except TrainError as error:
                        raise UserError(f"{stage.name}.{name}: {error}") from None


def _check_packed(outcome: Outcome) -> None:
    """What was written is counted apart from what was decided. Raises RuntimeError where the two differ."""
    packed, kept = (outcome.manifest or {}).get("rows"), outcome.funnel[-1]["kept"]
    if packed is not None and packed != kept:
        raise RuntimeError(f"the funnel ends with {kept} rows, but the shards hold {packed}")


def _stages(state: Run) -> bool:
    """All stages of the pipeline; False where a part has to stop before a barrier."""
    pending: list[tuple[int, Stage | BoundKeep]] = []
    opened: set[int] = set()
    for stages, barrier in spans(state.pipeline.stages):
        pending += stages
        if barrier is None and state.pipeline.shards.write and "image" in state.binder.columns:
            pending.append((len(state.pipeline.stages), _image_is_there(state)))
        segments = state.binder.segments(pending or [(-1, _everything())])
        state.needs |= set(_folders(segments))
        _record(state)
        if state.heal:
            opened = reopen(state.store, state.source, segments, opened)
        names = ", ".join(dict.fromkeys(s.spec.name for _, s in stages if isinstance(s, StepUse)))
        tasks = segment_tasks(segments, state.source, state.store, state.shards_of_part(), state.retry, state.heal)
        state.drain(names or "keeps", tasks)
        _judge(state, segments)
        if barrier is None:
            break
        if state.part is not None:
            return False
        pending = list(_barrier(state, *barrier))
    _record(state)
    return state.part is None


def _folders(segments: Sequence[Segment]) -> Iterator[str]:
    """Where segments keep what they measure, fetch and decide, below the run's folder."""
    for segment in segments:
        yield f"kept/{segment.chain_out}"
        for stage in segment.stages:
            if isinstance(stage, BoundStep):
                yield f"columns/{stage.folder}"
                yield f"images/{stage.id}"


def _judge(state: Run, segments: Sequence[Segment]) -> None:
    """Stop after a download that got too little, also where an earlier attempt made it."""
    for segment in segments:
        first = segment.stages[0]
        if segment.kind == "fetch" and isinstance(first, BoundStep) and "status" in first.types:
            judge(ended(state.store, state.source, first.folder), least_of(state.pipeline.stages))


def _barrier(state: Run, index: int, stage: StepUse | TopUse) -> Sequence[tuple[int, BoundKeep]]:
    """Run a barrier over the rows alive now; for `top`, the keep that its mask decides is the next stage."""
    alive = [state.store.decided_digest(state.binder.chain, shard) for shard in range(state.source.num_shards)]
    bound, keep = state.binder.barrier(index, stage, files.digest(alive), state.source.num_distinct)
    state.needs.add(f"columns/{bound.folder}")
    done = is_done(state.store, bound)
    state.drain(stage.label, Tasks([(Task("whole", bound, chain=state.binder.chain), ())] * (not done), skipped=int(done)))
    return [(index, keep)] if keep else []


def _image_is_there(state: Run) -> BoundKeep:
    column = state.binder.columns["image"]
    return BoundKeep(len(state.pipeline.stages), funnel.HAS_IMAGE, None, {"mask": column})


def _everything() -> BoundKeep:
    """The decision of an empty list of stages: a chain needs a link so that its kept files exist."""
    return BoundKeep(-1, "keep everything", None, {"mask": Column("uid", pa.string(), "source.uid")})


def _pack(state: Run) -> dict[str, Any] | None:
    """Finished shards, or the table of uids where the pipeline says `shards: none` or holds no images."""
    store, source, binder, settings = state.store, state.source, state.binder, state.pipeline.shards
    if not settings.write or "image" not in binder.columns:
        write_subset(store, source, binder.chain, binder.columns, store.root)
        return None
    blocks = plan_blocks(store, source, binder.chain, binder.columns, settings, store.shards)
    pack(state, blocks)
    return write_manifest(store.shards, blocks, store.attempt, certified(state.pipeline.stages, source))


def pack(state: Run, blocks: Sequence[Block]) -> None:
    """Write the blocks of a set of shards, in parallel."""
    missing = [block for block in blocks if not is_packed(block)]
    state.drain("shards", Tasks([(Task("pack", block, shard=block.index), []) for block in missing], len(blocks) - len(missing)))


def _stage_record(stage: Stage, state: Run) -> dict[str, Any]:
    """What a reader of the folder needs of a stage: what it is called, its reasons, and of a step its settings and columns."""
    record: dict[str, Any] = {"what": stage.label, "line": stage.line, "clauses": []}
    if isinstance(stage, KeepUse):
        record["clauses"] = [c.text for c in stage.keep.clauses]
    elif isinstance(stage, TopUse):
        record["top"] = {"by": stage.by, "fraction": stage.fraction, "of_source": stage.of_source}
    else:
        folder = next((state.binder.columns[n].folder for n in stage.adds.values() if n in state.binder.columns), "")
        below = f"{state.store.root}/"   # weights that the run trained are named from its folder, so that it can be moved
        settings = {n: str(v).removeprefix(below) if isinstance(v, str | Path) else v for n, v in stage.settings.items()}
        record |= {"folder": folder, "step": stage.spec.name, "settings": settings, "reads": dict(stage.reads),
                   "adds": dict(stage.adds)}
    return record


def _record(state: Run) -> None:
    """run.json: what a reader of the folder needs to find columns and states; no times, they are in attempts.jsonl."""
    columns = {n: {**asdict(c), "type": str(c.type)} for n, c in state.binder.columns.items()}
    stages = [_stage_record(s, state) for s in state.pipeline.stages]
    known = certified(state.pipeline.stages, state.source)
    files.write_json(state.store.root / "run.json", {
        "pipeline": str(state.pipeline.path), "sets": list(state.pipeline.sets), "chain": state.binder.chain, "stages": stages,
        "columns": columns, "shards": asdict(state.pipeline.shards), "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "attempt": state.store.attempt, **({"decontaminated": known} if known else {}),
        **({"expect": asdict(expect)} if (expect := state.pipeline.expect) else {})}, state.store.attempt)
