"""What executors carry: a task goes in, a report comes out, the same on every executor.

    answer(worker, task)            a shard of the source, a segment of one shard, a barrier, or a block of finished shards
    await fetcher.answer(task)      the network's kind: several at once in one event loop
"""

import asyncio
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import pyarrow as pa
import pyarrow.compute as pc

from curate.barrier import run_barrier
from curate.beside import with_rows
from curate.collect import collect, crowd_of, discard_parts
from curate.errors import CurateError
from curate.fetching.turns import Crowd
from curate.heal import may_come
from curate.measure import Report, Shard, Worker
from curate.plan import BoundStep, BoundTop, Segment
from curate.shards import Block, pack_block
from curate.sources.ingest import NewShard, write_shard
from curate.store import ERROR
from curate.tombstones import barred

Kind = Literal["cpu", "model", "fetch", "whole", "pack"]

STRIKES = 3
"""So many processes may die on one task before the run stops."""
FETCH_WINDOW = 32
"""Shards that one fetcher has open at once: so far ahead of a slow host are the others fetched (our choice: 4 MB each)."""
PART_IMAGES = 512
"""Images that a fetcher holds unsealed in all its open shards together: what its death costs at most. For a step without
`part_images` of its own."""
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
"""One thread a library in a worker process: the workers are many, and bytes must not depend on their number."""


@dataclass(frozen=True)
class Task:
    """One piece of work; tasks with different keys never write the same file."""

    kind: Kind
    what: NewShard | Segment | BoundStep | BoundTop | Block
    shard: int = 0
    segment: int = 0
    chain: str = ""
    retry: bool = False
    heal: bool = False
    """of a fetch: ask again for what failed in a way that may pass"""

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"shard {self.shard}" if isinstance(self.what, NewShard | Segment) else getattr(self.what, "label", "block")


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


def enlisted(root: Path, attempt: str) -> Worker:
    """What a worker process works with; the run's next attempt begins when the process has ended."""
    worker = Worker(root, attempt)
    worker.store.enlist()
    return worker


def answer(worker: Worker, task: Task) -> Report | BaseException:
    """Do a task in a worker; what stopped it, if something did, to be raised again in the driver."""
    try:
        return execute(worker, task)
    except BaseException as error:  # noqa: BLE001  whatever it is, the driver has to know
        return failure(error)


def failure(error: BaseException) -> BaseException:
    """What travels back: our own errors as they are, anything else with its traceback in words."""
    if isinstance(error, CurateError):
        return error
    return RuntimeError("a worker failed:\n" + "".join(traceback.format_exception(error)))


def execute(worker: Worker, task: Task) -> Report:
    """Do a task in this process."""
    if isinstance(task.what, NewShard):
        return Report((task.shard,), schema=write_shard(task.what, worker.store.source, worker.store.attempt))
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
        self._starting = asyncio.Lock()
        self._crowds: dict[str, Crowd] = {}

    async def downloader(self, bound: BoundStep) -> Any:
        """The instance of a fetch step, started."""
        async with self._starting:
            if bound.id not in self._started:
                instance = self.worker.instance(bound)
                if hasattr(instance, "start"):
                    await instance.start()
                self._started[bound.id] = instance
        return self._started[bound.id]

    async def close(self) -> None:
        """End their connections."""
        for instance in self._started.values():
            if hasattr(instance, "close"):
                await instance.close()
        self._started.clear()

    async def answer(self, task: Task, told: Callable[[str], None]) -> Report | BaseException:
        """Like `answer`, for a task of the network's kind."""
        try:
            return await self.fetch_shard(task, told)
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001  whatever it is, the driver has to know
            return failure(error)

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
        items = missing_images(worker, segment, bound, task.shard, task.heal)
        report.measured[bound.label] = len(items)
        if items:
            part = worker.store.next_part(bound.folder, task.shard)
            tar = worker.store.images(bound.folder) / f"{part.stem}.tar"
            downloader = await self.downloader(bound)
            informed = barred(with_rows(downloader, worker, segment, bound, task.shard, items), worker.store.root, bound.types)
            table = await collect(informed, items, tar, worker.store.root, worker.store.attempt, bound.types,
                                  self._crowd(bound, downloader), told, task.shard)
            table = table.append_column(ERROR, pa.nulls(table.num_rows, pa.string()))
            worker.store.write_part(bound.folder, task.shard, table)
            discard_parts(tar)
            report.step_seconds[bound.label] = time.perf_counter() - begin
        worker.finish(segment, Shard.at(worker.store, worker.source, task.shard, segment.chain_in), report, begin)
        return report

    def _crowd(self, bound: BoundStep, downloader: Any) -> Crowd:
        if bound.id not in self._crowds:
            self._crowds[bound.id] = crowd_of(downloader, getattr(downloader, "part_images", PART_IMAGES))
        return self._crowds[bound.id]


def missing_images(worker: Worker, segment: Segment, bound: BoundStep, number: int, heal: bool = False) -> list[tuple[str, str]]:
    """(image_id, url) of the images that this shard owns, some alive row needs, and nobody has fetched, in row order.

    With `heal` those that failed in a way that may pass count as not fetched.
    """
    url = next(iter(bound.reads.values()))
    present = worker.store.read_parts(bound.folder, number, ["image_id", *(["status"] if heal else [])])
    have = set(present["image_id"].to_pylist()) if present is not None else set()
    have -= may_come(present) if heal else set()
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
