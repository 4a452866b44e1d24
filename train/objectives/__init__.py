"""What a training makes smaller: one file a loss, all of them called alike by the loop. `loss:` in the settings names one."""

from train.config import Config
from train.models.weights import Loaded
from train.objectives.base import Objective
from train.objectives.blip import Blip, BlipCaptioner, BlipFilter
from train.objectives.coca import Coca
from train.objectives.contrastive import Clip, Siglip

__all__ = ["OBJECTIVES", "Objective", "make_objective"]

OBJECTIVES: dict[str, type[Objective]] = {"clip": Clip, "siglip": Siglip, "coca": Coca, "blip": Blip,
                                          "blip_captioner": BlipCaptioner, "blip_filter": BlipFilter}


def make_objective(loaded: Loaded, config: Config, steps_per_epoch: int = 1) -> Objective:
    """The objective that `loss:` names, around `loaded.model`. Raises ConfigError where the model cannot learn by it."""
    objective = OBJECTIVES[config.loss](loaded, config)
    objective.steps_per_epoch = steps_per_epoch
    return objective
