"""The executor on Ray; beside `ray_train` the only file that knows it.

Segments, barriers and packing are tasks; steps that hold a model are actors, so the model is built once; fetching is one
asynchronous actor. Everything asks for a fraction of a CPU, and long-lived actors for a small one: with two CPUs, actors that
held whole ones would leave none for tasks and the run would wait for ever. Pixels stay in files; tasks and reports travel.
"""

import asyncio
import logging
import os
import signal
import site
import socket
import sys
import sysconfig
import warnings
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import ray
from ray.exceptions import NodeDiedError, OutOfMemoryError, RayActorError, RayError, WorkerCrashedError

from curate.errors import RunStopped, UserError
from curate.measure import Report, Worker
from curate.work import FETCH_WINDOW, STRIKES, THREADS, Fetcher, Kind, Task, Told, answer, enlisted

OBJECT_STORE_BYTES = 200 * 2**20
"""Reports and tasks are small; a store of Ray's usual size would take memory that steps need."""
TASK_CPUS, ACTOR_CPUS = 0.5, 0.1
MODELS_PER_GPU = 4
"""Pictures are decoded on the CPU, so one actor would leave a GPU idle; every actor holds a copy of the model (our choice)."""
TELL_SECONDS = 0.5

Answer = Report | BaseException


@lru_cache(1)
def _worker(root: Path, attempt: str) -> Worker:
    """What a process keeps from task to task: the store, the source."""
    return enlisted(root, attempt)


def _run(root: Path, attempt: str, task: Task) -> Answer:
    """A task, in whatever process Ray gives it."""
    return answer(_worker(root, attempt), task)


class _ModelActor:
    def __init__(self, root: Path, attempt: str) -> None:
        self._worker = enlisted(root, attempt)

    def run(self, task: Task) -> Answer:
        return answer(self._worker, task)


class _FetchActor:
    def __init__(self, root: Path, attempt: str) -> None:
        self._fetcher = Fetcher(enlisted(root, attempt))
        self._statuses: Counter[str] = Counter()

    async def run(self, task: Task) -> tuple[Answer, Counter[str]]:
        """The answer, and how images ended since last told."""
        said = await self._fetcher.answer(task, lambda status: self._statuses.update((status,)))
        return said, self._told()

    async def tell(self) -> Counter[str]:
        """How images ended since last told."""
        await asyncio.sleep(TELL_SECONDS)
        return self._told()

    def _told(self) -> Counter[str]:
        told, self._statuses = self._statuses, Counter()
        return told


@dataclass
class _Model:
    """A model actor, and what it has to do."""

    actor: Any
    tasks: set[Any] = field(default_factory=set)


class RayPool:
    """See `curate.work.Pool`. `on` is `ray` (starts one on this machine) or the address of a cluster."""

    def __init__(self, root: Path, attempt: str, workers: int, on: str) -> None:
        self._place = root.resolve(), attempt
        connect(on, workers)
        self._workers = workers if on == "ray" else max(1, int(ray.cluster_resources().get("CPU", 1)))
        self._task = ray.remote(_run).options(num_cpus=TASK_CPUS, max_retries=STRIKES - 1)
        self._models: list[_Model] = []
        self._fetcher: Any = None
        self._telling: Any = None
        self._flying: dict[Any, Task] = {}
        self._answers: deque[tuple[Task, Report] | Told] = deque()

    def capacity(self, kind: Kind) -> int:
        """See Pool."""
        return FETCH_WINDOW if kind == "fetch" else self._workers

    def submit(self, task: Task) -> None:
        """See Pool."""
        if task.kind == "fetch":
            ref = self._fetching().run.remote(task)
        elif task.kind == "model":
            model = self._least_busy_model()
            ref = model.actor.run.remote(task)
            model.tasks.add(ref)
        else:
            ref = self._task.remote(*self._place, task)
        self._flying[ref] = task

    def next(self) -> tuple[Task, Report] | Told:
        """See Pool."""
        while not self._answers:
            ready, _ = ray.wait([*self._flying, *([self._telling] if self._telling else [])], num_returns=1)
            if ready[0] in self._flying:
                self._ended(ready[0])
            else:
                self._told()
        return self._answers.popleft()

    def close(self) -> None:
        """See Pool."""
        self._flying.clear()
        self._models.clear()
        ray.shutdown()

    def _ended(self, ref: Any) -> None:
        """A task came to its end: an answer, or what stopped it is raised."""
        task = self._flying.pop(ref)
        for model in self._models:
            model.tasks.discard(ref)
        try:
            said = ray.get(ref)
        except (WorkerCrashedError, RayActorError, OutOfMemoryError, NodeDiedError) as error:
            raise RunStopped(f"a worker died {STRIKES} times on {task.name} ({type(error).__name__}); run the same command "
                             "again, with fewer --workers if memory is short") from None
        if task.kind == "fetch":
            said, statuses = said
            self._tell(statuses)
        if isinstance(said, BaseException):
            raise said
        self._answers.append((task, said))

    def _told(self) -> None:
        """Pass on how images ended, and ask again while anything is being fetched."""
        with suppress(RayError):        # the fetcher died, and with it what it had to tell; its tasks come again
            self._tell(ray.get(self._telling))
        fetching = any(task.kind == "fetch" for task in self._flying.values())
        self._telling = self._fetcher.tell.remote() if fetching else None

    def _tell(self, statuses: Counter[str]) -> None:
        if statuses:
            self._answers.append(Told(statuses))

    def _fetching(self) -> Any:
        if self._fetcher is None:
            self._fetcher = self._actor(_FetchActor, max_concurrency=2 * FETCH_WINDOW)
        if self._telling is None:
            self._telling = self._fetcher.tell.remote()
        return self._fetcher

    def _least_busy_model(self) -> _Model:
        """The model actor with the least to do, or a new one while there may be more."""
        gpus = ray.cluster_resources().get("GPU", 0)
        most = min(self._workers, int(gpus * MODELS_PER_GPU)) if gpus else self._workers
        if len(self._models) < most and all(model.tasks for model in self._models):
            self._models.append(_Model(self._actor(_ModelActor, num_gpus=1 / MODELS_PER_GPU if gpus else 0)))
        return min(self._models, key=lambda model: len(model.tasks))

    def _actor(self, code: type, **options: Any) -> Any:
        made = ray.remote(code).options(num_cpus=ACTOR_CPUS, max_restarts=-1, max_task_retries=STRIKES - 1, **options)
        return made.remote(*self._place)


def connect(on: str, workers: int) -> None:
    """Start a Ray of our own, or join one. Raises UserError where there is none."""
    logging.getLogger("ray").setLevel(logging.ERROR)
    on_term = signal.getsignal(signal.SIGTERM)
    if on == "ray":
        with _environment({**_own_environment(), "RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
                           "RAY_task_oom_retries": str(STRIKES - 1)}):
            ray.init("local", num_cpus=workers + 1, object_store_memory=OBJECT_STORE_BYTES, include_dashboard=False,
                     log_to_driver=False, configure_logging=False)
    else:
        _knock(on)
        try:
            with warnings.catch_warnings(action="ignore"):
                ray.init(on, runtime_env={"env_vars": _own_environment()}, log_to_driver=False, configure_logging=False)
        except (ConnectionError, RuntimeError) as error:
            reason = str(error).strip().rpartition("\n")[2]
            raise UserError(f"--on {on}: no Ray answers there ({reason}); if it wants a token, set RAY_AUTH_MODE=token") from None
    signal.signal(signal.SIGTERM, on_term)      # Ray puts one of its own in


def _knock(on: str) -> None:
    """Raises UserError where nobody listens: Ray itself needs half a minute to find out."""
    where = urlsplit(on)
    try:
        if where.hostname is None or where.port is None:
            raise ValueError("no port")
        socket.create_connection((where.hostname, where.port), timeout=10).close()
    except (OSError, ValueError) as error:
        raise UserError(f"--on {on}: nobody listens there ({getattr(error, 'strerror', None) or error})") from None


def _own_environment() -> dict[str, str]:
    """What workers need that Ray does not give them: one thread a library, and the way to code that is not installed."""
    usual = (sysconfig.get_path("stdlib"), site.getusersitepackages(), *site.getsitepackages())
    places = [p for p in sys.path if os.path.isdir(p) and not p.startswith(usual)]
    return {**dict.fromkeys(THREADS, "1"), "PYTHONPATH": os.pathsep.join(places)}


@contextmanager
def _environment(added: dict[str, str]) -> Iterator[None]:
    """Variables that the processes started inside the block get, and this one has only for so long."""
    before = dict(os.environ)
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name)
        os.environ.update(before)
