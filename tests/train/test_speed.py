"""Faster and smaller ways to the same gradients: patch dropout, checkpointed activations, compiling, and parts that fit."""

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from open_clip.transformer import PatchDropout
from torch import Tensor

from tests.train.blip_toys import TOY
from tests.train.halves import gradients, loss_of, slices
from tests.train.toys import config, logged, shard
from train.caching import Embedded, cached_backward
from train.dist import Ranks
from train.errors import ConfigError, TooLarge
from train.files import read_json
from train.flops import Cost
from train.loop import train
from train.memory import AtOnce, at_once, fitting
from train.models.weights import load
from train.objectives import OBJECTIVES, Objective, make_objective
from train.objectives.contrastive import Clip
from train.speed import compiled, prepare

ALONE = Ranks(0, 1, torch.device("cpu"))
SAME = partial(torch.testing.assert_close, rtol=1e-9, atol=1e-12)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(shard(tmp_path_factory.mktemp("shards") / "0.tar", range(24)))


def rows(num: int = 7) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    return (torch.randn(num, 3, 32, 32, generator=random, dtype=torch.float64),
            torch.randint(1, 49408, (num, 12), generator=random), torch.arange(num))


def objective(**settings: Any) -> Objective:
    """In float64, ready to train."""
    chosen = config(data="none", model="toy-vit-32", **settings)
    loaded = load("toy-vit-32", "random:0")
    prepare(loaded.model, chosen)
    return make_objective(loaded, chosen).double().train()


def one_pass(model: Objective) -> dict[str, Tensor]:
    loss_of("clip", ALONE, model(*rows())).backward()
    return gradients(model)


def losses(out: Path) -> list[float]:
    return [line["loss"] for line in logged(out) if "loss" in line]


# ---- checkpointed activations


def test_checkpointed_activations_have_the_same_gradients() -> None:
    SAME(one_pass(objective(checkpoint_activations=True)), one_pass(objective()))


@pytest.mark.slow
def test_blocks_are_really_computed_twice(shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from open_clip.transformer import ResidualAttentionBlock

    real, calls = ResidualAttentionBlock.attention, [0]

    def counted(self: Any, *args: Any, **kwargs: Any) -> Tensor:
        calls[0] += 1
        result: Tensor = real(self, *args, **kwargs)
        return result

    monkeypatch.setattr(ResidualAttentionBlock, "attention", counted)
    once, twice = objective(), objective(checkpoint_activations=True)
    counts = []
    for model in (once, twice):
        calls[0] = 0
        one_pass(model)
        counts.append(calls[0])
    assert counts == [2, 4]
    results = [train(config(data=shards, model="toy-vit-32", samples_seen=8, checkpoint_activations=on), tmp_path / str(on))
               for on in (False, True)]
    assert results[0].weights == results[1].weights


def test_a_resnet_alone_knows_neither() -> None:
    with pytest.raises(ConfigError) as error:
        prepare(load("toy-conv-32", "random:0").model, config(data="x", patch_dropout=0.5))
    assert str(error.value) == "patch_dropout: ModifiedResNet has no patches to drop, only open_clip's own ViT has"
    with pytest.raises(ConfigError) as error:
        prepare(torch.nn.Linear(1, 1), config(data="x", model="mine", checkpoint_activations=True))
    assert str(error.value) == "checkpoint_activations: mine has no blocks of open_clip's that can be computed twice"


# ---- patch dropout


def test_chunks_drop_the_same_patches_both_times() -> None:
    """Gradient caching with patch dropout is one graph over the same chunks from the same random state."""
    model, chunks, loss = objective(patch_dropout=0.5), slices(7, 3), partial(loss_of, "clip", ALONE)
    pixels, tokens, pictures = rows()
    torch.manual_seed(3)
    parts = [model(pixels[c], tokens[c], pictures[c]) for c in chunks]
    loss(Embedded(torch.cat([p.image_ND for p in parts]), torch.cat([p.text_ND for p in parts]), *parts[0][2:])).backward()
    expected = gradients(model)
    model.zero_grad()
    torch.manual_seed(3)
    cached_backward(model, lambda c: model(pixels[c], tokens[c], pictures[c]), chunks, loss)
    SAME(gradients(model), expected)
    model.zero_grad()
    torch.manual_seed(4)
    cached_backward(model, lambda c: model(pixels[c], tokens[c], pictures[c]), chunks, loss)
    assert not torch.allclose(gradients(model)["model.visual.conv1.weight"], expected["model.visual.conv1.weight"])


def test_half_of_the_patches_are_dropped_in_training_alone() -> None:
    model, seen = objective(patch_dropout=0.5), list[int]()
    dropping = model.model.visual.patch_dropout
    assert isinstance(dropping, PatchDropout)
    dropping.register_forward_hook(lambda module, given, out: seen.append(out.shape[1]))
    model(*rows())
    model.eval()(*rows())
    assert seen == [1 + 8, 1 + 16]


# ---- compiling


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_compiled_model_has_the_same_loss(shards: str, tmp_path: Path) -> None:
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        pytest.skip("torch.compile needs a C++ compiler")
    for compile_it in (False, True):
        settings = config(data=shards, model="toy-vit-32", samples_seen=24, compile=compile_it, patch_dropout=0.5)
        train(settings, tmp_path / str(compile_it))
    assert losses(tmp_path / "True") == pytest.approx(losses(tmp_path / "False"), rel=1e-4)
    names = [set(load("toy-vit-32", str(tmp_path / str(on) / "model")).model.state_dict()) for on in (False, True)]
    assert names[0] == names[1]


def test_only_where_asked() -> None:
    plain = torch.nn.Linear(1, 1)
    assert compiled(plain, config(data="x")) is plain and plain._compiled_call_impl is None


# ---- parts that fit


@pytest.mark.parametrize(("pairs", "budget", "each", "expected"), [
    (4096, 4096, 1, 4096), (4096, 4095, 1, 2048), (100, 30, 1, 25), (7, 3, 1, 2), (4096, 0, 1, 1), (1, 0, 9, 1)])
def test_halved_until_it_fits(pairs: int, budget: float, each: float, expected: int) -> None:
    assert fitting(pairs, budget, each) == expected


def test_on_a_gpu_what_is_free_decides() -> None:
    model, gpu = torch.nn.Linear(1000, 1000, bias=False), Ranks(0, 1, torch.device("cuda", 0))
    pair = Cost(1, 2, saved_bytes=1e6)
    chosen = config(data="x", batch=4096, micro_batch="auto")

    def found(precision: str, free: int) -> int:
        return at_once(chosen, model, pair, gpu, precision, lambda device: free).size

    assert found("fp32", 1312 * 10**6) == 1024      # 0.8 of 1,312 MB less three copies of 4 MB, at 1 MB a pair
    assert found("fp32", 1285 * 10**6) == 512
    assert found("bf16", 1312 * 10**6) == 1024 and found("bf16", 1556 * 10**6) == 2048


def test_on_a_cpu_the_settings_decide(shards: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    settings = {"data": shards, "model": "toy-vit-32", "batch": 24}
    train(config(**settings, micro_batch="auto"), tmp_path / "all")
    train(config(**settings, micro_batch="auto", memory_mb=2), tmp_path / "parts")
    train(config(**settings, micro_batch=12), tmp_path / "twelve")
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("micro_batch")]
    assert said == ["micro_batch: auto takes 24", "micro_batch: auto takes 12"]
    cards = [read_json(tmp_path / name / "model/train.json") or {} for name in ("all", "parts", "twelve")]
    assert [card.get("micro_batch") for card in cards] == [24, 12, None]
    assert losses(tmp_path / "parts") == losses(tmp_path / "twelve")
    assert losses(tmp_path / "parts") == pytest.approx(losses(tmp_path / "all"), rel=1e-3)


@pytest.mark.parametrize(("model", "loss", "memory_mb"), [(TOY, "blip", 6), ("toy-coca-32", "coca", 40)])
def test_what_writes_captions_is_fitted_too(model: str, loss: str, memory_mb: int, shards: str, tmp_path: Path,
                                            capfd: pytest.CaptureFixture[str]) -> None:
    """Into two parts here."""
    settings = {"data": shards, "model": model, "loss": loss, "batch": 24}
    train(config(**settings, micro_batch="auto"), tmp_path / "all")
    train(config(**settings, micro_batch="auto", memory_mb=memory_mb), tmp_path / "parts")
    train(config(**settings, micro_batch=12), tmp_path / "twelve")
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("micro_batch")]
    assert said == ["micro_batch: auto takes 24", "micro_batch: auto takes 12"]
    assert losses(tmp_path / "parts") == losses(tmp_path / "twelve")


def test_what_cannot_be_told_needs_a_number() -> None:
    with pytest.raises(ConfigError) as error:
        at_once(config(data="x", micro_batch="auto"), torch.nn.Linear(1, 1), None, ALONE, "fp32")
    assert str(error.value) == "micro_batch: auto: how much memory a pair of toy-conv-32 takes cannot be told; give a number"
    assert at_once(config(data="x", batch=8, micro_batch=3), torch.nn.Linear(1, 1), None, ALONE, "fp32").size == 3


def test_a_full_memory_halves_what_goes_through_at_once(shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Auto goes on with halves, and its gradients are those of a training that had halves from the start."""
    class Small(Clip):
        def forward(self, pixels_NCHW: Tensor, tokens_NL: Tensor, pictures_N: Tensor) -> Embedded:
            if len(pixels_NCHW) > 3:
                raise torch.OutOfMemoryError
            return super().forward(pixels_NCHW, tokens_NL, pictures_N)

    settings = {"data": shards, "model": "toy-vit-32", "patch_dropout": 0.5}
    train(config(**settings, micro_batch=2), tmp_path / "two")
    monkeypatch.setitem(OBJECTIVES, "clip", Small)
    train(config(**settings, micro_batch="auto"), tmp_path / "auto")
    assert losses(tmp_path / "auto") == losses(tmp_path / "two")
    with pytest.raises(TooLarge):
        train(config(**settings, micro_batch=4), tmp_path / "four")


def test_one_pair_cannot_be_halved() -> None:
    size = AtOnce(3, may_halve=True)
    assert [size.halve(), size.size, size.halve(), size.size, size.halve()] == [True, 2, True, 1, False]
    assert not AtOnce(8, may_halve=False).halve()
