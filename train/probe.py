"""Linear probe: how well a linear classifier reads the classes off frozen embeddings.

Follows Radford et al. 2021 (arXiv 2103.00020), section 3.2 and appendix A.3: multinomial logistic regression with an L2 penalty,
L-BFGS of at most 1,000 iterations, the strength of the penalty from a search on validation pictures between 1e-6 and 1e6 that
starts at steps of 100 and halves them around the peak until there are eight a factor of ten; then training and validation
pictures together. Otherwise than there, features are the model's embeddings of length 1, as CLIP_benchmark has it, and not what
comes before the projection: what is measured is what a user of the model gets. In float64 on the CPU, from zero: the same
embeddings give the same figures.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from train.figures import Ints, Vectors, mean_per_class

COARSE = (-6.0, -4.0, -2.0, 0.0, 2.0, 4.0, 6.0)
"""Powers of ten that the search of the penalty starts with; the smallest and the largest are also its limits."""
FINEST = 1 / 8
"""Where the halving ends: eight steps a factor of ten."""
MAX_ITERATIONS = 1000
VALIDATION = 0.2
"""Share of each class's training pictures that choose the penalty, where the data has no validation pictures: our choice."""


@dataclass(frozen=True)
class Probe:
    """A linear classifier: the logits of x are x @ weight + bias."""

    weight: Tensor
    """(dimensions, classes)"""
    bias: Tensor
    """(classes,)"""

    def predict(self, emb: Vectors) -> Ints:
        """The class of each row, the first of equals."""
        logits = torch.from_numpy(emb).double() @ self.weight + self.bias
        return np.asarray(logits.argmax(1).numpy(), np.int64)


@dataclass(frozen=True)
class Labelled:
    """Embeddings and the class of each, from 0."""

    emb: Vectors
    labels: Ints

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: NDArray[np.bool_]) -> "Labelled":
        return Labelled(self.emb[rows], self.labels[rows])

    def with_rows_of(self, other: "Labelled") -> "Labelled":
        """Both together."""
        return Labelled(np.concatenate([self.emb, other.emb]), np.concatenate([self.labels, other.labels]))


PROBED = ("probe_accuracy_at_1", "probe_mean_per_class", "probe_l2")


def probe_figures(training: Labelled, test: Labelled, validation: Labelled | None = None) -> dict[str, float]:
    """probe_accuracy_at_1 and probe_mean_per_class on `test`, 0 to 1, and the penalty probe_l2 that was chosen.

    Without validation pictures, `VALIDATION` of the training pictures choose it. Raises ValueError where there is nothing to fit
    or to test.
    """
    if not len(training) or not len(test):
        raise ValueError("a probe needs training and test pictures")
    num_classes = 1 + int(max(training.labels.max(), test.labels.max(), *(validation.labels if validation is not None else ())))
    if validation is None or not len(validation):
        held = split(training.labels)
        together, training, validation = training, training[~held], training[held]
    else:
        together = training.with_rows_of(validation)
    l2 = choose_l2(training, validation, num_classes) if len(validation) else 1.0
    right = fit(together, num_classes, l2).predict(test.emb) == test.labels
    return dict(zip(PROBED, (float(right.mean()), mean_per_class(right, test.labels), l2), strict=True))


def fit(labelled: Labelled, num_classes: int, l2: float) -> Probe:
    """The one classifier of least loss: cross-entropy summed over the rows, plus l2 / 2 times the squared weights (not the bias).

    `l2` is 1 / C of scikit-learn's LogisticRegression, whose lbfgs solver CLIP used.
    """
    emb, labels = torch.from_numpy(labelled.emb).double(), torch.from_numpy(labelled.labels)
    mean = emb.mean(0)
    axes, scale = _axes(emb - mean, num_classes, l2)
    features = (emb - mean) @ axes * scale
    weight = torch.zeros(emb.shape[1], num_classes, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(num_classes, dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS([weight, bias], max_iter=MAX_ITERATIONS, max_eval=2 * MAX_ITERATIONS, tolerance_grad=1e-6,
                               tolerance_change=1e-12, history_size=10, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        solver.zero_grad()
        entropy = torch.nn.functional.cross_entropy(features @ weight + bias, labels)
        total = entropy + l2 / (2 * len(labels)) * (weight * scale[:, None]).square().sum()
        total.backward()  # type: ignore[no-untyped-call]
        return total

    with torch.enable_grad():
        solver.step(loss)  # type: ignore[no-untyped-call]
    plain = axes @ (weight.detach() * scale[:, None])
    return Probe(plain, bias.detach() - mean @ plain)


def _axes(centred: Tensor, num_classes: int, l2: float) -> tuple[Tensor, Tensor]:
    """Axes and a scale for each, along which the loss is about as steep every way: the same optimum, in tens of steps where plain
    embeddings, which lie in a narrow cone, take a thousand."""
    values, axes = torch.linalg.eigh(centred.T @ centred / len(centred))
    steepness = values.clamp_min(0) * (num_classes - 1) / num_classes**2 + l2 / len(centred)
    return axes, steepness.rsqrt()


def choose_l2(training: Labelled, validation: Labelled, num_classes: int) -> float:
    """The penalty whose classifier is right most often on the validation pictures."""
    def right(power: float) -> float:
        return float((fit(training, num_classes, 10.0**power).predict(validation.emb) == validation.labels).mean())
    return float(10.0 ** peak(right))


def peak(height: Callable[[float], float]) -> float:
    """The power of ten where `height` is greatest: of `COARSE`, then of the points half way to its neighbours, and so on.

    Of equals the strongest penalty, the simplest classifier.
    """
    heights = {power: height(power) for power in COARSE}
    step = COARSE[1] - COARSE[0]
    while True:
        best = max(heights, key=lambda power: (heights[power], power))
        if step <= FINEST:
            return best
        step /= 2
        for power in (best - step, best + step):
            if COARSE[0] <= power <= COARSE[-1] and power not in heights:
                heights[power] = height(power)


def split(labels: Ints, seed: int = 0) -> NDArray[np.bool_]:
    """Which rows choose the penalty: `VALIDATION` of each class, by a seeded draw, and never the only one of a class."""
    draws = np.random.default_rng(seed)
    held = np.zeros(len(labels), np.bool_)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        count = min(len(rows) - 1, max(1, round(VALIDATION * len(rows))))
        held[draws.permutation(rows)[:count]] = True
    return held
