"""One host with most of the urls that never answers in time takes nothing from the others: neither places nor shards."""

import asyncio
import random
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curate.collect import collect, crowd_of
from curate.fetching.turns import Crowd, Turns
from tests.helpers_http import run
from tests.test_collect import COLUMNS

SHARDS, SLOW, OTHERS = 9, 40, 10


def shards() -> list[list[tuple[str, str]]]:
    """Nine shards of 40 urls of one host and 10 of ten others."""
    made = []
    for shard in range(SHARDS):
        urls = [f"http://slow.example/{shard}-{n}" for n in range(SLOW)]
        urls += [f"http://other{n}.example/{shard}-{n}" for n in range(OTHERS)]
        random.Random(shard).shuffle(urls)
        made.append([(f"{shard:016x}{n:016x}", url) for n, url in enumerate(urls)])
    return made


class Web:
    """Answers at once, but nothing of the slow host until everything else was answered. `patient` answers all at once."""

    concurrency, per_host = 4, 2

    def __init__(self, patient: bool = False) -> None:
        self.asked: Counter[str] = Counter()
        self.now = self.most = 0
        self._others_left = asyncio.Event()
        self._left = 0 if patient else SHARDS * OTHERS
        if patient:
            self._others_left.set()

    async def one(self, url: str) -> tuple[dict[str, object], bytes | None]:
        self.asked[url] += 1
        if "slow" in url:
            self.now += 1
            self.most = max(self.most, self.now)
            await self._others_left.wait()
            self.now -= 1
        else:
            await asyncio.sleep(0)
            self._left -= 1
            if self._left == 0:
                self._others_left.set()
        return {"status": "ok", "num_bytes": len(url)}, b"\xff\xd8\xff" + url.encode()


async def fetched(root: Path, web: Web, told: Counter[str] | None = None, part_images: int = 64) -> list[pa.Table]:
    """All shards, side by side as a fetcher collects them."""
    def tell(status: str) -> None:
        if told is not None:
            told[status] += 1

    root.mkdir()
    crowd = crowd_of(web, part_images)
    async with asyncio.timeout(30):
        return await asyncio.gather(*[collect(web, items, root / f"{n:05d}.000.tar", root, "attempt", COLUMNS, crowd, tell, n)
                                      for n, items in enumerate(shards())])


@run
async def test_the_others_are_all_done_before_the_slow_host_answers_at_all(tmp_path: Path) -> None:
    """Without fairness this never ends: places would be held for the slow host, and the slow host waits for the others."""
    web, told = Web(), Counter[str]()
    tables = await fetched(tmp_path / "fair", web, told)
    assert [table["image_id"].to_pylist() for table in tables] == [[i for i, _ in items] for items in shards()]
    assert set(web.asked.values()) == {1}
    assert told == {"ok": SHARDS * (SLOW + OTHERS)}
    assert web.most == 2, "per_host holds over all shards"
    again = await fetched(tmp_path / "patient", Web(patient=True))
    for number, (one, other) in enumerate(zip(tables, again, strict=True)):
        assert one.equals(other)
        name = f"{number:05d}.000.tar"
        assert (tmp_path / "fair" / name).read_bytes() == (tmp_path / "patient" / name).read_bytes()


@run
async def test_what_all_shards_hold_unsealed_is_no_more_than_one_part(tmp_path: Path) -> None:
    """However many are open: what was asked for and is in no sealed part never exceeds `part_images`."""
    root = tmp_path / "held"

    class Watched(Web):
        async def one(self, url: str) -> tuple[dict[str, object], bytes | None]:
            found = await super().one(url)
            if self.asked.total() % 10 == 0:
                assert self.asked.total() - sum(pq.read_metadata(p).num_rows for p in root.glob("*.p*.parquet")) <= 24
            return found

    await fetched(root, Watched(patient=True), part_images=24)
    parts = [pq.read_metadata(p).num_rows for p in root.glob("*.p*.parquet")]
    assert sum(parts) == SHARDS * (SLOW + OTHERS)
    assert sum(n >= 4 for n in parts) > len(parts) / 2, "who has most seals, so parts are not crumbs"


# ---------------------------------------------------------------- turns

def crowd(per_host: int, under_way: int = 100, unsealed: int = 100) -> Crowd:
    return Crowd(per_host, under_way, unsealed, 1_000)


def turns(crowd: Crowd, *urls: str, order: int = 0) -> tuple[Turns, list[int]]:
    """The turns of a shard of these urls, and a list that grows when it is woken."""
    woken: list[int] = []
    return Turns([(url, url) for url in urls], crowd, lambda: woken.append(1), order), woken


def taken(these: Turns) -> list[str]:
    found = []
    while item := these.take():
        found.append(item[1])
    return found


def test_hosts_take_turns() -> None:
    these, woken = turns(crowd(2), "http://a/1", "http://a/2", "http://a/3", "http://b/1", "http://c/1")
    assert taken(these) == ["http://a/1", "http://b/1", "http://c/1", "http://a/2"]
    assert these.left and not woken
    these.done("http://b/1")
    assert taken(these) == [] and not woken
    these.done("http://a/1")
    assert taken(these) == ["http://a/3"] and woken
    assert not these.left


def test_a_place_at_a_host_goes_to_the_lowest_shard_that_waits() -> None:
    one = crowd(1)
    first, _ = turns(one, "http://a/1", order=1)
    third, last = turns(one, "http://a/3", order=3)
    second, woken = turns(one, "http://a/2", order=2)
    assert [taken(t) for t in (first, third, second)] == [["http://a/1"], [], []]
    first.done("http://a/1")
    assert (woken, last) == ([1], [])
    second.close()
    assert last == [1], "who leaves offers what it was told of to the next"
    assert taken(third) == ["http://a/3"]


def test_room_goes_to_the_lowest_shard_and_later_ones_do_not_push_in() -> None:
    two = crowd(2, under_way=2)
    late, _ = turns(two, "http://a/1", "http://b/1", "http://c/1", order=7)
    low, woken = turns(two, "http://d/1", "http://e/1", order=1)
    assert taken(late) == ["http://a/1", "http://b/1"]
    assert taken(low) == []
    late.done("http://a/1")
    assert woken == [1]
    assert taken(low) == ["http://d/1"]
    late.done("http://b/1")
    assert taken(low) == ["http://e/1"]
    assert taken(late) == []
    low.done("http://d/1")
    assert taken(late) == ["http://c/1"]


def test_who_has_most_seals() -> None:
    one = crowd(9, under_way=4, unsealed=10)
    (small, _), (large, woken) = turns(one, *[f"http://a/{n}" for n in range(9)], order=1), turns(one, order=2)
    one.hold(large, 6, 10)
    one.hold(small, 3, 900)
    assert not woken and not one.must_seal(large) and not one.must_seal(small)
    one.hold(small, 4, 900)
    assert woken and one.must_seal(large) and not one.must_seal(small)
    assert len(taken(small)) == 4, "half of all is for what is under way"
    one.hold(large, 0, 0)
    assert not one.must_seal(large)
    one.hold(large, 1, 100)
    assert one.must_seal(small), "by bytes"


@run
async def test_a_fault_gives_back_every_place(tmp_path: Path) -> None:
    """A step that raises leaves nothing behind in what shards share."""
    class Wrong(Web):
        async def one(self, url: str) -> tuple[dict[str, object], bytes | None]:
            if len(self.asked) == 20:
                raise ZeroDivisionError
            return await super().one(url)

    shared = crowd(2, 16, 16)
    for n in range(9):
        with pytest.raises(ZeroDivisionError):
            await collect(Wrong(patient=True), shards()[0], tmp_path / f"{n}.tar", tmp_path, "t", COLUMNS, shared)
    table = await collect(Web(patient=True), shards()[0], tmp_path / "x.tar", tmp_path, "t", COLUMNS, shared)
    assert table.num_rows == SLOW + OTHERS
