"""Training and judging of models, each in a process of its own with fixed threads, through the `train` package.

Where a training runs is handed in: in a fresh process of this machine, or on the nodes of a cluster (`ray_train`).

A training's folder is named by what it depends on, so a loop that is run again finds its models. A process that is killed leaves
checkpoints; the next one goes on from them.
"""

import multiprocessing
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from curate import files, tombstones
from curate.errors import RunStopped, UserError
from curate.store import Store
from curate.weights import WeightsIds
from curate.work import failure

KILLED = "the training process was killed (out of memory?); the same command goes on from its last checkpoint"

Training = Callable[[Mapping[str, Any], Path], str]
"""Trains by settings in a folder; the name of the checkpoint inside it. Raises RunStopped of one line."""


def in_a_process(settings: Mapping[str, Any], out: Path) -> str:
    """A Training in a fresh process of this machine, which may start others (`processes`)."""
    return str(_apart(train_here, settings, out))


class Trainer:
    """Trains one model configuration on different rows of one run."""

    def __init__(self, store: Store, settings: Mapping[str, Any], model: str, where: str,
                 training: Training = in_a_process) -> None:
        if not isinstance(settings, Mapping):
            raise UserError(f"train: {settings!r} is not a map of settings", where)
        if "data" in settings:
            raise UserError("train: data is the run's own; `curate train` trains on other shards", where)
        self._store = store
        self._training = training
        self._settings = {**({"model": model} if model else {}), **settings}
        self._where = where
        self._weights = WeightsIds(store)
        if model and self._settings["model"] != model:
            raise UserError(f"train.model is {self._settings['model']}, but the step that the loop trains for has {model}", where)
        self._check()

    def _check(self) -> None:
        from train.config import from_mapping
        from train.errors import ConfigError

        try:
            config = from_mapping({**self._settings, "data": "checked later"})
        except ConfigError as error:
            raise UserError(f"train: {error}", self._where) from None
        self.config = config
        self._settings["processes"] = config.processes      # checked, for whoever starts them
        self._settings["model"] = config.model
        self.config_digest = files.digest(config.identity())
        self.untrained = f"random:{config.seed}" if config.init is None else config.init

    def train(self, pairs: Path, chain: str) -> str:
        """The weights (a path below the run's folder) after training on a table of pairs. A model that is there stays, also when
        rows were taken down since: another table would be another training's."""
        name = f"models/{files.digest([self.config_digest, chain])}"
        if tombstones.path_of(self._store.root).exists() and self._has_model(name):
            return f"{name}/model"
        return self._trained(name, {"table": str(pairs.resolve()), "root": str(self._store.root.resolve())})

    def train_on_shards(self) -> str:
        """The weights after training on the run's finished shards: what `train:` without a loop means."""
        content = files.file_digest(self._store.shards / "manifest.json")
        name = f"models/{files.digest([self.config_digest, content])}"
        tars, tables = (str(self._store.shards.resolve() / f"*.{kind}") for kind in ("tar", "parquet"))
        return self._trained(name, tars if self.config.distill is None else {"shards": tars, "scores": tables})

    def _trained(self, name: str, data: str | Mapping[str, str]) -> str:
        settings, out = {**self._settings, "data": data}, self._store.root / name
        if self._has_model(name) and _apart(finished_here, settings, out):
            return f"{name}/model"
        return f"{name}/{self._training(settings, out)}"

    def _has_model(self, name: str) -> bool:
        from train.models.folder import CARD

        return (self._store.root / name / "model" / CARD).exists()

    def recall(self, weights: str, pairs: Path) -> dict[str, float]:
        """recall_at_1, 5 and 10 of weights on a table of pairs; what was found once is kept beside the models."""
        path = self._store.root / "models" / f"recall-{files.digest([self.digest(weights), pairs.name])}.json"
        if not path.exists():
            found = _apart(_recall, self._settings["model"], self._located(weights), pairs, self._store.root)
            files.write_json(path, dict(found), self._store.attempt)
        return dict(files.read_json(path))

    def digest(self, weights: str) -> str:
        """The tensors' hash."""
        return self._weights.digest(self._settings["model"], self._located(weights))

    def _located(self, weights: str) -> str:
        path = self._store.root / weights
        return str(path) if path.exists() else weights


def _apart(work: Callable[..., Any], *arguments: Any) -> Any:
    """Do something in a fresh process: no thread, no memory and no library state of this one; it ends when this call does."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_answer, args=(theirs, work, arguments))
    process.start()
    theirs.close()
    try:
        done, content = ours.recv()
    except EOFError:
        raise RunStopped(KILLED) from None
    except (KeyboardInterrupt, SystemExit):
        process.terminate()     # a training ends behind its step, with a checkpoint; anything else at once
        process.join()
        raise
    finally:
        process.kill()
        process.join()
    if not done:
        raise content
    return content


def _answer(pipe: Connection, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    """The life of that process: one piece of work, one answer. A training must not outlive a driver that was killed."""
    from train.launch import end_with_parent

    end_with_parent()
    try:
        pipe.send((True, work(*arguments)))
    except BaseException as error:  # noqa: BLE001  it is raised again in the driver
        pipe.send((False, failure(error)))


def _recall(model: str, weights: str, pairs: Path, root: Path) -> dict[str, float]:
    """Both directions' mean recall on a table of pairs."""
    from train.config import Data
    from train.data import open_data
    from train.errors import TrainError
    from train.evaluate import evaluate_retrieval
    from train.models.weights import load

    try:
        found = evaluate_retrieval(load(model, weights), open_data(Data(table=(str(pairs),), root=str(root))))
    except TrainError as error:
        raise RunStopped(str(error)) from None
    return {name: found[name] for name in ("recall_at_1", "recall_at_5", "recall_at_10")}


def finished_here(settings: Mapping[str, Any], out: Path) -> bool:
    """Whether `out` is known to have this training finished, which takes no torch to tell. Raises RunStopped of one line."""
    from train.config import from_mapping
    from train.errors import TrainError
    from train.purpose import finished_before

    try:
        return finished_before(from_mapping(settings), out) is not None
    except TrainError as error:
        raise RunStopped(str(error)) from None


def train_here(settings: Mapping[str, Any], out: Path) -> str:
    """Train in this process; the name of the checkpoint inside `out`. Raises RunStopped of one line."""
    from train.config import from_mapping
    from train.errors import TrainError
    from train.loop import train

    try:
        result = train(from_mapping(settings), out)
    except TrainError as error:
        raise RunStopped(str(error)) from None
    return str(Path(result.checkpoint).relative_to(out))
