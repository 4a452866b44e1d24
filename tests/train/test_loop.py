"""Training itself: it learns, it is the same twice, and killed at any step it goes on as if nothing had happened."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch

from tests.train.toys import (
    SMALL,
    Killed,
    caption,
    config,
    encoded,
    img2dataset_shard,
    logged,
    pairs,
    scene,
    shard,
    table,
    write_tar,
)
from train import loop
from train.__main__ import main
from train.config import Config, Data, Eval
from train.errors import ConfigError, DataError, Diverged, WeightsError
from train.log import Log, Progress, duration
from train.loop import train
from train.models.folder import weights_digest
from train.models.weights import load
from train.objectives import contrastive
from train.optim import learning_rate, make_optimizer


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("shards")
    for number in range(2):
        shard(folder / f"{number:05d}.tar", range(number * 12, number * 12 + 12))
    return str(folder / "*.tar")


def losses(out: Path) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in logged(out) if "loss" in line]


def test_what_comes_out(shards: str, tmp_path: Path) -> None:
    seen: list[Progress] = []
    result = train(config(data=shards, eval={"retrieval": shards, "every": 4}), tmp_path, seen.append)
    assert (result.steps, result.samples_seen) == (6, 48)
    assert result.checkpoint == tmp_path / "model"
    assert {"recall_at_1", "recall_at_5", "recall_at_10"} <= set(result.figures)
    assert sorted(p.name for p in result.checkpoint.iterdir()) == [
        "open_clip_config.json", "open_clip_model.safetensors", "train.json"]
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["00000006"]
    card = json.loads((result.checkpoint / "train.json").read_text())
    assert card["weights"] == result.weights == weights_digest("toy-conv-32", str(result.checkpoint))
    assert card["data"] == {"digest": result.data, "pictures": 24, "captions": 24}
    assert card["figures"] == result.figures
    lines = logged(tmp_path)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 4, 5, 6, 6]
    assert {"loss", "scale", "lr", "grad_norm", "samples_seen", "samples_per_second", "epoch"} <= set(lines[0])
    assert [p.step for p in seen] == [1, 2, 3, 4, 5, 6]
    open_clip.create_model_and_transforms("toy-conv-32", pretrained=str(result.checkpoint / "open_clip_model.safetensors"))


def test_a_finished_training_is_not_done_again(shards: str, tmp_path: Path) -> None:
    first = train(config(data=shards), tmp_path)
    stamp = (first.checkpoint / "train.json").stat().st_mtime_ns
    assert train(config(data=shards, workers=1), tmp_path) == first
    assert (first.checkpoint / "train.json").stat().st_mtime_ns == stamp
    with pytest.raises(ConfigError) as error:
        train(config(data=shards, lr=2e-3), tmp_path)
    assert str(error.value) == (f"{tmp_path}/model holds another training (lr: 0.001 there, 0.002 now); "
                                "choose another --out, or remove it")
    with pytest.raises(ConfigError, match="other data"):
        train(config(data=[str(p) for p in Path(shards).parent.glob("00000.tar")]), tmp_path)


@pytest.mark.parametrize("model", ["toy-conv-32", "toy-vit-32"])
def test_the_same_twice_whatever_the_workers(model: str, shards: str, tmp_path: Path) -> None:
    results = [train(config(data=shards, model=model, workers=workers, cache_mb=cache), tmp_path / str(workers))
               for workers, cache in ((1, 0), (4, 100))]
    assert results[0].weights == results[1].weights
    assert losses(tmp_path / "1") == losses(tmp_path / "4")
    assert train(config(data=shards, model=model, seed=1), tmp_path / "seed").weights != results[0].weights


@pytest.mark.parametrize(("model", "at"), [("toy-conv-32", 1), ("toy-conv-32", 4), ("toy-conv-32", 5), ("toy-vit-32", 3)])
def test_killed_and_resumed_equals_undisturbed(model: str, at: int, shards: str, tmp_path: Path,
                                               monkeypatch: pytest.MonkeyPatch) -> None:
    settings = config(data=shards, model=model, checkpoint_every=2, keep=2)
    whole = train(settings, tmp_path / "whole")

    def kill(progress: Progress) -> None:
        if progress.step == at:
            raise Killed

    with pytest.raises(Killed):
        train(settings, tmp_path / "killed", kill)
    seen: list[Progress] = []
    resumed = train(settings, tmp_path / "killed", seen.append)
    assert seen[0].step == (at - 1) // 2 * 2 + 1
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    assert resumed == replace(whole, checkpoint=tmp_path / "killed" / "model")
    for name in ("model", "checkpoints/00000004", "checkpoints/00000006"):
        for file in (tmp_path / "whole" / name).iterdir():
            assert file.read_bytes() == (tmp_path / "killed" / name / file.name).read_bytes()


def test_a_checkpoint_is_whole_or_absent(shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed while the second checkpoint is written: the first stays, and what is half there is swept."""
    settings = config(data=shards, checkpoint_every=2)
    real = loop.checkpoint.write_model
    written: list[Path] = []

    def dying(folder: Path, loaded: Any) -> str:
        written.append(folder)
        digest = real(folder, loaded)
        if len(written) == 2:
            # A killed process cleans nothing up.
            monkeypatch.setattr("train.files.shutil.rmtree", lambda *args, **kwargs: None)
            raise Killed
        return digest

    monkeypatch.setattr(loop.checkpoint, "write_model", dying)
    with pytest.raises(Killed):
        train(settings, tmp_path)
    monkeypatch.undo()
    names = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert len(names) == 2 and names[0].startswith(".00000004.") and names[1] == "00000002"
    train(settings, tmp_path)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["00000006"]


def test_it_learns(tmp_path: Path) -> None:
    shard(tmp_path / "0.tar", range(96))
    result = train(config(data=str(tmp_path / "0.tar"), samples_seen="12 epochs", batch=24, lr=3e-3), tmp_path / "run")
    found = [loss for _, loss in losses(tmp_path / "run")]
    assert sum(found[:4]) / 4 > 3.0 and sum(found[-4:]) / 4 < 2.6
    assert result.samples_seen == 12 * 96


def test_several_captions_and_a_table_of_uids(tmp_path: Path) -> None:
    path = table(tmp_path, range(16), {n: [caption(n), f"one {caption(n)[2:]}"] for n in range(16)})
    result = train(config(data={"table": str(path), "root": str(tmp_path)}), tmp_path / "run")
    card = json.loads((result.checkpoint / "train.json").read_text())
    assert (card["data"]["pictures"], card["data"]["captions"], card["step"]) == (16, 32, 4)


def test_somebody_elses_webdataset(tmp_path: Path) -> None:
    img2dataset_shard(tmp_path / "00000.tar", range(20))
    result = train(config(data=str(tmp_path / "*.tar"), eval={"retrieval": str(tmp_path / "*.tar")}), tmp_path / "run")
    assert result.steps == 4 and set(result.figures) >= {"recall_at_1"}


def test_fine_tuning_with_a_frozen_tower(shards: str, tmp_path: Path) -> None:
    first = train(config(data=shards), tmp_path / "first")
    settings = config(data=shards, init=str(first.checkpoint), lr=1e-4, lr_image=0, lr_text=0.1)
    tuned = train(settings, tmp_path / "tuned")
    states = [load("toy-conv-32", str(r.checkpoint)).model.state_dict() for r in (first, tuned)]
    changed = {name for name in states[0] if not torch.equal(states[0][name], states[1][name])}
    assert "logit_scale" in changed and "text_projection" in changed
    assert not any(name.startswith("visual.") for name in changed)
    card = json.loads((tuned.checkpoint / "train.json").read_text())
    assert card["init"] == first.weights
    with pytest.raises(ConfigError, match="other initial weights"):
        train(replace(settings, init=None), tmp_path / "tuned")
    with pytest.raises(WeightsError, match="is a toy-conv-32, not a toy-vit-32"):
        train(config(data=shards, model="toy-vit-32", init=str(first.checkpoint)), tmp_path / "other")


def test_a_loss_that_is_no_number_stops(shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = contrastive.clip_loss, [0]

    def spoiled(*args: Any, **kwargs: Any) -> torch.Tensor:
        calls[0] += 1
        loss = real(*args, **kwargs)
        return loss * math.nan if calls[0] == 4 else loss

    monkeypatch.setattr(contrastive, "clip_loss", spoiled)
    with pytest.raises(Diverged) as error:
        train(config(data=shards, checkpoint_every=2, rollbacks=0), tmp_path)
    named = f"{tmp_path}/suspects.jsonl"
    assert str(error.value) == (f"step 4: the loss is nan; its pictures are in {named}; try a lower lr than 0.001 "
                                "or a longer warmup than 0.05")
    assert error.value.exit_code == 3
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["00000002"]


def test_a_few_broken_pictures_are_passed_over(tmp_path: Path) -> None:
    members = pairs(range(16))
    members[6] = (members[6][0], b"no picture")
    write_tar(tmp_path / "0.tar", members)
    results = [train(config(data=str(tmp_path / "0.tar"), workers=workers), tmp_path / str(workers)) for workers in (1, 3)]
    assert results[0].weights == results[1].weights
    assert logged(tmp_path / "1")[-2]["broken_pictures"] == 1
    write_tar(tmp_path / "1.tar", [(name, b"no picture" if name.endswith("png") else data) for name, data in members])
    with pytest.raises(DataError, match="more than 10 of 16 pictures cannot be decoded; one is .*1.tar@"):
        train(config(data=str(tmp_path / "1.tar")), tmp_path / "broken")


def test_a_batch_larger_than_the_data(shards: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        train(config(data=shards, batch=25), tmp_path)
    assert str(error.value) == "batch: 25 is more than the 24 pictures, so one would stand twice in a batch"


def test_a_warm_up_longer_than_the_training(shards: str, tmp_path: Path) -> None:
    """Its learning rate would never come to what the settings say."""
    with pytest.raises(ConfigError) as error:
        train(config(data=shards, samples_seen=24, batch=8, warmup=4), tmp_path)
    assert str(error.value) == "warmup: 4 steps, and the training has 3; below 1 it is a share of them"
    assert not list(tmp_path.iterdir())


def test_the_learning_rate() -> None:
    settings = config(data="x", lr=1.0, warmup=10)
    rates = [learning_rate(step, 110, settings) for step in range(110)]
    assert rates[0] == pytest.approx(1 / 11) and rates[10] == 1.0 and max(rates) == 1.0
    assert rates[60] == pytest.approx(0.5) and rates[-1] < 0.001
    assert learning_rate(0, 100, config(data="x", lr=1.0, warmup=0)) == 1.0
    assert learning_rate(10, 100, config(data="x", lr=1.0, warmup=0.1)) == 1.0


def test_groups_of_the_optimizer() -> None:
    model = load("toy-vit-32", "random").model
    optimizer = make_optimizer(model, config(data="x", lr_image=0.5, weight_decay=0.2))
    groups = {(group["share"], group["weight_decay"]): group["params"] for group in optimizer.param_groups}
    assert set(groups) == {(0.5, 0.2), (0.5, 0.0), (1.0, 0.2), (1.0, 0.0)}
    assert any(p is model.logit_scale for p in groups[1.0, 0.0])
    assert all(p.ndim < 2 for key in ((0.5, 0.0), (1.0, 0.0)) for p in groups[key])
    assert sum(len(group) for group in groups.values()) == len(list(model.parameters()))


def test_the_line_for_people() -> None:
    line = Progress(120, 690, 15360, 3.4561, 14.12, 812.4, 9.2).line
    assert line == "step 120/690  loss 3.456  scale 14.1  812 samples/s  9 s left"
    assert [duration(s) for s in (0, 99, 240, 9000)] == ["0 s", "99 s", "4 min", "2.5 h"]


def test_log_lines_of_a_dead_attempt_are_dropped(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    with Log(tmp_path, 2) as log:
        log.write(3, {"loss": 1.5})
    assert logged(tmp_path) == [{"step": 1}, {"step": 2}, {"step": 3, "loss": 1.5}]


def test_figures_that_a_dead_attempt_had_measured_are_not_said_twice(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"step": 2, "loss": 1.5}\n{"step": 2, "recall_at_1": 0.5}\n')
    with Log(tmp_path, 2) as log:
        log.write(2, {"recall_at_1": 0.5})
        log.write(2, {"recall_at_1": 0.25, "alpha": 0})
    assert logged(tmp_path) == [{"step": 2, "loss": 1.5}, {"step": 2, "recall_at_1": 0.5},
                                {"step": 2, "recall_at_1": 0.25, "alpha": 0.0}]


def test_tensorboard(shards: str, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    train(config(data=shards, tensorboard=True), tmp_path)
    assert len(list((tmp_path / "tensorboard").iterdir())) == 1


def test_the_callers_torch_is_left_as_it_was(shards: str, tmp_path: Path) -> None:
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), torch.get_rng_state().tolist()
    train(config(data=shards, threads=1), tmp_path)
    assert before == (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), torch.get_rng_state().tolist())


def settings_file(folder: Path, shards: str, **more: Any) -> Path:
    values = {**SMALL, "data": shards, **more}
    path = folder / "toy.yaml"
    path.write_text(json.dumps(values))     # JSON is YAML
    return path


COMMAND = [sys.executable, "-m", "tests.train.command"]


def test_the_command(shards: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = settings_file(tmp_path, shards)
    assert main([str(file), "--set", "samples_seen=16", "--out", str(tmp_path / "run")]) == 0
    said = capsys.readouterr()
    assert said.out.splitlines()[0].startswith("step 1/2  loss ") and said.err == ""
    assert said.out.splitlines()[-1] == f"model: {tmp_path}/run/model"
    assert main([str(file), "--set", "bach=1"]) == 2
    assert capsys.readouterr() == ("", "--set bach=1: train has no setting 'bach'; did you mean 'batch'?\n")
    assert main([str(file), "--set", "samples_seen=16", "--out", str(tmp_path / "run")]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "it was finished before, and nothing is trained"
    assert main([str(file), "--out", str(file)]) == 2
    assert capsys.readouterr().err == f"{file} is a file, and a training needs a folder\n"
    file.write_text("source: {pairs: x}\nsteps: []\n")
    assert main([str(file)]) == 2
    assert f"{file} is a pipeline, which `curate run {file}` runs" in capsys.readouterr().err
    assert main(["--models"]) == 0
    assert {"curate-conv-64", "ViT-B-32"} <= set(capsys.readouterr().out.split())


@pytest.mark.slow
def test_kill_9_at_any_moment(shards: str, tmp_path: Path) -> None:
    file = settings_file(tmp_path, shards, samples_seen="20 epochs", checkpoint_every=7)
    whole = train(loop_config(shards), tmp_path / "whole")
    for wait in (0.0, 0.4, 0.9):
        process = subprocess.Popen([*COMMAND, str(file), "--out", str(tmp_path / "killed")], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        process.stdout.readline()           # the first step is done
        time.sleep(wait)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    done = subprocess.run([*COMMAND, str(file), "--out", str(tmp_path / "killed")], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    assert weights_digest("toy-conv-32", str(tmp_path / "killed" / "model")) == whole.weights


def loop_config(shards: str) -> Config:
    return config(data=shards, samples_seen="20 epochs", checkpoint_every=7)


def test_evaluation_settings_may_come_as_they_are(shards: str, tmp_path: Path) -> None:
    settings = replace(config(data=shards), eval=Eval(retrieval=Data(shards=(shards,))))
    assert train(settings, tmp_path).figures["recall_at_10"] > 0


def test_pictures_of_all_shapes(tmp_path: Path) -> None:
    wide = [scene(n, 40 + 13 * n).resize((40 + 60 * n, 90 - 10 * n)) for n in range(8)]
    write_tar(tmp_path / "0.tar", [member for n in range(8) for member in (
        (f"{n}.jpg", encoded(wide[n], "JPEG")), (f"{n}.txt", caption(n).encode()))])
    assert train(config(data=str(tmp_path / "0.tar")), tmp_path / "run").steps == 2
