import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from curate.decoding.decode import Decoders
from curate.errors import RunStopped
from tests.running import alive, environment, wait_for

WORK = "tests.decoding:misbehaving"
MEMORY = 200 * 2**20


@contextmanager
def decoders(log: Path | None = None, **options: Any) -> Iterator[Decoders]:
    """Decoder processes that are gone at the end."""
    there = Decoders(WORK, {"log": str(log) if log else None}, **{"memory_bytes": MEMORY, **options})
    try:
        yield there
    finally:
        processes = [p._process for p in there._all]
        there.close()
        assert all(p.returncode is not None for p in processes)


def test_a_picture_goes_in_and_columns_and_a_file_come_out() -> None:
    with decoders() as there:
        assert there.decode(b"abc", {"boxes": [[0.25, 1]]})[0]["boxes"] == [[0.25, 1]]
        assert there.decode(b"nothing", {}) == ({"status": "decode_error", "error": "no picture"}, None)
        large = random.Random(0).randbytes(16 * 2**20 + 1)
        assert there.decode(large, {})[1] == large.upper()
        assert len(there._all) == 1


@pytest.mark.parametrize(("body", "status", "error"), [
    (b"abort", "decode_crash", f"signal 6 ({signal.strsignal(6)})"),
    (b"segv", "decode_crash", f"signal 11 ({signal.strsignal(11)})"),
    (b"exit", "decode_crash", "exit code 7"), (b"raise", "decode_crash", "AssertionError: so broken that a decoder asserts"),
    (b"nonsense", "decode_crash", "no answer that can be read"), (b"hog", "decode_memory", "more than 200 MiB"),
    (b"spin", "decode_timeout", "more than 0.2 s of processor time"),
])
def test_a_decoder_that_dies_costs_its_picture_and_nothing_else(body: bytes, status: str, error: str) -> None:
    with decoders(**({"cpu_seconds": 0.2} if body == b"spin" else {})) as there:
        assert there.decode(b"before", {})[1] == b"BEFORE"
        assert there.decode(body, {}) == ({"status": status, "error": error}, None)
        assert there.decode(b"after", {})[1] == b"AFTER"


def test_a_picture_is_tried_again_in_a_fresh_process_before_it_is_blamed(tmp_path: Path) -> None:
    with decoders(tmp_path / "log") as there:
        there.decode(b"first", {})
        columns, stored = there.decode(b"second-crashes", {})
        assert (columns["done"], stored) == (1, b"SECOND-CRASHES"), "what an earlier picture broke is not its fault"
        there.decode(b"abort", {})
    tries = [line.split() for line in (tmp_path / "log").read_text().splitlines()]
    assert [(done, what) for _, done, what in tries] == [
        ("1", "first"), ("2", "second-crashes"), ("1", "second-crashes"), ("2", "abort"), ("1", "abort")]


def test_poison_among_many_is_found_whoever_decodes_it() -> None:
    bodies = [b"abort" if n % 20 == 5 else b"hog" if n == 40 else f"picture {n}".encode() for n in range(60)]
    expected = [None if b in (b"abort", b"hog") else b.upper() for b in bodies]
    with decoders() as there, ThreadPoolExecutor(3) as threads:
        found = list(threads.map(lambda body: there.decode(body, {}), bodies))
    assert [stored for _, stored in found] == expected
    assert [c["status"] for c, stored in found if stored is None] == [
        "decode_memory" if b == b"hog" else "decode_crash" for b in bodies if b in (b"abort", b"hog")]


def test_a_process_killed_from_outside_says_nothing_about_its_picture(tmp_path: Path) -> None:
    with decoders() as there:
        assert there.decode(f"first-dies {tmp_path / 'x'}".encode(), {})[1] is not None
        assert (tmp_path / "x").exists()
        idle = next(iter(there._all))
        idle._process.kill()
        idle._process.wait()
        assert there.decode(b"next", {})[1] == b"NEXT"
        with pytest.raises(RunStopped, match="^decoders were killed 3 times on one picture, at last by signal 9"):
            there.decode(b"kill", {})


def test_processes_are_replaced_after_some_pictures_and_no_more_run_than_are_asked(tmp_path: Path) -> None:
    with decoders(tmp_path / "log", pictures=4) as there:
        for n in range(10):
            there.decode(f"{n}".encode(), {})
    pids = [line.split()[0] for line in (tmp_path / "log").read_text().splitlines()]
    assert [pids.count(pid) for pid in dict.fromkeys(pids)] == [4, 4, 2]


def test_large_pictures_take_turns_and_a_dead_holder_holds_nobody_up() -> None:
    with decoders(cpu_seconds=0.2) as there, ThreadPoolExecutor(3) as threads:
        times = sorted((c["begin"], c["end"]) for c, _ in threads.map(lambda b: there.decode(b, {}), [b"alone"] * 3))
        assert all(end <= begin for (_, end), (begin, _) in zip(times, times[1:], strict=False))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux keeps a limit on memory")
def test_a_decoder_loads_little_and_may_not_take_much() -> None:
    with decoders() as there:
        limits, _ = there.decode(b"limits", {})
    assert limits["core"] == 0
    assert 0 < limits["memory"] - limits["now"] <= MEMORY
    assert not {"torch", "numpy", "pyarrow", "aiohttp", "pydantic", "fsspec", "subprocess"} & set(limits["modules"])


def test_what_libraries_print_is_not_seen(capfd: pytest.CaptureFixture[str]) -> None:
    with decoders() as there:
        there.decode(b"print", {})
        there.decode(b"raise", {})
    assert capfd.readouterr() == ("", "")


def test_decoders_that_do_not_start_stop_the_run(capfd: pytest.CaptureFixture[str]) -> None:
    there = Decoders("tests.decoding:nowhere", {}, MEMORY)
    with pytest.raises(RunStopped, match="^a decoder does not start: exit code 1; run the same command again$"):
        there.decode(b"x", {})
    assert "has no attribute 'nowhere'" in capfd.readouterr().err
    assert not there._all
    there.close()


def test_closing_ends_what_is_under_way() -> None:
    there, raised = Decoders(WORK, {}, MEMORY), []

    def decode() -> None:
        try:
            there.decode(b"sleep", {})
        except RunStopped as error:
            raised.append(str(error))

    waiting = threading.Thread(target=decode)
    waiting.start()
    wait_for(lambda: there._all and next(iter(there._all)).pictures)
    there.close()
    waiting.join(10)
    assert raised == ["the decoders are closed"]
    assert not there._all
    with pytest.raises(RunStopped):
        there.decode(b"x", {})


PARENT = """
import sys, threading, time
from curate.decoding.decode import Decoders
there = Decoders("tests.decoding:misbehaving", {}, 2**28, cpu_seconds=0.5)
there.decode(b"x", {})
threading.Thread(target=there.decode, args=(sys.argv[1].encode(), {}), daemon=True).start()
while len(there._all) < 1 or not next(iter(there._all)).pictures == 2:
    time.sleep(0.01)
print(*[p._process.pid for p in there._all], flush=True)
time.sleep(600)
"""


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="processes are looked for in /proc")
@pytest.mark.parametrize(("busy_with", "how"), [("idle", signal.SIGKILL), ("idle", signal.SIGTERM), ("spin", signal.SIGKILL),
                                                ("spin", signal.SIGINT)])
def test_no_decoder_outlives_who_started_it(busy_with: str, how: signal.Signals) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT, busy_with], env=environment(), stdout=subprocess.PIPE,
                              stderr=subprocess.DEVNULL, text=True, start_new_session=True)
    assert parent.stdout is not None
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert pids
    assert all(alive(pid) for pid in pids)
    os.kill(parent.pid, how)
    parent.wait()
    parent.stdout.close()
    wait_for(lambda: not any(alive(pid) for pid in pids), seconds=20)


def test_ctrl_c_at_the_terminal_is_not_for_decoders() -> None:
    with decoders() as there:
        pid = there.decode(b"x", {})[0]["pid"]
        os.kill(pid, signal.SIGINT)
        assert there.decode(b"y", {})[0]["pid"] == pid
