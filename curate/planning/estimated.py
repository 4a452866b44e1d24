"""What `curate plan` found: plain data, and the words for it."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from curate.planning.costs import FORWARDS, Fetching, GpuMemory
from curate.planning.guess import shown
from curate.units import duration, size


@dataclass(frozen=True)
class StageEstimate:
    """One line of the funnel to come."""

    what: str
    rows: int
    low: int
    high: int
    share: float
    sampled: int
    """rows of the sample alive after it"""
    understated: bool
    """it drops duplicates, or by what counts them: of the whole source it drops more"""


@dataclass(frozen=True)
class StepEstimate:
    """What a step will do: over all rounds of a loop together."""

    label: str
    measures: int
    """rows, of a fetch images"""
    there: int
    """of these, how many the run's folder has"""
    seconds_per_row: float | None
    """of one worker"""
    seconds: float
    """for those that are not there, by all workers together"""
    bytes: int
    """of its columns and pictures that are not there"""
    rounds: int
    gpu: GpuMemory | None


@dataclass(frozen=True)
class Estimate:
    """All of it; `record` gives plain data."""

    file: str
    out: str
    how: str
    sample_rows: int
    rows: int
    exact: bool
    workers: int
    stages: list[StageEstimate]
    steps: list[StepEstimate]
    fetching: dict[str, Fetching]
    statuses: dict[str, int]
    source_bytes: int
    shard_rows: int
    shard_bytes: int
    shard_seconds: float
    trainings: int
    training_samples: int
    training_seconds: float | None
    """of all trainings; None where no step of the pipeline runs their model"""
    training_bytes: int
    traffic_bytes: int
    disk_bytes: int
    """that are not there"""
    free_bytes: int
    seconds: float
    next: str

    def record(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)


def lines(found: Estimate) -> Iterator[str]:
    """The estimate as text."""
    yield f"{found.file}: {found.how} (seed 0)"
    by_label: Mapping[str, StepEstimate] = {s.label: s for s in found.steps}
    yield f"{'rows':>13}  {'95 % between':^27}  {'share':>6}  {'disk':>8}  {'time':>7}  stage"
    for stage in found.stages:
        step = by_label.get(stage.what)
        disk, seconds = (size(step.bytes), duration(step.seconds)) if step else ("", "")
        if stage.what == "source":
            disk = size(found.source_bytes)
        mark = " *" if stage.understated else ""
        yield (f"{stage.rows:>13,}  {stage.low:>12,} – {stage.high:<12,}  {stage.share:>6.1%}  {disk:>8}  {seconds:>7}  "
               f"{stage.what}{mark}")
    yield f"{found.shard_rows:>13,}  {'':27}  {'':6}  {size(found.shard_bytes):>8}  {duration(found.shard_seconds):>7}  shards"
    if any(s.understated for s in found.stages):
        yield "* the sample understates duplicates: of the whole source these drop more, so all behind them is an upper bound"
    if any(not s.sampled for s in found.stages):
        yield "no row of the sample came to the end: what stands behind that stage is not estimated; take more --rows"
    yield from _notes(found)
    yield from _totals(found)


def _notes(found: Estimate) -> Iterator[str]:
    for step in found.steps:
        if step.label in found.fetching:
            yield from _fetching_lines(found, step)
        if step.there:
            yield f"{step.label}: {step.there:,} of {step.measures:,} are in {found.out} already; disk and time are for the rest"
        if step.rounds > 1:
            yield f"{step.label}: one round measured, times {step.rounds} (the weights before any training, and after each)"
        if step.gpu:
            how = "torch's peak in the sample" if step.gpu.measured else "4 bytes a parameter, and activations guessed"
            count = f"{step.gpu.parameters / 1e6:,.0f} M parameters; " if step.gpu.parameters else ""
            yield f"{step.label}: {count}about {size(step.gpu.bytes)} of GPU memory where there is one ({how})"
    if found.trainings:
        yield _training_line(found)


def _fetching_lines(found: Estimate, step: StepEstimate) -> Iterator[str]:
    f, ended = found.fetching[step.label], sum(found.statuses.values())
    yield (f"{step.label}: {f.images_a_second:,.0f} images/s measured; politeness: {f.connections} connections at once, "
           f"{f.per_host} a host")
    yield (f"{step.label}: {f.top_share:.0%} of the urls lie on {shown(f.top_host)}, which takes "
           f"{duration(f.at_top_host(step.measures - step.there))} at the least")
    if ended:
        yield f"{step.label}: " + ", ".join(f"{status} {n / ended:.1%}" for status, n in list(found.statuses.items())[:5])


def _training_line(found: Estimate) -> str:
    what = f"training: {found.trainings} of {found.training_samples:,} samples, {size(found.training_bytes)} of checkpoints"
    if found.training_seconds is None:
        return f"{what}; no step here runs that model, so its time is not estimated"
    return f"{what}, {duration(found.training_seconds)} (stated: {FORWARDS} measured forward passes a sample, on all cores)"


def _totals(found: Estimate) -> Iterator[str]:
    if found.traffic_bytes:
        yield f"traffic: {size(found.traffic_bytes)} of pictures"
    fits = found.disk_bytes <= found.free_bytes
    yield (f"disk: {size(found.disk_bytes)} to write, {size(found.free_bytes)} free at {found.out}"
           + ("" if fits else ": IT DOES NOT FIT"))
    yield (f"time: {duration(found.seconds)} with {found.workers} worker{'s' * (found.workers != 1)}, one step after the other; "
           "download and steps overlap, so it may be less")
    yield f"next: {found.next}"
