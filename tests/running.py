"""Running pipelines inside tests: small pools, in this process unless a test says otherwise."""

import hashlib
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from curate.local import make_pool
from curate.pipeline import load
from curate.progress import Quiet
from curate.run import Outcome, run
from curate.store import Store
from curate.weights import WeightsIds
from curate.work import Pool

T = TypeVar("T")
SOURCE = "source: {pairs: pool.parquet, url: url, caption: caption, shard_rows: 10}\n"


def write_pool(folder: Path, captions: Sequence[str | None], **columns: Sequence[Any]) -> None:
    """pool.parquet with a url of its own for every caption."""
    urls = [f"http://site/{i}.jpg" for i in range(len(captions))]
    pq.write_table(pa.table({"url": urls, "caption": pa.array(captions, pa.string()), **columns}), folder / "pool.parquet")


def write_pipeline(folder: Path, *entries: str, source: str = SOURCE, after: str = "shards: none\n") -> Path:
    """pipeline.yaml with these steps."""
    path = folder / "pipeline.yaml"
    path.write_text(source + "steps:\n" + "".join(f"  - {entry}\n" for entry in entries) + after)
    return path


def run_here(file: Path, out: Path, *, workers: int = 0, pool: Pool | None = None, **options: Any) -> Outcome:
    """Run a pipeline; in this process, or on `workers` processes, or on a given pool."""
    sets = options.pop("sets", ())
    pipeline = load(file, sets)
    store = Store(out, "test")
    with store.lock():
        pool = pool or make_pool(out, "test", workers)
        try:
            return run(pipeline, store, pool, WeightsIds(store), Quiet(), **options)
        finally:
            pool.close()


def stage(outcome: Outcome, what: str) -> Mapping[str, Any]:
    """The funnel's entry of a stage."""
    return next(entry for entry in outcome.funnel if entry["what"] == what)


def exits(outcome: Outcome) -> Counter[str]:
    """reason → rows dropped for it, over the whole funnel."""
    return Counter({c["text"]: c["dropped"] for e in outcome.funnel for c in e.get("clauses", ()) if c["dropped"]})


def tree(folder: Path, *names: str) -> dict[str, str]:
    """path → hash of every file below the named folders or files: what "same bytes" compares."""
    found = [p for name in names for p in ([folder / name] if (folder / name).is_file() else sorted((folder / name).rglob("*")))]
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in found if p.is_file()}


def environment() -> dict[str, str]:
    """For a curate command as a process of its own: it finds this checkout wherever it is run."""
    return {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}


def wait_for(what: Callable[[], T], seconds: float = 60) -> T:
    """The first answer that is true."""
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)
    return found


def alive(pid: int) -> bool:
    """Whether a process is there and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
