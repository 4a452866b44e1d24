"""Layers of towers: their numbers, what each learns, and what stays exactly as it was."""

from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch

from tests.train.toys import config, shard
from train.errors import ConfigError
from train.layers import Layers, shares, still, tower
from train.loop import train
from train.models.weights import load

VIT = ["visual.class_embedding", "visual.positional_embedding", "visual.conv1.weight", "visual.ln_pre.weight",
       *(f"visual.transformer.resblocks.{n}.mlp.c_fc.weight" for n in range(12)), "visual.ln_post.bias", "visual.proj",
       "token_embedding.weight", "positional_embedding", *(f"transformer.resblocks.{n}.ln_1.weight" for n in range(3)),
       "ln_final.weight", "text_projection", "logit_scale"]


def test_numbers_of_layers() -> None:
    images, texts = Layers("image", VIT, "lock"), Layers("text", VIT, "lock")
    assert (images.num_blocks, texts.num_blocks) == (12, 3)
    assert [images.of(name) for name in VIT[:4]] == [0, 0, 0, 0]
    assert [images.of(name) for name in VIT[4:16]] == list(range(1, 13))
    assert [images.of(name) for name in VIT[16:18]] == [13, 13]
    assert [texts.of(name) for name in VIT[18:25]] == [0, 0, 1, 2, 3, 4, 4]


def test_a_resnet_has_stages_and_a_custom_text_tower_blocks() -> None:
    names = ["visual.conv1.weight", "visual.bn3.bias", "visual.layer1.0.conv1.weight", "visual.layer4.2.bn1.weight",
             "visual.attnpool.q_proj.weight", "text.token_embedding.weight", "text.transformer.resblocks.1.ln_1.bias",
             "text.text_projection", "text_decoder.resblocks.0.ln_1.bias"]
    images, texts = Layers("image", names, "lock"), Layers("text", names, "lock")
    assert [images.of(name) for name in names[:5]] == [0, 0, 1, 4, 5]
    assert [texts.of(name) for name in names[5:]] == [0, 2, 3, 3]


@pytest.mark.parametrize("model", ["toy-conv-32", "toy-vit-32", "coca_ViT-B-32", "RN50", "ViT-B-32-SigLIP2-256"])
def test_every_parameter_of_a_model_has_a_layer_or_the_setting_is_refused(model: str) -> None:
    with torch.device("meta"):
        names = [name for name, _ in open_clip.create_model(model, device="meta", load_weights=False).named_parameters()]
    if "SigLIP2" in model:
        with pytest.raises(ConfigError) as error:
            shares(names, config(data="x", layer_decay=0.5))
        assert str(error.value).startswith("layer_decay: no layers are known of this model's image tower (it has visual.trunk.")
    else:
        found = shares(names, config(data="x", layer_decay=0.5))
        assert set(found) == set(names) and min(found.values()) < max(found.values()) == 1.0


def test_shares_of_the_learning_rate() -> None:
    found = shares(VIT, config(data="x", layer_decay=0.5, lr_text=0.1))
    assert (found["visual.proj"], found["logit_scale"], found["text_projection"]) == (1.0, 1.0, 0.1)
    assert (found["visual.transformer.resblocks.11.mlp.c_fc.weight"], found["visual.conv1.weight"]) == (0.5, 0.5**13)
    assert found["token_embedding.weight"] == pytest.approx(0.1 * 0.5**4)


@pytest.mark.parametrize(("lock", "learn"), [
    ({"image": "all"}, {"image": set()}),
    ({"image": {"but_last": 2}}, {"image": {11, 12, 13}}),
    ({"image": {"but_last": 0}, "text": "all"}, {"image": {13}, "text": set()}),
    ({"text": {"but_last": 3}}, {"text": {1, 2, 3, 4}})])
def test_what_is_locked(lock: dict[str, Any], learn: dict[str, set[int]]) -> None:
    found = shares(VIT, config(data="x", lock=lock))
    for which in ("image", "text"):
        layers = Layers(which, VIT, "lock")
        numbers = {layers.of(name) for name, share in found.items() if share and tower(name) == which}
        assert numbers == learn.get(which, set(range(layers.num_blocks + 2)))
    assert found["logit_scale"] == 1


def test_more_blocks_than_there_are() -> None:
    with pytest.raises(ConfigError) as error:
        shares(VIT, config(data="x", lock={"text": {"but_last": 4}}))
    assert str(error.value) == "lock: text: but_last: 4 is more than the tower's 3 blocks"


def test_locked_parts_stay_in_evaluation_mode() -> None:
    """Their batch normalisation is frozen; that of the parts that learn is not."""
    model = load("toy-conv-32", "random:0").model.train()
    settings = config(data="x", lock={"image": {"but_last": 2}})
    for name, share in shares([n for n, _ in model.named_parameters()], settings).items():
        model.get_parameter(name).requires_grad_(share > 0)
    still(model)
    assert not model.visual.bn1.training and not model.visual.layer1.training and not model.visual.layer2[0].bn1.training
    assert model.visual.training and model.visual.layer3.training and model.visual.layer4[0].bn1.training
    assert model.transformer.training


def test_a_training_leaves_what_is_locked_as_it_was(tmp_path: Path) -> None:
    data = str(shard(tmp_path / "0.tar", range(24)))
    start = load("toy-conv-32", "random:0").model.state_dict()
    result = train(config(data=data, lock={"image": {"but_last": 1}, "text": "all"}, layer_decay=0.9, micro_batch=4),
                   tmp_path / "run")
    end = load("toy-conv-32", str(result.checkpoint)).model.state_dict()
    changed = {name for name in start if not torch.equal(start[name], end[name])}
    assert "visual.layer4.0.bn1.running_mean" in changed and "visual.attnpool.k_proj.weight" in changed
    assert all(name == "logit_scale" or name.startswith(("visual.layer4.", "visual.attnpool.")) for name in changed)
