"""A suspect batch is named, passed over, and bounded; killed at any step the training is the same."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.train.toys import caption, config, encoded, logged, scene, shard, table, write_tar
from train.choices import Spike
from train.config import Data
from train.data import open_data
from train.errors import Diverged
from train.log import Progress
from train.loop import train
from train.objectives import OBJECTIVES
from train.objectives.contrastive import Clip
from train.order import make_order
from train.suspects import Suspects, named
from train.watch import Suspect, Watch, robust_z


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(shard(tmp_path_factory.mktemp("shards") / "0.tar", range(24)))


def fake(monkeypatch: pytest.MonkeyPatch, factor: float, *bad: int) -> None:
    """The loss of every batch that holds one of these pictures is multiplied by `factor`."""
    class Poisoned(Clip):
        def forward(self, pixels_NCHW: Any, tokens_NL: Any, pictures_N: Any) -> Any:
            self.factor = factor if set(bad) & set(pictures_N.tolist()) else 1.0
            return super().forward(pixels_NCHW, tokens_NL, pictures_N)

        def contrast(self, embedded: Any, ranks: Any) -> Any:
            return super().contrast(embedded, ranks) * self.factor

    monkeypatch.setitem(OBJECTIVES, "clip", Poisoned)


def first_steps_of(shards: str, picture: int) -> list[int]:
    """The steps, from 1, that show a picture in two epochs of three steps."""
    settings = config(data=shards)
    order = make_order(open_data(settings.data), settings)
    return [step + 1 for step in range(6) if picture in order.pictures(step).tolist()]


def losses(out: Path) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in logged(out) if "loss" in line]


# ---- what is suspect


def test_robust_deviations() -> None:
    assert robust_z(10, [1, 2, 3, 4, 100]) == pytest.approx((10 - 3) / 1.4826)
    assert robust_z(2.06, [2, 2, 2]) == pytest.approx(3)        # a hundredth of the median at least
    assert robust_z(1, [1, 1]) == 0


def test_a_spike_needs_a_full_window() -> None:
    watch = Watch(Spike(z=6, window=10))
    for step in range(9):
        watch.check(step, 100.0 if step == 3 else 2 + step / 100, 1.0)
    watch.check(9, 50.0, 1.0)
    usual = watch.state
    with pytest.raises(Suspect, match=r"^the loss is 3, \d+\.\d deviations above the last 10$") as suspect:
        watch.check(10, 3.0, 1.0)
    assert suspect.value.step == 10 and watch.state == usual
    watch.check(10, 0.1, 1.0)       # far below is no harm
    assert watch.state["losses"] == [*usual["losses"][1:], 0.1]


@pytest.mark.parametrize(("loss", "norm", "reason"), [
    (math.nan, 1.0, "the loss is nan"), (math.inf, 1.0, "the loss is inf"), (1.0, math.nan, "the gradient's norm is nan")])
def test_what_is_no_number_is_always_suspect(loss: float, norm: float, reason: str) -> None:
    with pytest.raises(Suspect, match=f"^{reason}$"):
        Watch(None).check(0, loss, norm)
    assert Watch(None).state == {}


# ---- a training


def test_a_bad_picture_is_named_and_its_batches_passed_over(shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = first_steps_of(shards, 5)
    assert len(bad) == 2
    fake(monkeypatch, math.nan, 5)
    result = train(config(data=shards, checkpoint_every=2), tmp_path)
    assert [step for step, _ in losses(tmp_path)] == [step for step in range(1, 7) if step not in bad]
    assert [line["step"] for line in logged(tmp_path) if line.get("skipped")] == bad
    lines = [json.loads(line) for line in (tmp_path / "suspects.jsonl").read_text().splitlines()]
    assert [(line["step"], line["reason"], len(line["pictures"])) for line in lines] == [(n, "the loss is nan", 8) for n in bad]
    assert all(any(p["uids"] == ["000000005"] for p in line["pictures"]) for line in lines)
    card = json.loads((result.checkpoint / "train.json").read_text())
    assert (card["skipped_steps"], card["step"]) == (bad, 6)


@pytest.mark.slow
def test_a_spike_is_passed_over(shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = {step for picture in (5,) for step in first_steps_of(shards, picture)}
    fake(monkeypatch, 50, 5)
    settings = config(data=shards, samples_seen="8 epochs", spike={"z": 6, "window": 10}, rollbacks=9, checkpoint_every=5)
    train(settings, tmp_path)
    skipped = [line["step"] for line in logged(tmp_path) if line.get("skipped")]
    assert skipped and min(skipped) > 10 and not steps & set(skipped)
    assert all(loss < 10 for step, loss in losses(tmp_path) if step > 10)


@pytest.mark.parametrize("at", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_before_or_after_it_is_the_same(at: int, shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(monkeypatch, math.nan, 5)
    settings = config(data=shards, checkpoint_every=2, keep=3, spike={}, ema=0.9)
    whole = train(settings, tmp_path / "whole")

    def kill(progress: Progress) -> None:
        if progress.step >= at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(settings, tmp_path / "killed", kill)
    assert train(settings, tmp_path / "killed") == replace(whole, checkpoint=tmp_path / "killed" / "model")
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    for name in ("suspects.jsonl", *(f"checkpoints/0000000{n}/{file}" for n in (2, 4, 6) for file in (
            "train.json", "open_clip_model.safetensors", "learning.safetensors", "optimizer.safetensors"))):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_too_many_end_it_and_again(shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(monkeypatch, math.nan, *range(24))
    for _ in range(2):      # the same command says the same, and learns nothing from a longer list
        with pytest.raises(Diverged) as error:
            train(config(data=shards, rollbacks=2), tmp_path)
        assert str(error.value) == (f"step 3: the loss is nan after 2 rollbacks; its pictures are in {tmp_path}/suspects.jsonl; "
                                    "try a lower lr than 0.001 or a longer warmup than 0.05")
    assert len((tmp_path / "suspects.jsonl").read_text().splitlines()) == 3
    assert not (tmp_path / "model").exists()


def test_suspects_of_another_training_do_not_count(tmp_path: Path) -> None:
    """With no checkpoint yet, other settings may train in the same folder."""
    first, second = Suspects(tmp_path, {"lr": 1}), Suspects(tmp_path, {"lr": 2})
    first.add(Suspect(4, "the loss is nan"), 0, [])
    first.add(Suspect(2, "the loss is nan"), 0, [])
    second.add(Suspect(1, "the loss is nan"), 0, [])
    assert (first.steps, second.steps) == ([2, 4], [1])


def test_uids_come_from_where_the_data_has_them(tmp_path: Path) -> None:
    meta = json.dumps({"uid": "f" * 32}).encode()
    write_tar(tmp_path / "0.tar", [("a.png", encoded(scene(0))), ("a.txt", b"a"), ("a.json", meta),
                                   ("b.png", encoded(scene(1))), ("b.txt", b"b")])
    rows = table(tmp_path, range(2), {1: [caption(1), "another"]})
    data = Data(sources=(Data(shards=(str(tmp_path / "*.tar"),)), Data(table=(str(rows),), root=str(tmp_path))))
    found = named(data, open_data(data), [3, 0, 1])
    assert [p["uids"] for p in found] == [[f"{1:032x}"] * 2, ["f" * 32], ["b"]]
    assert found[1]["place"] == f"{tmp_path}/0.tar@512"


def test_nothing_is_left_of_the_gradients(shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A training that starts past a bad first batch is the one that had never met it."""
    fake(monkeypatch, math.nan, *range(24))
    with pytest.raises(Diverged):
        train(config(data=shards, rollbacks=0), tmp_path / "a")
    monkeypatch.undo()
    resumed = train(config(data=shards, rollbacks=1), tmp_path / "a")
    assert [step for step, _ in losses(tmp_path / "a")] == [2, 3, 4, 5, 6]
    assert resumed.steps == 6 and torch.isfinite(torch.tensor(losses(tmp_path / "a")[-1][1]))
