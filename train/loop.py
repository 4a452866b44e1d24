"""The training loop, read from top to bottom: data, model, optimizer, steps, checkpoints, figures."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.utils import deterministic

from train import checkpoint
from train.caching import Embedded, cached_backward
from train.config import Config
from train.data import Index, decontaminated, open_data
from train.dist import Ranks, processes
from train.ema import Average
from train.errors import ConfigError, Diverged, TooLarge
from train.evaluate import evaluate
from train.loader import Batch, Loader
from train.log import Log, Progress
from train.losses import clip_loss, siglip_loss
from train.models.clip import autocast, image_size, normalised, with_bias
from train.models.weights import load
from train.optim import SCALE_MAX, clip_gradients, learning_rate, make_optimizer, set_learning_rate
from train.order import Order
from train.pictures import TrainCrop

Watcher = Callable[[Progress], None]


@dataclass(frozen=True)
class Result:
    """A finished training."""

    checkpoint: Path
    """the folder `OUT/model`, which open_clip loads as `local-dir:OUT/model`"""
    figures: dict[str, float]
    steps: int
    samples_seen: int
    weights: str
    """digest of the weights"""
    data: str
    """digest of the data"""


def train(config: Config, out: Path, progress: Watcher | None = None) -> Result:
    """Train as `config` says, in the folder `out`; goes on from the last checkpoint there.

    A training that is finished in `out` is not done again. Raises TrainError of one line.
    """
    with processes() as ranks, _settled(config, ranks):
        return _train(config, out, ranks, progress if ranks.is_first else None)


def _train(config: Config, out: Path, ranks: Ranks, progress: Watcher | None) -> Result:
    index = open_data(config.data)
    order = _order(index, config, ranks)
    num_steps = config.samples_seen.steps(config.batch, order.steps_per_epoch)
    loaded = load(config.model, config.init or f"random:{config.seed}", ranks.device)
    if config.loss == "siglip":
        loaded = with_bias(loaded)
    data = {"digest": index.digest, "pictures": len(index), "captions": index.num_captions, **decontaminated(config.data)}
    purpose = checkpoint.Purpose(config.identity(), loaded.digest, data)
    card = checkpoint.finished(out, purpose)
    if card is not None:
        return _result(out, card)

    optimizer = make_optimizer(loaded.model, config)
    average = Average(loaded, config.ema) if config.ema is not None and ranks.is_first else None
    going = checkpoint.Going(loaded, optimizer, average.loaded if average else None)
    if ranks.is_first:
        checkpoint.tidy(out)
    first = checkpoint.resume(out, going, purpose)
    crop = TrainCrop(image_size(loaded.model), config.crop, config.flip, loaded.squash)
    loader = Loader(index, order, crop, loaded.tokenizer, workers=config.workers, cache_mb=config.cache_mb,
                    rank=ranks.rank, num_ranks=ranks.num_ranks)
    towers = ranks.wrap(Towers(loaded.model))
    run = _Run(config, order, going, average, ranks, towers, num_steps, _Clock(first, config.batch))
    with _log(config, out, first, ranks) as write:
        run.learn()
        for step, batch in enumerate(loader.batches(first, num_steps), first):
            values = run.step(step, batch)
            done = step + 1
            if done % config.log_every == 0 or done == num_steps:
                write(done, {**values, "broken_pictures": len(loader.broken)})
                if progress is not None:
                    progress(run.progress(done, values))
            if ranks.is_first and (done % config.checkpoint_every == 0 or done == num_steps):
                checkpoint.save(out, done, done * config.batch, going, purpose, config.keep)
            if config.eval.every and done % config.eval.every == 0 and done < num_steps:
                write(done, run.figures())
                run.learn()
        figures = run.figures()
        write(num_steps, figures)
        if ranks.is_first:
            checkpoint.save_model(out, num_steps, num_steps * config.batch, going.result, purpose, figures)
    ranks.wait()
    card = checkpoint.finished(out, purpose)
    assert card is not None
    return _result(out, card)


class Towers(torch.nn.Module):
    """Both towers in one call, so that torch's distributed wrapper sees the whole model."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels_NCHW: torch.Tensor, tokens_NL: torch.Tensor) -> Embedded:
        image_ND = self.model.encode_image(pixels_NCHW, normalize=True)
        text_ND = self.model.encode_text(tokens_NL, normalize=True)
        return Embedded(image_ND, text_ND, self.model.logit_scale.exp(), self.model.logit_bias)


class _Clock:
    """Samples a second since the start, the first steps (which warm caches) not counted once there are more."""

    WARM = 3

    def __init__(self, first: int, batch: int) -> None:
        self._from, self._batch, self._since = first, batch, time.perf_counter()

    def rate(self, done: int) -> float:
        """Samples a second, `done` steps being done."""
        now = time.perf_counter()
        found = (done - self._from) * self._batch / max(1e-9, now - self._since)
        if done - self._from == self.WARM and self._from >= 0:
            self._from, self._since = done, now
        return found


@dataclass(frozen=True)
class _Run:
    """What a step needs."""

    config: Config
    order: Order
    going: checkpoint.Going
    average: Average | None
    ranks: Ranks
    towers: torch.nn.Module
    num_steps: int
    clock: _Clock

    def step(self, step: int, batch: Batch) -> dict[str, float]:
        """One optimizer step; what the log says of it. Raises Diverged (the loss is not finite) and TooLarge (memory ends)."""
        config, model, optimizer = self.config, self.going.loaded.model, self.going.optimizer
        torch.manual_seed(self.order.model_seed(step, self.ranks.rank))
        rate = learning_rate(step, self.num_steps, config)
        set_learning_rate(optimizer, rate)
        try:
            loss, embedded = self.backward(batch)
        except torch.OutOfMemoryError:
            at_once = min(len(batch.tokens_NL), config.micro_batch or config.batch)
            raise TooLarge(f"step {step + 1}: {at_once} pairs at once do not fit the memory of {self.ranks.device}; try "
                           f"micro_batch: {max(1, at_once // 2)}, which leaves the loss as it is") from None
        value = self.ranks.mean(loss)
        if not torch.isfinite(torch.tensor(value)):
            raise Diverged(f"step {step + 1}: the loss is {value}; try a lower lr than {config.lr:g} or a longer warmup "
                           f"than {config.warmup:g}")
        before = {name: float(t.detach()) for name, t in (("scale", embedded.scale), ("bias", embedded.bias)) if t is not None}
        norm = clip_gradients(model.parameters(), config.clip_grad)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if config.loss == "clip":
            with torch.no_grad():
                model.logit_scale.clamp_(0, SCALE_MAX)
        if self.average is not None:
            self.average.update(step + 1)
        return {"loss": value, **before, "grad_norm": float(norm), "lr": rate,
                "samples_seen": (step + 1) * config.batch, "epoch": self.order.epoch(step),
                "samples_per_second": self.clock.rate(step + 1)}

    def backward(self, batch: Batch) -> tuple[torch.Tensor, Embedded]:
        """(loss, embeddings) of this process's pairs, in chunks where the settings say so; the parameters have the gradients."""
        model, device = self.going.loaded.model, self.ranks.device

        def embed(rows: slice) -> Embedded:
            pixels_NCHW = normalised(batch.pixels_NHWC[rows], model, device)
            with autocast(device, _precision(self.config, device)):
                embedded: Embedded = self.towers(pixels_NCHW, batch.tokens_NL[rows].to(device, non_blocking=True))
            return embedded

        num_pairs = len(batch.tokens_NL)
        size = self.config.micro_batch or num_pairs
        if size < num_pairs:
            chunks = [slice(at, min(at + size, num_pairs)) for at in range(0, num_pairs, size)]
            return cached_backward(model, embed, chunks, self.loss, lambda: self.ranks.apart(self.towers))
        embedded = embed(slice(num_pairs))
        loss = self.loss(embedded)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss, embedded

    def loss(self, embedded: Embedded) -> torch.Tensor:
        """What the settings ask for, of this process's pairs against those of all."""
        image_ND, text_ND, scale, bias = embedded
        images, texts, first_row = image_ND.float(), text_ND.float(), self.ranks.rank * len(image_ND)
        if self.config.loss == "siglip":
            assert bias is not None
            return siglip_loss(images, texts, scale, bias, first_row=first_row, gather=self.ranks.gather)
        return clip_loss(images, texts, scale, first_row=first_row, gather=self.ranks.gather)

    def learn(self) -> None:
        """Training mode; a frozen tower stays as it is, its running statistics too."""
        self.towers.train()
        if self.config.lr_image == 0:
            self.going.loaded.model.visual.eval()

    def figures(self) -> dict[str, float]:
        """What the settings ask to be measured, on the first process; the others wait."""
        self.going.loaded.model.eval()
        loaded = replace(self.going.result, precision=_precision(self.config, self.ranks.device))
        figures = evaluate(loaded, self.config.eval) if self.ranks.is_first else {}
        self.ranks.wait()
        return figures

    def progress(self, done: int, values: dict[str, float]) -> Progress:
        """The same for people."""
        rate = values["samples_per_second"]
        return Progress(done, self.num_steps, done * self.config.batch, values["loss"], values["scale"], rate,
                        (self.num_steps - done) * self.config.batch / max(rate, 1e-9))


def _order(index: Index, config: Config, ranks: Ranks) -> Order:
    if config.batch > len(index):
        raise ConfigError(f"batch: {config.batch} is more than the {len(index)} pictures, so one would stand twice in a batch")
    ranks.share(config.batch)
    return Order(len(index), config.batch, config.seed)


def _precision(config: Config, device: torch.device) -> str:
    if config.precision == "auto":
        return "bf16" if device.type == "cuda" else "fp32"
    return config.precision


def _result(out: Path, card: dict[str, Any]) -> Result:
    return Result(out / "model", card["figures"], card["step"], card["samples_seen"], card["weights"], card["data"]["digest"])


@contextmanager
def _log(config: Config, out: Path, first: int, ranks: Ranks) -> Iterator[Callable[[int, dict[str, float]], None]]:
    """A function that logs; on all processes but the first it does nothing."""
    if not ranks.is_first:
        yield lambda step, values: None
        return
    with Log(out, first, config.tensorboard) as log:
        yield log.write


@contextmanager
def _settled(config: Config, ranks: Ranks) -> Iterator[None]:
    """Threads fixed, and on a CPU the same sums in the same order; the caller's torch is as before afterwards."""
    threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    fill = deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.set_num_threads(config.threads or threads)
    torch.use_deterministic_algorithms(ranks.device.type == "cpu")
    deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        with torch.random.fork_rng():
            yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(strict)
        deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]
