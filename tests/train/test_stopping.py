"""A training that is asked to end does so behind its step with a checkpoint, and goes on to the same bits."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from curate.training import in_a_process
from tests.train.toys import SMALL, config, logged, shard
from train.errors import Stopped
from train.log import Progress
from train.loop import train
from train.models.folder import weights_digest
from train.stopping import listening


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(shard(tmp_path_factory.mktemp("shards") / "0.tar", range(24)))


def asking(*signals: signal.Signals, at: int) -> Callable[[Progress], None]:
    """Asks this process to end while a step is made known."""
    def show(progress: Progress) -> None:
        if progress.step == at:
            for number in signals:
                signal.raise_signal(number)
    return show


def losses(out: Path) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in logged(out) if "loss" in line]


def checkpoints(out: Path) -> list[str]:
    return sorted(path.name for path in (out / "checkpoints").iterdir())


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_it_ends_behind_its_step_and_goes_on_from_there(number: signal.Signals, code: int, shards: str, tmp_path: Path,
                                                        capfd: pytest.CaptureFixture[str]) -> None:
    """With `checkpoint_every` far away; log, figures and weights are those of a training that nobody stopped."""
    settings, before = config(data=shards), signal.getsignal(number)
    whole = train(settings, tmp_path / "whole")
    with pytest.raises(Stopped) as stopped:
        train(settings, tmp_path / "out", asking(number, at=4))
    assert (str(stopped.value), stopped.value.exit_code) == (
        "stopped after step 4 of 6; the same command goes on from there", code)
    assert (checkpoints(tmp_path / "out"), signal.getsignal(number)) == (["00000004"], before)
    assert ("Ctrl-C once more" in capfd.readouterr().err) is (number == signal.SIGINT)

    seen: list[Progress] = []
    assert train(settings, tmp_path / "out", seen.append) == replace(whole, checkpoint=tmp_path / "out" / "model")
    assert seen[0].step == 5
    assert losses(tmp_path / "out") == losses(tmp_path / "whole")


def test_in_the_last_step_only_the_end_is_left(shards: str, tmp_path: Path) -> None:
    with pytest.raises(Stopped, match="stopped after step 6 of 6"):
        train(config(data=shards), tmp_path, asking(signal.SIGTERM, at=6))
    assert not (tmp_path / "model").exists()
    assert train(config(data=shards), tmp_path).steps == 6


def test_a_second_ctrl_c_ends_it_at_once(shards: str, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(config(data=shards), tmp_path, asking(signal.SIGINT, signal.SIGINT, at=4))
    assert not (tmp_path / "checkpoints").exists()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_batch_system_may_say_it_twice(shards: str, tmp_path: Path) -> None:
    with pytest.raises(Stopped) as stopped:
        train(config(data=shards), tmp_path, asking(signal.SIGINT, signal.SIGTERM, at=4))
    assert (checkpoints(tmp_path), stopped.value.exit_code) == (["00000004"], 130)


def test_what_was_ignored_stays_so_and_other_threads_hear_nothing() -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with listening() as asked:
            signal.raise_signal(signal.SIGTERM)
        assert (asked.number, signal.getsignal(signal.SIGTERM)) == (None, signal.SIG_IGN)
    finally:
        signal.signal(signal.SIGTERM, before)
    heard: list[bool] = []

    def elsewhere() -> None:
        with listening():
            heard.append(signal.getsignal(signal.SIGTERM) is before)
    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert heard == [True]


def when(there: Callable[[], bool], then: Callable[[], None]) -> threading.Thread:
    """Does something as soon as something is there."""
    def watch() -> None:
        for _ in range(6000):
            if there():
                then()
                return
            time.sleep(0.01)
    thread = threading.Thread(target=watch)
    thread.start()
    return thread


def test_a_pipeline_s_training_is_waited_for(shards: str, tmp_path: Path) -> None:
    """Ctrl-C of the driver alone: its training ends with a checkpoint before the driver does."""
    out = tmp_path / "out"
    settings = {**SMALL, "model": "curate-conv-64", "data": shards, "samples_seen": "400 epochs"}
    watching = when(lambda: (out / "log.jsonl").exists(), lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        in_a_process(settings, out)
    watching.join()
    (name,) = checkpoints(out)
    assert 0 < int(name) < 1200


def two_processes(shards: str, folder: Path, out: Path) -> list[str]:
    """The command of a training by two processes."""
    (folder / "toy.yaml").write_text(json.dumps({**SMALL, "data": shards, "samples_seen": "40 epochs", "processes": 2}))
    return [sys.executable, "-m", "tests.train.command", str(folder / "toy.yaml"), "--out", str(out)]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_several_processes_end_behind_the_same_step(shards: str, tmp_path: Path) -> None:
    """A SIGTERM to the first, then Ctrl-C, which a terminal sends to all: one line each, the same weights in the end."""
    subprocess.run(two_processes(shards, tmp_path, tmp_path / "whole"), capture_output=True, check=True)
    out, at = tmp_path / "out", 0
    command = two_processes(shards, tmp_path, out)
    for number, group, code in ((signal.SIGTERM, False, 143), (signal.SIGINT, True, 130)):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
        assert process.stdout is not None
        assert f"step {at + 1}/120" in process.stdout.readline()
        (os.killpg if group else os.kill)(process.pid, number)
        said = process.communicate()[1].splitlines()
        at = int(checkpoints(out)[-1])
        assert (process.returncode, said[-1]) == (code, f"stopped after step {at} of 120; the same command goes on from there")
        assert len(said) == 1 + group
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"step {at + 1}/120" in again.stdout
    digests = [weights_digest(SMALL["model"], str(tmp_path / name / "model")) for name in ("whole", "out")]
    assert digests[0] == digests[1]
