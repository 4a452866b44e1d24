"""The best weights, early stopping, what a fine-tuning forgets, and weights between start and end."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.train.toys import config, logged, shard
from train import finish
from train.best import value_of
from train.config import Eval, from_mapping
from train.errors import ConfigError
from train.finish import forgotten
from train.log import Progress
from train.loop import Result, train
from train.models.weights import Loaded, load, tensors_digest
from train.wise import between, table


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(shard(tmp_path_factory.mktemp("shards") / "0.tar", range(24)))


def card(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "train.json").read_text()))


@pytest.fixture
def rising_then_falling(monkeypatch: pytest.MonkeyPatch) -> None:
    """recall_at_1 is a function of the scale, best at one that a training of six steps passes in its middle."""
    def evaluate(loaded: Loaded, settings: Any, batch: int = 64) -> dict[str, float]:
        digest = tensors_digest(loaded.model.state_dict())
        seen.setdefault(digest, len(seen))
        return {"recall_at_1": [0.1, 0.3, 0.2, 0.15, 0.1, 0.05, 0.02][seen[digest]], "alignment": 1.0}

    seen: dict[str, int] = {}
    monkeypatch.setattr("train.step.evaluate", evaluate)
    monkeypatch.setattr("train.finish.evaluate", evaluate)


def settings(shards: str, **more: Any) -> Any:
    chosen = {"retrieval": shards, "every": 1, "keep_best": "recall_at_1", **more.pop("eval", {})}
    return config(data=shards, eval=chosen, checkpoint_every=2, **more)


@pytest.mark.usefixtures("rising_then_falling")
def test_the_best_is_kept_and_exported(shards: str, tmp_path: Path) -> None:
    result = train(settings(shards), tmp_path)
    assert result.figures == {"recall_at_1": 0.3, "alignment": 1.0} and result.steps == 2
    said = card(tmp_path / "model")
    assert (said["step"], said["last_step"], said["chosen_by"]) == (2, 6, "recall_at_1")
    assert card(tmp_path / "best")["weights"] == said["weights"] == result.weights
    assert card(tmp_path / "checkpoints" / "00000006")["weights"] != result.weights


@pytest.mark.usefixtures("rising_then_falling")
@pytest.mark.parametrize("at", [0, 3, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 4))])
def test_it_stops_when_nothing_gets_better_killed_or_not(at: int, shards: str, tmp_path: Path) -> None:
    def kill(progress: Progress) -> None:
        if progress.step == at:
            raise KeyboardInterrupt

    if at:
        with pytest.raises(KeyboardInterrupt):
            train(settings(shards, eval={"stop_after": 2}), tmp_path, kill)
    train(settings(shards, eval={"stop_after": 2}), tmp_path)
    lines = [(line["step"], "loss" in line) for line in logged(tmp_path)]
    assert lines == [(step, is_step) for step in (1, 2, 3, 4) for is_step in (True, False)]
    assert card(tmp_path / "model")["step"] == 2 and card(tmp_path / "model")["last_step"] == 4
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["00000004"]


def test_a_figure_that_is_not_measured(shards: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        train(settings(shards, eval={"keep_best": "recal_at_1"}), tmp_path)
    assert str(error.value) == "eval.keep_best: 'recal_at_1' is not measured; did you mean 'recall_at_1'?"


def test_less_is_better_of_some() -> None:
    figures = {"recall_at_1": 0.5, "alignment": 0.4, "cifar/modality_gap": 0.3}
    assert [value_of(name, figures) for name in figures] == [0.5, -0.4, -0.3]
    assert forgotten({**figures, "gone": 1.0}, {"recall_at_1": 0.25, "alignment": 0.9, "cifar/modality_gap": 0.1}) == {
        "forgetting_recall_at_1": 0.25, "forgetting_alignment": 0.5, "forgetting_cifar/modality_gap": pytest.approx(-0.2)}


# ---- fine-tuning


def test_between_two_sets_of_weights() -> None:
    start = {"w": torch.tensor([0.0, 0.1]), "n": torch.tensor(3)}
    tuned = {"w": torch.tensor([1.0, 0.7]), "n": torch.tensor(9)}
    for alpha, expected in ((0.0, [0.0, 0.1]), (0.25, [0.25, 0.25]), (1.0, [1.0, 0.7])):
        found = between(start, tuned, alpha)
        torch.testing.assert_close(found["w"], torch.tensor(expected))
        assert int(found["n"]) == 9
    assert torch.equal(between(start, tuned, 0.0)["w"], start["w"]) and torch.equal(between(start, tuned, 1.0)["w"], tuned["w"])


def test_the_table_leaves_the_model_as_it_was() -> None:
    model, start = torch.nn.Linear(1, 1, bias=False), {"weight": torch.tensor([[1.0]])}
    torch.nn.init.constant_(model.weight, 3.0)
    rows = table(model, start, (0.0, 0.5, 1.0), lambda: {"weight": model.weight.item()})
    assert rows == [{"alpha": 0.0, "weight": 1.0}, {"alpha": 0.5, "weight": 2.0}, {"alpha": 1.0, "weight": 3.0}]
    assert model.weight.item() == 3.0


def tuned(shards: str, folder: Path, **more: Any) -> tuple[Result, Result]:
    """A training, and a fine-tuning of it."""
    first = train(config(data=shards), folder / "first")
    return first, train(config(data=shards, samples_seen=16, init=str(first.checkpoint), **more), folder / "tuned")


@pytest.mark.slow
def test_weights_between_start_and_end_are_exported(shards: str, tmp_path: Path) -> None:
    first, result = tuned(shards, tmp_path, wise_ft=0.5)
    end = load_file(tmp_path / "tuned" / "checkpoints" / "00000002" / "open_clip_model.safetensors")
    begin = load("toy-conv-32", str(first.checkpoint)).model.state_dict()
    assert tensors_digest(between(begin, end, 0.5)) == result.weights
    assert card(result.checkpoint)["alpha"] == 0.5


@pytest.mark.slow
def test_the_best_of_several_alphas_and_what_was_forgotten(shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = train(config(data=shards), tmp_path / "first")

    def evaluate(loaded: Loaded, settings: Any, batch: int = 64) -> dict[str, float]:
        """Best a quarter of the way from the start."""
        distance = (loaded.model.text_projection - start).norm().item()
        return {"recall_at_1": -abs(distance - best), "distance": distance}

    start, best = load("toy-conv-32", str(first.checkpoint)).model.text_projection.detach(), 1.0
    monkeypatch.setattr("train.step.evaluate", evaluate)
    monkeypatch.setattr(finish, "evaluate", evaluate)
    settings = config(data=shards, samples_seen=16, init=str(first.checkpoint), lr=1e-2, wise_ft=[0, 0.25, 0.5, 1], warmup=0,
                      eval={"retrieval": shards, "keep_best": "recall_at_1", "before": True})
    whole = train(settings, tmp_path / "whole").figures["distance"]
    best = card(tmp_path / "whole" / "model")["wise_ft"][-1]["distance"] / 4
    result = train(settings, tmp_path / "tuned")
    said = card(result.checkpoint)
    assert whole > 0 and [row["alpha"] for row in said["wise_ft"]] == [0.0, 0.25, 0.5, 1.0] and said["alpha"] == 0.25
    assert result.figures["distance"] == pytest.approx(best, rel=1e-3)
    assert said["before"] == {"recall_at_1": -best, "distance": 0.0}
    assert result.figures["forgetting_recall_at_1"] == pytest.approx(-best, rel=1e-3)
    assert [line["alpha"] for line in logged(tmp_path / "tuned") if "alpha" in line] == [0.0, 0.25, 0.5, 1.0]
    assert logged(tmp_path / "tuned")[0] == {"step": 0, **said["before"]}


@pytest.mark.slow
def test_figures_before_survive_a_kill(shards: str, tmp_path: Path) -> None:
    first = train(config(data=shards), tmp_path / "first")
    settings = config(data=shards, samples_seen=32, init=str(first.checkpoint), checkpoint_every=2,
                      eval={"retrieval": shards, "before": True})

    def kill(progress: Progress) -> None:
        if progress.step == 3:
            raise KeyboardInterrupt

    whole = train(settings, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(settings, tmp_path / "killed", kill)
    (tmp_path / "killed" / "before.json").unlink()
    assert train(settings, tmp_path / "killed") == replace(whole, checkpoint=tmp_path / "killed" / "model")
    assert card(tmp_path / "killed" / "model") == card(tmp_path / "whole" / "model")
    before = card(whole.checkpoint)["before"]
    assert whole.figures["forgetting_recall_at_1"] == before["recall_at_1"] - whole.figures["recall_at_1"]


@pytest.mark.parametrize(("more", "message"), [
    ({"wise_ft": 0.5}, "wise_ft: needs init, the weights that a fine-tuning starts from"),
    ({"wise_ft": [0, 1], "init": "x"}, "wise_ft: several shares need eval.keep_best, the figure that chooses one"),
    ({"wise_ft": [0, 2], "init": "x"}, "wise_ft: 2 is not a number from 0 to 1"),
    ({"wise_ft": [], "init": "x"}, "wise_ft: [] names no share from 0 to 1"),
    ({"eval": {"keep_best": "recall_at_1"}},
     "eval: keep_best and before need something to measure: retrieval, captions, images or benchmarks"),
    ({"eval": {"retrieval": "x", "stop_after": 2}},
     "eval: stop_after needs keep_best, the figure that stops getting better, and every"),
    ({"spike": 6}, "spike: 6 is not a map like {z: 6, window: 100}"),
    ({"spike": {"zz": 6}}, "spike: no setting 'zz'; did you mean 'z'?"),
    ({"spike": {"window": 3}}, "spike: 3 is not a whole number of 10 or more"),
    ({"lock": {"image": "some"}}, "lock: 'some' is neither all nor {but_last: N}, N whole and 0 or more"),
    ({"lock": {"images": "all"}}, "lock: no setting 'images'; did you mean 'image'?"),
    ({"lock": "all"}, "lock: 'all' is not a map like {image: all} or {text: {but_last: 2}}"),
    ({"layer_decay": 0}, "layer_decay: 0 is not a number above 0 and at most 1"),
])
def test_mistakes(more: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        from_mapping({"data": "x", "samples_seen": 1, **more})
    assert str(error.value) == message


def test_defaults_are_no_part_of_what_a_training_is() -> None:
    """Trainings from before there were these settings are known as the same."""
    plain = from_mapping({"data": "x", "samples_seen": 1}).identity()
    assert not {"lock", "layer_decay", "spike", "wise_ft", "patch_dropout", "compile", "memory_mb"} & plain.keys()
    assert not {"keep_best", "stop_after", "before"} & plain["eval"].keys()
    changed = from_mapping({"data": "x", "samples_seen": 1, "lock": {"image": "all"}, "spike": {}}).identity()
    assert (changed["lock"], changed["spike"]) == ({"image": "all", "text": None}, {"z": 6.0, "window": 100})


def test_weights_in_between_are_measured_as_they_are_used(shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not in training mode, also where `stop_after` ended the steps."""
    train(settings(shards, samples_seen=16), tmp_path / "start")
    real, modes = finish.evaluate, []

    def watched(loaded: Loaded, asked: Eval) -> dict[str, float]:
        modes.append(loaded.model.training)
        return real(loaded, asked)

    monkeypatch.setattr(finish, "evaluate", watched)
    more = {"init": str(tmp_path / "start" / "model"), "wise_ft": [0, 0.5, 1]}
    train(settings(shards, eval={"stop_after": 1, "every": 1, "keep_best": "modality_gap"}, **more), tmp_path / "out")
    assert modes and not any(modes)
