"""The best of the evaluated weights: OUT/best, and when it has been the best for so long that the training may end.

What is known of it stands in its own card, so nothing else has to survive a kill. A best that a killed attempt reached later than
its last checkpoint is better than all before it, so the attempt that repeats those steps finds the same.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from train.checkpoint import save_model
from train.config import Eval
from train.errors import ConfigError, did_you_mean
from train.files import read_json
from train.models.folder import CARD
from train.models.weights import Loaded
from train.purpose import Purpose

LOWER_IS_BETTER = ("alignment", "image_uniformity", "text_uniformity", "modality_gap")
"""Figures of which less is better."""


class Best:
    """The evaluated weights with the best figure so far; nothing where the settings ask for none."""

    def __init__(self, out: Path, settings: Eval, purpose: Purpose) -> None:
        self.folder, self._settings, self._purpose = out / "best", settings, purpose

    @property
    def card(self) -> dict[str, Any] | None:
        """The card of the best so far. Raises ConfigError where it belongs to another training."""
        if self._settings.keep_best is None:
            return None
        card = read_json(self.folder / CARD)
        if card is not None:
            self._purpose.check(card, self.folder)
        return card

    def take(self, step: int, samples_seen: int, loaded: Loaded, figures: Mapping[str, float]) -> None:
        """Keep the weights after `step` steps if they are better than all before. Raises ConfigError for a figure that is not
        measured."""
        name = self._settings.keep_best
        if name is None:
            return
        new = value_of(name, figures)
        card = self.card
        if math.isfinite(new) and (card is None or new > value_of(name, card["figures"])):
            save_model(self.folder, step, samples_seen, loaded, self._purpose, figures)

    def over(self, step: int) -> bool:
        """Whether `stop_after` evaluations have passed, at `step`, since the best."""
        if self._settings.stop_after is None:
            return False
        card = self.card
        return card is not None and (step - card["step"]) // self._settings.every >= self._settings.stop_after


def value_of(name: str, figures: Mapping[str, float]) -> float:
    """The figure, turned so that more is better. Raises ConfigError for one that is not measured."""
    if name not in figures:
        raise ConfigError(f"eval.keep_best: '{name}' is not measured{did_you_mean(name, figures)}")
    return -figures[name] if lower_is_better(name) else figures[name]


def lower_is_better(name: str) -> bool:
    """Whether less of the figure is better; a benchmark's is called `<benchmark>/<figure>`."""
    return name.rpartition("/")[2] in LOWER_IS_BETTER
