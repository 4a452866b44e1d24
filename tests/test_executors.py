"""What an executor owes: every task done, a death survived, an error told, nobody left behind. Processes here, Ray too."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curate import local
from curate.errors import RunStopped, UserError
from curate.local import LocalPool, make_pool
from curate.pipeline import load
from curate.progress import Quiet
from curate.run import Outcome, run
from curate.store import Store
from curate.weights import WeightsIds
from curate.work import THREADS, Pool, Task
from tests.running import alive, environment, run_here, tree, wait_for, write_pipeline, write_pool

MINE = '''\
"""Steps of a test."""
import asyncio
import os
import signal
import time
from pathlib import Path

import pyarrow as pa

from curate.errors import UserError
from curate.step import fetch, image, int64, step, string


@step(adds={"pid": int64, "threads": string, "answer": int64})
def whoami(caption: list[str]):
    """Where a batch was measured."""
    time.sleep(0.05)
    n = len(caption)
    return {"pid": [os.getpid()] * n, "threads": [os.environ.get("OMP_NUM_THREADS")] * n, "answer": [len(c) for c in caption]}


@step(adds={"survived": int64})
def dies(caption: list[str], *, times: int = 1):
    """Kills its process at the caption 'bang', the first times."""
    if "bang" in caption:
        marks = len(list(Path().glob("bang.*")))
        if marks < times:
            Path(f"bang.{marks}").touch()
            os.kill(os.getpid(), signal.SIGKILL)
    return [len(c) for c in caption]


@step(adds={"two": int64})
def wrong_rows(caption: list[str]):
    """Returns too few values."""
    return [1]


@step(adds={"m": int64}, gpus=1)
class Model:
    """Refuses its settings, or counts how often it was built."""

    def __init__(self, *, size: int = 1):
        if size > 9:
            raise UserError("model: there is no size over 9")
        with open("built", "a") as file:
            file.write("x")

    def __call__(self, caption: list[str]):
        return [len(c) for c in caption]


@step(adds={"slept": int64})
def sleeps(caption: list[str]):
    """Says who it is and sleeps."""
    Path(f"pid.{os.getpid()}").touch()
    time.sleep(60)
    return [1] * len(caption)


@fetch(adds={"image": image, "status": string})
class Grab:
    """A web without a network: the bytes are the url."""

    ready = False

    async def start(self):
        await asyncio.sleep(0.1)
        self.ready = True

    async def one(self, url: str):
        assert self.ready, "asked before it was started"
        with open("asked", "a") as log:
            log.write(url + "\\n")
        await asyncio.sleep(0.01)
        return {"status": "ok"}, b"\\xff\\xd8\\xff" + url.encode()


@step(adds={"num_stored": int64})
def stored(image: list[bytes]):
    """Bytes of the stored picture."""
    return [len(data) for data in image]
'''
CAPTIONS = [f"caption {i}" for i in range(40)]
FETCHING = ("./mine.py:whoami", "keep: answer > 2", "./mine.py:grab", "keep: status = 'ok'", "./mine.py:stored",
            "./mine.py:model")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with steps of a user's own."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(MINE)
    return tmp_path


def write_shared_pool(here: Path) -> None:
    """40 rows in four shards. Row 35 has the url of row 2, whose own caption is too short to live; row 25 that of row 1."""
    captions = ["x" if i == 2 else f"caption {i}" for i in range(40)]
    urls = [f"http://site/{ {35: 2, 25: 1}.get(i, i) }.jpg" for i in range(40)]
    pq.write_table(pa.table({"url": urls, "caption": captions}), here / "pool.parquet")


class Seen(Quiet):
    """Counts what it is shown."""

    def __init__(self) -> None:
        self.tasks = 0
        self.statuses: Counter[str] = Counter()

    def task(self, task: Task, seconds: float) -> None:
        self.tasks += 1

    def told(self, statuses: Counter[str]) -> None:
        self.statuses.update(statuses)


def measured(out: Path, name: str) -> list[object]:
    """A column of subset.parquet."""
    column: list[object] = pq.read_table(out / "subset.parquet")[name].to_pylist()
    return column


def seen(file: Path, store: Store, pool: Pool) -> tuple[Outcome, Seen]:
    """Run a pipeline on a pool, watched. The caller holds the lock."""
    watcher = Seen()
    return run(load(file, ()), store, pool, WeightsIds(store), watcher), watcher


def check_fetching(here: Path, out: Path, outcome: Outcome, watcher: Seen) -> None:
    """Every picture is asked for once, by whoever owns it, and only if somebody needs it."""
    asked = Counter((here / "asked").read_text().split())
    assert set(asked.values()) == {1}
    assert set(asked) == {f"http://site/{i}.jpg" for i in range(40)} - {"http://site/35.jpg", "http://site/25.jpg"}
    assert outcome.funnel[-1]["kept"] == 39
    assert measured(out, "num_stored") == [3 + len(url) for url in measured(out, "url")]
    assert len((here / "built").read_text()) <= 4
    assert watcher.statuses in ({"ok": 38}, {})
    assert watcher.tasks == 4 * 4


def test_without_workers_and_with_two(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same states and pictures; a picture of two shards is fetched once, even where the owner's own row is gone.

    Workers have one thread a library, whatever the driver has, whose environment is left alone.
    """
    for name in THREADS:
        monkeypatch.setenv(name, "7")
    write_shared_pool(here)
    file = write_pipeline(here, *FETCHING)
    for name, workers in (("none", 0), ("two", 2)):
        store = Store(here / name, "test")
        with store.lock():
            pool = make_pool(store.root, "test", workers)
            try:
                outcome, watcher = seen(file, store, pool)
            finally:
                pool.close()
        check_fetching(here, store.root, outcome, watcher)
        assert bool(watcher.statuses) == bool(workers)
        (here / "asked").unlink()
        (here / "built").unlink()
    assert set(measured(here / "two", "threads")) == {"1"}
    assert {os.environ[name] for name in THREADS} == {"7"}
    assert set(measured(here / "none", "pid")) == {os.getpid()}
    workers_pids = set(measured(here / "two", "pid"))
    assert len(workers_pids) == 2 and os.getpid() not in workers_pids
    assert tree(here / "none", "kept", "images", "funnel.json") == tree(here / "two", "kept", "images", "funnel.json")


def test_parts_that_share_pictures(here: Path) -> None:
    """`--part`: what needs a picture of another part is left to the run that brings them together; it comes to the same."""
    write_shared_pool(here)
    file = write_pipeline(here, *FETCHING[1:], "keep: num_stored > 9")
    file.write_text(file.read_text().replace("answer > 2", "caption <> 'x'"))
    run_here(file, here / "whole")
    (here / "asked").unlink()
    for part in ((0, 3), (1, 3), (2, 3)):
        assert run_here(file, here / "out", part=part).unfinished
    by_parts = Counter((here / "asked").read_text().split())
    outcome = run_here(file, here / "out")
    asked = Counter((here / "asked").read_text().split())
    assert set(asked.values()) == {1} and len(asked) == 38 and 18 <= len(by_parts) < 38
    assert outcome.funnel[-1]["kept"] == 39
    names = ("columns", "kept", "images", "funnel.json", "subset.parquet")
    assert tree(here / "out", *names) == tree(here / "whole", *names)


def test_a_death_costs_one_task_again(here: Path) -> None:
    """A worker that is killed is replaced, the run goes on, and nobody sees a difference."""
    write_pool(here, [*CAPTIONS[:15], "bang", *CAPTIONS[15:]])
    file = write_pipeline(here, "./mine.py:dies")
    run_here(file, here / "killed", workers=2)
    assert (here / "bang.0").exists()
    run_here(file, here / "undisturbed")
    names = ("columns", "kept", "funnel.json", "subset.parquet")
    assert tree(here / "killed", *names) == tree(here / "undisturbed", *names)


@pytest.mark.slow
def test_three_deaths_on_one_task_stop_the_run(here: Path) -> None:
    """It says where and how; what others measured stays."""
    write_pool(here, [*CAPTIONS[:15], "bang", *CAPTIONS[15:]])
    with pytest.raises(RunStopped) as stopped:
        run_here(write_pipeline(here, "./mine.py:dies: {times: 9}"), here / "out", workers=1)
    assert str(stopped.value) == ("a worker died 3 times on shard 1, at last by signal 9 (Killed); run the same command again, "
                                  "with fewer --workers if memory is short")
    done = {p.name[:5] for p in (here / "out" / "columns").rglob("*.parquet")}
    assert "00000" in done and "00001" not in done
    assert len(list(here.glob("bang.*"))) == 3
    for mark in here.glob("bang.*"):
        mark.unlink()
    (here / "bang.0").touch()
    (here / "bang.1").touch()
    assert run_here(write_pipeline(here, "./mine.py:dies: {times: 2}"), here / "out", workers=1).funnel[-1]["kept"] == 41


def test_error_in_a_worker_reaches_the_driver(here: Path) -> None:
    """With the worker's traceback, for it is the program that is wrong."""
    write_pool(here, CAPTIONS)
    with pytest.raises(RuntimeError) as error:
        run_here(write_pipeline(here, "./mine.py:wrong_rows"), here / "out", workers=1)
    lines = str(error.value).splitlines()
    assert lines[0] == "a worker failed:"
    assert lines[1] == "Traceback (most recent call last):"
    assert "curate/measure.py" in str(error.value)
    assert lines[-1] == "curate.measure.BadAnswer: step 'wrong_rows' returned 1 values of 'two' for 10 rows"


def test_mistake_found_in_a_worker_is_one_line(here: Path) -> None:
    """Settings that only the step's own code can refuse."""
    write_pool(here, CAPTIONS)
    (here / "run.py").write_text("import sys\nfrom curate.cli import main\nmain(sys.argv[1:])\n")       # no __main__ guard needed
    file = write_pipeline(here, "./mine.py:model: {size: 10}")
    done = curate("run", str(file), "--out", "out", "--on", "local", "--workers", "1", program=[sys.executable, "run.py"])
    assert (done.returncode, done.stderr, done.stdout) == (2, "model: there is no size over 9\n", "")


def curate(*words: str, program: list[str] | None = None) -> subprocess.CompletedProcess[str]:
    """A curate command, to its end."""
    command = [*(program or [sys.executable, "-m", "curate"]), *words]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=200, check=False)


def pool_of(code: str, monkeypatch: pytest.MonkeyPatch, out: Path) -> LocalPool:
    """A pool whose processes run this code instead of ours; `connection` is their end of the socket."""
    prelude = "import os, sys, time; from multiprocessing.connection import Connection; connection = Connection(int(sys.argv[1]))"
    monkeypatch.setattr(local, "CODE", f"{prelude}; {code}")
    return LocalPool(out, "test", 1)


@pytest.mark.parametrize("last_word", ["b''", "b'\\0\\0'", "b'\\0\\0\\1\\0only a part'"])
def test_death_in_the_middle_of_a_word(monkeypatch: pytest.MonkeyPatch, here: Path, last_word: str) -> None:
    """Half a length, half an answer: the task is given to another process, not waited for."""
    pool = pool_of(f"connection.recv_bytes(); os.write(connection.fileno(), {last_word}); os._exit(7)", monkeypatch, here)
    pool.submit(Task("pack", None, shard=3))  # type: ignore[arg-type]
    with pytest.raises(RunStopped, match="a worker died 3 times on block, at last by exit code 7;"):
        pool.next()
    pool.close()


def test_death_with_a_child_that_lives_on(monkeypatch: pytest.MonkeyPatch, here: Path) -> None:
    """A step's own process may hold our socket open: the death is seen all the same."""
    monkeypatch.setattr(local, "LOOK_SECONDS", 0.05)
    pool = pool_of("connection.recv_bytes(); os.fork() and os._exit(7); time.sleep(3)", monkeypatch, here)
    pool.submit(Task("pack", None))  # type: ignore[arg-type]
    begin = time.monotonic()
    with pytest.raises(RunStopped, match="exit code 7"):
        pool.next()
    assert time.monotonic() - begin < 2.5
    pool.close()


def test_close_ends_workers_at_once(monkeypatch: pytest.MonkeyPatch, here: Path) -> None:
    """Whatever they are doing."""
    code = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); open(f'pid.{os.getpid()}', 'w'); time.sleep(60)"
    pool = pool_of(code, monkeypatch, here)
    pool.submit(Task("pack", None))  # type: ignore[arg-type]
    pids = wait_for(lambda: [int(p.suffix[1:]) for p in here.glob("pid.*")])
    begin = time.monotonic()
    pool.close()
    assert time.monotonic() - begin < 1
    assert not any(map(alive, pids))


def test_workers_end_with_their_driver(here: Path) -> None:
    """A driver that is killed cannot say goodbye: its processes notice, in the middle of a step."""
    write_pool(here, CAPTIONS)
    file = write_pipeline(here, "./mine.py:sleeps")
    command = [sys.executable, "-m", "curate", "run", str(file), "--out", "out", "--on", "local", "--workers", "2"]
    driver = subprocess.Popen(command, env=environment())
    pids = wait_for(lambda: found if len(found := [int(p.suffix[1:]) for p in here.glob("pid.*")]) == 2 else [])
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    wait_for(lambda: not any(map(alive, pids)), seconds=15)


@contextmanager
def ray_pool(store: Store, workers: int) -> Iterator[Pool]:
    """A Ray of our own, for as long as the block runs."""
    from curate.cluster import RayPool

    with store.lock():
        pool = RayPool(store.root, "test", workers, "ray")
        try:
            yield pool
        finally:
            pool.close()


@pytest.mark.slow
def test_ray(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """More workers than CPUs, three kinds of tasks at once: no deadlock, the same answers, a death, a mistake, no noise."""
    write_shared_pool(here)
    file = write_pipeline(here, *FETCHING)
    run_here(file, here / "none")
    (here / "asked").unlink()
    (here / "built").unlink()
    store, before = Store(here / "ray", "test"), dict(os.environ)
    with ray_pool(store, 4) as pool:
        outcome, watcher = seen(file, store, pool)
        check_fetching(here, store.root, outcome, watcher)
        assert watcher.statuses == {"ok": 38}
        assert set(measured(store.root, "threads")) == {"1"}
        assert tree(here / "none", "kept", "images", "funnel.json") == tree(here / "ray", "kept", "images", "funnel.json")
        seen(write_pipeline(here, "keep: caption <> 'caption 7'", "./mine.py:dies"), store, pool)
        with pytest.raises(UserError, match="^model: there is no size over 9$"):
            seen(write_pipeline(here, "./mine.py:model: {size: 10}"), store, pool)
    assert all(os.environ.get(name) == before.get(name) for name in (*THREADS, "PYTHONPATH"))
    assert capfd.readouterr() == ("", "")


def test_no_ray_there() -> None:
    """One line, at once."""
    from curate.cluster import RayPool

    for address, why in (("127.0.0.1:1", "Connection refused"), ("127.0.0.1", "no port"),
                         ("127.0.0.1:x", "Port could not be cast to integer value as 'x'")):
        with pytest.raises(UserError, match=rf"^--on ray://{address}: nobody listens there \({why}\)$"):
            RayPool(Path(), "test", 1, f"ray://{address}")
