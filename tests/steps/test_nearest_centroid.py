from pathlib import Path
from typing import Any

import numpy as np
import pytest

from curate.errors import UserError
from curate.steps.nearest_centroid import NearestCentroid

CENTROIDS = np.array([[1, 0], [0, 1], [2, 2], [0, 1]], np.float32)


@pytest.fixture
def centroids(tmp_path: Path) -> Path:
    np.save(tmp_path / "centroids.npy", CENTROIDS)
    return tmp_path / "centroids.npy"


def numbers(path: Path, values: Any) -> Path:
    np.save(path, values)
    return path


def test_the_largest_inner_product_wins(centroids: Path, tmp_path: Path) -> None:
    """As DataComp computes it: a long centroid is near to much; of equal ones the first."""
    step = NearestCentroid(centroids=centroids, wanted=numbers(tmp_path / "w.npy", [2]))
    found = step(np.array([[1, 0], [0, 1], [1, -1], [-1, 1], [-1, -1]], np.float32))
    assert found["centroid"] == [2, 2, 0, 1, 0]
    assert found["centroid_dot"] == [2, 2, 1, 1, -1]
    assert found["is_wanted_centroid"] == [True, True, False, False, False]


def test_no_direction_is_no_cluster(centroids: Path, tmp_path: Path) -> None:
    step = NearestCentroid(centroids=centroids, wanted=numbers(tmp_path / "w.npy", [0, 1, 2, 3]))
    found = step(np.array([[0, 0], [np.nan, 1], [np.inf, 1], [1, 0]], np.float32))
    assert found["centroid"] == [None, None, None, 2] and found["is_wanted_centroid"] == [None, None, None, True]
    assert step(np.empty((0, 2), np.float32)) == {"centroid": [], "centroid_dot": [], "is_wanted_centroid": []}


def test_numbers_as_a_text_or_not_at_all(centroids: Path, tmp_path: Path) -> None:
    (tmp_path / "w.txt").write_text("\ufeff2\n\n1\n")
    rows = np.array([[1, 0], [1, -1]], np.float32)
    assert NearestCentroid(centroids=centroids, wanted=tmp_path / "w.txt")(rows)["is_wanted_centroid"] == [True, False]
    found = NearestCentroid(centroids=centroids)(rows)
    assert (found["centroid"], found["is_wanted_centroid"]) == ([2, 0], [None, None])


@pytest.mark.parametrize("values", [[4], [-1], [0.5], [[0, 1]], ["0"]])
def test_wrong_numbers(values: Any, centroids: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"wanted: \S+ (holds no list of whole numbers from 0 to 3|is no .npy of numbers)"):
        NearestCentroid(centroids=centroids, wanted=numbers(tmp_path / "w.npy", values))


def test_wrong_files(centroids: Path, tmp_path: Path) -> None:
    (tmp_path / "w.txt").write_text("1\ntwo\n")
    with pytest.raises(UserError, match="'two' is no number of a centroid"):
        NearestCentroid(centroids=centroids, wanted=tmp_path / "w.txt")
    for bad in (b"", b"no array", np.array([None]).dumps()):
        (tmp_path / "c.npy").write_bytes(bad)
        with pytest.raises(UserError, match=r"nearest_centroid.centroids: \S+c.npy is no .npy of numbers"):
            NearestCentroid(centroids=tmp_path / "c.npy")
    for values in ([1.0, 2.0], [[np.nan, 1]], np.empty((0, 2))):
        with pytest.raises(UserError, match="is no array of"):
            NearestCentroid(centroids=numbers(tmp_path / "d.npy", values))
    with pytest.raises(UserError, match="centroids of 2 numbers for embeddings of 3"):
        NearestCentroid(centroids=centroids)(np.ones((1, 3), np.float32))
