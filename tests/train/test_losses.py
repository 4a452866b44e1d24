"""Losses against a naive reference in float64, and across processes that are not there."""

import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from train.losses import clip_loss, distill_loss, siglip_loss


def naive(image: Tensor, text: Tensor, scale: float) -> float:
    """Figure 3 of the CLIP paper, one logit at a time."""
    logits = np.array([[scale * float(i @ t) for t in text] for i in image])
    rows = [-logits[n, n] + np.log(np.exp(logits[n]).sum()) for n in range(len(logits))]
    columns = [-logits[n, n] + np.log(np.exp(logits[:, n]).sum()) for n in range(len(logits))]
    return float((np.mean(rows) + np.mean(columns)) / 2)


def naive_sigmoid(image: Tensor, text: Tensor, scale: float, bias: float) -> float:
    """Algorithm 1 of the SigLIP paper, one pair at a time."""
    total = 0.0
    for n, i in enumerate(image):
        for m, t in enumerate(text):
            sign = 1 if n == m else -1
            total += math.log(1 / (1 + math.exp(-sign * (scale * float(i @ t) + bias))))
    return -total / len(image)


def embeddings(num: int, seed: int) -> Tensor:
    found = torch.randn(num, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.nn.functional.normalize(found, dim=-1).requires_grad_()


def test_equals_the_naive_reference() -> None:
    image, text = embeddings(7, 0), embeddings(7, 1)
    loss = clip_loss(image, text, torch.tensor(14.3, dtype=torch.float64))
    assert loss.item() == pytest.approx(naive(image.detach(), text.detach(), 14.3), rel=1e-12)


def test_equal_embeddings_give_the_logarithm_of_the_batch() -> None:
    same = torch.ones(6, 4, dtype=torch.float64) / 2
    assert clip_loss(same, same, torch.tensor(10.0)).item() == pytest.approx(np.log(6))


def number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize(("scale", "bias"), [(10.0, -10.0), (117.3, -12.9), (2.0, 0.0)])
def test_the_sigmoid_loss_equals_the_naive_reference(scale: float, bias: float) -> None:
    image, text = embeddings(7, 0), embeddings(7, 1)
    loss = siglip_loss(image, text, number(scale), number(bias))
    assert loss.item() == pytest.approx(naive_sigmoid(image.detach(), text.detach(), scale, bias), rel=1e-12)


def test_the_sigmoid_loss_of_one_picture_and_its_text() -> None:
    same = torch.ones(1, 4) / 2
    assert siglip_loss(same, same, torch.tensor(10.0), torch.tensor(-10.0)).item() == pytest.approx(math.log(2))
    assert siglip_loss(same, same, torch.tensor(100.0), torch.tensor(-200.0)).item() == pytest.approx(100.0)


@pytest.mark.parametrize("sigmoid", [False, True])
def test_shares_of_a_batch_average_to_the_whole(sigmoid: bool) -> None:
    """What dist.Ranks.gather does, in one process: each share ranks its rows against all."""
    image, text, scale, bias = embeddings(6, 2), embeddings(6, 3), number(5.0), number(-2.0)
    loss: Any = partial(siglip_loss, scale=scale, bias=bias) if sigmoid else partial(clip_loss, scale=scale)
    whole = loss(image, text)
    parts = []
    for rank in range(3):
        mine = slice(2 * rank, 2 * rank + 2)
        others = iter((text,) if sigmoid else (image, text))
        parts.append(loss(image[mine], text[mine], first_row=2 * rank, gather=lambda _, others=others: next(others)))
    mean = torch.stack(parts).mean()
    assert mean.item() == pytest.approx(whole.item(), rel=1e-12)
    inputs = (image, text, scale, bias) if sigmoid else (image, text, scale)
    for one, all_ in zip(torch.autograd.grad(mean, inputs), torch.autograd.grad(whole, inputs), strict=True):
        torch.testing.assert_close(one, all_, rtol=1e-12, atol=1e-12)


def naive_distillation(image: Tensor, text: Tensor, scale: float, seen: Tensor, read: Tensor, taught: float) -> float:
    """The affinity mimicking of TinyCLIP, one pair at a time: ours in the teacher's words, from pictures and from texts."""
    found = []
    for ours, others, theirs, their_others in ((image, text, seen, read), (text, image, read, seen)):
        for one, their_one in zip(ours, theirs, strict=True):
            exps = [math.exp(scale * float(one @ other)) for other in others]
            theirs_exps = [math.exp(taught * float(their_one @ other)) for other in their_others]
            found.append(-sum(e / sum(theirs_exps) * math.log(x / sum(exps)) for e, x in zip(theirs_exps, exps, strict=True)))
    return float(np.mean(found))


def test_distillation_equals_the_naive_reference() -> None:
    image, text, taught_image, taught_text = (embeddings(7, seed).detach() for seed in range(4))
    loss = distill_loss(image, text, number(14.3), torch.cat([taught_image, taught_text], dim=1), 30.0)
    assert loss.item() == pytest.approx(naive_distillation(image, text, 14.3, taught_image, taught_text, 30.0), rel=1e-12)


def test_a_pupil_that_sees_what_its_teacher_sees_has_nothing_to_learn() -> None:
    """The loss is then the teacher's own entropy, and the gradient nothing; at another scale it is more."""
    image, text = embeddings(7, 0), embeddings(7, 1)
    taught = torch.cat([image, text], dim=1).detach()
    same = distill_loss(image, text, number(20.0), taught, 20.0)
    gradients = torch.autograd.grad(same, (image, text))
    assert max(float(g.abs().max()) for g in gradients) < 1e-12
    assert distill_loss(image, text, number(10.0), taught, 20.0) > same
