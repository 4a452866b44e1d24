"""`curate plan`: what a run will keep, take and cost, by a sample that goes through every step in a folder of its own.

Rows: of n sampled rows k are alive after a stage, so of N rows about N·k/n will be, between the bounds of Wilson's score interval
(Wilson 1927). The stages' own pass rates multiply to k/n; bounds of each multiplied would count one uncertainty many times.
A sample has fewer duplicates than the whole: stages that look for them, and all that rest on these, are marked.
"""

import math
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from curate import progress
from curate.errors import UserError
from curate.folder import Folder
from curate.loop import first_of_loop, with_weights
from curate.pipeline import Pipeline, load
from curate.planning import costs
from curate.planning.costs import FORWARDS, Clock, Fetching
from curate.planning.estimated import Estimate, StageEstimate, StepEstimate
from curate.planning.sample import Sample, draw
from curate.report import statuses
from curate.run import Outcome
from curate.scorers import warnings
from curate.sources.ingest import ingest_sample
from curate.sources.locations import parse_source
from curate.stages import KeepUse, Stage, StepUse
from curate.start import Session, ended_by_sigterm, trainer_of
from curate.store import Store
from curate.units import wilson

if TYPE_CHECKING:
    from train.config import Config

PIECES = 4
"""Shards of the sample: the first one warms a step up, the others tell its pace."""
CHECKPOINT_COPIES = 3
"""Of the weights in a checkpoint: themselves, and Adam's two moments. A moving average is one more."""


def estimate(file: Path, out: Path | None, *, rows: int, on: str, workers: int | None, sets: Sequence[str], attempt: str,
             watch: Callable[[], progress.Quiet] = progress.watcher) -> Estimate:
    """Run a sample of `rows` rows. Leaves nothing behind, whatever happens. Raises UserError as `curate run` would."""
    if on not in ("local", "ray"):
        raise UserError(f"--on {on}: a sample runs on this machine; there is local and ray")
    pipeline = load(file, sets)
    for line in warnings(pipeline):
        print(line, file=sys.stderr)
    root = out or Path("runs") / file.stem
    command = ["curate run", shlex.quote(str(file)), *(f"--out {shlex.quote(str(out))}" if out else "",),
               *(f"--set {shlex.quote(s)}" for s in sets), f"--workers {workers}" if workers is not None else ""]
    with _folder() as folder, ended_by_sigterm():
        store = Store(folder / "run", attempt)
        trial = _Trial(pipeline, store, root, workers or os.cpu_count() or 1)
        trial.run(rows, on)
        return trial.estimate(str(file), " ".join(filter(None, command)))


@contextmanager
def _folder() -> Iterator[Path]:
    """A folder that is gone afterwards, with whatever steps, also those of workers that were killed, put into temporary files."""
    before = os.environ.get("TMPDIR"), tempfile.tempdir
    with tempfile.TemporaryDirectory(prefix="curate-plan-") as folder:
        os.environ["TMPDIR"] = tempfile.tempdir = folder
        try:
            yield Path(folder)
        finally:
            tempfile.tempdir = before[1]
            os.environ.pop("TMPDIR")
            os.environ.update({"TMPDIR": before[0]} if before[0] is not None else {})


class _Trial:
    """A pipeline, the folder in which its sample runs, and what came of it."""

    def __init__(self, pipeline: Pipeline, store: Store, root: Path, workers: int) -> None:
        self.pipeline, self.store, self.root, self.workers = pipeline, store, root, workers
        self.trainer = trainer_of(pipeline, store)
        self.clock = Clock()
        start = first_of_loop(pipeline)
        self.rounds = pipeline.loop.trainings + 1 if pipeline.loop else 1
        self.looped = {id(s) for s in pipeline.stages[start:]} if start is not None else set[int]()

    def run(self, rows: int, on: str) -> None:
        """Draw the sample, and take it through all stages and into shards."""
        settings = parse_source(self.pipeline.source, self.pipeline.path.parent)
        self.sample: Sample = draw(settings, rows)
        self.drawn = len(self.sample.table)
        self.total = max(self.sample.rows, self.drawn)
        pieces = {**self.pipeline.source, "shard_rows": math.ceil(self.drawn / PIECES)}
        pipeline = replace(self.pipeline, source=pieces)
        ingest_sample(parse_source(pieces, pipeline.path.parent), self.store.source, self.store.attempt, self.sample.table)
        if pipeline.loop is not None and self.trainer is not None:
            first = self.trainer.untrained if pipeline.loop.first == "raw" else pipeline.loop.first
            pipeline = with_weights(pipeline, self.store.root, first)
        session = Session(self.store, on, 1, watch=lambda: self.clock)
        self.outcome: Outcome = session(pipeline, pack=True)

    def estimate(self, file: str, command: str) -> Estimate:
        """The numbers, for all rows."""
        steps, fetched = self._steps()
        last = self.outcome.funnel[-1]["kept"]
        packed = self.pipeline.shards.write and "image" in self.outcome.columns
        shard_bytes = round(costs.shard_bytes(self.store.shards) * self.scale if packed else
                            (self.store.root / "subset.parquet").stat().st_size * self.scale)
        shard_seconds = (self.outcome.pace.seconds_per_row("shards") or 0.0) * last * self.scale / self.workers
        own = costs.parquet_bytes(self.store.source) + costs.parquet_bytes(self.store.root / "kept")
        source_bytes = 0 if (self.root / "source" / "source.json").exists() else round(own * self.scale)
        trainings, samples, seconds, kept = self._training(steps)
        return Estimate(
            file, str(self.root), self.sample.how, self.drawn, self.total, self.sample.exact, self.workers, list(self._stages()),
            steps, fetched, dict(statuses(Folder.open(self.store.root)).most_common()), source_bytes, round(last * self.scale),
            shard_bytes, shard_seconds, trainings, samples, seconds, kept,
            round(sum(f.traffic_bytes * (s.measures - s.there) for s in steps if (f := fetched.get(s.label)))),
            source_bytes + shard_bytes + kept + sum(s.bytes for s in steps), _free(self.root),
            shard_seconds + (seconds or 0) + sum(s.seconds for s in steps), command)

    @property
    def scale(self) -> float:
        """Rows of the source for each row of the sample."""
        return self.total / self.drawn

    def _stages(self) -> Iterator[StageEstimate]:
        understated = [True, *_rests_on_all(self.pipeline.stages), False]
        for number, entry in enumerate(self.outcome.funnel):
            kept = entry["kept"]
            low, high = interval(kept, self.drawn, self.total)
            yield StageEstimate(entry["what"], round(kept * self.scale), low, high, kept / self.drawn, kept,
                                understated[number] and self.drawn < self.total)

    def _steps(self) -> tuple[list[StepEstimate], dict[str, Fetching]]:
        uses = {s.label: s for s in self.pipeline.stages if isinstance(s, StepUse)}
        urls = self.sample.table["url"]
        found, fetched = [], {}
        for label, folder in costs.folders_of(self.outcome, uses):
            use, measured = uses[label], self.outcome.measured[label]
            if use.spec.kind == "fetch" and (f := costs.fetching(use, self.store, folder, self.clock, measured, urls)):
                fetched[label] = f
            found.append(self._step(use, folder, measured, fetched.get(label)))
        return found, fetched

    def _step(self, use: StepUse, folder: str, measured: int, fetching: Fetching | None) -> StepEstimate:
        rounds = self.rounds if id(use) in self.looped else 1
        measures = round(measured * self.scale * rounds)
        there = min(costs.rows_there(self.root, folder), measures)
        left = measures - there
        pace = self.outcome.pace.seconds_per_row(use.label)
        if use.label in self.clock.barriers and measured:
            pace = costs.barrier_seconds_per_row(self.store, *self.clock.barriers[use.label])
        seconds = fetching.seconds(left) if fetching else (pace or 0.0) * left / self._at_once(use)
        each = costs.stored_bytes(self.store, folder) / measured if measured else 0.0
        gpu = costs.gpu_memory(use, self.outcome) if use.spec.gpus else None
        return StepEstimate(use.label, measures, there, pace, seconds, round(each * left), rounds, gpu)

    def _at_once(self, use: StepUse) -> int:
        """Rows of a step that are measured at the same time: a barrier is one task, and workers share one GPU."""
        on_gpu = use.spec.gpus > 0 and use.label in self.outcome.pace.gpu_peak_bytes
        return 1 if use.spec.kind == "whole" or on_gpu else self.workers

    def _training(self, steps: Sequence[StepEstimate]) -> tuple[int, int, float | None, int]:
        """(how many trainings, pairs each sees, seconds of all, bytes of all)."""
        if self.trainer is None:
            return 0, 0, None, 0
        config = self.trainer.config
        trainings = self.pipeline.loop.trainings if self.pipeline.loop else 1
        samples = config.samples_seen.samples or round(config.samples_seen.epochs * self.outcome.funnel[-1]["kept"] * self.scale)
        uses = {s.label: s for s in self.pipeline.stages if isinstance(s, StepUse) and s.settings.get("model") == config.model}
        pace = next((s.seconds_per_row for s in reversed(steps) if s.label in uses and s.seconds_per_row), None)
        cores = 1 if self.outcome.pace.gpu_peak_bytes else config.threads or os.cpu_count() or 1
        seconds = None if pace is None else trainings * samples * pace * FORWARDS / cores
        sizes = costs.model_sizes(config.model)
        return trainings, samples, seconds, trainings * 4 * sizes[0] * weights_copies(config) if sizes else 0


def weights_copies(config: "Config") -> int:
    """Bytes on disk of a training by those of its weights: the model, its checkpoints, and the best weights if they are kept."""
    return 1 + config.keep * (CHECKPOINT_COPIES + (config.ema is not None)) + (config.eval.keep_best is not None)


def interval(kept: int, sample: int, total: int) -> tuple[int, int]:
    """Bounds of the rows of `total` that are kept if `kept` of a random `sample` are: Wilson's, and never less than was seen."""
    low, high = wilson(kept, sample)
    return max(math.floor(low * total), kept), min(math.ceil(high * total), total - (sample - kept))


def _rests_on_all(stages: Sequence[Stage]) -> Iterator[bool]:
    """For each stage whether it decides by what a `@whole` step measured, directly or through other columns."""
    tainted: set[str] = set()
    for stage in stages:
        if isinstance(stage, StepUse) and (stage.spec.kind == "whole" or tainted & set(stage.reads.values())):
            tainted.update(stage.adds.values())
        yield isinstance(stage, KeepUse) and any(c in tainted for clause in stage.keep.clauses for c in clause.columns)


def _free(root: Path) -> int:
    """Bytes free where the run's folder lies or would."""
    return shutil.disk_usage(next(p for p in (root.absolute(), *root.absolute().parents) if p.exists())).free
