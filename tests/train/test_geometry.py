"""Alignment, uniformity, modality gap and effective rank: by hand, and against plain sums in float64."""

import math

import numpy as np
import pytest
import torch

from train import geometry as geo
from train.geometry import alignment, effective_rank, geometry, modality_gap, uniformity

EAST, NORTH, WEST = torch.eye(2, dtype=torch.float64)[0], torch.eye(2, dtype=torch.float64)[1], -torch.eye(2).double()[0]


def drawn(rows: int, dims: int, seed: int) -> torch.Tensor:
    """Rows of length 1."""
    draws = np.random.default_rng(seed).normal(size=(rows, dims))
    return torch.from_numpy(draws / np.linalg.norm(draws, axis=1, keepdims=True))


def test_by_hand() -> None:
    pictures, texts = torch.stack([EAST, EAST]), torch.stack([EAST, NORTH])
    assert alignment(pictures, texts) == pytest.approx((0 + 2) / 2)
    assert alignment(pictures, texts, power=1) == pytest.approx(math.sqrt(2) / 2)
    assert uniformity(texts) == pytest.approx(-2 * 2)                     # one pair, at a squared distance of 2
    assert uniformity(torch.stack([EAST, EAST, WEST])) == pytest.approx(math.log((1 + 2 * math.exp(-8)) / 3))
    assert modality_gap(pictures, texts) == pytest.approx(math.sqrt(0.5))
    assert modality_gap(EAST[None], WEST[None]) == 2.0
    assert effective_rank(pictures) == pytest.approx(1.0)
    assert effective_rank(texts) == pytest.approx(2.0)


def test_effective_rank_weighs_by_the_singular_values() -> None:
    """Shares 3/4 and 1/4: exp of their entropy."""
    assert effective_rank(torch.diag(torch.tensor([3.0, 1.0]).double())) == pytest.approx(
        math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25)))


@pytest.mark.parametrize("chunk", [1, 4000, 1 << 26])
def test_against_plain_sums_whatever_the_chunks(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(geo, "CHUNK_BYTES", chunk)
    pictures, texts = drawn(40, 6, 1), drawn(40, 6, 2)
    a, b = pictures.numpy(), texts.numpy()
    kernel = [math.exp(-2 * ((a[i] - a[j]) ** 2).sum()) for i in range(40) for j in range(40) if i != j]
    shares = np.linalg.svd(b, compute_uv=False) / np.linalg.svd(b, compute_uv=False).sum()
    found = geometry(pictures, texts)
    assert list(found) == ["alignment", "modality_gap", "image_uniformity", "text_uniformity", "image_effective_rank",
                           "text_effective_rank"]
    assert found["alignment"] == pytest.approx(((a - b) ** 2).sum(1).mean(), abs=1e-12)
    assert found["modality_gap"] == pytest.approx(np.linalg.norm(a.mean(0) - b.mean(0)), abs=1e-12)
    assert found["image_uniformity"] == pytest.approx(math.log(np.mean(kernel)), abs=1e-12)
    assert found["text_effective_rank"] == pytest.approx(math.exp(-(shares * np.log(shares)).sum()), abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_training_embeddings_come_with_gradients_and_in_any_precision(dtype: torch.dtype) -> None:
    exact = geometry(drawn(30, 8, 3), drawn(30, 8, 4))
    found = geometry(drawn(30, 8, 3).to(dtype).requires_grad_(), drawn(30, 8, 4).to(dtype).requires_grad_())
    assert found == pytest.approx(exact, rel=2e-2 if dtype == torch.bfloat16 else 2e-3)


def test_what_has_no_answer() -> None:
    assert math.isnan(uniformity(EAST[None])) and math.isnan(effective_rank(torch.empty(0, 3)))
    assert effective_rank(torch.zeros(3, 3)) == 0.0
