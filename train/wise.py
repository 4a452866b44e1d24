"""Weights between the start and the end of a fine-tuning: what was learnt with less of what was known before forgotten.

WiSE-FT (Wortsman et al. 2021, arXiv 2109.01903, section 3): (1 - alpha) * start + alpha * tuned, for all weights alike. Running
statistics go the same way, counters are the tuned ones.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

Figures = Mapping[str, float]


def between(start: Mapping[str, Tensor], tuned: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """The weights at `alpha`, 0 (start) to 1 (tuned), both ends exact."""
    return {name: start[name].to(end.device).lerp(end, alpha) if end.is_floating_point() else end.clone()
            for name, end in tuned.items()}


def table(model: Any, start: Mapping[str, Tensor], alphas: Sequence[float], measure: Callable[[], Figures],
          ) -> list[dict[str, float]]:
    """The figures at each of `alphas` between `start` and the weights of `model`, which afterwards has those it had."""
    tuned = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rows = []
    for alpha in alphas:
        model.load_state_dict(between(start, tuned, alpha))
        rows.append({"alpha": alpha, **measure()})
    model.load_state_dict(tuned)
    return rows
