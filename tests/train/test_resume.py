"""A training that was killed goes on with the very same pairs, whatever the number of processes and of threads."""

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tests.train.toys import SMALL, config, logged, uid_pairs, write_tar
from train.config import Config
from train.data import open_data
from train.loader import Loader
from train.loop import train
from train.models.folder import weights_digest
from train.order import make_order
from train.pictures import TrainCrop

COMMAND = [sys.executable, "-m", "tests.train.command"]


def everything(folder: Path, **more: Any) -> dict[str, Any]:
    """Settings over two sources with scores, several captions, and a curriculum."""
    for name, numbers in (("a", range(40)), ("b", range(40, 64))):
        write_tar(folder / f"{name}.tar", uid_pairs(numbers, {n: [f"c{n}", f"a {n}", f"the {n}"] for n in range(0, 64, 3)}))
        pq.write_table(pa.table({"uid": [f"u{n}" for n in numbers], "weight": [1 + n % 3 / 2 for n in numbers],
                                 "clip_cos": np.cos(np.array(numbers, float)),
                                 "caption_probs": [[2, 1, 1] if n % 3 == 0 else [1] for n in numbers]}),
                       folder / f"{name}.parquet")
    data = [{"shards": str(folder / f"{name}.tar"), "scores": str(folder / f"{name}.parquet"), "weight": weight}
            for name, weight in (("a", 2), ("b", 1))]
    return {**SMALL, "data": data, "samples_seen": 480, "curriculum": {"by": "clip_cos", "from": 0.6}, **more}


def loader(settings: Config, **how: int) -> Loader:
    index = open_data(settings.data, settings.curriculum.by if settings.curriculum else None)
    return Loader(index, make_order(index, settings), TrainCrop(32), tokens, **how)


def tokens(texts: list[str]) -> torch.Tensor:
    return torch.tensor([[len(text), sum(text.encode())] for text in texts])


def losses(out: Path) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in logged(out) if "loss" in line]


def test_two_processes_share_the_pairs_of_one(tmp_path: Path) -> None:
    settings = config(**everything(tmp_path))
    whole = loader(settings)
    halves = [loader(settings, rank=rank, num_ranks=2, workers=3 - rank) for rank in (0, 1)]
    for step in (0, 1, 17, 40, 59):
        expected = whole.pictures(step).tolist()
        assert len(set(expected)) == 8
        assert [picture for half in halves for picture in half.pictures(step).tolist()] == expected
    late = [next(iter(one.batches(41, 42))) for one in (whole, *halves)]
    assert np.concatenate([batch.tokens_NL for batch in late[1:]]).tolist() == late[0].tokens_NL.tolist()
    assert np.array_equal(np.concatenate([batch.pixels_NHWC for batch in late[1:]]), late[0].pixels_NHWC)


def test_a_training_under_scores(tmp_path: Path) -> None:
    result = train(config(**everything(tmp_path, samples_seen=48)), tmp_path / "run")
    card = json.loads((result.checkpoint / "train.json").read_text())
    assert (card["data"]["pictures"], card["data"]["captions"]) == (64, 64 + 2 * 22)
    assert card["data"]["scores"] == {"scored": 64, "unscored": 0, "not_kept": 0, "unused_scores": 0}
    assert card["settings"]["curriculum"] == {"by": "clip_cos", "start": 0.6, "until": 0.5}


def attempt(settings: dict[str, Any], out: Path, said: Connection) -> None:
    """Train in a process of its own, and say each step that is done."""
    train(config(**settings), out, lambda progress: said.send(progress.step))


@pytest.mark.slow
@pytest.mark.timeout(500)
def test_killed_at_ten_steps(tmp_path: Path) -> None:
    """kill -9 ten times at random steps, other threads each time: losses and weights of an undisturbed training, bit by bit."""
    settings, draw = everything(tmp_path, checkpoint_every=3), random.Random(7)
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["tests.train.toys", "train.loop"])
    for number in range(10):
        heard, said = processes.Pipe(duplex=False)
        process = processes.Process(target=attempt, args=({**settings, "workers": 1 + number % 3}, tmp_path / "killed", said))
        process.start()
        said.close()
        done = [heard.recv() for _ in range(draw.randint(1, 8))]
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL and done[-1] < 60
    train(config(**settings), tmp_path / "killed")
    whole = train(config(**settings), tmp_path / "whole")
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole") and len(losses(tmp_path / "whole")) == 60
    assert weights_digest("toy-conv-32", str(tmp_path / "killed" / "model")) == whole.weights


@pytest.mark.slow
def test_one_process_is_killed_and_two_go_on(tmp_path: Path) -> None:
    settings = everything(tmp_path, model="toy-vit-32", checkpoint_every=4, samples_seen=160)
    train(config(**settings), tmp_path / "one")
    file = tmp_path / "train.yaml"
    file.write_text(json.dumps(settings))
    with subprocess.Popen([*COMMAND, str(file), "--out", str(tmp_path / "two")], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for _ in range(10):
            process.stdout.readline()
        os.kill(process.pid, signal.SIGKILL)
    done = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m",
                           "tests.train.command", str(file), "--out", str(tmp_path / "two")], capture_output=True, text=True,
                          timeout=110, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False)
    assert done.returncode == 0, done.stderr
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert [step for step, _ in two] == [step for step, _ in one] == list(range(1, 21))
    assert [loss for _, loss in two] == pytest.approx([loss for _, loss in one], abs=1e-5)
