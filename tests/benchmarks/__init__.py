"""Benchmarks against the neighbours: what `make bench [ONLY=name]` runs.

A benchmark is a module `bench_<name>.py` in this folder with a function `run() -> list[Row]`. It measures ours and a peer on the
same input, on this machine, and says in `limit` what must hold:

    def run() -> list[Row]:
        ours = median_seconds(lambda: index_tar(path), repeats=5)
        theirs = median_seconds(lambda: list(tarfile.open(path)), repeats=5)
        return [Row("tar_index", "s", ours, theirs, limit="ratio <= 1", sizes="10,000 members, 200 MB")]

A peer that cannot share our environment gets its own: `peer_venv("img2dataset", ["img2dataset==1.47.0"])` is its Python.
"""

import hashlib
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
import venv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PEERS = ROOT / ".bench"
_LIMIT = re.compile(r"(ours|ratio) (<=|>=) ([0-9.]+)")


@dataclass(frozen=True)
class Row:
    """One line of `runs/bench.json`. `ours` and `peer` are in `unit`; `limit` is like `ratio <= 1.1` or `ours >= 500`."""

    name: str
    unit: str
    ours: float
    peer: float | None = None
    limit: str = ""
    sizes: str = ""
    command: str = ""

    def __post_init__(self) -> None:
        if self.limit and not _LIMIT.fullmatch(self.limit):
            raise ValueError(f"{self.name}: no limit '{self.limit}'; say it like 'ratio <= 1.1' or 'ours >= 500'")

    @property
    def ratio(self) -> float | None:
        """Ours over the peer's; None without a peer."""
        return self.ours / self.peer if self.peer else None

    @property
    def holds(self) -> bool:
        """Whether the measured value keeps to the limit; a ratio without a peer does not."""
        if not (match := _LIMIT.fullmatch(self.limit)):
            return True
        value, bound = getattr(self, match[1]), float(match[3])
        return value is not None and (value <= bound if match[2] == "<=" else value >= bound)


def median_seconds(fn: Callable[[], object], repeats: int) -> float:
    """The median wall time of `repeats` calls, after one that is not counted (imports, caches)."""
    fn()
    return statistics.median(_seconds(fn) for _ in range(repeats))


def _seconds(fn: Callable[[], object]) -> float:
    start = time.perf_counter()
    fn()
    return time.perf_counter() - start


# A process inherits its parent's peak when it is executed (Linux counts the memory it had as a fork), so the command is started
# from a small process of its own and not from the benchmark, which may hold gigabytes.
_LAUNCHER = """
import json, os, subprocess, sys, time
start = time.perf_counter()
process = subprocess.Popen(sys.argv[2:], close_fds=True)
_, status, usage = os.wait4(process.pid, 0)
code = os.waitstatus_to_exitcode(status)
json.dump([code, time.perf_counter() - start, usage.ru_maxrss], os.fdopen(int(sys.argv[1]), "w"))
"""


def peak_rss(command: Sequence[str | os.PathLike[str]]) -> tuple[float, float]:
    """Wall seconds of a command, and the peak resident MiB of its largest process: itself, or a child it waited for.

    Not a sum over processes. Raises subprocess.CalledProcessError where the command fails.
    """
    words = [os.fspath(word) for word in command]
    read, write = os.pipe()
    with os.fdopen(read) as answer:
        launcher = [sys.executable, "-S", "-c", _LAUNCHER, str(write), *words]
        with subprocess.Popen(launcher, pass_fds=(write,), cwd=ROOT):
            os.close(write)
            text = answer.read()
    code, seconds, peak = json.loads(text or "[1, 0, 0]")
    if code:
        raise subprocess.CalledProcessError(code, words)
    return seconds, peak / (2**20 if sys.platform == "darwin" else 2**10)


def peer_venv(name: str, requirements: list[str]) -> Path:
    """The Python of the environment `.bench/<name>`, made anew when `requirements` change; pin them, or the figures drift."""
    folder = PEERS / name
    python, stamp = folder / "bin" / "python", folder / ".requirements"
    wanted = hashlib.sha256("\n".join(requirements).encode()).hexdigest()
    if not stamp.is_file() or stamp.read_text() != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        uv = shutil.which("uv") or shutil.which("uv", path=str(ROOT / ".uv" / "bin"))
        venv.create(folder, with_pip=uv is None)
        install = [uv, "pip", "install", "--python", str(python)] if uv else [str(python), "-m", "pip", "install"]
        subprocess.run([*install, "--quiet", *requirements], check=True, env={"UV_SYSTEM_CERTS": "1", **os.environ})
        stamp.write_text(wanted)
    return python
