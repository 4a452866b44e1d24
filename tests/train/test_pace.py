"""What the log says of speed, and where it goes: operations counted, waiting timed, null where nothing is known."""

import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import open_clip
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.train.blip_toys import TOY
from tests.train.toys import config, logged, shard
from train import flops, pace
from train.errors import ConfigError
from train.flops import Cost, cost, measured_peak, peak_flops
from train.log import Log
from train.loop import train
from train.models.weights import load
from train.objectives import Objective, make_objective
from train.pace import Arithmetic, Clock
from train.sinks import points


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(shard(tmp_path_factory.mktemp("shards") / "0.tar", range(24)))


def counted(**settings: Any) -> Cost:
    from train.optim import make_optimizer

    chosen = config(data="x", model="toy-vit-32", **settings)
    loaded = load("toy-vit-32", "random:0")
    make_optimizer(loaded.model, chosen)
    found = cost(make_objective(loaded, chosen).train(), 32, 12, checkpointed=False)
    assert found is not None
    return found


# ---- operations


def test_operations_of_a_small_model_by_hand() -> None:
    """One block of width 32 over 17 tokens and one over 12: projections, attention, and an MLP of four times the width."""
    def block(tokens: int) -> int:
        return 2 * tokens * 32 * (3 * 32 + 32 + 2 * 4 * 32) + 2 * 2 * tokens * tokens * 32

    patches = 2 * 16 * (8 * 8 * 3) * 32
    forward = block(17) + block(12) + patches + 2 * 2 * 32 * 32
    assert counted().forward == forward
    # Back, everything twice, but no gradient for pixels.
    assert counted().backward == 2 * forward - patches


def test_a_locked_tower_costs_no_way_back() -> None:
    locked, whole = counted(lock={"image": "all"}), counted()
    assert locked.forward == whole.forward and locked.backward < 0.5 * whole.backward
    assert locked.saved_bytes < whole.saved_bytes


@pytest.mark.slow
def test_operations_of_a_published_model() -> None:
    """open_clip's docs/model_profile.csv has 14.78 GFLOP for ViT-B-32, forward."""
    with torch.device("meta"):
        model = open_clip.create_model("ViT-B-32", device="meta", load_weights=False)
    objective = make_objective(SimpleNamespace(model=model), config(data="x"))     # type: ignore[arg-type]
    found = cost(objective, 224, 77, checkpointed=False)
    assert found is not None and found.forward == pytest.approx(14.78e9, rel=1e-3)
    assert found.backward == pytest.approx(2 * found.forward, rel=0.02)
    fewer = cost(objective, 224, 77, checkpointed=True)
    assert fewer is not None and fewer.forward == found.forward


def real(objective: Objective, *rows: torch.Tensor) -> Cost:
    """What a pair of a real step costs, with attention as products of matrices: torch counts no others on a CPU."""
    saved: dict[int, int] = {}
    with sdpa_kernel(SDPBackend.MATH):
        with flops._counting_saved(objective, saved), FlopCounterMode(display=False) as forward:
            found = objective(*rows)
        with FlopCounterMode(display=False) as backward:
            torch.autograd.backward([part.sum() for part in flops._tensors(found) if part.requires_grad])
    return Cost(*(total / len(rows[0]) for total in (forward.get_total_flops(), backward.get_total_flops(), sum(saved.values()))))


WRITERS = [(TOY, "blip", {}), (TOY, "blip", {"momentum": 0.9, "queue": 4}), (TOY, "blip_filter", {}), (TOY, "blip_captioner", {}),
           (TOY, "blip_captioner", {"prompt": "a very long photo of "}), ("toy-coca-32", "coca", {})]


@pytest.mark.parametrize(("model", "loss", "more"), WRITERS)
def test_where_numbers_choose_rows_the_longest_captions_are_counted(model: str, loss: str, more: dict[str, Any]) -> None:
    """To the operation those of a real step on captions without padding, each with both wrong pairs; shorter ones cost less."""
    loaded = load(model, "random:0")
    objective = make_objective(loaded, config(data="x", model=model, loss=loss, **more)).train()
    found = cost(objective, 32, 12, checkpointed=False)
    assert found is not None
    pixels, pictures = torch.zeros(2, 3, 32, 32), torch.arange(2)
    longest = real(objective, pixels, torch.full((2, 12), 7), pictures)
    assert (found.forward, found.backward) == (longest.forward, longest.backward)
    assert found.saved_bytes == pytest.approx(longest.saved_bytes, rel=1e-3)
    shorter = real(objective, pixels, loaded.tokenizer(["a red dog", "a cat"]), pictures)
    assert all(0 < least < most for least, most in zip(shorter, found, strict=True))


@pytest.mark.slow
def test_the_original_is_left_alone() -> None:
    """Counting touches no weight, no running statistic and no gradient."""
    loaded = load("toy-conv-32", "random:0")
    before = {name: tensor.clone() for name, tensor in loaded.model.state_dict().items()}
    flops.COSTS.clear()
    assert cost(make_objective(loaded, config(data="x")).train(), 32, 12, checkpointed=False) is not None
    assert all(torch.equal(before[name], tensor) for name, tensor in loaded.model.state_dict().items())
    assert all(p.grad is None and p.device.type == "cpu" for p in loaded.model.parameters())


def test_a_model_that_looks_at_numbers_is_not_known() -> None:
    class Looks(torch.nn.Module):
        def forward(self, pixels: torch.Tensor, tokens: torch.Tensor, pictures: torch.Tensor) -> tuple[torch.Tensor]:
            return (pixels[: int(tokens.sum())],)

    assert cost(Looks(), 32, 12, checkpointed=False) is None


# ---- peaks and parts of them


@pytest.mark.parametrize(("name", "bf16", "fp32"), [
    ("NVIDIA H200", 989e12, 67e12), ("NVIDIA A100-SXM4-80GB", 312e12, 19.5e12), ("NVIDIA H100 PCIe", 756e12, 51e12),
    ("NVIDIA L40S", 362e12, 91.6e12), ("NVIDIA L4", 121e12, 30.3e12), ("Tesla T4", None, 8.1e12), ("Nobody's", None, None)])
def test_published_peaks(name: str, bf16: float | None, fp32: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    gpu = torch.device("cuda", 0)
    assert (peak_flops(gpu, "bf16"), peak_flops(gpu, "fp32")) == (bf16, fp32)


def test_a_cpu_is_measured() -> None:
    assert measured_peak(torch.get_num_threads(), "fp32", side=256, times=2) > 1e8


def test_used_arithmetic() -> None:
    used = Arithmetic(Cost(10, 20, 0), 6000, forwards=3).used(50)
    assert used == {"mfu": 0.25, "hfu": pytest.approx(50 / 6000 * 50)}
    assert Arithmetic(None, 6000, 1).used(50) == Arithmetic(Cost(1, 2, 0), None, 1).used(50) == {"mfu": None, "hfu": None}


def test_waiting_for_data(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(pace, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    clock = Clock(0, 8, Arithmetic(None, None, 1))

    def slow() -> Any:
        for batch in range(3):
            now[0] += 1
            yield batch

    seen = []
    for batch in clock.watched(slow()):
        now[0] += 3
        seen.append((batch, clock.since_asked(1)["data_wait"]))
    assert seen == [(0, 0.25), (1, 0.25), (2, 0.25)]


@pytest.mark.parametrize(("model", "loss"), [("toy-vit-32", "clip"), (TOY, "blip")])
def test_a_log_line(model: str, loss: str, shards: str, tmp_path: Path) -> None:
    train(config(data=shards, model=model, loss=loss, micro_batch=4), tmp_path)
    for line in logged(tmp_path)[:3]:
        assert 0 < line["mfu"] < line["hfu"] and 0 <= line["data_wait"] <= 1 and line["broken_pictures"] == 0


# ---- where it goes


def test_null_for_what_is_no_number(tmp_path: Path) -> None:
    class Kept:
        def __init__(self) -> None:
            self.seen: list[tuple[int, dict[str, float]]] = []

        def write(self, step: int, values: Any) -> None:
            self.seen.append((step, values))

        def close(self) -> None:
            self.seen.append((-1, {}))

    sink = Kept()
    with Log(tmp_path, 0, [sink]) as log:
        log.write(1, {"loss": float("nan"), "mfu": None, "scale": 2})
    assert json.loads((tmp_path / "log.jsonl").read_text()) == {"step": 1, "loss": None, "mfu": None, "scale": 2.0}
    assert sink.seen == [(1, {"scale": 2.0}), (-1, {})]
    assert points({"a": "text", "b": 1, "c": float("inf")}) == {"b": 1.0}


class FakeWandb:
    """What of wandb is used: a run with metrics, lines and an end."""

    def __init__(self) -> None:
        self.began: list[dict[str, Any]] = []
        self.lines: list[dict[str, float]] = []
        self.axes: list[tuple[str, str | None]] = []
        self.ended = 0

    def init(self, **settings: Any) -> "FakeWandb":
        self.began.append(settings)
        return self

    def define_metric(self, name: str, step_metric: str | None = None) -> None:
        self.axes.append((name, step_metric))

    def log(self, values: dict[str, float]) -> None:
        self.lines.append(values)

    def finish(self) -> None:
        self.ended += 1


def test_wandb_gets_every_line(shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same run for every attempt in one folder, another one for another folder."""
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)     # type: ignore[arg-type]
    settings = config(data=shards, model="toy-vit-32", samples_seen=16, wandb="scenes", rollbacks=4)
    train(settings, tmp_path / "a")
    assert [line["step"] for line in fake.lines] == [1, 2] and fake.lines[0]["loss"] == logged(tmp_path / "a")[0]["loss"]
    assert fake.began[0]["project"] == "scenes" and fake.began[0]["config"]["batch"] == 8 and fake.ended == 1
    assert fake.axes == [("step", None), ("*", "step")]
    (tmp_path / "a" / "model" / "train.json").unlink()
    train(settings, tmp_path / "a")
    train(settings, tmp_path / "b")
    ids = [began["id"] for began in fake.began]
    assert ids[0] == ids[1] != ids[2] and all(began["resume"] == "allow" for began in fake.began)


def test_without_wandb_one_line_says_so(shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError) as error:
        train(config(data=shards, wandb="scenes"), tmp_path)
    assert str(error.value) == "wandb: the package is not installed; `pip install wandb`, or leave the setting out"


def test_counting_is_done_once(monkeypatch: pytest.MonkeyPatch) -> None:
    counted()
    monkeypatch.setattr(flops, "_counted", lambda *args: pytest.fail("counted again"))
    start = time.perf_counter()
    counted()
    assert time.perf_counter() - start < 60
