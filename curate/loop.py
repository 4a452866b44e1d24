"""The loop: a model measures the raw pool, decides, is trained on what it kept, and measures the same pool again.

Round 0 are the weights before any training: published ones, or with `first: raw` the untrained initialisation, whose choice is
not used: the first training then takes the raw pool itself. Round n are the weights after n trainings. Every round measures
the raw pool, never the last round's survivors; every training starts from the same initialisation and sees as many samples. A
round is promoted by its held-out figure alone, and where one is not, the loop ends: the same data would train the same model.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from curate import files
from curate.certificate import certified
from curate.errors import RunStopped, UserError
from curate.judge import Judge
from curate.pairs import as_packed, identity, kept, write_pairs
from curate.pipeline import Pipeline
from curate.plan import Column
from curate.run import Outcome
from curate.sources.locations import parse_source
from curate.sources.source import Source
from curate.stages import StepUse
from curate.store import Store
from curate.training import Trainer


class Runner(Protocol):
    """Runs a pipeline in the loop's folder."""

    def __call__(self, pipeline: Pipeline, *, pack: bool) -> Outcome:
        """See `curate.run.run`."""


@dataclass
class Round:
    """One round: what measured, what it was trained on, what it kept, how good it is."""

    number: int
    weights: str
    """a tag, or a path below the run's folder"""
    trained_on: str
    """the digest of the pairs that trained these weights; empty for round 0"""
    data: str
    """the digest of the pairs that these weights keep"""
    outcome: Outcome
    figures: dict[str, float]
    promoted: bool


def first_of_loop(pipeline: Pipeline) -> int | None:
    """The index of the first stage that the loop's weights decide or measure, or None."""
    return next((i for i, s in enumerate(pipeline.stages) if isinstance(s, StepUse) and s.loop), None)


def run_rounds(pipeline: Pipeline, store: Store, runner: Runner, trainer: Trainer, say: Callable[[str], None]) -> Outcome:
    """All rounds, then the shards by the promoted weights. Does only what an earlier attempt has not done."""
    start = first_of_loop(pipeline)
    assert start is not None and pipeline.loop is not None
    _refuse_urls(pipeline)
    raw = runner(replace(pipeline, stages=pipeline.stages[:start]), pack=False)
    source = Source.open(store.source)
    judge = Judge(store, source, pipeline, raw, trainer)
    rounds: list[Round] = []
    for number in range(pipeline.loop.trainings + 1):
        weights, trained_on = _weights(number, pipeline, rounds, raw, source, trainer, store)
        outcome = runner(with_weights(pipeline, store.root, weights), pack=False)
        figures = judge.figures(weights, outcome)
        best = max((r.figures[pipeline.loop.figure] for r in rounds if r.promoted), default=float("-inf"))
        better = figures[pipeline.loop.figure] > best
        data = _pairs(pipeline, outcome, source)[1]
        rounds.append(Round(number, weights, trained_on, data, outcome, figures, better))
        _record(store, rounds, trainer)
        say(_line(rounds[-1]))
        if not better:
            break
    promoted = [r for r in rounds if r.promoted][-1]
    return runner(with_weights(pipeline, store.root, promoted.weights), pack=True)


def _refuse_urls(pipeline: Pipeline) -> None:
    """A training reads its pictures where they lie, and only from this machine."""
    where = parse_source(pipeline.source, pipeline.path.parent).where
    if "shards" in pipeline.source and (urls := [w for w in where if "://" in w]):
        raise UserError(f"a loop trains on tars of this machine, and the source is '{urls[0]}'; copy them, or run without "
                        "'loop:' and train on the shards", pipeline.where("source"))



def with_weights(pipeline: Pipeline, root: Path, weights: str) -> Pipeline:
    """The pipeline with the loop's weights named: a path below the run's folder, or a tag."""
    named = str(root / weights) if (root / weights).exists() else weights
    return replace(pipeline, stages=tuple(_with_weights(s, named) if isinstance(s, StepUse) else s for s in pipeline.stages))


def _with_weights(stage: StepUse, weights: str) -> StepUse:
    changed = {n: weights for n, s in stage.spec.settings.items() if "weights" in s.tags and stage.settings[n] == "loop"}
    return replace(stage, settings={**stage.settings, **changed}) if changed else stage


def _weights(number: int, pipeline: Pipeline, rounds: list[Round], raw: Outcome, source: Source, trainer: Trainer,
             store: Store) -> tuple[str, str]:
    """The weights of a round, trained if need be, and the digest of the pairs that trained them."""
    assert pipeline.loop is not None
    if number == 0:
        return (trainer.untrained if pipeline.loop.first == "raw" else pipeline.loop.first), ""
    on_raw = number == 1 and pipeline.loop.first == "raw"
    outcome, stages = (raw, pipeline.stages[: first_of_loop(pipeline)]) if on_raw else (rounds[-1].outcome, pipeline.stages)
    columns, data = _pairs(pipeline, outcome, source)
    pairs = store.root / "models" / f"pairs-{data}.parquet"
    if not write_pairs(store, source, columns, outcome.chain, pairs, kept, certified(stages, source)):
        raise RunStopped(f"round {number - 1} keeps no row, so there is nothing to train on")
    return trainer.train(pairs, data), data


def _pairs(pipeline: Pipeline, outcome: Outcome, source: Source) -> tuple[dict[str, Column], str]:
    """What is learnt from the rows that an outcome keeps: the columns of their table, and its digest."""
    columns = as_packed(outcome.columns, pipeline.shards.caption)
    return columns, identity(outcome.data_digest(source), columns)


def _line(found: Round) -> str:
    figures = ", ".join(f"{name} {value:.3f}" for name, value in found.figures.items())
    fate = "" if found.promoted else " (not promoted)"
    return f"round {found.number}: {found.outcome.funnel[-1]['kept']:,} rows, {figures}{fate}"


def _record(store: Store, rounds: list[Round], trainer: Trainer) -> None:
    """rounds.json: plain data, the same for the same run."""
    files.write_json(store.root / "rounds.json", [{
        "round": r.number, "weights": r.weights, "weights_digest": trainer.digest(r.weights), "trained_on": r.trained_on,
        "data": {"rows": r.outcome.funnel[-1]["kept"], "digest": r.data}, "config": trainer.config_digest,
        "figures": r.figures, "promoted": r.promoted, "funnel": r.outcome.funnel} for r in rounds], store.attempt)
