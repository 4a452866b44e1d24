"""A training that is finished is known without torch, by settings, start and data; where that can't be sure it says nothing."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.train.toys import SMALL, config, shard
from train import purpose
from train.errors import ConfigError, DataError
from train.files import read_json, write_json
from train.loop import Result, train
from train.purpose import finished_before


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(shard(tmp_path_factory.mktemp("shards") / "0.tar", range(24)))


@pytest.fixture(scope="module")
def done(shards: str, tmp_path_factory: pytest.TempPathFactory) -> Result:
    """A finished training from random weights."""
    return train(config(data=shards), tmp_path_factory.mktemp("done"))


def test_it_is_known_by_name(shards: str, done: Result) -> None:
    out = done.checkpoint.parent
    assert finished_before(config(data=shards, workers=1), out) == read_json(out / "model/train.json")


def test_nothing_is_known_of_an_empty_folder(shards: str, tmp_path: Path) -> None:
    assert finished_before(config(data=shards), tmp_path) is None


@pytest.mark.parametrize(("more", "what"), [
    ({"lr": 2e-3}, "lr: 0.001 there, 0.002 now"), ({"batch": 12}, "batch: 8 there, 12 now")])
def test_another_training_is_refused(more: dict[str, Any], what: str, shards: str, done: Result) -> None:
    with pytest.raises(ConfigError, match=f"holds another training .{what}.; choose another --out"):
        finished_before(config(data=shards, **more), done.checkpoint.parent)


def test_other_data_is_refused(done: Result, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds another training .other data.;"):
        finished_before(config(data=str(shard(tmp_path / "0.tar", range(1, 25)))), done.checkpoint.parent)
    with pytest.raises(DataError, match="no file matches"):
        finished_before(config(data=str(tmp_path / "none.tar")), done.checkpoint.parent)


def test_only_torch_can_tell(shards: str, done: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other libraries may make other random weights, a tag may name what the card does not, and an older card names nothing."""
    out = done.checkpoint.parent
    assert finished_before(config(data=shards, init="laion2b_s34b_b79k"), out) is None
    assert finished_before(config(data=shards, seed=1), out) is None
    card = read_json(out / "model/train.json") or {}
    write_json(tmp_path / "model/train.json", {name: value for name, value in card.items() if name != "start"})
    assert finished_before(config(data=shards), tmp_path) is None
    monkeypatch.setattr(purpose, "versions", lambda: "torch 1.0")
    assert finished_before(config(data=shards), out) is None


def test_a_folder_of_weights_is_known_by_its_content(shards: str, done: Result, tmp_path: Path) -> None:
    first = config(data=shards, init=str(done.checkpoint))
    train(first, tmp_path / "tuned")
    card = read_json(tmp_path / "tuned/model/train.json") or {}
    assert finished_before(first, tmp_path / "tuned") == card and "start" not in card
    other = train(config(data=shards, seed=1), tmp_path / "other").checkpoint
    assert finished_before(config(data=shards, init=str(other)), tmp_path / "tuned") is None
    assert finished_before(config(data=shards, init=str(other / "open_clip_model.safetensors")), tmp_path / "tuned") is None


def test_nobody_waits_for_torch(shards: str, done: Result, tmp_path: Path) -> None:
    """`python -m train` of what is finished says so, with its figures."""
    (tmp_path / "s.yaml").write_text(json.dumps({**SMALL, "data": shards}))
    code = ("import sys; from train.__main__ import main; "
            f"assert main([{str(tmp_path / 's.yaml')!r}, '--out', {str(done.checkpoint.parent)!r}]) == 0; "
            "assert not {'torch', 'open_clip', 'transformers'} & set(sys.modules)")
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert said.splitlines() == ["it was finished before, and nothing is trained", f"model: {done.checkpoint}"]
