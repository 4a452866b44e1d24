"""Two processes on this machine train as one does."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.train.toys import SMALL, config, logged, shard
from train.dist import Ranks, processes
from train.errors import ConfigError
from train.loop import train
from train.models.folder import weights_digest


def torchrun(file: Path, out: Path, *sets: str) -> subprocess.CompletedProcess[str]:
    overrides = [word for s in sets for word in ("--set", s)]
    return subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
                           "-m", "tests.train.command", str(file), "--out", str(out), *overrides],
                          capture_output=True, text=True, timeout=110, env={**os.environ, "OMP_NUM_THREADS": "1"})


@pytest.mark.slow
def test_two_ranks_fine_tune_as_one(tmp_path: Path) -> None:
    """A model of one process is tuned for 200 steps by two; every loss is the one that a single process gets."""
    shard(tmp_path / "0.tar", range(48))
    settings = {**SMALL, "model": "toy-vit-32", "data": str(tmp_path / "0.tar"), "batch": 16, "checkpoint_every": 150,
                "eval": {"retrieval": str(tmp_path / "0.tar")}}
    first = train(config(**settings), tmp_path / "first")
    tuning = {**settings, "init": str(first.checkpoint), "samples_seen": 3200, "lr_image": 0.3}
    file = tmp_path / "tune.yaml"
    file.write_text(json.dumps(tuning))
    done = torchrun(file, tmp_path / "two")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("model: ") == 1
    one = train(config(**tuning), tmp_path / "one")
    both = zip(logged(tmp_path / "one"), logged(tmp_path / "two"), strict=True)
    pairs = [(a["loss"], b["loss"]) for a, b in both if "loss" in a]
    assert len(pairs) == 200
    assert all(a == pytest.approx(b, rel=1e-3, abs=1e-3) for a, b in pairs[:20])
    assert sum(b for _, b in pairs[-20:]) / 20 < 0.9 * sum(b for _, b in pairs[:20]) / 20
    card = json.loads((tmp_path / "two" / "model" / "train.json").read_text())
    assert (card["step"], card["samples_seen"], card["init"]) == (200, 3200, first.weights)
    assert card["weights"] == weights_digest("toy-vit-32", str(tmp_path / "two" / "model"))
    assert card["figures"]["recall_at_10"] == pytest.approx(one.figures["recall_at_10"], abs=0.2)


@pytest.mark.slow
def test_two_ranks_with_everything_on(tmp_path: Path) -> None:
    """The sigmoid loss in chunks, and an average that the first process keeps; the second attempt goes on from a checkpoint."""
    shard(tmp_path / "0.tar", range(48))
    settings = {**SMALL, "model": "toy-vit-32", "data": str(tmp_path / "0.tar"), "batch": 16, "samples_seen": 192,
                "loss": "siglip", "micro_batch": 3, "ema": 0.9, "checkpoint_every": 5}
    file = tmp_path / "train.yaml"
    file.write_text(json.dumps(settings))
    done = torchrun(file, tmp_path / "two")
    assert done.returncode == 0, done.stderr
    train(config(**settings), tmp_path / "one")
    both = zip(logged(tmp_path / "one"), logged(tmp_path / "two"), strict=True)
    lines = [[(line["loss"], line["scale"], line["bias"]) for line in pair] for pair in both if "loss" in pair[0]]
    assert len(lines) == 12
    assert all(one == pytest.approx(two, rel=1e-3) for one, two in lines)
    weights = weights_digest("toy-vit-32", str(tmp_path / "two" / "model"))
    shutil.rmtree(tmp_path / "two" / "model")
    assert torchrun(file, tmp_path / "two").returncode == 0
    assert weights_digest("toy-vit-32", str(tmp_path / "two" / "model")) == weights


@pytest.mark.slow
def test_a_mistake_ends_all_ranks(tmp_path: Path) -> None:
    shard(tmp_path / "0.tar", range(16))
    file = tmp_path / "odd.yaml"
    file.write_text(json.dumps({**SMALL, "data": str(tmp_path / "0.tar")}))
    done = torchrun(file, tmp_path / "out", "batch=7")
    assert done.returncode != 0
    assert "batch: 7 does not divide among 2 processes" in done.stderr


def test_alone() -> None:
    with processes() as ranks:
        assert (ranks.rank, ranks.num_ranks, ranks.is_first) == (0, 1, True)
        assert ranks.share(7) == 7


def test_shares() -> None:
    import torch

    ranks = Ranks(1, 4, torch.device("cpu"))
    assert ranks.share(8) == 2
    with pytest.raises(ConfigError) as error:
        ranks.share(9)
    assert str(error.value) == "batch: 9 does not divide among 4 processes"
