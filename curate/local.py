"""The executor for one machine: a few worker processes and one fetcher, each behind a socket.

A process that dies takes its tasks down with it; a fresh one gets them, and a task at whose side three have died stops the run.
Processes end with their driver, however that ends: nobody else holds the other end of the socket, so it closes.
"""

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections import Counter, deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from curate.errors import RunStopped
from curate.measure import Report, Worker
from curate.work import FETCH_WINDOW, STRIKES, THREADS, Fetcher, Kind, Pool, Task, Told, answer, enlisted, execute

LOOK_SECONDS = 5
"""How often we look for the dead whose socket is still open, because a child of theirs holds it."""
TELL_SECONDS = 0.5

MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**25), "MALLOC_TRIM_THRESHOLD_": str(2**26)}
"""glibc gives what a step let go of back to the system only above 64 MiB: else every batch pays for fresh pages again."""

CODE = ("import signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); sys.path[:] = sys.argv[5:]; "
        "from curate.local import child; child(*sys.argv[1:5])")
"""What a process runs. Ctrl-C reaches all of a terminal's processes; the driver alone decides what it means."""


def make_pool(root: Path, attempt: str, workers: int) -> Pool:
    """The pool for `--on local`; without workers everything is done in this process."""
    return LocalPool(root, attempt, workers) if workers else InProcess(root, attempt)


@dataclass
class _Job:
    """A task, and how many processes died while they had it."""

    task: Task
    deaths: int = 0


class LocalPool:
    """`workers` processes and, once something is to be fetched, one fetcher. They start when there is work for them."""

    def __init__(self, root: Path, attempt: str, workers: int) -> None:
        self._root, self._attempt, self._limit = root, attempt, workers
        self._workers: list[_Process] = []
        self._fetchers: list[_Process] = []
        self._queue: deque[_Job] = deque()

    def capacity(self, kind: Kind) -> int:
        """See Pool."""
        return FETCH_WINDOW if kind == "fetch" else 2 * self._limit

    def submit(self, task: Task) -> None:
        """See Pool."""
        self._take(_Job(task))

    def next(self) -> tuple[Task, Report] | Told:
        """See Pool."""
        while True:
            processes = [*self._fetchers, *self._workers]
            ready = wait([p.connection for p in processes], timeout=LOOK_SECONDS)
            for process in processes:
                if process.connection in ready:
                    if (received := self._received(process)) is not None:
                        return received
                elif process.dead():
                    self._bury(process)

    def close(self) -> None:
        """See Pool."""
        processes = [*self._fetchers, *self._workers]
        for process in processes:
            process.kill()
        for process in processes:
            process.end()
        self._queue.clear()
        self._workers.clear()
        self._fetchers.clear()

    def _take(self, job: _Job) -> None:
        if job.task.kind == "fetch":
            if not self._fetchers:
                self._fetchers.append(_Process("fetch", self._root, self._attempt))
            self._fetchers[0].give(job)
        else:
            self._queue.append(job)
            self._feed()

    def _feed(self) -> None:
        """Give what waits to workers that have nothing, or to new ones."""
        while self._queue:
            idle = next((w for w in self._workers if not w.jobs), None)
            if idle is None:
                if len(self._workers) == self._limit:
                    return
                idle = _Process("work", self._root, self._attempt)
                self._workers.append(idle)
            idle.give(self._queue.popleft())

    def _received(self, process: "_Process") -> tuple[Task, Report] | Told | None:
        """What a process says; None where it died, perhaps in the middle of a word."""
        try:
            number, said = process.connection.recv()
        except (EOFError, OSError):
            self._bury(process)
            return None
        if isinstance(said, Told):
            return said
        if isinstance(said, BaseException):
            raise said
        job = process.jobs.pop(number)
        self._feed()
        return job.task, said

    def _bury(self, process: "_Process") -> None:
        """A process died: its tasks go to a fresh one, unless that has happened to them too often."""
        code = process.end()
        (self._workers if process in self._workers else self._fetchers).remove(process)
        for job in process.jobs.values():
            job.deaths += 1
            if job.deaths == STRIKES:
                how = f"signal {-code} ({signal.strsignal(-code)})" if code < 0 else f"exit code {code}"
                raise RunStopped(f"a worker died {STRIKES} times on {job.task.name}, at last by {how}; run the same command "
                                 "again, with fewer --workers if memory is short")
            self._take(job)


class _Process:
    """One process, the jobs it has, and the socket to it."""

    def __init__(self, kind: str, root: Path, attempt: str) -> None:
        self.connection, theirs = Pipe()
        self.jobs: dict[int, _Job] = {}
        self._given = 0
        command = [sys.executable, "-P", "-c", CODE, str(theirs.fileno()), kind, str(root), attempt, *map(str, sys.path)]
        environment = {**os.environ, **dict.fromkeys(THREADS, "1"), **(MEMORY if kind == "work" else {})}
        with theirs:
            self._process = subprocess.Popen(command, env=environment, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)

    def give(self, job: _Job) -> None:
        """Give it a job."""
        self._given += 1
        self.jobs[self._given] = job
        with suppress(BrokenPipeError, ConnectionResetError):   # it died: the pool will find out and hand the job on
            self.connection.send((self._given, job.task))

    def dead(self) -> bool:
        """Whether it has ended and has nothing more to say."""
        return self._process.poll() is not None and not self.connection.poll()

    def kill(self) -> None:
        """Kill it."""
        self._process.kill()

    def end(self) -> int:
        """Kill it if it lives, and wait for its end; its exit code, a negative signal where one ended it."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(1)       # its socket may close a moment before it has its exit code
        self.kill()
        self.connection.close()
        return self._process.wait()


class InProcess:
    """Everything in this process, one task at a time: for debugging and tests (`--workers 0`)."""

    def __init__(self, root: Path, attempt: str) -> None:
        self._root, self._attempt = root, attempt
        self._worker: Worker | None = None
        self._fetcher: Fetcher | None = None
        self._runner = asyncio.Runner()
        self._queue: deque[Task] = deque()

    def capacity(self, kind: Kind) -> int:
        """See Pool."""
        return 1

    def submit(self, task: Task) -> None:
        """See Pool."""
        self._queue.append(task)

    def next(self) -> tuple[Task, Report] | Told:
        """See Pool."""
        self._worker = self._worker or Worker(self._root, self._attempt)
        task = self._queue.popleft()
        if task.kind != "fetch":
            return task, execute(self._worker, task)
        self._fetcher = self._fetcher or Fetcher(self._worker)
        return task, self._runner.run(self._fetcher.fetch_shard(task, lambda _: None))

    def close(self) -> None:
        """See Pool."""
        self._queue.clear()
        if self._fetcher:
            self._runner.run(self._fetcher.close())
        self._runner.close()


def child(handle: str, kind: str, root: str, attempt: str) -> None:
    """What a process of the pool does: tasks in, answers out, until the driver is gone."""
    connection = Connection(int(handle))
    if kind == "fetch":
        asyncio.run(_fetch(connection, Path(root), attempt))
    tasks: SimpleQueue[tuple[int, Task]] = SimpleQueue()
    _listen(connection, tasks.put)
    worker = enlisted(Path(root), attempt)
    while True:
        number, task = tasks.get()
        _say(connection, number, answer(worker, task))


def _say(connection: Connection, number: int, said: Report | BaseException | Told) -> None:
    try:
        connection.send((number, said))
    except OSError:
        os._exit(1)     # the driver is gone


def _listen(connection: Connection, take: Callable[[Any], object]) -> None:
    """Take what comes, in a thread; when the driver is gone, so are we, in the middle of whatever it is."""
    def listen() -> None:
        try:
            while True:
                take(connection.recv())
        except (EOFError, OSError):
            os._exit(1)

    threading.Thread(target=listen, daemon=True, name="driver").start()


async def _fetch(connection: Connection, root: Path, attempt: str) -> None:
    """Run fetch tasks side by side as they come, and tell now and then how images ended."""
    loop, tasks = asyncio.get_running_loop(), asyncio.Queue[tuple[int, Task]]()
    _listen(connection, lambda message: loop.call_soon_threadsafe(tasks.put_nowait, message))
    fetcher, statuses = Fetcher(enlisted(root, attempt)), Counter[str]()

    def tell() -> None:
        if statuses:
            _say(connection, 0, Told(statuses.copy()))
            statuses.clear()

    async def tell_on() -> None:
        while True:
            await asyncio.sleep(TELL_SECONDS)
            tell()

    async def one(number: int, task: Task) -> None:
        report = await fetcher.answer(task, lambda status: statuses.update((status,)))
        tell()
        _say(connection, number, report)

    async with asyncio.TaskGroup() as group:
        group.create_task(tell_on())
        while True:
            group.create_task(one(*await tasks.get()))
