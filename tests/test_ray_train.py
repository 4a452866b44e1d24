"""A pipeline's training through Ray Train: the weights, the mistakes and the deaths of a training without Ray."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from curate.errors import RunStopped
from curate.ray_train import RayTraining, _lead, _why
from curate.store import Store
from curate.training import KILLED, in_a_process
from tests.running import alive, environment, tree, wait_for
from tests.test_loop import write_site
from tests.train.toys import shard

SETTINGS: dict[str, Any] = {"model": "curate-conv-64", "samples_seen": 96, "batch": 16, "lr": 1e-3, "checkpoint_every": 2,
                            "tensorboard": False}
SAME = ("shards", "funnel.json")


def write_pipeline(folder: Path, **settings: Any) -> None:
    """Pictures, and a pipeline that trains two processes on them."""
    write_site(folder, rows=60)
    train = json.dumps({**SETTINGS, "processes": 2, "threads": 1, **settings})
    (folder / "pipeline.yaml").write_text("source: {images: photos.csv, path: file, caption: caption, shard_rows: 40}\n"
                                          f"steps:\n  - caption_length\nshards: {{rows: 50}}\ntrain: {train}\n")


def start(folder: Path, out: str, on: str) -> "subprocess.Popen[str]":
    """`curate run` on two workers."""
    command = [sys.executable, "-m", "curate", "run", "pipeline.yaml", "--on", on, "--workers", "2", "--out", out]
    return subprocess.Popen(command, cwd=folder, env=environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def card(out: Path) -> Mapping[str, Any]:
    """What the one model of a run says of itself: its weights' digest, figures, data."""
    path, = out.glob("models/*/model/train.json")
    content: Mapping[str, Any] = json.loads(path.read_text())
    return content


def losses(out: Path) -> list[tuple[int, float]]:
    """(step, loss) of every line in a run's one log that has them."""
    path, = out.glob("models/*/log.jsonl")
    return [(line["step"], line["loss"]) for line in map(json.loads, path.read_text().splitlines()) if "loss" in line]


def enlisted(out: Path) -> list[int]:
    """The processes that a later attempt would wait for."""
    held = str(out / "run.workers")
    return [int(p.name) for p in Path("/proc").glob("[0-9]*") if any(str(link) == held for link in links(p / "fd"))]


def links(folder: Path) -> list[Path]:
    """Where the symbolic links in a folder lead, of a process that may have ended."""
    try:
        return [p.readlink() for p in folder.iterdir()]
    except OSError:
        return []


def training(out: Path, process: "subprocess.Popen[str]", step: int) -> list[int]:
    """Both processes of a training that has come to a step."""
    def there() -> list[int]:
        assert process.poll() is None, process.communicate()
        steps = [int(p.name) for p in out.glob("models/*/checkpoints/[0-9]*")]
        return found if max(steps, default=0) >= step and len(found := enlisted(out)) == 2 else []

    return wait_for(there, seconds=300)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_one_process_on_ray_is_one_process_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                capfd: pytest.CaptureFixture[str]) -> None:
    """Every file of the checkpoint, also where nobody says how many threads: Ray's one is not taken for the machine's many."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    shard(tmp_path / "0.tar", range(48))
    settings = {**SETTINGS, "data": str(tmp_path / "0.tar"), "processes": 1}
    store = Store(tmp_path, "test")
    assert in_a_process(settings, tmp_path / "here") == RayTraining(store, "ray", 2)(settings, tmp_path / "ray") == "model"
    assert tree(tmp_path / "here", "model") == tree(tmp_path / "ray", "model") != {}
    assert capfd.readouterr() == ("", "")


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_mistake_of_one_process_is_one_line(tmp_path: Path) -> None:
    shard(tmp_path / "0.tar", range(48))
    settings = {**SETTINGS, "data": str(tmp_path / "0.tar"), "batch": 15, "processes": 2}
    with pytest.raises(RunStopped, match="^batch: 15 does not divide among 2 processes$"):
        RayTraining(Store(tmp_path, "test"), "ray", 2)(settings, tmp_path / "out")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_killed_workers_and_drivers_cost_steps_and_nothing_else(tmp_path: Path) -> None:
    """Two processes. A worker's death is one line and exit code 3; a driver's takes its workers with it; the next attempt goes on
    from the checkpoint, to the bits of a run without Ray that nobody disturbed, and nothing of Ray Train's is left."""
    write_pipeline(tmp_path, samples_seen=640)
    start(tmp_path, "whole", "local").communicate()
    whole, out = tmp_path / "whole", tmp_path / "killed"
    process = start(tmp_path, "killed", "ray")
    os.kill(training(out, process, 2)[-1], signal.SIGKILL)
    _, complaints = process.communicate()
    assert (process.returncode, complaints) == (3, f"{KILLED}\n")

    process = start(tmp_path, "killed", "ray")
    workers = training(out, process, 6)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    wait_for(lambda: not any(map(alive, workers)))

    process = start(tmp_path, "killed", "ray")
    said, complaints = process.communicate()
    assert process.returncode == 0 and "trained: killed/models/" in said, complaints
    assert card(out) == card(whole)
    assert losses(out) == losses(whole) != []
    assert tree(out, *SAME) == tree(whole, *SAME)
    assert sorted(p.name for p in out.iterdir()) == sorted(p.name for p in whole.iterdir())


class Failed(Exception):
    """As Ray Train tells of failed processes."""

    def __init__(self, *failures: Exception) -> None:
        super().__init__("Training failed due to worker errors")
        self.worker_failures = dict(enumerate(failures))


def test_of_what_processes_died_of_one_thing_is_said() -> None:
    """A mistake, though others then die; a death, though others then miss the dead one; a fault of the program with its words."""
    mistake, fault, death = RunStopped("no such shard"), RuntimeError("a worker failed:\nConnection closed"), Exception("died")
    assert _why(Failed(fault, mistake, death)) is mistake
    assert str(_why(Failed(fault, death))) == KILLED
    assert _why(Failed(fault)) is fault
    assert "Training failed due to worker errors" in str(_why(Failed()))


def test_no_more_processes_than_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Ray Train would wait for them."""
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 8.0, "GPU": 2.0})
    found = _lead((tmp_path, "test"), {"processes": 3}, tmp_path, {})
    assert isinstance(found, RunStopped) and str(found) == "processes: 3 is more than the 2 GPUs of the cluster"
