"""Which task may start: (segment, shard) with what each waits for. Lowest shard first, later segments before earlier."""

import heapq
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from curate.measure import Report
from curate.plan import Segment
from curate.sources.ingest import NewShard, Spread, Written
from curate.sources.source import Source
from curate.store import Store
from curate.work import Kind, Pool, Task, Told

KINDS: tuple[Kind, ...] = ("whole", "pack", "model", "cpu", "fetch")

Place = tuple[int, int]
"""(segment, shard)"""


class Tasks:
    """The tasks of one group. `skipped` counts those that an earlier attempt did."""

    def __init__(self, waits: Iterable[tuple[Task, Sequence[Place]]], skipped: int = 0) -> None:
        pairs = list(waits)
        self._task = {(task.segment, task.shard): task for task, _ in pairs}
        self.skipped = skipped
        self.left = len(pairs)
        self.total = self.left + skipped
        self._needs: dict[Place, int] = {}
        self._frees: dict[Place, list[Place]] = {}
        self._ready: dict[Kind, list[tuple[int, int]]] = {}
        for task, needs in pairs:
            place = (task.segment, task.shard)
            open_needs = {n for n in needs if n in self._task}
            self._needs[place] = len(open_needs)
            for need in open_needs:
                self._frees.setdefault(need, []).append(place)
            if not open_needs:
                self._push(place)

    def pop(self, kind: Kind) -> Task | None:
        """A ready task of a kind, or None."""
        heap = self._ready.get(kind)
        if not heap:
            return None
        shard, segment = heapq.heappop(heap)
        return self._task[-segment, shard]

    def done(self, task: Task) -> None:
        """A task ended well: what waited for it may be ready."""
        self.left -= 1
        for place in self._frees.pop((task.segment, task.shard), ()):
            self._needs[place] -= 1
            if not self._needs[place]:
                self._push(place)

    def _push(self, place: Place) -> None:
        segment, shard = place
        heapq.heappush(self._ready.setdefault(self._task[place].kind, []), (shard, -segment))


def drain(pool: Pool, tasks: Tasks) -> Iterator[tuple[Task, Report] | Told]:
    """Run tasks as they become ready, never more in flight than the executor can use; what came back, as it comes."""
    flying: Counter[Kind] = Counter()
    while tasks.left:
        for kind in KINDS:
            while flying[kind] < pool.capacity(kind) and (ready := tasks.pop(kind)):
                flying[kind] += 1
                pool.submit(ready)
        answer = pool.next()
        if not isinstance(answer, Told):
            flying[answer[0].kind] -= 1
            tasks.done(answer[0])
        yield answer


def spread(pool: Pool) -> Spread:
    """Have new source shards written by a pool that does nothing else meanwhile; they come back in order."""
    def written(shards: Iterable[NewShard], _folder: Path, _attempt: str) -> Written:
        flying = deque[tuple[int, int]]()
        done = dict[int, pa.Schema]()

        def first() -> tuple[int, pa.Schema]:
            number, rows = flying.popleft()
            while number not in done:
                answer = pool.next()
                assert not isinstance(answer, Told), "nothing is fetched before the source is read"
                done[answer[0].shard] = answer[1].schema
            return rows, done.pop(number)

        for shard in shards:
            pool.submit(Task("cpu", shard, shard=shard.number))
            flying.append((shard.number, shard.rows))
            if len(flying) >= pool.capacity("cpu"):
                yield first()
        while flying:
            yield first()
    return written


def segment_tasks(segments: Sequence[Segment], source: Source, store: Store, shards: Sequence[int], retry: bool,
                  heal: bool = False) -> Tasks:
    """A task for every segment of every shard that is not through it yet.

    With `--part` the shards are not all: what waits for a shard of another part that is not ready is left to a later run.
    """
    waits, skipped = [], 0
    mine, left_out = set(shards), set[Place]()

    def out_of_reach(place: Place) -> bool:
        return place in left_out or (place[1] not in mine and not store.has_kept(segments[place[0]].chain_out, place[1]))

    for index, segment in enumerate(segments):
        for shard in shards:
            if store.has_kept(segment.chain_out, shard) and not _lends(index, segments, source, store, shard) and not retry:
                skipped += 1
            elif any(map(out_of_reach, needs := _needs(index, segments, source, shard))):
                left_out.add((index, shard))
            else:
                waits.append((Task(segment.kind, segment, shard, index, retry=retry, heal=heal), needs))
    return Tasks(waits, skipped)


def _lends(index: int, segments: Sequence[Segment], source: Source, store: Store, shard: int) -> bool:
    """Whether a shard may have to fetch more images than it did: rows of a new file that borrow them are not through yet."""
    end = segments[-1].chain_out if index < len(segments) - 1 else ""
    return segments[index].kind == "fetch" and any(not end or not store.has_kept(end, b) for b in source.borrowers(shard))


def _needs(index: int, segments: Sequence[Segment], source: Source, shard: int) -> list[Place]:
    """A shard's segment waits for the one before; fetching waits for all who want its images, and they for the fetch."""
    if not index:
        return []
    needs = [(index - 1, shard)]
    if segments[index].kind == "fetch":
        needs += [(index - 1, other) for other in source.borrowers(shard)]
    if segments[index - 1].kind == "fetch":
        needs += [(index - 1, owner) for owner in source.depends(shard)]
    return needs
