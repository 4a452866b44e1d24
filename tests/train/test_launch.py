"""`processes:` starts them on this machine; they train as one, say what one says, and end together."""

import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed

from tests.running import alive, wait_for
from tests.train.toys import SMALL, logged, shard
from train.config import from_mapping
from train.dist import processes
from train.errors import ConfigError, DataError, TrainError
from train.launch import MEETING, launched, together
from train.log import Progress
from train.loop import train


def rank_and_size(say: Any) -> tuple[int, int]:
    """Who am I?"""
    say(os.getpid())
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def mistaken(say: Any) -> None:
    """One makes a mistake, the other one would wait for ever."""
    say(os.getpid())
    if os.environ["RANK"] == "0":
        time.sleep(600)
    raise DataError("no such shard")


def dying(say: Any) -> None:
    """The second one dies."""
    if os.environ["RANK"] == "1":
        os._exit(9)
    time.sleep(600)


@pytest.mark.slow
def test_the_first_one_answers_and_all_are_heard() -> None:
    heard: list[int] = []
    assert together(2, rank_and_size, (), heard.append) == (0, 2)
    assert len(set(heard)) == 2 and not launched()


def in_a_group_of_others(say: Any) -> tuple[float, bool]:
    """Somebody else has opened a process group here, as Ray Train does."""
    torch.distributed.init_process_group("gloo", init_method=os.environ[MEETING], rank=int(os.environ["RANK"]), world_size=2)
    with processes() as ranks:
        mean = ranks.mean(torch.tensor(float(ranks.rank)))
    return mean, torch.distributed.is_initialized()


@pytest.mark.slow
def test_a_process_group_that_is_there_is_taken_and_left() -> None:
    assert together(2, in_a_group_of_others, (), None) == (0.5, True)


@pytest.mark.slow
def test_one_mistake_ends_all() -> None:
    heard: list[int] = []
    with pytest.raises(DataError, match="^no such shard$"):
        together(2, mistaken, (), heard.append)
    wait_for(lambda: not any(alive(pid) for pid in heard))


@pytest.mark.slow
def test_one_death_ends_all() -> None:
    with pytest.raises(TrainError) as error:
        together(2, dying, (), None)
    assert str(error.value) == "process 2 of 2 died (out of memory?); the same command goes on from the last checkpoint"


def test_no_more_than_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with pytest.raises(ConfigError) as error:
        together(3, rank_and_size, (), None)
    assert str(error.value) == "processes: 3 is more than the 2 GPUs of this machine"


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    """With what touches gradients on: layers, locks, dropped activations, chunks that fit, best weights and early stopping."""
    shard(tmp_path / "0.tar", range(48))
    settings = {**SMALL, "model": "curate-vit-64", "data": str(tmp_path / "0.tar"), "batch": 16, "samples_seen": 64,
                "checkpoint_activations": True, "layer_decay": 0.8, "lock": {"text": {"but_last": 0}}, "micro_batch": "auto",
                "memory_mb": 64,
                "eval": {"retrieval": str(tmp_path / "0.tar"), "every": 2, "keep_best": "recall_at_5", "before": True}}
    seen: list[Progress] = []
    two = train(from_mapping({**settings, "processes": 2}), tmp_path / "two", seen.append)
    one = train(from_mapping(settings), tmp_path / "one")
    assert [p.step for p in seen] == list(range(1, 5)) and two.checkpoint == tmp_path / "two" / "model"
    both = zip(logged(tmp_path / "one"), logged(tmp_path / "two"), strict=True)
    pairs = [((a["loss"], a["scale"], a["grad_norm"]), (b["loss"], b["scale"], b["grad_norm"])) for a, b in both if "loss" in a]
    assert len(pairs) == 4 and all(a == pytest.approx(b, rel=2e-3) for a, b in pairs)
    assert two.figures.keys() == one.figures.keys() and "forgetting_recall_at_1" in two.figures
