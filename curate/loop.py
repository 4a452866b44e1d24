"""From a pipeline file to a finished run: opens the folder, picks the executor, runs the rounds."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from curate import files, progress
from curate.errors import UserError
from curate.pipeline import Pipeline, load
from curate.report import funnel_lines
from curate.run import Outcome, run
from curate.store import Store
from curate.weights import WeightsIds
from curate.work import Pool


def start(file: Path, out: Path, *, on: str, workers: int, limit: int | None, until: str | None, part: tuple[int, int] | None,
          retry: bool, sets: Sequence[str], attempt: str) -> Iterator[str]:
    """Check the pipeline, hold the folder, run, and say in lines what came out."""
    _check_on(on)
    pipeline = load(file, sets, until)
    store = Store(out, attempt)
    with store.lock(f"{part[0]}/{part[1]}" if part else ""):
        store.probe()
        if part is None:
            files.sweep(out)
        watcher = progress.watcher()
        pool = _pool(on, out, attempt, workers)
        try:
            outcome = run(pipeline, store, pool, WeightsIds(store), watcher, limit=limit, part=part, retry=retry,
                          pack=until is None)
        finally:
            pool.close()
            if isinstance(watcher, progress.Bar):
                watcher.close()
    yield from _said(pipeline, out, outcome)


def _said(pipeline: Pipeline, out: Path, outcome: Outcome) -> Iterator[str]:
    if outcome.unfinished:
        yield outcome.unfinished
        return
    yield from funnel_lines(outcome.funnel)
    measured = {name: n for name, n in outcome.measured.items() if n and name != "shards"}
    yield "measured now: " + (", ".join(f"{name} {n:,}" for name, n in measured.items()) or "nothing")
    if outcome.manifest is not None:
        yield f"{outcome.manifest['rows']:,} rows in {len(outcome.manifest['shards'])} shards: {out / 'shards'}"
    else:
        yield f"run folder: {out}"


def _check_on(on: str) -> None:
    if on not in ("local", "ray") and not on.startswith("ray://"):
        raise UserError(f"--on {on}: there is local, ray and ray://HOST:PORT")


def _pool(on: str, root: Path, attempt: str, workers: int) -> Pool:
    if on == "local" or workers == 0:
        from curate.local import make_pool

        return make_pool(root, attempt, workers)
    from curate.cluster import RayPool

    return RayPool(root, attempt, workers, on)
