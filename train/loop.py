"""The training loop, read from top to bottom: data, model, optimizer, steps, checkpoints, figures."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils import deterministic

from train import checkpoint
from train.captioning import writer
from train.config import Config
from train.dist import Ranks, processes
from train.ema import Average
from train.errors import ConfigError
from train.evaluate import check
from train.finish import Finish, Write, start
from train.flops import cost, peak_flops
from train.index import Index
from train.launch import launched, together
from train.loader import Loader
from train.log import Log, Progress
from train.memory import at_once
from train.models.clip import image_size
from train.objectives import Objective, make_objective
from train.optim import check_warmup, make_optimizer
from train.order import Order, make_order
from train.pace import Arithmetic, Clock
from train.pictures import TrainCrop
from train.purpose import Purpose, index_of, purpose_of
from train.sinks import sinks
from train.speed import compiled, forwards, prepare
from train.step import Run, precision_of
from train.stopping import Asked, listening
from train.suspects import Suspects, named
from train.watch import Suspect, Watch

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
    if config.processes > 1 and not launched():
        result: Result = together(config.processes, train, (config, out), progress)
        return result
    with processes() as ranks, _settled(config, ranks):
        return _train(config, out, ranks, progress if ranks.is_first else None)


def _train(config: Config, out: Path, ranks: Ranks, progress: Watcher | None) -> Result:
    """Attempts until one comes to the end: each goes on from the last checkpoint and passes over what was suspect before."""
    check_out(out)
    check(config.eval)
    index = index_of(config)
    ranks.share(config.batch)
    order = make_order(index, config)
    suspects = Suspects(out, {"settings": config.identity(), "init": config.init, "data": index.digest})
    while True:
        suspects.check(config)
        try:
            return _attempt(config, out, ranks, progress, index, order, suspects.steps)
        except Suspect as found:
            suspect = Suspect(found.step, found.reason)     # without the traceback, which holds a model
        if ranks.is_first:
            suspects.add(suspect, order.epoch(suspect.step), named(config.data, index, order.pictures(suspect.step).tolist()))
        ranks.wait()


def _attempt(config: Config, out: Path, ranks: Ranks, progress: Watcher | None, index: Index, order: Order,
             skipped: Sequence[int]) -> Result:
    num_steps = config.samples_seen.steps(config.batch, order.steps_per_epoch)
    loaded = start(config, ranks.device)
    writer(loaded, config.eval)     # as `check`: refuses what writes no captions, and here what embeds nothing
    embedded = config.eval.retrieval or config.eval.images or config.eval.benchmarks
    if embedded and getattr(loaded.model, "text_proj", True) is None:
        raise ConfigError("eval: these weights of BLIP embed nothing, being a captioner alone; of them only captions are judged")
    purpose = purpose_of(config, loaded.digest, index)
    card = purpose.finished(out)
    if card is not None:
        return _result(out, card)

    check_warmup(num_steps, config)     # not of what was finished before there was the check
    prepare(loaded.model, config)
    optimizer = make_optimizer(loaded.model, config)
    average = Average(loaded, config.ema) if config.ema is not None and ranks.is_first else None
    objective = make_objective(loaded, config, order.steps_per_epoch)
    going = checkpoint.Going(loaded, optimizer, average.loaded if average else None, objective)
    if ranks.is_first:
        for line in index.said:
            print(line, file=sys.stderr)
        checkpoint.tidy(out)
    first = checkpoint.resume(out, going, purpose)
    watch = Watch(config.spike, checkpoint.said(out, "losses") or ())
    crop = TrainCrop(image_size(loaded.model), config.crop, config.flip, loaded.squash)
    loader = Loader(index, order, crop, loaded.tokenizer, workers=config.workers, cache_mb=config.cache_mb,
                    rank=ranks.rank, num_ranks=ranks.num_ranks)
    run = _run(config, order, going, objective, average, ranks, num_steps, first, watch)
    finish = Finish(config, out, purpose, ranks, skipped)
    with _log(config, out, first, ranks, purpose) as write:
        if config.eval.before and ranks.is_first:
            finish.measure_before(first, write)
        with listening() as asked:
            last = _steps(run, loader, first, finish, asked, write, progress)
        figures = finish.evaluate(last, run, write)
        if ranks.is_first:
            finish.export(last, run, figures, write)
    ranks.wait()
    card = purpose.finished(out)
    assert card is not None
    return _result(out, card)


def _run(config: Config, order: Order, going: checkpoint.Going, objective: Objective, average: Average | None, ranks: Ranks,
         num_steps: int, first: int, watch: Watch) -> Run:
    """The objective on all processes, how much of a batch goes through it at once, and what that costs."""
    precision = precision_of(config, ranks.device)
    pair = cost(objective, image_size(going.loaded.model), going.loaded.tokenizer(["a"]).shape[1],
                checkpointed=config.checkpoint_activations)
    size = at_once(config, objective, pair, ranks, precision)
    if config.micro_batch == "auto" and ranks.is_first:
        print(f"micro_batch: auto takes {size.size}", file=sys.stderr)
    peak = peak_flops(ranks.device, precision)
    arithmetic = Arithmetic(pair, peak and peak * ranks.num_ranks, forwards(config, size.size < ranks.share(config.batch)))
    wrapped = ranks.wrap(compiled(objective, config))
    return Run(config, order, going, average, ranks, objective, wrapped, num_steps, Clock(first, config.batch, arithmetic), size,
               watch)


def _steps(run: Run, loader: Loader, first: int, finish: Finish, asked: Asked, write: Write, progress: Watcher | None) -> int:
    """All steps from `first` on; how many there have been when the training ends, at `num_steps` or before.

    Raises Stopped, with a checkpoint, behind the step in which one of the processes is asked to end.
    """
    config, num_steps, is_first = run.config, run.num_steps, run.ranks.is_first
    if finish.best.over(first):
        return first
    run.learn()
    for step, batch in enumerate(run.clock.watched(loader.batches(first, num_steps)), first):
        values, done, over = None if step in finish.skipped else run.step(step, batch), step + 1, False
        if values is None:
            write(done, {"skipped": 1, "samples_seen": done * config.batch})
        elif done % config.log_every == 0 or done == num_steps:
            write(done, {**values, **run.clock.since_asked(values["samples_per_second"]), "broken_pictures": len(loader.broken)})
            if progress is not None:
                progress(run.progress(done, values))
        if config.eval.every and done % config.eval.every == 0 and done < num_steps:
            finish.evaluate(done, run, write)
            over = finish.best.over(done)
            if not over:
                run.learn()
        ends = run.ranks.least(int(asked.number is None)) == 0
        if is_first and (done % config.checkpoint_every == 0 or done == num_steps or over or ends):
            checkpoint.save(finish.out, done, done * config.batch, run.going, finish.purpose, config.keep, run.watch.state)
        if ends:
            run.ranks.wait()
            raise asked.stopped(f"stopped after step {done} of {num_steps}; the same command goes on from there")
        if over:
            return done
    return num_steps


def _result(out: Path, card: dict[str, Any]) -> Result:
    return Result(out / "model", card["figures"], card["step"], card["samples_seen"], card["weights"], card["data"]["digest"])


def check_out(out: Path) -> None:
    """Raises ConfigError where `out` cannot be a folder."""
    there = next(place for place in (out.absolute(), *out.absolute().parents) if place.exists())
    if not there.is_dir():
        raise ConfigError(f"{there} is a file, and a training needs a folder")


@contextmanager
def _log(config: Config, out: Path, first: int, ranks: Ranks, purpose: Purpose) -> Iterator[Write]:
    """A function that logs; on all processes but the first it does nothing."""
    if not ranks.is_first:
        yield lambda step, values: None
        return
    with Log(out, first, sinks(config, out, first, purpose)) as log:
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
