"""What a training says while it runs: a line of JSON a step or evaluation, points of curves, and a line for people."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from train.files import write_bytes
from train.sinks import Sink, points


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
    """`log.jsonl` below `out` and other sinks, for a `with` block. Lines after `step`, of an attempt that died, are dropped, and
    what it had measured at `step` already is not said twice."""

    def __init__(self, out: Path, step: int, sinks: Sequence[Sink] = ()) -> None:
        self._path, self._sinks = out / "log.jsonl", sinks
        lines = self._path.read_bytes().splitlines(keepends=True) if self._path.exists() else []
        steps = {line: json.loads(line)["step"] for line in lines if line.endswith(b"\n")}
        self._said = {line.decode() for line, found in steps.items() if found == step}
        write_bytes(self._path, b"".join(line for line, found in steps.items() if found <= step))

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *raised: object) -> None:
        for sink in self._sinks:
            sink.close()

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """One line, null for what is not known or no number, and one point of each curve."""
        found = points(values)
        line = json.dumps({"step": step, **{name: found.get(name) for name in values}}) + "\n"
        if line in self._said:
            return
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(line)
        for sink in self._sinks:
            sink.write(step, found)
