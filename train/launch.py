"""Several processes on this machine that train together, started from here as torchrun would start them."""

import multiprocessing
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterable, Mapping
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from train.errors import ConfigError, Stopped, TrainError
from train.stopping import listening

MEETING = "TRAIN_MEETING"
"""In the environment of such a process: where torch's processes find each other, a file's url."""

BEFORE = "stopped before a step; the same command goes on from the last checkpoint"


def launched() -> bool:
    """Whether this process is already one of several, by us or by torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def together(num: int, work: Callable[..., Any], arguments: tuple[Any, ...], hear: Callable[[Any], None] | None) -> Any:
    """`work(*arguments, say)` in `num` processes; what the first one returns. What it says is heard here.

    All end when one fails. Raises ConfigError for more processes than GPUs, TrainError as a process raised it, or where one died.
    """
    import torch

    if torch.cuda.is_available() and num > torch.cuda.device_count():
        raise ConfigError(f"processes: {num} is more than the {torch.cuda.device_count()} GPUs of this machine")
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="train-") as folder:
        pipes, started = [], []
        try:
            for rank in range(num):
                ours, theirs = context.Pipe()
                environment = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(num),
                               MEETING: f"file://{Path(folder) / 'meeting'}"}
                process = context.Process(target=_life, args=(theirs, environment, work, arguments))
                process.start()
                theirs.close()
                pipes.append(ours)
                started.append(process)
            with listening(lambda: _terminate(started)) as asked:
                try:
                    return _listen(pipes, hear)
                except TrainError as error:
                    if asked.number is None:
                        raise
                    raise asked.stopped(str(error) if isinstance(error, Stopped) else BEFORE) from None
        finally:
            for process in started:
                process.kill()
                process.join()


def _terminate(started: Iterable[BaseProcess]) -> None:
    for process in started:
        process.terminate()


def _listen(pipes: list[Connection], hear: Callable[[Any], None] | None) -> Any:
    """The first process's result, once all have one."""
    results: dict[int, Any] = {}
    while len(results) < len(pipes):
        for pipe in wait([pipe for rank, pipe in enumerate(pipes) if rank not in results]):
            assert isinstance(pipe, Connection)
            rank = pipes.index(pipe)
            try:
                kind, content = pipe.recv()
            except EOFError:
                raise TrainError(f"process {rank + 1} of {len(pipes)} died (out of memory?); the same command goes on from the "
                                 "last checkpoint") from None
            if kind == "failed":
                raise content
            if kind == "done":
                results[rank] = content
            elif hear is not None:
                hear(content)
    return results[0]


def _life(pipe: Connection, environment: Mapping[str, str], work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    """Of one of the processes: a piece of work, an answer. Another error than a TrainError is printed, and found dead."""
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)    # of a terminal; the process that started this one tells it on
    os.environ.update(environment)
    share_cores(int(environment["WORLD_SIZE"]))
    try:
        pipe.send(("done", work(*arguments, lambda said: pipe.send(("said", said)))))
    except TrainError as error:
        pipe.send(("failed", error))


def share_cores(num: int) -> None:
    """Give torch in this process its share of the cores that it would take alone: `num` processes of this machine compute."""
    import torch

    torch.set_num_threads(max(1, torch.get_num_threads() // num))


def end_with_parent() -> None:
    """From now on this process ends when the one that started it does, however that one ends."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
