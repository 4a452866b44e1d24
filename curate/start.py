"""From a pipeline file to a finished run: opens the folder, picks the executor, runs once or in rounds."""

import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from curate import files, progress, recaptioned
from curate.errors import UserError
from curate.expectation import drift
from curate.folder import Folder
from curate.loop import first_of_loop, run_rounds
from curate.pipeline import Pipeline, load
from curate.progress import Quiet
from curate.report import funnel_lines, statuses
from curate.run import Outcome, run
from curate.scorers import warnings
from curate.stages import StepUse
from curate.store import Store
from curate.tombstones import refuse_unfinished
from curate.training import Trainer, Training, in_a_process
from curate.weights import WeightsIds
from curate.work import Pool


def start(file: Path, out: Path, *, on: str, workers: int, limit: int | None, until: str | None, part: tuple[int, int] | None,
          retry: bool, sets: Sequence[str], attempt: str, heal: bool = False) -> Iterator[str]:
    """Check the pipeline, hold the folder, run, and say in lines what came out."""
    _check_on(on)
    pipeline = load(file, sets, until)
    if part is not None and pipeline.loop is not None:
        raise UserError("--part shares out shards, but the rounds of a loop need them all; run the loop without --part")
    store = Store(out, attempt)
    trainer = trainer_of(pipeline, store, _training(on, store, workers))
    for line in warnings(pipeline):
        print(line, file=sys.stderr)
    with store.lock(f"{part[0]}/{part[1]}" if part else ""), ended_by_sigterm(), _swept(store):
        store.probe()
        refuse_unfinished(out)
        if part is None:
            files.sweep(out)
        session = Session(store, on, workers, limit, part, retry, heal)
        trained = ""
        start_of_loop = first_of_loop(pipeline)
        if pipeline.loop is None or trainer is None or start_of_loop is None:
            outcome = session(pipeline, pack=until is None)
            if trainer is not None and outcome.manifest is not None and pipeline.loop is None:
                trained = trainer.train_on_shards()
        else:
            outcome = run_rounds(pipeline, store, session, trainer, lambda line: print(line, file=sys.stderr))
    for line in drift(asdict(pipeline.expect) if pipeline.expect else None, outcome.funnel):
        print(f"warning: {pipeline.where('expect')}: {line}", file=sys.stderr)
    yield from _said(out, session, outcome)
    if trained:
        yield f"trained: {out / trained}"


def heal(root: Path, *, on: str, workers: int, sets: Sequence[str], attempt: str) -> Iterator[str]:
    """Ask again for pictures of a run that failed in a way that may pass, with the pipeline and the settings that it ran with."""
    record = files.read_json(root / "run.json")
    if record is None:
        raise UserError(f"{root} holds no run (there is no {root / 'run.json'})")
    folder = Folder.open(root)
    before, limit = statuses(folder), folder.source.settings["limit"]
    if not before:
        raise UserError(f"{root} has downloaded nothing, so there is nothing to ask for again")
    yield from start(Path(record["pipeline"]), root, on=on, workers=workers, limit=limit, until=None, part=None, retry=False,
                     sets=[*record["sets"], *sets], attempt=attempt, heal=True)
    after = statuses(Folder.open(root))
    changed = [f"{name} {before[name]:,} → {after[name]:,}" for name in sorted({*before, *after}) if before[name] != after[name]]
    yield "healed: " + (", ".join(changed) or "nothing came that had not come")


@dataclass
class Session:
    """What all runs of one command share: folder, executor, options; and what they measured together."""

    store: Store
    on: str
    workers: int
    limit: int | None = None
    part: tuple[int, int] | None = None
    retry: bool = False
    heal: bool = False
    watch: Callable[[], Quiet] = progress.watcher

    def __post_init__(self) -> None:
        self.weights = WeightsIds(self.store)
        self.measured: dict[str, int] = {}

    def __call__(self, pipeline: Pipeline, *, pack: bool) -> Outcome:
        """Run a pipeline; the executor lives as long as the run, so that a training has the machine to itself."""
        watcher = self.watch()
        pool = _pool(self.on, self.store.root, self.store.attempt, self.workers)
        try:
            outcome = run(pipeline, self.store, pool, self.weights, watcher, limit=self.limit, part=self.part, retry=self.retry,
                          heal=self.heal, pack=pack)
            self.heal = False       # the rounds of a loop ask once
        finally:
            pool.close()
            watcher.close()
        for name, number in outcome.measured.items():
            self.measured[name] = self.measured.get(name, 0) + number
        return outcome


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """SIGTERM ends the run as Ctrl-C does: workers first, then with exit code 143."""
    def stop(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except SystemExit:
        print("terminated; the same command goes on from here", file=sys.stderr)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _swept(store: Store) -> Iterator[None]:
    """Nothing half written stays of workers that were killed, by us or by others."""
    try:
        yield
    finally:
        files.sweep(store.root, store.attempt)


def trainer_of(pipeline: Pipeline, store: Store, training: Training = in_a_process) -> Trainer | None:
    """What trains for this pipeline, or None; its settings checked together with the steps that it rests on."""
    if pipeline.train is None:
        return None
    trainer = Trainer(store, pipeline.train, pipeline.loop.model if pipeline.loop else "", pipeline.where("train"), training)
    teacher = trainer.config.distill
    if teacher is not None and pipeline.loop is not None:
        raise UserError("train.distill: a loop's rounds train on pairs, which have no embeddings; train without 'loop:'",
                        pipeline.where("train"))
    texts = {s.reads.get("caption") for s in pipeline.stages
             if teacher is not None and isinstance(s, StepUse) and teacher.columns[1] in s.adds.values()}
    if texts - {pipeline.shards.caption}:
        raise UserError(f"train.distill: {texts.pop()!r} was embedded, and {pipeline.shards.caption!r} is the shards' caption",
                        pipeline.where("train"))
    if teacher is not None and not set(teacher.columns) <= set(pipeline.shards.vectors):
        raise UserError(f"train.distill: it reads {' and '.join(teacher.columns)} beside the shards, which hold them with "
                        f"shards: {{vectors: [{', '.join(teacher.columns)}]}}", pipeline.where("train"))
    return trainer


def _said(out: Path, session: Session, outcome: Outcome) -> Iterator[str]:
    if outcome.unfinished:
        yield outcome.unfinished
        return
    yield from funnel_lines(outcome.funnel)
    yield from recaptioned.lines(Folder.open(out))
    measured = {name: n for name, n in session.measured.items() if n and name != "shards"}
    yield "measured now: " + (", ".join(f"{name} {n:,}" for name, n in measured.items()) or "nothing")
    if outcome.manifest is not None:
        yield f"{outcome.manifest['rows']:,} rows in {len(outcome.manifest['shards'])} shards: {out / 'shards'}"
    else:
        yield f"run folder: {out}"


def _check_on(on: str) -> None:
    if on not in ("local", "ray") and not on.startswith("ray://"):
        raise UserError(f"--on {on}: there is local, ray and ray://HOST:PORT")


def _training(on: str, store: Store, workers: int) -> Training:
    """Where trainings run: where the executor does. One process on this machine alone needs no Ray, and begins at once."""
    if on == "local" or workers == 0:
        return in_a_process

    def on_ray(settings: Mapping[str, Any], out: Path) -> str:
        if on == "ray" and settings["processes"] == 1:
            return in_a_process(settings, out)
        from curate.ray_train import RayTraining

        return RayTraining(store, on, workers)(settings, out)

    return on_ray


def _pool(on: str, root: Path, attempt: str, workers: int) -> Pool:
    if on == "local" or workers == 0:
        from curate.local import make_pool

        return make_pool(root, attempt, workers)
    from curate.cluster import RayPool

    return RayPool(root, attempt, workers, on)
