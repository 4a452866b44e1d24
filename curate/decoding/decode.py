"""Strangers' pictures are decoded in processes of their own: what a decoder does to itself costs one picture, never the run.

    decoders = Decoders("curate.decoding.convert:converter", settings, memory_bytes=2**30)
    columns, file = decoders.decode(body, {"boxes": []})        # waits; call it from as many threads as there shall be processes

A picture at whose side a process died is tried once more in a fresh process, alone, so that none is blamed for what an earlier
one broke. If that process dies too, or the picture takes too long, its `status` says so:

    decode_crash      the decoder crashed (a signal, an exit) or raised what no decoder should
    decode_memory     it wanted more than `memory_bytes`
    decode_timeout    it took more than `cpu_seconds` of processor time

A process that the system killed, as when memory is short, says nothing about the picture: after three such deaths the run stops.
Decoders end with whoever started them, however that ends: nobody else holds the other end of their socket, so it closes.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from curate.decoding.decoder import receive, send
from curate.errors import RunStopped

CPU_SECONDS = 60
"""Of processor time for one picture. 64 million pixels take 4 s to decode at most, and 25 s to store as WebP (our choice)."""
PICTURES = 5000
"""A process is replaced after so many: what libraries leak stays small, and 0.3 s to start is nothing beside it (our choice)."""
STRIKES = 3
"""So many processes may be killed from outside on one picture before the run stops."""

# What a process does to itself; any other signal comes from outside.
_OWN = {signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGSYS, signal.SIGTRAP}
_CODE = ("import signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); sys.path[:] = sys.argv[2:]; "
         "from curate.decoding.decoder import main; main(sys.argv[1])")

Decoded = tuple[dict[str, Any], bytes | None]
"""Columns of a picture, and the file to store if there is one."""


class Decoders:
    """Decoder processes that start when they are needed and wait for the next picture; safe from several threads.

    `work` is `module:function`, see `curate.decoding.decoder.MakeWork`; `settings` goes to it as JSON.
    """

    def __init__(self, work: str, settings: Mapping[str, Any], memory_bytes: int, cpu_seconds: float = CPU_SECONDS,
                 pictures: int = PICTURES) -> None:
        self._task = {"work": work, "settings": settings, "memory_bytes": memory_bytes, "cpu_seconds": cpu_seconds}
        self._pictures = pictures
        self._large = tempfile.TemporaryFile()         # noqa: SIM115  open until close()
        self._lock = threading.Lock()
        self._idle: list[_Process] = []
        self._all: set[_Process] = set()
        self._closed = False

    def decode(self, body: bytes, ask: Mapping[str, Any]) -> Decoded:
        """What the work makes of a file; of one that its decoder did not survive, the columns `status` and `error`.

        Raises RunStopped where decoders do not start, are killed from outside, or are closed.
        """
        crashes = killed = 0
        process = self._take()
        while True:
            ended = process.decode(body, ask)
            if not isinstance(ended, _Death):
                self._give(process)
                return ended
            self._remove(process)
            if ended.status == "":
                killed += 1
                if killed == STRIKES:
                    raise RunStopped(f"decoders were killed {STRIKES} times on one picture, at last by {ended.error}; run the "
                                     "same command again, with fewer decoders or a smaller max_pixels if memory is short")
            elif crashes or ended.status == "decode_timeout":
                return {"status": ended.status, "error": ended.error}, None
            else:
                crashes += 1
            process = self._start()

    def close(self) -> None:
        """End all processes, whatever they are doing; who waits for one of them gets RunStopped."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
            for process in self._all:
                process.kill()
        for process in idle:
            self._remove(process)
        self._large.close()

    def _take(self) -> "_Process":
        with self._lock:
            if self._idle:
                return self._idle.pop()
        return self._start()

    def _start(self) -> "_Process":
        with self._lock:
            if self._closed:
                raise RunStopped("the decoders are closed")
            process = _Process(self._task, self._large.fileno())
            self._all.add(process)
        try:
            process.await_start()
        except RunStopped:
            self._remove(process)
            raise
        return process

    def _give(self, process: "_Process") -> None:
        with self._lock:
            stays = process.pictures < self._pictures and not self._closed
            if stays:
                self._idle.append(process)
        if not stays:
            self._remove(process)

    def _remove(self, process: "_Process") -> None:
        process.end()
        with self._lock:
            self._all.discard(process)


@dataclass(frozen=True)
class _Death:
    """How a process ended; `status` is what that says of its picture, empty where the system or somebody killed it."""

    status: str
    error: str


class _Process:
    """One decoder process and the socket to it."""

    def __init__(self, task: Mapping[str, Any], lock: int) -> None:
        self.pictures = 0
        self._memory_bytes, self._cpu_seconds = task["memory_bytes"], task["cpu_seconds"]
        ours, theirs = socket.socketpair()
        text = json.dumps({**task, "socket": theirs.fileno(), "lock": lock})
        command = [sys.executable, "-P", "-c", _CODE, text, *map(str, sys.path)]
        with ours, theirs:
            try:
                self._process = subprocess.Popen(command, pass_fds=[theirs.fileno(), lock], stdin=subprocess.DEVNULL)
            except OSError as error:
                raise RunStopped(f"a decoder cannot start: {error.strerror}; run the same command again") from None
            handle = ours.detach()
        self._asks, self._answers = os.fdopen(handle, "wb"), os.fdopen(handle, "rb", closefd=False)

    def await_start(self) -> None:
        """Wait until it is ready. Raises RunStopped where it does not start; what it says about that is on standard error."""
        try:
            receive(self._answers)
        except (EOFError, OSError):
            raise RunStopped(f"a decoder does not start: {self._death().error}; run the same command again") from None

    def decode(self, body: bytes, ask: Mapping[str, Any]) -> Decoded | _Death:
        """What it makes of a file, or how it died of it."""
        self.pictures += 1
        try:
            send(self._asks, ask, body)
            head, stored = receive(self._answers)
        except (EOFError, OSError):
            return self._death()
        except ValueError:
            return _Death("decode_crash", "no answer that can be read")
        if head.get("died") == "memory":
            return _Death("decode_memory", f"more than {self._memory_bytes // 2**20} MiB")
        if "died" in head:
            return _Death("decode_crash", str(head["error"]))
        return head["columns"], stored if head["stored"] else None

    def kill(self) -> None:
        """Kill it."""
        self._process.kill()

    def end(self) -> None:
        """Kill it if it lives, and wait for its end."""
        self._process.kill()
        self._process.wait()
        for file in (self._answers, self._asks):
            with suppress(OSError):         # what could not be sent any more
                file.close()

    def _death(self) -> _Death:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(1)           # its socket closes a moment before it has its exit code
        self._process.kill()
        code = self._process.wait()
        if code >= 0:
            return _Death("decode_crash", f"exit code {code}")
        if code == -signal.SIGPROF:
            return _Death("decode_timeout", f"more than {self._cpu_seconds:g} s of processor time")
        return _Death("decode_crash" if -code in _OWN else "", f"signal {-code} ({signal.strsignal(-code)})")
