"""Decoders that misbehave on demand, for tests: what a decoder process runs instead of Pillow."""

import ctypes
import importlib
import os
import resource
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any


def misbehaving(settings: Mapping[str, Any], alone: AbstractContextManager[None]) -> Any:
    """A function that does what the body says, and else gives it back in capitals. It counts what its process has done."""
    done = 0

    def work(body: bytes, ask: Mapping[str, Any]) -> tuple[dict[str, Any], bytes | None]:
        nonlocal done
        done += 1
        what = body[:400].decode("latin-1").split()
        if settings.get("log"):
            with open(settings["log"], "a") as file:
                file.write(f"{os.getpid()} {done} {what[0]}\n")
        if what[0] in TRICKS:
            TRICKS[what[0]]()
        if what[0] == "second-crashes" and done > 1:
            os.abort()
        if what[0] == "first-dies" and not Path(what[1]).exists():
            Path(what[1]).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if what[0] == "alone":
            with alone:
                begin = time.monotonic()
                time.sleep(0.2)
                return {"begin": begin, "end": time.monotonic()}, None
        if what[0] == "limits":
            importlib.import_module("curate.decoding.convert")
            return {"memory": resource.getrlimit(resource.RLIMIT_AS)[0], "core": resource.getrlimit(resource.RLIMIT_CORE)[0],
                    "modules": sorted({m.partition(".")[0] for m in sys.modules}),
                    "now": int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()}, None
        if what[0] == "nothing":
            return {"status": "decode_error", "error": "no picture"}, None
        return {"pid": os.getpid(), "done": done, **ask}, body.upper()

    return work


def _hog() -> None:
    held = []
    while True:
        held.append(bytearray(2**24))


def _spin() -> None:
    while True:
        pass


def _speak_nonsense() -> None:
    for handle in range(3, 1024):
        try:
            os.write(handle, b"\xff" * 64)
        except OSError:
            continue


def _raise() -> None:
    raise AssertionError("so broken\nthat a decoder asserts")


TRICKS = {"abort": os.abort, "segv": lambda: ctypes.string_at(0), "exit": lambda: os._exit(7), "hog": _hog, "spin": _spin,
          "nonsense": _speak_nonsense, "raise": _raise, "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
          "sleep": lambda: time.sleep(600), "print": lambda: os.write(2, b"libpng warning\n")}


def crashing(settings: Mapping[str, Any], alone: AbstractContextManager[None]) -> Any:
    """What `download` does, but a picture with CRASH in its bytes aborts the process, as a hole in a decoder would."""
    convert = importlib.import_module("curate.decoding.convert").converter(settings, alone)

    def work(body: bytes, ask: Mapping[str, Any]) -> Any:
        if b"CRASH" in body:
            os.abort()
        return convert(body, ask)

    return work
