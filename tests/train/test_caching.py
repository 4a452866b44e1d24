"""Gradient caching: chunks, and processes with chunks, have the gradients of one pass, in float64."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.train.halves import LOSSES, NUM_PAIRS, Pair, cached, gradients, loss_of, rows, slices
from tests.train.toys import config, logged, shard
from train.caching import Embedded, cached_backward
from train.dist import Ranks
from train.errors import TooLarge
from train.loop import train
from train.models.clip import with_bias
from train.models.weights import load
from train.objectives import make_objective
from train.objectives.contrastive import Clip

ALONE = Ranks(0, 1, torch.device("cpu"))
SAME = partial(torch.testing.assert_close, rtol=1e-9, atol=1e-12)


def one_pass(name: str) -> dict[str, Tensor]:
    model = Pair(name == "siglip")
    loss_of(name, ALONE, model(rows(0), rows(1))).backward()
    return gradients(model)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("size", [1, 4, 5, 12])
def test_chunks_are_one_pass(name: str, size: int) -> None:
    expected = one_pass(name)
    assert {"logit_scale", *(["logit_bias"] if name == "siglip" else [])} <= expected.keys()
    SAME(cached(name, ALONE, size), expected)


@pytest.mark.slow
def test_two_processes_with_chunks_are_one_pass(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.train.halves"]
    processes = [subprocess.Popen([*command, str(rank), str(tmp_path)], stderr=subprocess.PIPE, text=True) for rank in range(2)]
    said = [process.communicate(timeout=60)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for name in LOSSES:
            SAME(found[name], one_pass(name))


def test_processes_average_once() -> None:
    """In the last chunk: all others stand in a block of their own, and only their embedding with a graph does."""
    model, seen = Pair(False), []

    @contextmanager
    def apart() -> Iterator[None]:
        seen.append("apart")
        yield
        seen.append("together")

    def embed(chunk: slice) -> Embedded:
        seen.append("graph" if torch.is_grad_enabled() else "none")
        embedded: Embedded = model(rows(0)[chunk], rows(1)[chunk])
        return embedded

    cached_backward(model, embed, slices(NUM_PAIRS, 5), partial(loss_of, "clip", ALONE), apart)
    assert seen == ["none"] * 3 + ["apart", "graph", "together"] * 2 + ["graph"]


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_a_clip_model_in_chunks_is_one_pass(name: str) -> None:
    loaded = load("toy-vit-32", "random:0")
    towers = make_objective(with_bias(loaded) if name == "siglip" else loaded, config(data="none", loss=name)).double().train()
    random = torch.Generator().manual_seed(0)
    pixels = torch.randn(7, 3, 32, 32, generator=random, dtype=torch.float64)
    tokens = torch.randint(1, 49408, (7, 12), generator=random)
    pictures = torch.arange(7)
    loss_of(name, ALONE, towers(pixels, tokens, pictures)).backward()
    expected = gradients(towers)
    assert len(expected) == len(list(towers.parameters()))
    towers.zero_grad()
    value, whole = cached_backward(towers, lambda chunk: towers(pixels[chunk], tokens[chunk], pictures[chunk]), slices(7, 3),
                                   partial(loss_of, name, ALONE))
    SAME(gradients(towers), expected)
    SAME(value, loss_of(name, ALONE, towers(pixels, tokens, pictures)).detach())
    assert whole.image_ND.shape == (7, 32) and not any(t.requires_grad for t in whole[:5] if t is not None)


def test_dropout_is_the_same_both_times() -> None:
    """Chunks of a cached pass drop what the same chunks drop in one graph that starts from the same random state."""
    model, chunks, loss = Pair(True, dropout=0.5), slices(NUM_PAIRS, 5), partial(loss_of, "siglip", ALONE)
    torch.manual_seed(3)
    parts = [model(rows(0)[chunk], rows(1)[chunk]) for chunk in chunks]
    graph = loss(Embedded(torch.cat([p.image_ND for p in parts]), torch.cat([p.text_ND for p in parts]), *parts[0][2:]))
    graph.backward()
    expected = gradients(model)
    model.zero_grad()
    torch.manual_seed(3)
    value, _ = cached_backward(model, lambda chunk: model(rows(0)[chunk], rows(1)[chunk]), chunks, loss)
    SAME(value, graph.detach())
    SAME(gradients(model), expected)


def test_own_parts_in_chunks_are_one_pass() -> None:
    """What each pair is asked by itself: chunks of unequal size have the mean over all pairs, and its gradient."""
    def asked(model: Pair, chunk: slice) -> Embedded:
        embedded: Embedded = model(rows(0)[chunk], rows(1)[chunk])
        errors = (embedded.image_ND - embedded.text_ND).square()
        return embedded._replace(own_P=torch.stack([errors.mean(), 3 * errors[:, 0].mean()]))

    model, loss = Pair(False), partial(loss_of, "clip", ALONE)
    whole = asked(model, slice(NUM_PAIRS))
    assert whole.own_P is not None
    total = loss(whole) + whole.own_P.sum()
    total.backward()
    expected = gradients(model)
    model.zero_grad()
    value, found = cached_backward(model, partial(asked, model), slices(NUM_PAIRS, 5), loss)
    SAME(value, total.detach())
    SAME(found.own_P, whole.own_P.detach())
    SAME(gradients(model), expected)


def test_running_statistics_move_once() -> None:
    twin, model, chunks = Pair(False, normed=True), Pair(False, normed=True), slices(NUM_PAIRS, 4)
    for chunk in chunks:
        twin(rows(0)[chunk], rows(1)[chunk])
    cached_backward(model, lambda chunk: model(rows(0)[chunk], rows(1)[chunk]), chunks, partial(loss_of, "clip", ALONE))
    found, expected = dict(model.named_buffers()), dict(twin.named_buffers())
    assert int(found["image.1.num_batches_tracked"]) == 3
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("frozen", [("image",), ("image", "text")])
def test_frozen_towers_take_no_gradient(frozen: tuple[str, ...]) -> None:
    expected, model = one_pass("clip"), Pair(False)
    for name in frozen:
        model.get_submodule(name).requires_grad_(False)
    chunks, loss = slices(NUM_PAIRS, 4), partial(loss_of, "clip", ALONE)
    cached_backward(model, lambda chunk: model(rows(0)[chunk], rows(1)[chunk]), chunks, loss)
    found = gradients(model)
    assert found.keys() == {name for name in expected if name.split(".")[0] not in frozen}
    SAME(found, {name: expected[name] for name in found})


def test_a_training_in_chunks(tmp_path: Path) -> None:
    """The same curve up to float32's rounding; the whole batch at once is the plain path, bit for bit."""
    shard(tmp_path / "0.tar", range(24))
    settings = {"data": str(tmp_path / "0.tar"), "model": "toy-vit-32", "samples_seen": 24}
    for out, micro_batch in (("whole", None), ("eight", 8), ("three", 3)):
        train(config(**settings, micro_batch=micro_batch), tmp_path / out)
    whole, eight, three = ([(line["loss"], line["scale"], line["grad_norm"]) for line in logged(tmp_path / out) if "loss" in line]
                           for out in ("whole", "eight", "three"))
    assert len(whole) == 3 and eight == whole and three != whole
    assert all(a == pytest.approx(b, rel=2e-3) for a, b in zip(three, whole, strict=True))
    assert three[0] == pytest.approx(whole[0], rel=1e-5)


def test_a_full_memory_says_what_helps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shard(tmp_path / "0.tar", range(24))

    def full(self: Clip, *rows: Tensor) -> Embedded:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(Clip, "forward", full)
    for micro_batch, said in ((None, "8 pairs at once do not fit the memory of cpu; try micro_batch: 4"),
                              (6, "6 pairs at once do not fit the memory of cpu; try micro_batch: 3")):
        with pytest.raises(TooLarge) as error:
            train(config(data=str(tmp_path / "0.tar"), micro_batch=micro_batch), tmp_path / "run")
        assert str(error.value) == f"step 1: {said}, which leaves the loss as it is"
        assert error.value.exit_code == 3
