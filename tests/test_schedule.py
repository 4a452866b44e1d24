"""Which task may start when: by fakes, without a process."""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.measure import Report
from curate.plan import Segment
from curate.schedule import KINDS, Tasks, drain, segment_tasks
from curate.sources.source import Source
from curate.store import Store
from curate.work import Kind, Task, Told

CPU_FETCH_MODEL = (Segment("cpu", (), "", "captions"), Segment("fetch", (), "captions", "fetched"),
                   Segment("model", (), "fetched", "scored"))


class FakeSource:
    """Only who shares pictures with whom: owner → the later shards that want its pictures."""

    def __init__(self, lends: Mapping[int, Sequence[int]]) -> None:
        self._lends = lends

    def borrowers(self, shard: int) -> dict[int, list[str]]:
        return {other: ["image"] for other in self._lends.get(shard, ())}

    def depends(self, shard: int) -> list[int]:
        return sorted(owner for owner, others in self._lends.items() if shard in others)


class FakeStore:
    """Only which shard is through which chain."""

    def __init__(self, *through: tuple[str, int]) -> None:
        self._through = set(through)

    def has_kept(self, chain: str, shard: int) -> bool:
        return (chain, shard) in self._through


class FakePool:
    """Ends tasks in a random order, one at a time, and watches what the scheduler does."""

    def __init__(self, seed: int, capacity: Mapping[Kind, int], needs: Mapping[tuple[int, int], set[tuple[int, int]]]) -> None:
        self._random, self._capacity, self._needs = random.Random(seed), capacity, needs
        self._flying: list[Task] = []
        self.most: Counter[Kind] = Counter()
        self.ended: list[tuple[int, int]] = []

    def capacity(self, kind: Kind) -> int:
        return self._capacity[kind]

    def submit(self, task: Task) -> None:
        assert self._needs[task.segment, task.shard] <= set(self.ended), "it started before what it waits for"
        self._flying.append(task)
        self.most[task.kind] = max(self.most[task.kind], sum(t.kind == task.kind for t in self._flying))
        assert self.most[task.kind] <= self._capacity[task.kind]

    def next(self) -> tuple[Task, Report] | Told:
        if self._random.random() < 0.2:
            return Told(Counter(ok=1))
        task = self._flying.pop(self._random.randrange(len(self._flying)))
        self.ended.append((task.segment, task.shard))
        return task, Report(())

    def close(self) -> None:
        """Nothing to end."""


def planned(lends: Mapping[int, Sequence[int]], shards: Sequence[int], *through: tuple[str, int], retry: bool = False,
            segments: Sequence[Segment] = CPU_FETCH_MODEL) -> Tasks:
    return segment_tasks(segments, cast(Source, FakeSource(lends)), cast(Store, FakeStore(*through)), shards, retry)


def ready(tasks: Tasks) -> list[tuple[int, int]]:
    """Every (segment, shard) that may start now, in the order it would."""
    return [(task.segment, task.shard) for kind in KINDS for task in iter(lambda k=kind: tasks.pop(k), None)]


def end(tasks: Tasks, *places: tuple[int, int]) -> list[tuple[int, int]]:
    """What becomes ready when these end."""
    for segment, shard in places:
        tasks.done(Task(CPU_FETCH_MODEL[segment].kind, CPU_FETCH_MODEL[segment], shard, segment))
    return ready(tasks)


def test_shards_that_share_nothing_stream() -> None:
    """Shard 1's model segment starts when shard 1's fetch has ended, whatever the others do."""
    tasks = planned({}, range(3))
    assert (tasks.total, tasks.left, tasks.skipped) == (9, 9, 0)
    assert ready(tasks) == [(0, 0), (0, 1), (0, 2)]
    assert end(tasks, (0, 1)) == [(1, 1)]
    assert end(tasks, (1, 1)) == [(2, 1)]
    assert end(tasks, (2, 1)) == []
    assert tasks.left == 6


def test_fetch_waits_for_borrowers_and_readers_for_owners() -> None:
    """Shard 0 owns pictures of shard 2: it fetches what 2 needs, so 2's captions come first, and 2 reads after 0 has fetched."""
    tasks = planned({0: [2]}, range(3))
    assert ready(tasks) == [(0, 0), (0, 1), (0, 2)]
    assert end(tasks, (0, 0)) == []                       # 2 has not said yet which of its rows are alive
    assert end(tasks, (0, 1)) == [(1, 1)]
    assert end(tasks, (0, 2)) == [(1, 0), (1, 2)]
    assert end(tasks, (1, 2)) == []                       # a picture of its own is not all it shows
    assert end(tasks, (1, 0)) == [(2, 0), (2, 2)]


def test_later_segments_of_lower_shards_first() -> None:
    """A kind's tasks: lowest shard first, and of one shard the later segment."""
    tasks = Tasks([(Task("cpu", CPU_FETCH_MODEL[0], shard, segment), []) for shard in (1, 0) for segment in (0, 2)])
    assert ready(tasks) == [(2, 0), (0, 0), (2, 1), (0, 1)]


def test_what_is_through_is_skipped() -> None:
    """A shard that is through a segment has no task for it; what comes after does not wait for it."""
    tasks = planned({}, range(2), ("captions", 0), ("fetched", 0), ("captions", 1))
    assert (tasks.total, tasks.skipped) == (6, 3)
    assert ready(tasks) == [(2, 0), (1, 1)]
    everything = [(chain, shard) for chain in ("captions", "fetched", "scored") for shard in range(2)]
    assert planned({}, range(2), *everything).left == 0
    assert planned({}, range(2), *everything, retry=True).left == 6


def test_lender_looks_again_for_what_new_rows_want() -> None:
    """A shard that lends is fetched again (and finds nothing to do) even if it was through: a new file may want more of it."""
    through = [(chain, 0) for chain in ("captions", "fetched", "scored")]
    tasks = planned({0: [1]}, range(2), *through)
    assert ready(tasks) == [(0, 1)]
    assert end(tasks, (0, 1)) == [(1, 0), (1, 1)]
    assert end(tasks, (1, 0)) == []
    assert end(tasks, (1, 1)) == [(2, 1)]


def test_part_leaves_out_what_waits_for_other_parts() -> None:
    """`--part`: a shard whose pictures another part's shard shares goes as far as it can alone; all else goes on."""
    tasks = planned({0: [1], 2: [4]}, [0, 2, 4])
    assert ready(tasks) == [(0, 0), (0, 2), (0, 4)]
    assert tasks.left == 3 + 4                            # shard 0 stops before its fetch
    assert end(tasks, (0, 0), (0, 2), (0, 4)) == [(1, 2), (1, 4)]
    assert ready(planned({0: [1]}, [1])) == [(0, 1)]      # the borrower fetches its own, and waits to read
    assert planned({0: [1]}, [1]).left == 2
    both = planned({0: [1]}, [0], ("captions", 0), ("captions", 1))
    assert ready(both) == [(1, 0)]


@given(st.dictionaries(st.integers(0, 5), st.lists(st.integers(0, 5), max_size=3), max_size=4), st.integers(0, 999),
       st.integers(1, 3), st.integers(1, 3))
def test_every_order_of_ends_does_every_task_once(lends: dict[int, list[int]], seed: int, cpu: int, fetch: int) -> None:
    """Nothing starts early, nothing is forgotten, no kind is over its capacity, however long tasks take."""
    lends = {owner: sorted({o for o in others if o > owner}) for owner, others in lends.items()}
    source = FakeSource(lends)
    needs = {(segment, shard): {(segment - 1, shard)} if segment else set() for segment in range(3) for shard in range(6)}
    for shard in range(6):
        needs[1, shard] |= {(0, other) for other in source.borrowers(shard)}
        needs[2, shard] |= {(1, owner) for owner in source.depends(shard)}
    pool = FakePool(seed, {"whole": 1, "pack": 1, "model": 1, "cpu": cpu, "fetch": fetch}, needs)
    tasks = planned(lends, range(6))
    answers = list(drain(pool, tasks))
    assert sorted(pool.ended) == [(segment, shard) for segment in range(3) for shard in range(6)]
    assert sum(not isinstance(answer, Told) for answer in answers) == 18
    assert pool.most["cpu"] == min(cpu, 6)


def test_as_many_in_flight_as_the_pool_can_use() -> None:
    """Capacity is used up at once, and no more."""
    pool = FakePool(0, {"whole": 1, "pack": 3, "model": 1, "cpu": 1, "fetch": 1}, {(0, shard): set() for shard in range(9)})
    tasks = Tasks([(Task("pack", CPU_FETCH_MODEL[0], shard), []) for shard in range(9)])
    steps = drain(pool, tasks)
    next(steps)
    assert pool.most["pack"] == 3
    assert len([answer for answer in steps if not isinstance(answer, Told)]) in (8, 9)


def test_error_of_a_task_ends_the_group(tmp_path: Path) -> None:
    """What the pool raises goes on up."""
    class Broken(FakePool):
        def next(self) -> tuple[Task, Report] | Told:
            raise ZeroDivisionError("a step is wrong")

    pool = Broken(0, dict.fromkeys(KINDS, 1), {(0, 0): set()})
    with pytest.raises(ZeroDivisionError):
        list(drain(pool, Tasks([(Task("cpu", CPU_FETCH_MODEL[0]), [])])))
