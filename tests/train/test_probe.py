"""The linear probe: the optimum that it finds, the penalty that it chooses, the pictures that it may look at."""

import numpy as np
import pytest
import torch

from train import probe
from train.probe import COARSE, Labelled, choose_l2, fit, peak, probe_figures, split


def clouds(rows: int, seed: int, spread: float = 0.3) -> Labelled:
    """Points of length 1 around three directions."""
    draws = np.random.default_rng(seed)
    labels = np.arange(rows) % 3
    emb = np.eye(3, 5)[labels] + spread * draws.normal(size=(rows, 5))
    return Labelled((emb / np.linalg.norm(emb, axis=1, keepdims=True)).astype(np.float32), labels.astype(np.int64))


@pytest.mark.parametrize("l2", [0.01, 1.0, 100.0])
def test_no_other_weights_have_less_loss(l2: float) -> None:
    """The gradient of scikit-learn's objective is zero where it stops: cross-entropy over all rows and l2 / 2 the squares."""
    rows = clouds(60, 0)
    found = fit(rows, 3, l2)
    weight, bias = found.weight.clone().requires_grad_(), found.bias.clone().requires_grad_()
    logits = torch.from_numpy(rows.emb).double() @ weight + bias
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(rows.labels), reduction="sum")
    (loss + l2 / 2 * weight.square().sum()).backward()
    assert max(float(part.grad.abs().max()) for part in (weight, bias) if part.grad is not None) < 1e-4
    assert found.weight.dtype == torch.float64


def test_a_stronger_penalty_gives_smaller_weights_but_leaves_the_bias_free() -> None:
    rows = clouds(60, 0)
    norms = [float(fit(rows, 3, l2).weight.norm()) for l2 in (0.01, 1.0, 100.0, 1e6)]
    assert norms == sorted(norms, reverse=True) and norms[-1] < 1e-3
    lopsided = Labelled(rows.emb, np.where(np.arange(60) < 45, 0, 1).astype(np.int64))
    bias = fit(lopsided, 2, 1e6).bias
    assert torch.softmax(bias, 0).tolist() == pytest.approx([45 / 60, 15 / 60], abs=1e-3)


def test_clouds_are_told_apart() -> None:
    found = probe_figures(clouds(90, 1), clouds(30, 2, spread=0.1))
    assert found["probe_accuracy_at_1"] == found["probe_mean_per_class"] == 1.0
    assert found == probe_figures(clouds(90, 1), clouds(30, 2, spread=0.1)), "the same every time"


def test_the_search_starts_wide_and_ends_at_eight_steps_a_factor_of_ten() -> None:
    asked: list[float] = []

    def height(power: float) -> float:
        asked.append(power)
        return -abs(power - 2.3)

    assert peak(height) == 2.25
    assert asked == [*COARSE, 1.0, 3.0, 1.5, 2.5, 2.25, 2.75, 2.125, 2.375] and len(asked) == len(set(asked))


def test_of_equals_the_strongest_penalty_and_never_beyond_the_limits() -> None:
    assert peak(lambda power: 1.0) == 6.0
    assert peak(lambda power: -power) == -6.0


def test_the_penalty_is_chosen_on_validation_pictures_and_the_test_never_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "MAX_ITERATIONS", 30)
    training, validation = clouds(30, 3, spread=1.0)[np.arange(30) % 3 < np.arange(30) // 10 + 1], clouds(300, 4, spread=1.0)
    chosen = choose_l2(training, validation, 3)
    right = {l2: (fit(training, 3, l2).predict(validation.emb) == validation.labels).mean() for l2 in (1e-6, chosen, 1e6)}
    assert right[chosen] == max(right.values()) > right[1e6], "under the strongest, all is the class with most pictures"
    assert probe_figures(training, clouds(3, 5), validation)["probe_l2"] == chosen


def test_training_and_validation_are_fitted_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of class 2 is in the validation pictures: the last fit has it, or it could not be right."""
    monkeypatch.setattr(probe, "MAX_ITERATIONS", 30)
    rows = clouds(60, 7)
    training, validation = rows[rows.labels < 2], rows[rows.labels == 2]
    assert probe_figures(training, clouds(30, 8), validation)["probe_mean_per_class"] > 2 / 3


def test_a_fifth_of_every_class_but_never_its_only_picture() -> None:
    labels = np.array([0] * 10 + [1] * 2 + [2] + [5] * 20, np.int64)
    held = split(labels)
    assert [int(held[labels == label].sum()) for label in (0, 1, 2, 5)] == [2, 1, 0, 4]
    assert (held == split(labels)).all()
    alone = Labelled(np.eye(2, dtype=np.float32), np.array([0, 1], np.int64))
    assert probe_figures(alone, alone)["probe_l2"] == 1.0, "nothing to choose by"


def test_nothing_to_fit_or_to_test() -> None:
    none = Labelled(np.empty((0, 5), np.float32), np.empty(0, np.int64))
    for training, test in ((none, clouds(3, 0)), (clouds(3, 0), none)):
        with pytest.raises(ValueError, match="a probe needs training and test pictures"):
            probe_figures(training, test)
