"""What comes before and after the steps: figures of the start, the best weights, weights between both, and the export.

    OUT/before.json   figures of the weights that the training starts from, where the settings ask for them
    OUT/best/         the best evaluated weights so far
    OUT/model/        what the training was for; its card says from which step, and how it was chosen
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from train import wise
from train.best import Best, lower_is_better, value_of
from train.checkpoint import save_model
from train.config import Config
from train.dist import Ranks
from train.evaluate import evaluate
from train.files import read_json, write_json
from train.models.clip import with_bias
from train.models.weights import Loaded, format_of, load
from train.purpose import Purpose
from train.step import Run, precision_of

Write = Callable[[int, Mapping[str, Any]], None]


def start(config: Config, device: torch.device) -> Loaded:
    """The model with the weights that a training starts from."""
    loaded = load(config.model, config.init or f"random:{config.seed}", device)
    return with_bias(loaded, fresh=config.init is None) if config.loss == "siglip" else loaded


class Finish:
    """Everything about a training that is not a step."""

    def __init__(self, config: Config, out: Path, purpose: Purpose, ranks: Ranks, skipped: Sequence[int]) -> None:
        """`skipped`: the steps, from 0, that are passed over."""
        self.config, self.out, self.purpose, self.ranks, self.skipped = config, out, purpose, ranks, skipped
        self.best = Best(out, config.eval, purpose)
        self._last: tuple[int, dict[str, float]] = (-1, {})

    def measure_before(self, first: int, write: Write) -> None:
        """The figures of the start, once, whatever `first` step this attempt goes on from."""
        if self._before() is None:
            figures = self._measure(start(self.config, self.ranks.device))
            write_json(self.out / "before.json", {"start": self._start, "figures": figures})
        if first == 0:
            write(0, self._before() or {})

    @property
    def _start(self) -> dict[str, Any]:
        """What the figures of the start depend on, as JSON has it."""
        settings = self.purpose.settings["eval"]
        return dict(json.loads(json.dumps({"init": self.purpose.init, "eval": settings})))

    def _before(self) -> dict[str, float] | None:
        there = read_json(self.out / "before.json")
        return dict(there["figures"]) if there is not None and there["start"] == self._start else None

    def _measure(self, loaded: Loaded) -> dict[str, float]:
        loaded.model.eval()
        return evaluate(replace(loaded, precision=precision_of(self.config, self.ranks.device)), self.config.eval)

    def evaluate(self, step: int, run: Run, write: Write) -> dict[str, float]:
        """The figures after `step` steps, on the first process; logged, and the weights kept if they are the best."""
        if self._last[0] != step:
            self._last = (step, run.figures())
            if self._last[1]:
                write(step, self._last[1])
            if self.ranks.is_first:
                self.best.take(step, step * self.config.batch, run.going.result, self._last[1])
            self.ranks.wait()
        return self._last[1]

    def export(self, last: int, run: Run, figures: dict[str, float], write: Write) -> None:
        """OUT/model: the last weights or the best ones, or some on the way to them from the start. Changes those of `run`."""
        step, said, loaded = last, self._skipped(), run.going.result
        if self.config.micro_batch == "auto":
            said["micro_batch"] = run.at_once.size
        card = self.best.card
        if card is not None:
            step, figures = int(card["step"]), dict(card["figures"])
            loaded.model.load_state_dict(load_file(self.best.folder / format_of(loaded.name).weights,
                                                   device=str(loaded.device)))
            said |= {"last_step": last, "chosen_by": self.config.eval.keep_best}
        if self.config.wise_ft is not None:
            rows, chosen = self._interpolated(loaded, self.config.wise_ft)
            for row in rows:
                write(last, row)
            figures = {name: value for name, value in chosen.items() if name != "alpha"}
            said |= {"alpha": chosen["alpha"], "wise_ft": rows}
        before = self._before() if self.config.eval.before else None
        if before is not None:
            said["before"] = before
            figures = {**figures, **forgotten(before, figures)}
        save_model(self.out / "model", step, step * self.config.batch, loaded, self.purpose, figures, said)

    def _skipped(self) -> dict[str, Any]:
        """As the log counts steps, from 1."""
        return {"skipped_steps": [step + 1 for step in self.skipped]} if self.skipped else {}

    def _interpolated(self, loaded: Loaded, alphas: Sequence[float]) -> tuple[list[dict[str, float]], dict[str, float]]:
        """(the figures at each of `alphas`, those of the chosen one); `loaded` has the chosen one's weights afterwards."""
        begin = start(self.config, loaded.device).model.state_dict()
        rows = wise.table(loaded.model, begin, alphas, lambda: self._measure(loaded))
        by = self.config.eval.keep_best
        chosen = rows[0] if by is None or len(rows) == 1 else max(rows, key=lambda row: value_of(by, row))
        loaded.model.load_state_dict(wise.between(begin, loaded.model.state_dict(), chosen["alpha"]))
        return rows, chosen


def forgotten(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """forgetting_<figure>: what the start had more of; below 0 where it was gained. Of figures of which less is better, the other
    way round."""
    return {f"forgetting_{name}": (value - after[name]) * (-1 if lower_is_better(name) else 1)
            for name, value in before.items() if name in after}
