"""Where the log goes besides log.jsonl: TensorBoard's files, and Weights & Biases when asked."""

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from train.config import Config
from train.errors import ConfigError
from train.purpose import Purpose


class Sink(Protocol):
    """Something that draws curves."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One point of each curve."""

    def close(self) -> None:
        """Nothing more comes."""


def sinks(config: Config, out: Path, first: int, purpose: Purpose) -> list[Sink]:
    """Those that the settings ask for, for an attempt that goes on after `first` steps."""
    boards = [board(out / "tensorboard", first)] if config.tensorboard else []
    project = [Wandb(config.wandb, out, purpose)] if config.wandb is not None else []
    return [*(found for found in boards if found is not None), *project]


class TensorBoard:
    """Files for TensorBoard below `folder`; points after `first` of an attempt that died are hidden."""

    def __init__(self, writer: Any) -> None:
        self._writer = writer

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One point of each curve."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """To disk."""
        self._writer.close()


def board(folder: Path, first: int) -> TensorBoard | None:
    """None where TensorBoard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ModuleNotFoundError:
        return None
    return TensorBoard(SummaryWriter(str(folder), purge_step=first + 1 if first else None))


class Wandb:
    """A run of Weights & Biases, the same one for every attempt of a training in one folder."""

    def __init__(self, project: str, out: Path, purpose: Purpose) -> None:
        """Raises ConfigError where the package is not installed."""
        try:
            import wandb
        except ModuleNotFoundError:
            raise ConfigError("wandb: the package is not installed; `pip install wandb`, or leave the setting out") from None
        what = json.dumps([str(out.absolute()), dict(purpose.settings), purpose.init, purpose.data["digest"]], sort_keys=True)
        try:
            self._run = wandb.init(project=project, dir=str(out), id=hashlib.sha256(what.encode()).hexdigest()[:16],
                                   resume="allow", config=dict(purpose.settings))
        except wandb.Error as error:
            said = " ".join(str(error).split())[:200]
            raise ConfigError(f"wandb: {said}; `wandb login`, or WANDB_MODE=offline keeps it here") from None
        # Steps that are repeated after a kill would be dropped as wandb's own step; as an axis they are drawn again.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One point of each curve."""
        self._run.log({"step": step, **values})

    def close(self) -> None:
        """To disk, or to the server."""
        self._run.finish()


def points(values: Mapping[str, Any]) -> dict[str, float]:
    """What can be drawn: the finite numbers."""
    return {name: float(value) for name, value in values.items() if isinstance(value, int | float) and math.isfinite(value)}
