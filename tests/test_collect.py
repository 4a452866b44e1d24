import asyncio
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curate import collect as module
from curate import step
from curate.collect import collect, crowd_of, discard_parts
from curate.decoding import images
from curate.tar import members
from tests.helpers_http import run

COLUMNS = {"image": step.image, "status": step.string, "num_bytes": step.int64}
KINDS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a")


def items(count: int, hosts: int = 7) -> list[tuple[str, str]]:
    return [(f"{n:032x}", f"http://host{n % hosts}.example/{n}") for n in range(count)]


def bytes_of(url: str) -> bytes:
    n = int(url.rpartition("/")[2])
    return KINDS[n % 3] + url.encode() * (n % 50)


class Web:
    """A fetch step without a network: every seventh url has no picture; `order` shuffles how they come in."""

    def __init__(self, order: int = 0, concurrency: int = 8, per_host: int = 2, stop_after: int | None = None) -> None:
        self.concurrency, self.per_host, self._stop_after = concurrency, per_host, stop_after
        self._order = random.Random(order)
        self.asked: list[str] = []
        self.now: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self.tasks = 0

    async def one(self, url: str) -> tuple[dict[str, object], bytes | None]:
        self.asked.append(url)
        host = url.split("/")[2]
        self.now[host] += 1
        self.most[host] = max(self.most[host], self.now[host])
        self.tasks = max(self.tasks, len(asyncio.all_tasks()))
        if len(self.asked) == self._stop_after:
            raise ZeroDivisionError("the fetch step is wrong")
        for _ in range(self._order.randrange(4)):
            await asyncio.sleep(0)
        self.now[host] -= 1
        if int(url.rpartition("/")[2]) % 7 == 3:
            return {"status": "http_404"}, None
        data = bytes_of(url)
        return {"status": "ok", "num_bytes": len(data)}, data


async def gathered(root: Path, web: Web, wanted: list[tuple[str, str]], part_images: int = 16, name: str = "00000.000.tar",
                   told: list[str] | None = None) -> tuple[pa.Table, Path]:
    tar = root / "images" / "abc" / name
    crowd = crowd_of(web, part_images)
    return await collect(web, wanted, tar, root, "attempt", COLUMNS, crowd, told.append if told is not None else None), tar


@run
async def test_one_tar_and_one_table_in_the_order_of_the_items(tmp_path: Path) -> None:
    told: list[str] = []
    table, tar = await gathered(tmp_path, Web(), items(100), told=told)
    assert table.schema == pa.schema([("image_id", pa.string()), *COLUMNS.items()])
    assert table["image_id"].to_pylist() == [i for i, _ in items(100)]
    rows = table.to_pylist()
    for (image_id, url), row in zip(items(100), rows, strict=True):
        if int(image_id, 16) % 7 == 3:
            assert (row["status"], row["image"], row["num_bytes"]) == ("http_404", None, None)
        else:
            assert row["image"]["file"] == "images/abc/00000.000.tar"
            assert images.read(row["image"], tmp_path) == bytes_of(url)
    with tar.open("rb") as file:
        found = [m.name for m in members(file)]
    assert found == [f"{r['image_id']}.{('jpg', 'png', 'gif')[n % 3]}" for n, r in enumerate(rows) if r["image"]]
    assert Counter(told) == Counter(r["status"] for r in rows)


@run
async def test_same_bytes_however_they_arrive(tmp_path: Path) -> None:
    made = [await gathered(tmp_path / str(n), Web(n, concurrency=4 + n), items(150), part_images=10 + 30 * n) for n in range(3)]
    assert len({tar.read_bytes() for _, tar in made}) == 1
    assert made[0][0].equals(made[1][0])
    assert made[0][0].equals(made[2][0])


@pytest.mark.parametrize("stop_after", [1, 9, 40, 99, 149])
@run
async def test_a_restart_asks_only_for_the_rest(tmp_path: Path, stop_after: int) -> None:
    whole, tar = await gathered(tmp_path / "whole", Web(), items(150))
    broken = Web(stop_after=stop_after)
    with pytest.raises(ZeroDivisionError):
        await gathered(tmp_path / "again", broken, items(150))
    second, told = Web(order=5), list[str]()
    table, again = await gathered(tmp_path / "again", second, items(150), told=told)
    assert table.equals(whole)
    assert again.read_bytes() == tar.read_bytes()
    twice = Counter(broken.asked + second.asked)
    assert set(twice) == {url for _, url in items(150)}
    assert sum(n - 1 for n in twice.values()) <= 16
    assert len(told) == 150
    third = Web()
    assert (await gathered(tmp_path / "again", third, items(150)))[0].equals(whole)
    assert not third.asked
    discard_parts(again)
    assert [p.name for p in again.parent.iterdir()] == ["00000.000.tar"]


@run
async def test_a_tar_without_its_parquet_is_no_part(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        await gathered(tmp_path, Web(stop_after=60), items(80))
    folder = tmp_path / "images" / "abc"
    last = sorted(folder.glob("*.p*.parquet"))[-1]
    sealed = pq.read_table(last)["image_id"].to_pylist()
    last.unlink()
    last.with_suffix(".tar").write_bytes(b"cut short")
    web = Web()
    table, tar = await gathered(tmp_path, web, items(80))
    assert {int(i, 16) for i in sealed} <= {int(url.rpartition("/")[2]) for url in web.asked}
    clean, other = await gathered(tmp_path / "clean", Web(), items(80))
    assert tar.read_bytes() == other.read_bytes()
    assert table.equals(clean)


@run
async def test_what_is_not_sealed_is_never_more_than_a_part(tmp_path: Path) -> None:
    folder = tmp_path / "images" / "abc"

    class Watched(Web):
        async def one(self, url: str) -> tuple[dict[str, object], bytes | None]:
            found = await super().one(url)
            sealed = sum(pq.read_metadata(p).num_rows for p in folder.glob("*.p*.parquet"))
            assert len(self.asked) - sealed <= 16
            return found

    await gathered(tmp_path, Watched(concurrency=64, per_host=64), items(120))


@run
async def test_parts_are_sealed_by_size_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "UNSEALED_BYTES", 5_000)
    _, tar = await gathered(tmp_path, Web(), items(100), part_images=1000)
    parts = sorted(tar.parent.glob("*.p*.tar"))
    assert len(parts) > 5
    assert [p.name for p in parts[:2]] == ["00000.000.p000.tar", "00000.000.p001.tar"]


@run
async def test_shards_do_not_take_each_others_parts(tmp_path: Path) -> None:
    both = [gathered(tmp_path, Web(), items(40), name=name) for name in ("00000.000.tar", "00001.000.tar")]
    (_, first), (_, second) = await asyncio.gather(*both)
    discard_parts(first)
    assert first.exists()
    assert [p.name for p in sorted(second.parent.glob("*.p*.tar"))][0] == "00001.000.p000.tar"
    assert not list(first.parent.glob("00000.000.p*"))


@run
async def test_hosts_take_turns_and_tasks_are_few(tmp_path: Path) -> None:
    one_host = [(f"{n:032x}", f"http://big.example/{n * 7}") for n in range(2_000)]
    others = [(f"{n:032x}", f"http://small{n % 20}.example/{n * 7}") for n in range(2_000, 2_100)]
    web = Web(concurrency=16, per_host=2)
    await gathered(tmp_path, web, one_host + others, part_images=256)
    assert web.most["big.example"] == 2
    assert max(web.most.values()) == 2
    assert web.tasks <= 64 + 2
    last_small = max(n for n, url in enumerate(web.asked) if "small" in url)
    assert last_small < 200, "the big host stood first and did not hold up the small ones"


@run
async def test_odd_urls_and_steps(tmp_path: Path) -> None:
    class Bare:
        async def one(self, url: str) -> tuple[dict[str, object], bytes | None]:
            return {"status": "bad_url"}, None

    odd = [("a", "http://[::1/"), ("b", ""), ("c", "not a url"), ("a", "http://again.example/")]
    table = await collect(Bare(), odd, tmp_path / "x.tar", tmp_path, "t", COLUMNS, crowd_of(Bare(), 256))
    assert table["image_id"].to_pylist() == ["a", "b", "c"]
    empty = await collect(Bare(), [], tmp_path / "y.tar", tmp_path, "t", COLUMNS, crowd_of(Bare(), 256))
    assert (empty.num_rows, empty.schema) == (0, table.schema)

    class Chatty:
        async def one(self, url: str) -> tuple[dict[str, object], bytes | None]:
            return {"status": "ok", "mood": "fine"}, None

    with pytest.raises(TypeError, match="^the fetch step gave mood, which it does not add$"):
        await collect(Chatty(), odd, tmp_path / "z.tar", tmp_path, "t", COLUMNS, crowd_of(Bare(), 256))


KILLING = """
import asyncio, os, pathlib, signal, sys, time
import pyarrow
from curate.collect import collect, crowd_of
from tests.test_collect import COLUMNS, Web, items

class Slow(Web):
    async def one(self, url):
        with open(root / "log", "a") as log:
            log.write(url + "\\n")
        await asyncio.sleep(.003)
        return await super().one(url)

pyarrow.array([1])      # imports pandas, which each child would do otherwise

def started(root):
    pid = os.fork()
    if not pid:
        web, tar = Slow(), root / "images" / "00000.000.tar"
        asyncio.run(collect(web, items(150), tar, root, "attempt", COLUMNS, crowd_of(web, 16)))
        os._exit(0)
    return pid

for name, kills in (("whole", ()), ("killed", (1, 40, 110))):
    root = pathlib.Path(sys.argv[1]) / name
    root.mkdir()
    log = root / "log"
    for asked in kills:
        pid = started(root)
        while not log.exists() or log.read_text().count("http") < asked:
            time.sleep(.002)
        os.kill(pid, signal.SIGKILL)
        assert os.waitpid(pid, 0)[1] == signal.SIGKILL
    assert os.waitpid(started(root), 0)[1] == 0
"""


def test_killed_at_any_moment(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", KILLING, str(tmp_path)], cwd=Path(__file__).parents[1], check=True, timeout=100)
    whole, killed = (tmp_path / name / "images" / "00000.000.tar" for name in ("whole", "killed"))
    assert killed.read_bytes() == whole.read_bytes()
    assert len((tmp_path / "killed" / "log").read_text().splitlines()) <= 150 + 3 * 16
