"""A map of the pictures of a run: a sample of their embeddings, laid out in two dimensions by principal components."""

import hashlib
import heapq
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curate.folder import Embedder, Folder
from curate.measure import matrix
from curate.pages.examples import Example, Place, at_places
from curate.pages.figures import rows_at, rows_of

MAX_POINTS = 2000
COLUMNS, ROWS = 20, 13
"""Cells of the mosaic."""
_EDGE = 0.01
"""Share of the points at either end of an axis that is drawn at its rim, so that a few odd pictures don't squeeze the rest."""


@dataclass(frozen=True)
class Atlas:
    """Points 0 to 1 from the left and from above; what became of each row; its score, NaN where there is none."""

    embedder: Embedder
    candidates: int
    """rows that the sample is drawn from: all that came past the embedder"""
    xy: np.ndarray
    is_kept: np.ndarray
    score_name: str
    score: np.ndarray
    explained: float
    """share of the variance that the two components hold"""
    cells: dict[tuple[int, int], Example]
    """(column, row) of the mosaic → the kept row nearest to the middle of the cell"""


def atlas_of(folder: Folder) -> Atlas | None:
    """The map by the last embedder of the pipeline; None where there is none, or fewer than three rows came past it."""
    if not folder.embedders or "image" not in folder.columns:
        return None
    embedder = folder.embedders[-1]
    stage = next(i for i, s in enumerate(folder.stages) if embedder.image in s.get("adds", {}).values())
    score = next((s["adds"].get("clip_cos", "") for s in folder.stages
                  if s.get("step") == "clip_score" and s["reads"].get("image_emb") == embedder.image), "")
    places, candidates = _sample(folder, stage)
    if len(places) < 3:
        return None
    places, vectors, is_kept, scores = _read(folder, places, embedder.image, score if score in folder.columns else "")
    if len(places) < 3:
        return None
    xy, explained = layout(vectors)
    return Atlas(embedder, candidates, xy, is_kept, score, scores, explained, _mosaic(folder, places, xy, is_kept))


def layout(vectors: np.ndarray) -> tuple[np.ndarray, float]:
    """Rows (n, dimensions) → (n, 2) in 0..1 by the first two principal components, and the share of variance they hold.

    The sign of a component is chosen so that its largest weight is positive: nothing else in it is left to chance.
    """
    centred = vectors.astype(np.float64) - vectors.mean(axis=0, dtype=np.float64)
    variance, axes = np.linalg.eigh(centred.T @ centred)
    axes = axes[:, ::-1][:, :2]
    signs = np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])])
    flat = np.pad(centred @ (axes * signs), ((0, 0), (0, 2 - axes.shape[1])))
    low, high = np.quantile(flat, [_EDGE, 1 - _EDGE], axis=0)
    xy = np.clip((flat - low) / np.where(high > low, high - low, 1), 0, 1)
    total = max(float(variance.sum()), 1e-300)
    return xy, float(variance[::-1][:2].sum() / total)


def _sample(folder: Folder, stage: int) -> tuple[list[Place], int]:
    """The rows past a stage with the lowest digests of their uids, in the order of shards: the same rows however often asked."""
    chosen: list[tuple[int, str, int, int]] = []        # digests below zero: the heap's first is the highest
    candidates = 0
    for rows in rows_of(folder, ["uid"]):
        past = np.flatnonzero(rows.passed(stage))
        candidates += len(past)
        for row, uid in zip(past.tolist(), rows.table["uid"].take(pa.array(past)).to_pylist(), strict=True):
            digest = int.from_bytes(hashlib.blake2b(uid.encode(), digest_size=8).digest())
            entry = (-digest, uid, rows.number, row)
            if len(chosen) < MAX_POINTS:
                heapq.heappush(chosen, entry)
            elif entry > chosen[0]:
                heapq.heapreplace(chosen, entry)
    return sorted((Place(0.0, uid, shard, row) for _, uid, shard, row in chosen), key=lambda p: (p.shard, p.row)), candidates


def _read(folder: Folder, places: list[Place], image: str, score: str) -> tuple[list[Place], np.ndarray, np.ndarray, np.ndarray]:
    """Of the places that have an embedding: place, embedding, whether kept, score."""
    found: list[Place] = []
    vectors, kept, scores = [np.empty((0, 0), np.float32)], [np.empty(0, bool)], [np.empty(0)]
    for number in sorted({p.shard for p in places}):
        here = [p for p in places if p.shard == number]
        rows = rows_at(folder, number, [image, *([score] if score else [])])
        index = pa.array([p.row for p in here])
        table = rows.table.take(index)
        has = pc.is_valid(table[image]).to_numpy()
        found += [p for p, there in zip(here, has, strict=True) if there]
        vectors.append(matrix(table[image].combine_chunks().drop_null()))
        kept.append(rows.is_kept[index.to_numpy()][has])
        scores.append(table[score].cast(pa.float64()).to_numpy()[has] if score else np.full(int(has.sum()), np.nan))
    full = [v for v in vectors if len(v)]
    return found, np.concatenate(full) if full else vectors[0], np.concatenate(kept), np.concatenate(scores)


def _mosaic(folder: Folder, places: list[Place], xy: np.ndarray, is_kept: np.ndarray) -> dict[tuple[int, int], Example]:
    grid = np.array([COLUMNS, ROWS])
    cell = np.minimum((xy * grid).astype(int), grid - 1)
    away = ((xy * grid - cell - 0.5) ** 2).sum(axis=1).round(9)
    best: dict[tuple[int, int], tuple[float, str, int]] = {}
    for i in np.flatnonzero(is_kept).tolist():
        key = (int(cell[i, 0]), int(cell[i, 1]))
        best[key] = min(best.get(key, (np.inf, "", -1)), (float(away[i]), places[i].uid, i))
    order = sorted(best)
    rows = at_places(folder, [places[best[key][2]] for key in order])
    return dict(zip(order, rows, strict=True))
