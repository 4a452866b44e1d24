"""The training loop, read from top to bottom: data, model, optimizer, steps, checkpoints, figures."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils import deterministic

from train import checkpoint
from train.config import Config
from train.data import Index, decontaminated, open_data
from train.dist import Ranks, processes
from train.ema import Average
from train.errors import ConfigError
from train.loader import Loader
from train.log import Log, Progress
from train.models.clip import image_size, with_bias
from train.models.weights import load
from train.objectives import make_objective
from train.optim import make_optimizer
from train.order import Order
from train.pictures import TrainCrop
from train.step import Clock, Run

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
    objective = make_objective(loaded, config)
    run = Run(config, order, going, average, ranks, objective, ranks.wrap(objective), num_steps, Clock(first, config.batch))
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


def _order(index: Index, config: Config, ranks: Ranks) -> Order:
    if config.batch > len(index):
        raise ConfigError(f"batch: {config.batch} is more than the {len(index)} pictures, so one would stand twice in a batch")
    ranks.share(config.batch)
    return Order(len(index), config.batch, config.seed)


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
