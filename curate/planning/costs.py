"""What one step costs a row, from the run of a sample: seconds, bytes in the store, memory of a GPU.

Bytes of parquet files are those of their column chunks: the footer of a small file weighs more than its rows. Memory of a GPU is
torch's own peak where there is one, else parameters and a guess.
"""

import logging
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curate.barrier import answers
from curate.measure import Worker
from curate.plan import BoundStep, BoundTop
from curate.progress import Quiet
from curate.run import Outcome
from curate.sources.source import Source
from curate.stages import StepUse
from curate.store import Store
from curate.work import Task

CHUNK = 64
"""Pictures that clip_embed puts through a tower at once (`train.models.clip`)."""
ACTIVATIONS = 10
"""Memory of a layer's activations for each byte of the pictures as floats; ours, of the order of ViT-L/14's."""
REPEATS = 3
"""A barrier is timed so often, and the fastest counts."""
FORWARDS = 3
"""Forward passes that a training step takes: one, and twice that for the gradients; the usual count, ours."""
HOST = re.compile(r"^\s*https?://(?:[^/@]*@)?([^/:?#\s]+)", re.IGNORECASE)


class Clock(Quiet):
    """Watches the fetches of a sample: how many pictures ended when."""

    def __init__(self) -> None:
        self.moments: list[tuple[float, int]] = []
        self.began: dict[str, float] = {}
        self.ended: dict[str, float] = {}
        self.barriers: dict[str, tuple[BoundStep | BoundTop, str]] = {}

    def told(self, statuses: Counter[str]) -> None:
        """See Watcher."""
        self.moments.append((time.monotonic(), statuses.total()))

    def task(self, task: Task, seconds: float) -> None:
        """See Watcher."""
        if task.kind == "fetch":
            now, label = time.monotonic(), task.what.stages[0].label  # type: ignore[union-attr]
            self.began[label] = min(self.began.get(label, now), now - seconds)
            self.ended[label] = now
        if isinstance(task.what, BoundStep | BoundTop):
            self.barriers[task.what.label] = task.what, task.chain

    def a_second(self, label: str, images: int) -> float | None:
        """Images a second: in the middle of the sample, between its start and its last slow hosts; else over all of it."""
        counts = np.cumsum([n for _, n in self.moments])
        middle = [i for i, n in enumerate(counts) if n <= 0.8 * counts[-1]]
        if len(self.began) == 1 and len(middle) > 1 and self.moments[middle[-1]][0] - self.moments[0][0] >= 1:
            return float(counts[middle[-1]] - counts[0]) / (self.moments[middle[-1]][0] - self.moments[0][0])
        wall = self.ended.get(label, 0.0) - self.began.get(label, 0.0)
        return images / wall if wall > 0 and images else None


def barrier_seconds_per_row(store: Store, bound: BoundStep | BoundTop, chain: str) -> float:
    """What each further row costs a barrier: all shards of the sample against its first one, without what it costs to begin."""
    worker = Worker(store.root, store.attempt)
    whole = worker.source
    first = replace(whole, parts=(replace(whole.parts[0], rows=whole.rows(0), shards=1),))

    def seconds(source: Source) -> tuple[int, float]:
        worker.source, begin = source, time.perf_counter()
        return sum(len(t) for t in answers(worker, bound, chain)), time.perf_counter() - begin

    one, all_ = (min((seconds(source) for _ in range(REPEATS)), key=lambda found: found[1]) for source in (first, whole))
    return max(0.0, all_[1] - one[1]) / max(1, all_[0] - one[0]) if whole.num_shards > 1 else all_[1] / max(1, all_[0])


@dataclass(frozen=True)
class Fetching:
    """A fetch step over the sample: its pace, and what politeness allows."""

    images_a_second: float
    connections: int
    per_host: int
    per_host_rate: float
    """requests a second; 0: no limit"""
    top_host: str
    top_share: float
    """of the sample's urls that lie on that host"""
    top_seconds: float
    """that a place at a host is taken for one url, on average"""
    traffic_bytes: float
    """of one url, body only, failures counted as nothing"""

    def seconds(self, images: float) -> float:
        """For so many urls: at the measured pace, but never faster than the largest host may be asked."""
        return max(images / self.images_a_second, self.at_top_host(images))

    def at_top_host(self, images: float) -> float:
        """Seconds that the urls of the largest host take by themselves."""
        urls = images * self.top_share
        return max(urls * self.top_seconds / self.per_host, urls / self.per_host_rate if self.per_host_rate else 0.0)


def fetching(use: StepUse, store: Store, folder: str, clock: Clock, images: int, urls: pa.ChunkedArray) -> Fetching | None:
    """The figures of a fetch step; None where the sample fetched nothing."""
    pace = clock.a_second(use.label, images)
    if pace is None:
        return None
    names = [n for n in ("fetch_seconds", "num_bytes") if n in use.types]
    parts = sorted((store.root / "columns" / folder).glob("*.parquet"))
    table = pa.concat_tables([pq.read_table(p, columns=names, partitioning=None) for p in parts])
    seconds = _mean(table, "fetch_seconds")
    hosts = Counter(m[1].lower() for m in map(HOST.match, urls.drop_null().to_pylist()) if m)
    host, times = hosts.most_common(1)[0] if hosts else ("", 0)
    traffic = float(np.nansum(table["num_bytes"].to_numpy())) if "num_bytes" in names else float(_tars(store, folder))
    return Fetching(pace, int(use.settings.get("concurrency", 1)), int(use.settings.get("per_host", 1)),
                    float(use.settings.get("per_host_rate", 0.0)), host,
                    times / max(hosts.total(), 1), seconds, traffic / max(images, 1))


def _mean(table: pa.Table, name: str) -> float:
    values = table[name].drop_null().to_numpy() if name in table.column_names else np.empty(0)
    return float(values.mean()) if len(values) else 0.0


def stored_bytes(store: Store, folder: str) -> int:
    """Bytes of a step's columns and pictures."""
    return parquet_bytes(store.root / "columns" / folder) + _tars(store, folder)


def _tars(store: Store, folder: str) -> int:
    return sum(p.stat().st_size for p in store.images(folder).glob("*.tar"))


def parquet_bytes(folder: Path) -> int:
    """Bytes of the column chunks of all parquet files below a folder."""
    found = (pq.read_metadata(p) for p in folder.rglob("*.parquet"))
    return sum(m.row_group(g).column(c).total_compressed_size for m in found for g in range(m.num_row_groups)
               for c in range(m.num_columns))


def shard_bytes(folder: Path) -> int:
    """Bytes of finished shards with what lies beside them."""
    return sum(p.stat().st_size for p in folder.glob("*")) if folder.is_dir() else 0


def rows_there(root: Path, folder: str) -> int:
    """Rows (of a fetch: images) that a run's folder has of a column already."""
    parts = sorted((root / "columns" / folder).glob("*.parquet"))
    return sum(pq.read_metadata(p).num_rows for p in parts)


def folders_of(outcome: Outcome, uses: Mapping[str, StepUse]) -> Iterator[tuple[str, str]]:
    """(label, column folder) of each step."""
    for label, use in uses.items():
        folder = next((outcome.columns[n].folder for n in use.adds.values() if n in outcome.columns), "")
        if folder:
            yield label, folder


@dataclass(frozen=True)
class GpuMemory:
    """What a model step takes of a GPU."""

    bytes: int
    measured: bool
    parameters: int | None


def gpu_memory(use: StepUse, outcome: Outcome) -> GpuMemory | None:
    """torch's peak where the sample ran on a GPU, else fp32 parameters and a guess of activations; None for an unknown model."""
    peak = outcome.pace.gpu_peak_bytes.get(use.label)
    sizes = model_sizes(str(use.settings.get("model", "")))
    if peak:
        return GpuMemory(peak, True, sizes and sizes[0])
    if sizes is None:
        return None
    parameters, side_px = sizes
    return GpuMemory(4 * parameters + CHUNK * 3 * side_px**2 * 4 * ACTIVATIONS, False, parameters)


def model_sizes(name: str) -> tuple[int, int] | None:
    """(parameters, side of a picture in pixels) of one of open_clip's models or ours, without building it; None for another."""
    import open_clip
    import torch

    import train.models.weights  # noqa: F401  makes our own models known

    if name not in open_clip.list_models():
        return None
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)      # open_clip remarks that a model on the meta device has no weights
    try:
        with torch.device("meta"):
            model: Any = open_clip.create_model(name, pretrained=None, device="meta")
    except (NotImplementedError, RuntimeError):     # a tower that computes with its weights while it is built
        return None
    finally:
        logging.disable(before)
    side = model.visual.image_size
    return sum(p.numel() for p in model.parameters()), int(side[0] if isinstance(side, tuple | list) else side)
