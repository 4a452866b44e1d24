"""The executor on Ray: the only file that knows it.

Segments, barriers and packing are tasks; steps that hold a model are actors, so the model is built once; fetching is one
asynchronous actor. Everything asks for a fraction of a CPU, and long-lived actors for a small one: with two CPUs, actors that
held whole ones would leave none for tasks and the run would wait for ever. Pixels stay in files; tasks and reports travel.
"""

import asyncio
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import ActorDiedError, OutOfMemoryError, WorkerCrashedError

from curate.errors import RunStopped, UserError
from curate.local import FETCH_WINDOW, STRIKES, THREADS, failure
from curate.measure import Report, Worker
from curate.work import Fetcher, Kind, Task, Told, execute

OBJECT_STORE_BYTES = 200 * 2**20
"""Reports and tasks are small; a store of Ray's usual size would take memory that steps need."""
TASK_CPUS, ACTOR_CPUS = 0.5, 0.1

Answer = tuple[str, Any]
_worker: Worker | None = None


def _run(root: Path, attempt: str, task: Task) -> Answer:
    """A task, in whatever process Ray gives it; the process keeps its store and source for the next one."""
    global _worker
    if _worker is None or (_worker.store.root, _worker.store.attempt) != (root, attempt):
        _worker = Worker(root, attempt)
    return _answer(_worker, task)


def _answer(worker: Worker, task: Task) -> Answer:
    try:
        return "done", execute(worker, task)
    except BaseException as error:  # noqa: BLE001  it is raised again in the driver
        return "failed", failure(error)


class _ModelActor:
    def __init__(self, root: Path, attempt: str) -> None:
        self._worker = Worker(root, attempt)

    def run(self, task: Task) -> Answer:
        return _answer(self._worker, task)


class _FetchActor:
    def __init__(self, root: Path, attempt: str) -> None:
        self._fetcher = Fetcher(Worker(root, attempt))
        self._statuses: Counter[str] = Counter()

    async def run(self, task: Task) -> Answer:
        try:
            return "done", await self._fetcher.fetch_shard(task, lambda status: self._statuses.update((status,)))
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001  it is raised again in the driver
            return "failed", failure(error)

    async def tell(self) -> Counter[str]:
        told, self._statuses = self._statuses, Counter()
        return told


class RayPool:
    """See `curate.work.Pool`. `on` is `ray` (starts one on this machine) or the address of a cluster."""

    def __init__(self, root: Path, attempt: str, workers: int, on: str) -> None:
        self._root, self._attempt = root.resolve(), attempt
        _connect(on, workers)
        self._workers = workers if on == "ray" else max(1, int(ray.cluster_resources().get("CPU", 1)))
        self._task = ray.remote(_run).options(num_cpus=TASK_CPUS, max_retries=STRIKES - 1)
        self._models: list[tuple[Any, list[Any]]] = []
        self._fetcher: Any = None
        self._flying: dict[Any, Task] = {}

    def capacity(self, kind: Kind) -> int:
        """See Pool."""
        return FETCH_WINDOW if kind == "fetch" else self._workers

    def submit(self, task: Task) -> None:
        """See Pool."""
        if task.kind == "fetch":
            self._fetcher = self._fetcher or self._actor(_FetchActor, max_concurrency=2 * FETCH_WINDOW)
            ref = self._fetcher.run.remote(task)
        elif task.kind == "model":
            actor, busy = self._model_actor()
            ref = actor.run.remote(task)
            busy.append(ref)
        else:
            ref = self._task.remote(self._root, self._attempt, task)
        self._flying[ref] = task

    def next(self) -> tuple[Task, Report] | Told:
        """See Pool."""
        while True:
            ready, _ = ray.wait(list(self._flying), num_returns=1, timeout=1)
            if ready:
                return self._received(ready[0])
            if self._fetcher is not None and (told := ray.get(self._fetcher.tell.remote())):
                return Told(told)

    def close(self) -> None:
        """See Pool."""
        self._flying.clear()
        ray.shutdown()

    def _received(self, ref: Any) -> tuple[Task, Report]:
        task = self._flying.pop(ref)
        for _, busy in self._models:
            if ref in busy:
                busy.remove(ref)
        try:
            kind, content = ray.get(ref)
        except (WorkerCrashedError, ActorDiedError, OutOfMemoryError) as error:
            raise RunStopped(f"a worker died {STRIKES} times on {task.name} ({type(error).__name__}); run the same command "
                             "again, with fewer --workers if memory is short") from None
        if kind == "failed":
            raise content
        return task, content

    def _actor(self, code: type, **options: Any) -> Any:
        made = ray.remote(code).options(num_cpus=ACTOR_CPUS, max_restarts=STRIKES, max_task_retries=STRIKES - 1, **options)
        return made.remote(self._root, self._attempt)

    def _model_actor(self) -> tuple[Any, list[Any]]:
        """The least busy of the model actors, or a new one while there may be more."""
        if len(self._models) < self._workers and all(busy for _, busy in self._models):
            gpus = min(1.0, ray.cluster_resources().get("GPU", 0) / self._workers)
            self._models.append((self._actor(_ModelActor, num_gpus=gpus), []))
        return min(self._models, key=lambda pair: len(pair[1]))


def _connect(on: str, workers: int) -> None:
    env = {**dict.fromkeys(THREADS, "1"), "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    where: dict[str, Any] = {"num_cpus": workers + 1, "object_store_memory": OBJECT_STORE_BYTES, "include_dashboard": False}
    if on != "ray":
        where = {"address": on}
    try:
        ray.init(**where, runtime_env={"env_vars": env}, log_to_driver=False, configure_logging=False, logging_level="ERROR")
    except (ConnectionError, TimeoutError, ValueError) as error:
        raise UserError(f"--on {on}: no Ray there ({error})") from None

