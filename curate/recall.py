"""Which share of the near pairs a search in cells finds: some vectors compared with all others, and how many cells that takes."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from curate.index import Cells, sample
from curate.units import wilson
from curate.vectors import SLACK, Ints, VectorFile

Run = Callable[[Callable[[Any], Any], Sequence[Any]], Iterator[Any]]
"""`map`, perhaps in threads."""

TUNED, AUDITED = 200, 1000
"""Vectors that choose the number of cells to look into, and others by which the recall is told (ours)."""
LEAST, WANTED = 8, 0.995
"""Cells looked into at least, and doubled until so many of the pairs are found (ours)."""
RANKED = 128
"""Cells looked into at most; where that is not enough, all of them."""
A_QUERY = 100
"""Pairs of one vector that are counted: the first ones, so that a picture that stands everywhere does not outweigh the rest."""
BLOCK = 8192


@dataclass(frozen=True)
class Recall:
    """Of `pairs` near pairs of `queries` vectors drawn at random, so many are `found`; `probes` is the cells looked into."""

    probes: int
    queries: int
    pairs: int
    found: int

    def figures(self) -> dict[str, Any]:
        """The share found and Wilson's 95 % bounds of it, as plain data."""
        low, high = wilson(self.found, self.pairs)
        return {"value": round(self.found / self.pairs, 6) if self.pairs else None, "low": round(low, 6), "high": round(high, 6),
                "pairs": self.pairs, "found": self.found, "queries": self.queries, "how": "against brute force over all vectors"}


def measured(vectors: VectorFile, places: Ints, cells: Cells, cos: np.float32, run: Run) -> Recall:
    """Find all near pairs of the sampled vectors, and in how many cells one has to look for them."""
    chosen = sample(len(places), TUNED + AUDITED)
    own = np.arange(len(chosen)) * TUNED // len(chosen)
    audits = np.diff(own, prepend=-1) == 0      # spread evenly: the others tune
    query, other = _near(vectors, places[chosen], places, cos, run)
    rank = _ranks(vectors, cells, np.maximum(places[chosen][query], other), np.minimum(places[chosen][query], other))
    told = audits[query]
    steps = [p for p in (LEAST * 2 ** i for i in range(16)) if p < min(RANKED, cells.num)] + [min(RANKED, cells.num)]
    probes = next((p for p in steps if (rank[~told] < p).sum() >= WANTED * (~told).sum()), cells.num)
    found = told.sum() if probes == cells.num else (rank[told] < probes).sum()
    return Recall(probes, int(audits.sum()), int(told.sum()), int(found))


def _near(vectors: VectorFile, queries: Ints, places: Ints, cos: np.float32, run: Run) -> tuple[Ints, Ints]:
    """(number of the query, place) of the pairs that are near, at most A_QUERY of each query."""
    unit = vectors.unit(queries)

    def block(start: int) -> tuple[Ints, Ints]:
        part = places[start : start + BLOCK]
        near = (unit @ vectors.unit(part).T >= cos - SLACK) & (part != queries[:, None])
        some = np.flatnonzero(near.any(axis=1))
        query, column = np.nonzero(near[some] & (near[some].cumsum(axis=1) <= A_QUERY))
        return some[query], part[column]

    count = np.zeros(len(queries), np.int64)
    found = []
    for query, place in run(block, range(0, len(places), BLOCK)):
        fits = count[query] < A_QUERY
        query, place = query[fits], place[fits]
        near = vectors.cosines(queries[query], place) >= cos
        found.append((query[near], place[near]))
        count += np.bincount(query[near], minlength=len(queries))
    return np.concatenate([q for q, _ in found]), np.concatenate([p for _, p in found])


def _ranks(vectors: VectorFile, cells: Cells, later: Ints, earlier: Ints) -> Ints:
    """For each pair, how many cells are nearer to the later one than that of the earlier one; all of them for RANKED and more."""
    found = np.empty(len(later), np.int64)
    wanted = min(RANKED, cells.num)
    for start in range(0, len(later), BLOCK):
        part = slice(start, start + BLOCK)
        lies = cells.nearest(vectors.unit(earlier[part]), 1)
        same = cells.nearest(vectors.unit(later[part]), wanted) == lies
        found[part] = np.where(same.any(axis=1), same.argmax(axis=1), cells.num)
    return found
