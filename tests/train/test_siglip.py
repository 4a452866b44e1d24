"""Training with the sigmoid loss: where scale and bias start, that both learn, and that open_clip reads what comes out."""

import math
import shutil
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.train.toys import config, logged, shard
from train.loop import Result, train
from train.models.clip import with_bias
from train.models.weights import load
from train.optim import make_optimizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`0.tar`, and `run`: a training on it."""
    found = tmp_path_factory.mktemp("siglip")
    shard(found / "0.tar", range(24))
    trained(found, "run")
    return found


def trained(folder: Path, out: str, **more: object) -> Result:
    settings = {"data": str(folder / "0.tar"), "model": "toy-vit-32", "loss": "siglip", "samples_seen": "8 epochs", "lr": 3e-3}
    return train(config(**{**settings, **more}), folder / out)


def steps(out: Path) -> list[dict[str, float]]:
    return [line for line in logged(out) if "loss" in line]


def test_it_starts_as_published_and_learns(folder: Path) -> None:
    lines = steps(folder / "run")
    assert (lines[0]["scale"], lines[0]["bias"]) == (pytest.approx(10), -10)
    assert sum(line["loss"] for line in lines[-4:]) < 0.8 * sum(line["loss"] for line in lines[:4])
    assert lines[-1]["scale"] != lines[0]["scale"] and lines[-1]["bias"] != -10


def test_open_clip_reads_the_model(folder: Path) -> None:
    path = folder / "run" / "model"
    ours = load("toy-vit-32", str(path)).model
    by_folder, _, _ = open_clip.create_model_and_transforms(f"local-dir:{path}")
    by_file, _, _ = open_clip.create_model_and_transforms(
        "toy-vit-32", pretrained=str(path / "open_clip_model.safetensors"), init_logit_bias=0)
    for model in (ours, by_folder, by_file):
        assert model.logit_bias.item() == pytest.approx(steps(folder / "run")[-1]["bias"], abs=0.01)
        assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), ours.state_dict().values(), strict=True))
    features = by_folder(torch.zeros(1, 3, 32, 32), torch.ones(1, 12, dtype=torch.int64))
    assert len(features) == 4


def test_the_towers_start_as_with_clips_loss() -> None:
    plain, biased = (load("toy-vit-32", "random:3") for _ in range(2))
    found = with_bias(biased)
    assert (math.exp(found.model.logit_scale.item()), found.model.logit_bias.item()) == (pytest.approx(10), -10)
    assert found.config == {**plain.config, "init_logit_scale": math.log(10), "init_logit_bias": -10.0}
    differ = {name for name, tensor in found.model.state_dict().items()
              if name not in plain.model.state_dict() or not torch.equal(tensor, plain.model.state_dict()[name])}
    assert differ == {"logit_scale", "logit_bias"}


def test_a_models_own_bias_and_scale_stay(folder: Path) -> None:
    first = steps(folder / "run")[-1]
    tuned = trained(folder, "tuned", init=str(folder / "run" / "model"), samples_seen=16, lr=1e-6)
    line = steps(folder / "tuned")[0]
    assert (line["scale"], line["bias"]) == (pytest.approx(first["scale"], rel=1e-3), pytest.approx(first["bias"], rel=1e-3))
    assert load("toy-vit-32", str(tuned.checkpoint)).model.logit_bias is not None


def test_the_bias_does_not_learn_from_a_softmax(folder: Path) -> None:
    model = load("toy-vit-32", str(folder / "run" / "model")).model
    optimizer = make_optimizer(model, config(data="x"))
    assert not model.logit_bias.requires_grad
    assert not any(p is model.logit_bias for group in optimizer.param_groups for p in group["params"])
    result = trained(folder, "softmax", init=str(folder / "run" / "model"), loss="clip", micro_batch=3, samples_seen=16)
    assert load("toy-vit-32", str(result.checkpoint)).model.logit_bias.item() == model.logit_bias.item()


def test_only_clips_scale_has_a_limit(folder: Path) -> None:
    """Published SigLIP models have scales above 100."""
    steep = shutil.copytree(folder / "run" / "model", folder / "steep")
    tensors = load_file(steep / "open_clip_model.safetensors")
    save_file({**tensors, "logit_scale": torch.tensor(math.log(117))}, steep / "open_clip_model.safetensors")
    for loss, expected in (("siglip", 117.0), ("clip", 100.0)):
        trained(folder, f"steep-{loss}", init=str(steep), loss=loss, samples_seen=16, lr=1e-6)
        assert steps(folder / f"steep-{loss}")[-1]["scale"] == pytest.approx(expected, rel=1e-3)


def test_a_config_that_says_a_bias_and_no_scale_starts_at_both() -> None:
    """As open_clip's SigLIP models do, whose scale would else be a softmax's."""
    loaded = load("toy-vit-32", "random")
    loaded.model.logit_bias = torch.nn.Parameter(torch.tensor(-10.0))
    for fresh, scale in ((False, 1 / 0.07), (True, 10.0)):
        found = with_bias(loaded, fresh=fresh).model
        assert (found.logit_scale.exp().item(), found.logit_bias.item()) == (pytest.approx(scale, rel=1e-4), -10.0)
