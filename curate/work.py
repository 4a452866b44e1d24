"""What executors carry: a task goes in, a report comes out, the same on every executor.

    execute(worker, task)         a segment of one shard, a barrier, or a block of finished shards
    await fetch_shard(...)        the network's kind: many at once in one event loop
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import pyarrow as pa
import pyarrow.compute as pc

from curate.barrier import run_barrier
from curate.collect import collect, discard_parts
from curate.measure import Report, Shard, Worker
from curate.plan import BoundStep, BoundTop, Segment
from curate.shards import Block, pack_block
from curate.store import ERROR

Kind = Literal["cpu", "model", "fetch", "whole", "pack"]


@dataclass(frozen=True)
class Task:
    """One piece of work; tasks with different keys never write the same file."""

    kind: Kind
    what: Segment | BoundStep | BoundTop | Block
    shard: int = 0
    segment: int = 0
    chain: str = ""
    retry: bool = False

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"shard {self.shard}" if isinstance(self.what, Segment) else getattr(self.what, "label", "block")


@dataclass
class Told:
    """Progress in the middle of a task: how many images ended in which status."""

    statuses: Counter[str]


class Pool(Protocol):
    """An executor: takes tasks, gives back what became of them in whatever order."""

    def capacity(self, kind: Kind) -> int:
        """How many tasks of a kind are worth having in flight."""

    def submit(self, task: Task) -> None:
        """Start a task, or queue it."""

    def next(self) -> tuple[Task, Report] | Told:
        """Wait for the next report; raises what stopped a task."""

    def close(self) -> None:
        """End all workers."""


def execute(worker: Worker, task: Task) -> Report:
    """Do a task in this process."""
    if isinstance(task.what, Segment):
        return worker.run_segment(task.what, task.shard, task.retry)
    if isinstance(task.what, Block):
        return pack_block(worker, task.what)
    return run_barrier(worker, task.what, task.chain)


class Fetcher:
    """The fetch steps of one process, each started once, with the host limits held in it."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self._started: dict[str, Any] = {}

    async def downloader(self, bound: BoundStep) -> Any:
        """The running instance of a fetch step."""
        instance = self.worker.instance(bound)
        if bound.id not in self._started:
            self._started[bound.id] = instance
            await instance.start()
        return self._started[bound.id]

    async def close(self) -> None:
        """End their connections."""
        for instance in self._started.values():
            await instance.close()
        self._started.clear()

    async def fetch_shard(self, task: Task, told: Callable[[str], None]) -> Report:
        """Fetch what a shard owns and anybody needs; then the shard is through this segment."""
        begin = time.perf_counter()
        segment, worker = task.what, self.worker
        assert isinstance(segment, Segment)
        bound = segment.stages[0]
        assert isinstance(bound, BoundStep)
        report = Report((segment.chain_out, task.shard))
        for part in worker.store.parts(bound.folder, task.shard):
            discard_parts(worker.store.images(bound.folder) / f"{part.stem}.tar")
        items = missing_images(worker, segment, bound, task.shard)
        if items:
            part = worker.store.next_part(bound.folder, task.shard)
            tar = worker.store.images(bound.folder) / f"{part.stem}.tar"
            table = await collect(await self.downloader(bound), items, tar, worker.store.root, worker.store.attempt, bound.types,
                                  progress=told)
            table = table.append_column(ERROR, pa.nulls(table.num_rows, pa.string()))
            worker.store.write_part(bound.folder, task.shard, table)
            discard_parts(tar)
        report.measured[bound.label] = len(items)
        worker.finish(segment, Shard.at(worker.store, worker.source, task.shard, segment.chain_in), report, begin)
        return report


def missing_images(worker: Worker, segment: Segment, bound: BoundStep, number: int) -> list[tuple[str, str]]:
    """(image_id, url) of the images that this shard owns, some alive row needs, and nobody has fetched, in row order."""
    url = next(iter(bound.reads.values()))
    present = worker.store.read_parts(bound.folder, number, ["image_id"])
    have = set(present["image_id"].to_pylist()) if present is not None else set()
    foreign = worker.source.owners(number)
    items: dict[str, str] = {}
    for image_id, address in _alive_images(worker, segment.chain_in, number, url):
        if image_id not in foreign and image_id not in have:
            items.setdefault(image_id, address)
    for other, ids in worker.source.borrowers(number).items():
        lent = set(ids) - have
        for image_id, address in _alive_images(worker, segment.chain_in, other, url) if lent else ():
            if image_id in lent:
                items.setdefault(image_id, address)
    return list(items.items())


def _alive_images(worker: Worker, chain: str, number: int, url: Any) -> Iterator[tuple[str, str]]:
    shard = Shard.at(worker.store, worker.source, number, chain)
    rows = pa.array(shard.kept.alive)
    ids = worker.source.table(number, ["image_id"])["image_id"].take(rows)
    addresses = shard.column(url).take(rows)
    both = pc.and_(pc.is_valid(ids), pc.is_valid(addresses)).to_pylist()
    return ((i, a) for i, a, ok in zip(ids.to_pylist(), addresses.to_pylist(), both, strict=True) if ok)
