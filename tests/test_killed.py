"""However it dies, the same command goes on: same bytes, nothing lost, nothing left over, at most one part fetched twice."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from curate import files
from curate.errors import RunStopped
from tests.running import alive, environment, run_here, tree, wait_for
from tests.site.faults import FAULTS
from tests.site.make import make
from tests.site.server import Site, serve
from tests.test_end_to_end import quickstart_until_its_pool_is_complete

ROWS = 160
PART_IMAGES = 16
"""What one death of the fetcher may cost. In earnest it is some hundred."""
UNREPEATABLE = ("drip", "endless", "flaky_500", "busy_429", "redirect_loop")
"""Faults that take long, or that ask twice for one url even undisturbed."""
WHAT_COUNTS = ("shards", "funnel.json")
STARTED: list[subprocess.Popen[str]] = []


@dataclass(frozen=True)
class Web:
    """The site, the pipeline over it, and what comes out undisturbed, after how many seconds."""

    site: Site
    pipeline: Path
    expected: dict[str, str]
    seconds: float
    paths: frozenset[str]


@pytest.fixture(autouse=True)
def nobody_stays() -> Iterator[None]:
    """Drivers that a failed test left running end with it."""
    yield
    while STARTED:
        driver = STARTED.pop()
        if driver.poll() is None:
            driver.kill()
            driver.communicate()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Site, Path]]:
    """160 rows whose answers take their time, and the pipeline over them."""
    folder = tmp_path_factory.mktemp("web")
    make(folder / "site", ROWS, seed=5, faults={k: v for k, v in FAULTS.items() if k not in (*UNREPEATABLE, "mismatched")})
    with serve(folder / "site", delay_seconds=0.1) as site:
        settings = yaml.safe_load(quickstart_until_its_pool_is_complete(site.pool))
        download = next(entry["download"] for entry in settings["steps"] if isinstance(entry, dict) and "download" in entry)
        download |= {"part_images": PART_IMAGES, "concurrency": 8}
        pipeline = folder / "pipeline.yaml"
        pipeline.write_text(yaml.safe_dump(settings, sort_keys=False))
        yield site, pipeline


@pytest.fixture(scope="module")
def web(served: tuple[Site, Path], tmp_path_factory: pytest.TempPathFactory) -> Web:
    """The same, with what comes out undisturbed."""
    (site, pipeline), out = served, tmp_path_factory.mktemp("undisturbed")
    site.reset()
    begin = time.monotonic()
    assert ended(started(pipeline, out)) == (0, "")
    asked = pictures_asked(site)
    assert set(asked.values()) == {1}
    return Web(site, pipeline, tree(out, *WHAT_COUNTS), time.monotonic() - begin, frozenset(asked))


def pictures_asked(site: Site) -> dict[str, int]:
    """How often each url was asked for, but for the rules of its site: an attempt asks each site for them once more."""
    return {path: times for path, times in site.log().items() if path != "/robots.txt"}


@dataclass
class Life:
    """A run's folder from its first attempt to its end, and what was done to it on the way."""

    web: Web
    out: Path
    on: str = "local"
    deaths: int = 0

    def __post_init__(self) -> None:
        self.web.site.reset()

    def attempt(self) -> subprocess.Popen[str]:
        """The command, once more."""
        return started(self.web.pipeline, self.out, self.on)

    def finish(self) -> None:
        """The command until it ends, which must be well, and all that is promised."""
        assert ended(self.attempt()) == (0, "")
        self.check()

    def check(self) -> None:
        """The promise."""
        assert tree(self.out, *WHAT_COUNTS) == self.web.expected
        assert left_over(self.out) == []
        asked = pictures_asked(self.web.site)
        assert set(asked) == self.web.paths
        assert sum(asked.values()) - len(asked) <= PART_IMAGES * self.deaths
        wait_for(lambda: not processes(self.out), seconds=30)


def started(pipeline: Path, out: Path, on: str = "local") -> subprocess.Popen[str]:
    """`curate run` as a process that leads a group of its own, as a terminal would start it."""
    command = [sys.executable, "-m", "curate", "run", str(pipeline), "--out", str(out), "--on", on, "--workers", "2"]
    STARTED.append(subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                                    start_new_session=True))
    return STARTED[-1]


def ended(driver: subprocess.Popen[str], seconds: float = 200) -> tuple[int, str]:
    """The exit code, and what it said on stderr. Raises TimeoutExpired where it goes on for longer."""
    said = driver.communicate(timeout=seconds)[1]
    return driver.returncode, said


def processes(out: Path) -> list[int]:
    """The processes that work on this folder: the driver, and workers of ours."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if str(out).encode() in (place / "cmdline").read_bytes() and alive(int(place.name)):
                found.append(int(place.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def left_over(out: Path) -> list[str]:
    """Files that only an interrupted attempt has: temporary ones, and parts of downloads."""
    return [str(p) for p in out.rglob("*") if p.name.startswith(".") and p.name != ".lock" or ".p0" in p.name]


def moments(seed: int, number: int, longest: float) -> Iterator[float]:
    """Seconds to wait, drawn by lot from all of a run's life, every stretch of it as often as another."""
    lot = random.Random(seed)
    stretches = list(range(number))
    lot.shuffle(stretches)
    return (longest * (stretch + lot.random()) / number for stretch in stretches)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_driver_killed_at_twenty_moments(web: Web, tmp_path: Path) -> None:
    """kill -9, the same command, kill -9, … in as many folders as it takes."""
    lives = 0
    life = Life(web, tmp_path / "0")
    for seconds in moments(1, 20, web.seconds):
        driver = life.attempt()
        try:
            assert ended(driver, seconds) == (0, "")
        except subprocess.TimeoutExpired:
            life.deaths += 1
            driver.kill()
            driver.communicate()
            continue
        life.check()
        lives += 1
        life = Life(web, tmp_path / str(lives))
    life.finish()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_workers_killed_at_ten_moments(web: Web, tmp_path: Path) -> None:
    """Some worker, or the fetcher: the run goes on, or says after the third death on one task that it stops."""
    lot, lives = random.Random(2), 0
    life = Life(web, tmp_path / "0")
    driver = life.attempt()
    killed = 0
    while killed < 10:
        time.sleep(lot.uniform(0, web.seconds / 3))
        victims = [pid for pid in processes(life.out) if pid != driver.pid]
        if driver.poll() is None and victims:
            os.kill(lot.choice(victims), signal.SIGKILL)
            life.deaths, killed = life.deaths + 1, killed + 1
        elif driver.poll() is not None:
            code, said = ended(driver)
            assert code == 0 or (code == 3 and "a worker died 3 times on " in said)
            if code == 0:
                life.check()
                lives += 1
                life = Life(web, tmp_path / str(lives))
            driver = life.attempt()
    assert ended(driver)[0] in (0, 3)
    life.finish()


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("number", "group", "code", "says"), [
    (signal.SIGINT, True, 130, "interrupted; the same command goes on from here\n"),
    (signal.SIGTERM, False, 143, "terminated; the same command goes on from here\n")])
def test_asked_to_stop(web: Web, tmp_path: Path, number: signal.Signals, group: bool, code: int, says: str) -> None:
    """Ctrl-C, which a terminal sends to all, and a batch system's SIGTERM: one line, nobody left."""
    life = Life(web, tmp_path / "out")
    driver = life.attempt()
    wait_for(lambda: len(web.site.log()) > 40)
    (os.killpg if group else os.kill)(driver.pid, number)
    life.deaths += 1
    assert ended(driver, 60) == (code, says)
    assert processes(life.out) == []
    assert [name for name in left_over(life.out) if name.endswith(".tmp")] == []
    life.finish()


@pytest.mark.slow
def test_full_disk_at_any_write(served: tuple[Site, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attempt n finds no room at its 4n-th sync: one line, what was written before is whole, and the next goes on from it."""
    pipeline, left, synced = served[1], 0, os.fsync

    def no_room(handle: int) -> None:
        nonlocal left
        left -= 1
        if not left:
            raise OSError(28, "No space left on device")
        synced(handle)

    monkeypatch.setattr(files.os, "fsync", no_room)
    sets = ("source.shard_rows=20", "download.part_images=64", "shards.rows=10")
    for attempt in range(1, 100):
        left = 4 * attempt
        try:
            outcome = run_here(pipeline, tmp_path / "out", limit=60, sets=sets)
            break
        except RunStopped as error:
            assert re.fullmatch("cannot write .*: No space left on device; what is written stays", str(error))
            check_parquet(tmp_path / "out")
    assert attempt > 8
    left = 0
    undisturbed = run_here(pipeline, tmp_path / "undisturbed", limit=60, sets=sets)
    assert outcome.funnel == undisturbed.funnel
    assert tree(tmp_path / "out", *WHAT_COUNTS) == tree(tmp_path / "undisturbed", *WHAT_COUNTS)
    assert left_over(tmp_path / "out") == []


def check_parquet(folder: Path) -> None:
    """Every parquet file there is whole."""
    for path in folder.rglob("*.parquet"):
        pq.read_metadata(path)


def descendants(pid: int) -> dict[int, str]:
    """pid → name of all processes below one."""
    parent_of: dict[int, int] = {}
    names: dict[int, str] = {}
    for place in Path("/proc").glob("[0-9]*"):
        try:
            name, _, rest = (place / "stat").read_text().partition("(")[2].rpartition(")")
            parent_of[int(place.name)] = int(rest.split()[1])
            names[int(place.name)] = (place / "cmdline").read_bytes().replace(b"\0", b" ").decode() or name
        except (FileNotFoundError, ProcessLookupError):
            continue
    found: dict[int, str] = {}
    below = {pid}
    while below:
        below = {p for p, parent in parent_of.items() if parent in below}
        found |= {p: names[p] for p in below}
    return found


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_ray_killed(web: Web, tmp_path: Path) -> None:
    """On Ray: a worker killed is replaced; a driver killed takes its Ray along, and the same command goes on."""
    life = Life(web, tmp_path / "out", on="ray")
    driver = life.attempt()
    wait_for(lambda: len(web.site.log()) > 40, seconds=100)
    fetchers = [pid for pid, name in descendants(driver.pid).items() if "ray::_FetchActor" in name]
    os.kill(fetchers[0], signal.SIGKILL)
    asked = len(web.site.log())
    wait_for(lambda: len(web.site.log()) > asked + 20, seconds=60)
    everybody = {pid for pid, name in descendants(driver.pid).items() if "Agent" not in name}   # Ray's agents need a minute
    driver.kill()
    driver.communicate()
    wait_for(lambda: not any(map(alive, everybody)), seconds=60)
    life.deaths = 2
    life.finish()


def test_moments_are_spread() -> None:
    """Twenty moments of a life of ten seconds: one in every half second."""
    assert sorted(int(moment / 0.5) for moment in moments(1, 20, 10)) == list(range(20))
