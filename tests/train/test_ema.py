"""The moving average of the weights: exact, what is evaluated and exported, and the same after a kill."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.train.toys import Killed, config, logged, shard
from train.config import Data
from train.data import open_data
from train.ema import Average, decay_at
from train.evaluate import evaluate_retrieval
from train.log import Progress
from train.loop import train
from train.models.weights import load, tensors_digest


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(shard(tmp_path_factory.mktemp("shards") / "0.tar", range(24)))


def test_what_it_keeps_of_itself() -> None:
    assert [decay_at(n, 0.999) for n in (1, 8, 90)] == [2 / 11, 0.5, 0.91]
    assert decay_at(10**6, 0.999) == 0.999
    assert decay_at(1, 0.1) == 0.1


def test_the_average_of_three_steps() -> None:
    loaded = load("toy-conv-32", "random:0")
    average = Average(loaded, 0.3)
    model, mine = loaded.model, average.loaded.model
    frozen = model.visual.conv1.weight.clone()
    expected, running = model.logit_scale.double().detach(), model.visual.bn1.running_mean.double()
    for step in range(1, 4):
        with torch.no_grad():
            model.logit_scale.add_(0.5)
            model.visual.bn1.running_mean.add_(step)
            model.visual.bn1.num_batches_tracked.add_(2)
        average.update(step)
        kept = (2 / 11, 3 / 12, 0.3)[step - 1]
        expected = kept * expected + (1 - kept) * model.logit_scale.double().detach()
        running = kept * running + (1 - kept) * model.visual.bn1.running_mean.double()
    assert mine.logit_scale.item() == pytest.approx(expected.item(), rel=1e-6)
    torch.testing.assert_close(mine.visual.bn1.running_mean.double(), running, rtol=1e-6, atol=1e-6)
    assert int(mine.visual.bn1.num_batches_tracked) == 6
    assert torch.equal(mine.visual.conv1.weight, frozen) and torch.equal(model.visual.conv1.weight, frozen)


def test_it_is_exported_and_evaluated_and_changes_no_step(shards: str, tmp_path: Path) -> None:
    settings = config(data=shards, samples_seen=24, checkpoint_every=1, keep=9, eval={"retrieval": shards})
    plain = train(settings, tmp_path / "plain")
    result = train(replace(settings, ema=0.6), tmp_path / "averaged")
    losses = [[line.get("loss") for line in logged(tmp_path / out)] for out in ("averaged", "plain")]
    assert losses[0] == losses[1]
    folders = sorted((tmp_path / "averaged" / "checkpoints").iterdir())
    assert tensors_digest(load_file(folders[-1] / "learning.safetensors")) == plain.weights

    source = load("toy-conv-32", "random:0")
    average = Average(source, 0.6)
    for number, folder in enumerate(folders, 1):
        source.model.load_state_dict(load_file(folder / "learning.safetensors"))
        average.update(number)
        digest = tensors_digest(average.loaded.model.state_dict())
        assert digest == json.loads((folder / "train.json").read_text())["weights"] != plain.weights
    assert result.weights == digest
    again = load("toy-conv-32", str(result.checkpoint))
    assert result.figures == evaluate_retrieval(again, open_data(Data(shards=(shards,))))
    assert not (result.checkpoint / "learning.safetensors").exists()


@pytest.mark.slow
def test_killed_and_resumed_equals_undisturbed(shards: str, tmp_path: Path) -> None:
    """With everything on: average, sigmoid loss, chunks."""
    settings = config(data=shards, samples_seen=32, checkpoint_every=2, keep=2, ema=0.9, loss="siglip", micro_batch=3)
    whole = train(settings, tmp_path / "whole")

    def kill(progress: Progress) -> None:
        if progress.step == 3:
            raise Killed

    with pytest.raises(Killed):
        train(settings, tmp_path / "killed", kill)
    assert train(settings, tmp_path / "killed") == replace(whole, checkpoint=tmp_path / "killed" / "model")
    for name in ("model", "checkpoints/00000002", "checkpoints/00000004"):
        for file in (tmp_path / "whole" / name).iterdir():
            assert file.read_bytes() == (tmp_path / "killed" / name / file.name).read_bytes()
