"""In which cluster of somebody's k-means a picture lies, and whether that is one of those that are wanted."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curate.errors import UserError
from curate.step import File, bool_, float32, int32, step


@step(adds={"centroid": int32, "centroid_dot": float32, "is_wanted_centroid": bool_}, batch=256)
class NearestCentroid:
    """The number of the nearest centroid, from 0; the embedding's inner product with it; and whether it is a wanted one.

    Nearest is the largest inner product with the centroids as they are in the file, of equal ones the first: what DataComp's
    image based filter does (baselines/apply_filter.py), where centroids of k-means are not brought to length 1. It takes 100,000
    centroids of a pool's L/14 embeddings, and wants those that are nearest to a picture of ImageNet's training set.

    `centroids`: an .npy of (centroids, dimensions). `wanted`: an .npy of their numbers, or a text of one a line. Neither is
    shipped. A run over ImageNet with this step, without `wanted`, has the numbers in its column `centroid`; is_wanted_centroid is
    then null. So are all three for an embedding that is all zeros or not finite. 100,000 centroids of 768 numbers take 400 MB a
    worker.
    """

    def __init__(self, *, centroids: File, wanted: File | None = None) -> None:
        self._centroids = np.asarray(_array("centroids", centroids), np.float32)
        if self._centroids.ndim != 2 or not len(self._centroids) or not np.isfinite(self._centroids).all():
            raise UserError(f"nearest_centroid.centroids: {centroids} is no array of (centroids, dimensions) of finite numbers")
        self._wanted = None if wanted is None else _wanted(wanted, len(self._centroids))

    def __call__(self, image_emb: NDArray[np.float32]) -> dict[str, list[Any]]:
        if image_emb.shape[1] != self._centroids.shape[1]:
            raise UserError(f"step 'nearest_centroid': centroids of {self._centroids.shape[1]} numbers for embeddings of "
                            f"{image_emb.shape[1]}")
        usable = np.isfinite(image_emb).all(axis=1) & (image_emb != 0).any(axis=1)
        products = np.where(usable[:, None], image_emb, np.float32(0)) @ self._centroids.T
        nearest = products.argmax(axis=1)
        wanted: list[Any] = [None] * len(nearest) if self._wanted is None else self._wanted[nearest].tolist()
        columns = {"centroid": nearest.tolist(), "centroid_dot": products[np.arange(len(nearest)), nearest].tolist(),
                   "is_wanted_centroid": wanted}
        return {name: [v if good else None for v, good in zip(values, usable.tolist(), strict=True)]
                for name, values in columns.items()}


def _wanted(path: Path, count: int) -> NDArray[np.bool_]:
    """One entry a centroid: whether its number is in the file."""
    numbers = _array("wanted", path) if path.suffix == ".npy" else _lines(path)
    if numbers.ndim != 1 or numbers.dtype.kind not in "iu" or not ((numbers >= 0) & (numbers < count)).all():
        raise UserError(f"nearest_centroid.wanted: {path} holds no list of whole numbers from 0 to {count - 1}")
    mask = np.zeros(count, np.bool_)
    mask[numbers] = True
    return mask


def _array(setting: str, path: Path) -> NDArray[Any]:
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"nearest_centroid.{setting}: {path} is no .npy of numbers: {error}") from None
    if not isinstance(found, np.ndarray) or found.dtype.kind not in "iuf":
        raise UserError(f"nearest_centroid.{setting}: {path} is no .npy of numbers")
    return found


def _lines(path: Path) -> NDArray[Any]:
    lines = [line.strip() for line in path.read_text(encoding="utf-8-sig", errors="replace").splitlines() if line.strip()]
    for line in lines:
        if not line.isdecimal() or len(line) > 9:
            raise UserError(f"nearest_centroid.wanted: {path}: {line[:40]!r} is no number of a centroid")
    return np.array([int(line) for line in lines], np.int64)
