"""Recall, accuracy and AUROC by hand, and against a naive count."""

import numpy as np
import pytest
from numpy.typing import NDArray

from train import figures
from train.figures import accuracy_at_k, auroc, class_ranks, mean_per_class, recall_at_k

EYE = np.eye(4, dtype=np.float32)


def test_recall_by_hand() -> None:
    """Two pictures, three captions: picture 0 has captions 0 and 2, picture 1 has caption 1."""
    images = np.array([[1, 0], [0, 1]], np.float32)
    texts = np.array([[0.6, 0.8], [0.8, 0.6], [1, 0]], np.float32)
    assert recall_at_k(images, texts, np.array([0, 1, 0]), at=(1, 2)) == {
        "text_to_image_recall_at_1": pytest.approx(1 / 3), "image_to_text_recall_at_1": pytest.approx(1 / 2),
        "recall_at_1": pytest.approx(5 / 12), "text_to_image_recall_at_2": 1.0, "image_to_text_recall_at_2": 1.0,
        "recall_at_2": 1.0}


def test_other_right_captions_push_none_down() -> None:
    texts = EYE[[0, 0, 0, 1]]
    assert recall_at_k(EYE[:2], texts, np.array([0, 0, 0, 1]), at=(1,))["image_to_text_recall_at_1"] == 1.0


def test_a_model_that_says_the_same_of_all_is_at_chance() -> None:
    same = np.ones((10, 3), np.float32)
    found = recall_at_k(same, same, np.arange(10), at=(1, 5))
    assert found["recall_at_1"] == pytest.approx(0.1) and found["recall_at_5"] == pytest.approx(0.5)


def naive(queries: NDArray[np.float32], candidates: NDArray[np.float32], right: list[set[int]], k: int) -> float:
    order = np.argsort(-(queries @ candidates.T), axis=1, kind="stable")
    hits = 0
    for query, wanted in enumerate(right):
        best = next(c for c in order[query] if c in wanted)
        wrong_before = [c for c in order[query][: list(order[query]).index(best)] if c not in wanted]
        hits += len(wrong_before) < k
    return hits / len(right)


@pytest.mark.parametrize("chunk", [1, 100, 1 << 20])
def test_recall_equals_the_naive_count_whatever_the_chunks(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    images = rng.integers(-2, 3, (30, 4)).astype(np.float32)      # whole numbers: many ties, exact sums
    texts = rng.integers(-2, 3, (90, 4)).astype(np.float32)
    of = np.concatenate([np.arange(30), rng.integers(0, 30, 60)])
    monkeypatch.setattr(figures, "CHUNK_BYTES", chunk)
    found = recall_at_k(images, texts, of)
    captions = [set(np.flatnonzero(of == i).tolist()) for i in range(30)]
    for k in (1, 5, 10):
        assert found[f"text_to_image_recall_at_{k}"] == naive(texts, images, [{i} for i in of.tolist()], k)
        assert found[f"image_to_text_recall_at_{k}"] == naive(images, texts, captions, k)


def test_auroc() -> None:
    assert auroc(np.array([1, 2, 3, 4]), np.array([0, 0, 1, 1])) == 1.0
    assert auroc(np.array([4, 3, 2, 1]), np.array([0, 0, 1, 1])) == 0.0
    assert auroc(np.array([1, 3, 2, 4]), np.array([0, 0, 1, 1])) == 0.75
    assert auroc(np.zeros(10), np.arange(10) < 3) == 0.5
    assert auroc(np.array([1, 1, 2]), np.array([0, 1, 1])) == 0.75
    assert np.isnan(auroc(np.array([1, 2]), np.array([1, 1])))
    rng = np.random.default_rng(0)
    scores, positive = rng.integers(0, 9, 200), rng.random(200) < 0.4
    pairs = scores[positive][:, None] - scores[~positive][None]
    assert auroc(scores, positive) == pytest.approx(((pairs > 0) + (pairs == 0) / 2).mean(), abs=1e-12)


def test_accuracy() -> None:
    assert accuracy_at_k(EYE, EYE[:, :], np.array([0, 1, 3, 2])) == {"accuracy_at_1": 0.5}
    six = np.eye(6, dtype=np.float32)
    assert accuracy_at_k(six, six, np.arange(6)) == {"accuracy_at_1": 1.0, "accuracy_at_5": 1.0}


def test_every_class_counts_alike() -> None:
    """Class 0: one of three is right; class 7: its only one is; class 3 does not occur."""
    labels = np.array([0, 0, 0, 7])
    assert mean_per_class(np.array([True, False, False, True]), labels) == pytest.approx((1 / 3 + 1) / 2)


def test_of_equal_classes_the_first_goes_first() -> None:
    pictures, classes = np.ones((2, 2), np.float32), np.ones((3, 2), np.float32)
    assert class_ranks(pictures, classes, np.array([0, 2])).tolist() == [0, 2]
