"""Logistic regression by Newton's method, in double precision and the same on every run; and what its scores are worth."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Truths = NDArray[np.bool_]
STEPS, CLOSE = 100, 1e-10


def fit(rows: Floats, targets: Floats, penalty: float) -> tuple[Floats, float]:
    """(weights (dim,), bias) that minimise the mean log loss plus penalty/2 · |weights|²; the bias goes free.

    `targets` are 0 … 1. Each step of Newton's is halved until the loss falls, so it ends wherever the classes lie.
    """
    wide = np.concatenate([rows, np.ones((len(rows), 1))], axis=1)
    ridge = np.append(np.full(rows.shape[1], penalty), 1e-9)
    at = np.zeros(wide.shape[1])
    loss = _loss(wide, targets, at, ridge)
    for _ in range(STEPS):
        found = _sigmoid(wide @ at)
        slope = wide.T @ (found - targets) / len(rows) + ridge * at
        curve = (wide * (found * (1 - found))[:, None]).T @ wide / len(rows) + np.diag(ridge + 1e-12)
        move = np.linalg.solve(curve, slope)
        size = 1.0
        while size > 1e-8 and _loss(wide, targets, at - size * move, ridge) > loss:
            size /= 2
        before, at = loss, at - size * move
        loss = _loss(wide, targets, at, ridge)
        if before - loss < CLOSE:
            break
    return at[:-1], float(at[-1])


def platt(raw: Floats, labels: Truths) -> tuple[float, float]:
    """(a, b) of sigmoid(a · raw + b), with targets drawn in as Platt (1999, section 2.2) has them against small counts."""
    yes, no = int(labels.sum()), int((~labels).sum())
    targets = np.where(labels, (yes + 1) / (yes + 2), 1 / (no + 2))
    weights, bias = fit(raw[:, None], targets, 1e-9)
    return float(weights[0]), bias


def log_loss(raw: Floats, labels: Truths) -> float:
    """Mean of -log of the probability given to what is true."""
    return float(np.mean(np.logaddexp(0, np.where(labels, -raw, raw))))


@dataclass(frozen=True)
class Point:
    """What a threshold does to labelled rows: of those at or above it so many are true, of `positives` in all."""

    threshold: float
    flagged: int
    hits: int
    positives: int

    @property
    def precision(self) -> float:
        """The share of the flagged that is true; 1 where none is flagged."""
        return self.hits / self.flagged if self.flagged else 1.0

    @property
    def recall(self) -> float:
        """The share of the true that is flagged."""
        return self.hits / self.positives


def point(scores: Floats, labels: Truths, threshold: float) -> Point:
    """What a threshold does."""
    flagged = scores >= threshold
    return Point(threshold, int(flagged.sum()), int((flagged & labels).sum()), int(labels.sum()))


def for_recall(scores: Floats, labels: Truths, recall: float) -> float:
    """The highest threshold that flags at least this share of the true: the score of one of them."""
    true = np.sort(scores[labels])[::-1]
    return float(true[max(0, int(np.ceil(recall * len(true) - 1e-9)) - 1)])


def _loss(wide: Floats, targets: Floats, at: Floats, ridge: Floats) -> float:
    raw = wide @ at
    return float(np.mean(np.logaddexp(0, raw) - targets * raw) + np.sum(ridge * at * at) / 2)


def _sigmoid(raw: Floats) -> Floats:
    found: Floats = np.exp(-np.logaddexp(0, -raw))
    return found
