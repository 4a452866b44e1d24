"""ALBEF's and BLIP's losses against naive references in float64, and the drawing of wrong partners."""

import math
from collections import Counter

import pytest
import torch
from torch import Tensor

from train.losses import clip_loss
from train.matching import NONE, itm_loss, lm_loss, shares, soft_clip_loss, wrong_partners, wrong_weights

PICTURES = torch.tensor([4, 7, 4, 9])


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def embeddings(num: int, seed: int) -> Tensor:
    return torch.nn.functional.normalize(numbers(num, 5, seed=seed), dim=-1).requires_grad_()


def surprise(logits: list[float], wanted: list[float]) -> float:
    """Cross entropy of one row, one exponential at a time."""
    total = sum(math.exp(x) for x in logits)
    return -sum(p * math.log(math.exp(x) / total) for x, p in zip(logits, wanted, strict=True))


def test_weights_of_wrong_partners() -> None:
    logits = numbers(4, 4)
    for i, row in enumerate(wrong_weights(logits, PICTURES).tolist()):
        total = sum(math.exp(x) for x in logits[i].tolist())
        assert row == pytest.approx([0 if PICTURES[i] == PICTURES[j] else math.exp(logits[i, j].item()) / total + 1e-4
                                     for j in range(4)], rel=1e-12)


def test_partners_are_drawn_as_often_as_they_weigh_and_from_the_seed() -> None:
    logits, times = 2 * numbers(4, 4), 1000
    torch.manual_seed(5)
    drawn = torch.stack([wrong_partners(logits, PICTURES) for _ in range(times)])
    torch.manual_seed(5)
    assert torch.equal(drawn[0], wrong_partners(logits, PICTURES))
    weights = wrong_weights(logits, PICTURES)
    for i, row in enumerate((weights / weights.sum(1, keepdim=True)).tolist()):
        counts = Counter(drawn[:, i].tolist())
        for j, expected in enumerate(row):
            assert abs(counts[j] - times * expected) <= 4 * math.sqrt(times * expected * (1 - expected)), (i, j)


def test_nothing_is_certain_enough_to_leave_no_partner() -> None:
    """Where softmax is 1 at the right partner and 0 elsewhere ALBEF's drawing fails."""
    partners = wrong_partners(1e6 * torch.eye(3), torch.arange(3))
    assert all(partner in {0, 1, 2} - {row} for row, partner in enumerate(partners.tolist()))


def test_no_partner_where_all_show_one_picture() -> None:
    assert wrong_partners(numbers(1, 1), torch.tensor([3])).tolist() == [NONE]
    assert wrong_partners(numbers(2, 2), torch.tensor([3, 3])).tolist() == [NONE, NONE]


@pytest.mark.parametrize("num_wrong", [0, 5])
def test_the_judges_loss(num_wrong: int) -> None:
    right, wrong = numbers(3, 2), numbers(num_wrong, 2, seed=1)
    expected = [surprise(row, [0, 1]) for row in right.tolist()] + [surprise(row, [1, 0]) for row in wrong.tolist()]
    assert itm_loss(right, wrong).item() == pytest.approx(sum(expected) / len(expected), rel=1e-12)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_writers_loss(smoothing: float) -> None:
    logits, words = numbers(2, 3, 7), torch.tensor([[1, 6, -100], [2, -100, 0]])
    expected = [surprise(logits[n, t].tolist(), [(1 - smoothing) * (v == word) + smoothing / 7 for v in range(7)])
                for n in range(2) for t, word in enumerate(words[n].tolist()) if word != -100]
    assert lm_loss(logits, words, smoothing=smoothing).item() == pytest.approx(sum(expected) / 4, rel=1e-12)
    assert lm_loss(logits, words) == lm_loss(logits, words, smoothing=0.1)


def test_with_one_right_answer_it_is_clips_loss() -> None:
    image, text, scale = embeddings(6, 0), embeddings(6, 1), torch.tensor(7.0, dtype=torch.float64, requires_grad=True)
    right = shares(numbers(6, 6), torch.eye(6), soft=0.0)
    soft, plain = soft_clip_loss(image, text, image, text, scale, right, right), clip_loss(image, text, scale)
    assert soft.item() == pytest.approx(plain.item(), rel=1e-12)
    inputs = (image, text, scale)
    for a, b in zip(torch.autograd.grad(soft, inputs), torch.autograd.grad(plain, inputs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_soft_answers() -> None:
    image, text, more_images, more_texts = embeddings(2, 0), embeddings(2, 1), embeddings(5, 2), embeddings(5, 3)
    teacher, right = numbers(2, 5), torch.tensor([[1, 0, 0, 0, 0], [0, 1, 0, 0, 1]])
    answers = shares(teacher, right, soft=0.4)
    for n in range(2):
        total = sum(math.exp(x) for x in teacher[n].tolist())
        assert answers[n].tolist() == pytest.approx([0.4 * math.exp(teacher[n, m].item()) / total
                                                     + 0.6 * right[n, m].item() / right[n].sum().item() for m in range(5)])
    expected = [surprise([3 * (row @ other).item() for other in others], answers[n].tolist())
                for rows, others in ((image, more_texts), (text, more_images)) for n, row in enumerate(rows)]
    found = soft_clip_loss(image, text, more_images, more_texts, torch.tensor(3.0), answers, answers)
    assert found.item() == pytest.approx(sum(expected) / 4, rel=1e-12)


def test_a_model_that_has_diverged_still_gets_partners() -> None:
    """Its loss is what stops it: torch would refuse to draw by weights that are no numbers."""
    drawn = wrong_partners(torch.full((4, 4), torch.nan), torch.arange(4))
    assert all(0 <= int(column) < 4 and int(column) != row for row, column in enumerate(drawn))
