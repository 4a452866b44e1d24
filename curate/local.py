"""The executor for one machine: a few worker processes and one fetcher, each behind a pipe.

A worker that dies takes down one task, which is given to a fresh worker; a task that kills three workers stops the run. Workers
end with their driver, however that ends.
"""

import asyncio
import multiprocessing
import os
import threading
import traceback
from collections import Counter, deque
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from curate.errors import CurateError, RunStopped
from curate.measure import Report, Worker
from curate.work import Fetcher, Kind, Pool, Task, Told, execute

FETCH_WINDOW = 4
"""Shards that one fetcher has open at once, so that a slow host at the end of one does not leave it idle."""
STRIKES = 3
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


class LocalPool:
    """`workers` processes and, once something is to be fetched, one fetcher."""

    def __init__(self, root: Path, attempt: str, workers: int) -> None:
        self._make: Callable[[str], _Process] = lambda kind: _Process(kind, root, attempt)
        self._limit = workers
        self._workers: list[_Process] = []
        self._fetcher: _Process | None = None
        self._queue: deque[Task] = deque()
        self._strikes: Counter[str] = Counter()

    def capacity(self, kind: Kind) -> int:
        """See Pool."""
        return FETCH_WINDOW if kind == "fetch" else 2 * self._limit

    def submit(self, task: Task) -> None:
        """See Pool."""
        if task.kind == "fetch":
            self._fetcher = self._fetcher or self._make("fetch")
            self._fetcher.send(task)
        else:
            self._queue.append(task)
            self._feed()

    def next(self) -> tuple[Task, Report] | Told:
        """See Pool."""
        while True:
            for process in self._processes():
                if process.connection.poll():
                    answer = self._read(process)
                    if answer is not None:
                        return answer
            wait([p.connection for p in self._processes()] + [p.process.sentinel for p in self._processes()], timeout=5)
            for process in [p for p in self._processes() if not p.process.is_alive() and not p.connection.poll()]:
                self._bury(process)

    def close(self) -> None:
        """See Pool."""
        for process in self._processes():
            process.end()

    def _processes(self) -> list["_Process"]:
        return [*self._workers, *([self._fetcher] if self._fetcher else [])]

    def _feed(self) -> None:
        while self._queue:
            idle = next((w for w in self._workers if not w.tasks), None)
            if idle is None and len(self._workers) < self._limit:
                idle = self._make("work")
                self._workers.append(idle)
            if idle is None:
                return
            idle.send(self._queue.popleft())

    def _read(self, process: "_Process") -> tuple[Task, Report] | Told | None:
        try:
            kind, *content = process.connection.recv()
        except (EOFError, ConnectionResetError):
            self._bury(process)
            return None
        if kind == "told":
            return Told(content[0])
        if kind == "failed":
            raise content[0]
        number, report = content
        task = process.tasks.pop(number)
        self._feed()
        return task, report

    def _bury(self, process: "_Process") -> None:
        """A process died: its tasks go to a fresh one, unless they have done so too often."""
        process.end()
        lost = list(process.tasks.values())
        if process is self._fetcher:
            self._fetcher = None
        else:
            self._workers.remove(process)
        for task in lost:
            self._strikes[repr(task)] += 1
            if self._strikes[repr(task)] >= STRIKES:
                raise RunStopped(f"a worker died {STRIKES} times on {task.name} (killed, or out of memory); "
                                 "run the same command again, with fewer --workers if memory is short")
            self.submit(task)


class _Process:
    """One child, the tasks it has, and the pipe to it."""

    def __init__(self, kind: str, root: Path, attempt: str) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.tasks: dict[int, Task] = {}
        self._sent = 0
        target = _fetch_main if kind == "fetch" else _work_main
        self.process = context.Process(target=target, args=(theirs, root, attempt), daemon=True)
        before = {name: os.environ.get(name) for name in THREADS}
        os.environ.update(dict.fromkeys(THREADS, "1"))   # the child's libraries read these when they load
        self.process.start()
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)
        theirs.close()

    def send(self, task: Task) -> None:
        """Give it a task."""
        self._sent += 1
        self.tasks[self._sent] = task
        with suppress(BrokenPipeError, ConnectionResetError):   # it died: the pool will notice and hand the task on
            self.connection.send((self._sent, task))

    def end(self) -> None:
        """End it."""
        self.connection.close()
        if self.process.is_alive():
            self.process.kill()
        self.process.join()


class InProcess:
    """Everything in this process, one task at a time: for debugging and tests (`--workers 0`)."""

    def __init__(self, root: Path, attempt: str) -> None:
        self._worker_of = lambda: Worker(root, attempt)
        self._worker: Worker | None = None
        self._queue: deque[Task] = deque()

    def capacity(self, kind: Kind) -> int:
        """See Pool."""
        return 1

    def submit(self, task: Task) -> None:
        """See Pool."""
        self._queue.append(task)

    def next(self) -> tuple[Task, Report] | Told:
        """See Pool."""
        self._worker = self._worker or self._worker_of()
        task = self._queue.popleft()
        if task.kind == "fetch":
            return task, asyncio.run(_fetch_once(self._worker, task))
        return task, execute(self._worker, task)

    def close(self) -> None:
        """See Pool."""
        self._queue.clear()


def make_pool(root: Path, attempt: str, workers: int) -> Pool:
    """The pool for `--on local`."""
    return LocalPool(root, attempt, workers) if workers else InProcess(root, attempt)


async def _fetch_once(worker: Worker, task: Task) -> Report:
    fetcher = Fetcher(worker)
    try:
        return await fetcher.fetch_shard(task, lambda _: None)
    finally:
        await fetcher.close()
        worker.forget_instances()


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def failure(error: BaseException) -> BaseException:
    """What travels back: our own errors as they are, anything else with its traceback in words."""
    if isinstance(error, CurateError):
        return error
    return RuntimeError("a worker failed:\n" + "".join(traceback.format_exception(error)))


def _work_main(connection: Connection, root: Path, attempt: str) -> None:
    _die_with_parent()
    worker = Worker(root, attempt)
    while True:
        try:
            number, task = connection.recv()
        except EOFError:
            return
        try:
            connection.send(("done", number, execute(worker, task)))
        except BaseException as error:  # noqa: BLE001  it is raised again in the driver
            connection.send(("failed", failure(error)))


def _fetch_main(connection: Connection, root: Path, attempt: str) -> None:
    _die_with_parent()
    asyncio.run(_serve_fetches(connection, Fetcher(Worker(root, attempt))))


async def _serve_fetches(connection: Connection, fetcher: Fetcher) -> None:
    """Take tasks from the pipe as they come, run them side by side, tell of progress twice a second."""
    statuses: Counter[str] = Counter()
    running: set[asyncio.Task[None]] = set()

    async def one(number: int, task: Task) -> None:
        try:
            report = await fetcher.fetch_shard(task, lambda status: statuses.update((status,)))
            _tell(connection, statuses)
            connection.send(("done", number, report))
        except BaseException as error:  # noqa: BLE001  it is raised again in the driver
            connection.send(("failed", failure(error)))

    loop = asyncio.get_running_loop()
    while True:
        message = await loop.run_in_executor(None, _receive, connection)
        if message is None:
            break
        if message:
            started = asyncio.create_task(one(*message))
            running.add(started)
            started.add_done_callback(running.discard)
        _tell(connection, statuses)


def _receive(connection: Connection) -> Any:
    """The next (number, task), () after half a second without one, None when the driver is gone."""
    try:
        return connection.recv() if connection.poll(0.5) else ()
    except (EOFError, OSError):
        return None


def _tell(connection: Connection, statuses: Counter[str]) -> None:
    if statuses:
        connection.send(("told", Counter(statuses)))
        statuses.clear()
