"""What a decoder process does: one picture after the other, within limits on memory and processor time.

    send(file, head, data), receive(file)      a frame each way: two lengths, a head in JSON, bytes

Nothing is pickled: a decoder that a picture took over can say wrong things, but run nothing in the process that asked. This
module loads Pillow and OpenCV by way of its work and little else, so a decoder is up after 0.3 s of processor time.
"""

import fcntl
import importlib
import json
import os
import resource
import signal
import struct
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, BinaryIO

Work = Callable[[bytes, Mapping[str, Any]], tuple[Mapping[str, Any], bytes | None]]
"""(file as it came, what is asked of it) → (columns, the file to store or None)."""
MakeWork = Callable[[Mapping[str, Any], AbstractContextManager[None]], Work]
"""(settings, a lock that one decoder of all holds) → the work."""

MAX_HEAD_BYTES, MAX_DATA_BYTES = 2**24, 2**31
"""Of a frame; more is nonsense from a process that a picture took over."""

_LENGTHS = struct.Struct("!IQ")


def send(file: BinaryIO, head: Mapping[str, Any], data: bytes = b"") -> None:
    """One frame. Raises OSError where nobody listens any more."""
    text = json.dumps(head).encode()
    file.write(_LENGTHS.pack(len(text), len(data)) + text)
    file.write(data)
    file.flush()


def receive(file: BinaryIO) -> tuple[dict[str, Any], bytes]:
    """The next frame. Raises EOFError where none comes, ValueError where what comes is none."""
    num_head, num_data = _LENGTHS.unpack(_read(file, _LENGTHS.size))
    if num_head > MAX_HEAD_BYTES or num_data > MAX_DATA_BYTES:
        raise ValueError(f"a frame of {num_head} and {num_data} bytes")
    return json.loads(_read(file, num_head)), _read(file, num_data)


def _read(file: BinaryIO, length: int) -> bytes:
    data = file.read(length)
    if len(data) < length:
        raise EOFError
    return data


def main(task: str) -> None:
    """Decode until whoever asks is gone. `task` is JSON: socket, lock (handles), work, settings, memory_bytes, cpu_seconds.

    A picture that ends the process ends it: a signal, an exit, an exception; who asked sees it and starts another.
    """
    given = json.loads(task)
    asked, answers = os.fdopen(given["socket"], "rb"), os.fdopen(given["socket"], "wb", closefd=False)
    module, _, name = given["work"].partition(":")
    make: MakeWork = getattr(importlib.import_module(module), name)
    work = make(given["settings"], Alone(given["lock"]))
    _confine(given["memory_bytes"])
    send(answers, {})
    _silence()
    try:
        while True:
            ask, data = receive(asked)
            _answer(answers, work, data, ask, given["cpu_seconds"])
            del data
    except (EOFError, OSError):
        os._exit(0)


def _answer(answers: BinaryIO, work: Work, data: bytes, ask: Mapping[str, Any], cpu_seconds: float) -> None:
    """Do the work once; a process that ran out of memory says so and ends, for it may be in pieces."""
    signal.setitimer(signal.ITIMER_PROF, cpu_seconds)       # SIGPROF ends a process that does not expect it
    try:
        columns, stored = work(data, ask)
    except MemoryError:
        send(answers, {"died": "memory"})
        os._exit(1)
    except Exception as error:
        send(answers, {"died": "error", "error": " ".join(f"{type(error).__name__}: {error}".split())[:200]})
        raise
    signal.setitimer(signal.ITIMER_PROF, 0)
    send(answers, {"columns": columns, "stored": stored is not None}, stored or b"")


class Alone:
    """Held by one process of those that share the file behind the handle; the system frees it when its holder dies."""

    def __init__(self, handle: int) -> None:
        self._handle = handle

    def __enter__(self) -> None:
        fcntl.lockf(self._handle, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        fcntl.lockf(self._handle, fcntl.LOCK_UN)


def _confine(memory_bytes: int) -> None:
    """No more than so much memory above what the process has now, no core files, and the first to go where memory is short.

    Only Linux keeps the limit on memory; elsewhere the checks before decoding are all there is.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform != "linux":
        return
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    limit = now + memory_bytes if hard == resource.RLIM_INFINITY else min(now + memory_bytes, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    handle = os.open("/proc/self/oom_score_adj", os.O_WRONLY)
    os.write(handle, b"1000")
    os.close(handle)


def _silence() -> None:
    """What libraries and the C runtime print about a bad picture is of no use to anybody, and there may be millions."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
