from pathlib import Path

import numpy as np
import pyarrow as pa

from curate.heads.layers import Linear
from curate.steps.aesthetic import Aesthetic
from tests.heads import write_head


def test_exact(tmp_path: Path) -> None:
    """A score without an activation, of the embedding at length 1."""
    toy = write_head(tmp_path / "toy", Linear(np.array([[3, 4]], np.float32), np.array([5], np.float32)), dim=2,
                     column="aesthetic_score", activation="none")
    rows = np.array([[0.6, 0.8], [30, 40], [-1, 0], [0, 0], [np.nan, 1]], np.float32)
    assert Aesthetic(file=toy)(rows).equals(pa.array([10, 10, 2, None, None], pa.float32()))
