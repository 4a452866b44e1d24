from pathlib import Path

import numpy as np
import pytest

from curate.heads.layers import Linear
from curate.steps.watermark import Watermark
from tests.heads import write_head


def test_exact(tmp_path: Path) -> None:
    toy = write_head(tmp_path / "toy", Linear(np.array([[1, 0]], np.float32), np.zeros(1, np.float32)), dim=2,
                     column="watermark_prob")
    found = Watermark(file=toy)(np.array([[0, 2], [7, 0], [-1, 0], [0, 0]], np.float32)).to_pylist()
    assert found[:3] == pytest.approx([0.5, 1 / (1 + np.exp(-1)), 1 / (1 + np.exp(1))]) and found[3] is None
