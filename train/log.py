"""What a training says while it runs: a line of JSON a step or evaluation, TensorBoard, and a line for people."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from train.files import write_bytes


@dataclass(frozen=True)
class Progress:
    """Where a training stands."""

    step: int
    num_steps: int
    samples_seen: int
    loss: float
    scale: float
    samples_per_second: float
    seconds_left: float

    @property
    def line(self) -> str:
        """`step 120/690  loss 3.456  scale 14.1  812 samples/s  9 s left`."""
        return (f"step {self.step}/{self.num_steps}  loss {self.loss:.3f}  scale {self.scale:.1f}  "
                f"{self.samples_per_second:,.0f} samples/s  {duration(self.seconds_left)} left")


def duration(seconds: float) -> str:
    """`9 s`, `4 min`, `2.5 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


class Log:
    """`log.jsonl` and TensorBoard below `out`, for a `with` block. Lines after `step`, of an attempt that died, are dropped."""

    def __init__(self, out: Path, step: int, tensorboard: bool) -> None:
        self._path = out / "log.jsonl"
        lines = self._path.read_bytes().splitlines(keepends=True) if self._path.exists() else []
        write_bytes(self._path, b"".join(line for line in lines if line.endswith(b"\n") and json.loads(line)["step"] <= step))
        self._board = _board(out / "tensorboard", step) if tensorboard else None

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *raised: object) -> None:
        if self._board is not None:
            self._board.close()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One line, and one point of each curve."""
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)


def _board(folder: Path, step: int) -> Any:
    """TensorBoard's writer, or None where TensorBoard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ModuleNotFoundError:
        return None
    return SummaryWriter(str(folder), purge_step=step + 1 if step else None)
