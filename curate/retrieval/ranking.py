"""One long list of what a query finds, best first: computed as far as somebody pages, and the same however they page.

Rows are ordered by score, then by uid. How the nearest are looked for depends on how many rows are allowed: few are all compared;
of many, FAISS looks only at those (a selector), in all lists where that costs no more than EXACT; where most are allowed it looks
at all and the others are left out. An index in lists looks at the more lists the fewer rows are allowed, and when those are used
up at four times as many, until all are: what it finds then stands behind, whatever its score. Scores are computed anew from the
vectors, so they and their order do not depend on how far one looks.

In a grouped list each picture stands once, by its best row. Pictures are the same by the run's own columns (`_picture`); a run
that has none to say so folds what has a cosine of SAME or more to a hit before it, among BLOCK rows and the hits before them.
"""

import math
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curate.index import SAME_SCORE, Space, scores, selector
from curate.retrieval.lookup import Groups, Ints, Mask, Rows

Matrix = NDArray[np.float32]
BLOCK = 128
FEW, FEW_SHARE, MOST = 512, 0.002, 0.2
"""Rows, or share of the rows, that are compared one by one; share from which on no selector is needed (measured, ours)."""
EXACT, TESTS = 50_000, 25
"""Comparisons that a query may always cost, some 5 to 10 ms; asking the selector about so many rows costs as much as one."""
WIDER = 4
SAME = 0.94
"""clip-retrieval's threshold for near-duplicates among results (its README)."""
MAX_GROUP = 100
"""uids that a group names; `size` counts all."""


@dataclass
class Found:
    """A row of the list; what is folded into it, and how many rows before it were folded into others."""

    row: int
    score: float
    folded: int
    group: list[int] = field(default_factory=list)
    size: int = 1


@dataclass
class Allowed:
    """The rows that may be found. `where` are those that pass the condition, None where there is none."""

    rows: Mask
    where: Mask | None

    def __post_init__(self) -> None:
        self._vectors: dict[int, Vectors] = {}

    def vectors(self, groups: Groups) -> "Vectors":
        """The same, as positions in an index."""
        if id(groups) not in self._vectors:
            mask = np.zeros(groups.count, bool)
            mask[groups.of[self.rows & (groups.of >= 0)]] = True
            self._vectors[id(groups)] = Vectors(mask)
        return self._vectors[id(groups)]


@dataclass
class Vectors:
    """Positions in an index that may be found."""

    mask: Mask

    @cached_property
    def count(self) -> int:
        """How many there are."""
        return int(np.count_nonzero(self.mask))

    @cached_property
    def selector(self) -> Any:
        """For FAISS."""
        return selector(self.mask)


def nearest(space: Space, query: Matrix, allowed: Vectors) -> Iterator[tuple[Ints, Matrix]]:
    """Allowed positions with their scores, each once: what comes later scores lower, or lies in lists farther away."""
    if allowed.count <= max(FEW, space.rows * FEW_SHARE):
        positions = np.flatnonzero(allowed.mask)
        yield positions, scores(space.vectors(positions), query)
        return
    share = allowed.count / space.rows
    only = allowed.selector if share < MOST or (share < 1 and _may_be_exact(space, allowed)) else None
    done = np.empty(0, np.int64)
    probes = first_probes(space, allowed)
    while True:
        for positions, found in _in_lists(space, query, probes, only, share, allowed, done):
            done = np.concatenate([done, positions])
            yield positions, found
        if probes >= space.lists or len(done) == allowed.count:
            return
        probes = min(probes * WIDER, space.lists)


def first_probes(space: Space, allowed: Vectors) -> int:
    """All lists where that is cheap; else so many that as many allowed rows are looked at as without a condition.

    The rows that pass a narrow condition lie scattered: their 40 nearest are not in the lists where the 40 nearest of all are.
    """
    if _may_be_exact(space, allowed):
        return space.lists
    return min(space.lists, math.ceil(space.probes * space.rows / max(allowed.count, 1)))


def _may_be_exact(space: Space, allowed: Vectors) -> bool:
    return allowed.count + space.rows / TESTS <= EXACT


def _in_lists(space: Space, query: Matrix, probes: int, only: Any, share: float, allowed: Vectors,
              done: Ints) -> Iterator[tuple[Ints, Matrix]]:
    wanted = min(math.ceil(BLOCK * 1.25 / (share if only is None else 1)), space.rows)
    while True:
        positions, rough = space.search(query, wanted, probes, only)
        more = len(positions) == wanted < space.rows
        positions = positions[allowed.mask[positions]]
        positions = positions[~np.isin(positions, done)]
        exact = scores(space.vectors(positions), query)
        safe = exact > rough[-1] + SAME_SCORE if more else np.ones(len(exact), bool)   # others may tie with one not seen yet
        done = np.concatenate([done, positions[safe]])
        yield positions[safe], exact[safe]
        if not more:
            return
        wanted = min(wanted * WIDER, space.rows)


class Ranking:
    """The list for one query. `upto` may be called from several threads."""

    def __init__(self, rows: Rows, allowed: Allowed, ordered: Iterator[tuple[Ints, Matrix]], pictures: "Pictures | None") -> None:
        self.found: list[Found] = []
        self.finished = False
        self.folded = 0
        """rows that the list has passed and folded"""
        self._rows, self._allowed, self._pictures = rows, allowed, pictures
        self._blocks = _blocks(ordered)
        self._seen: set[int] = set()
        self._lock = threading.Lock()

    def upto(self, number: int) -> None:
        """Make the list at least this long, or finish it."""
        with self._lock:
            while len(self.found) < number and not self.finished:
                block = next(self._blocks, None)
                if block is None:
                    self.finished = True
                elif self._pictures is None:
                    self.found += [Found(row, score, 0) for row, score in zip(block[0].tolist(), block[1].tolist(), strict=True)]
                else:
                    self._fold(self._pictures, *block)

    def _fold(self, pictures: "Pictures", rows: Ints, found: Matrix) -> None:
        first = len(self.found)
        pictures.enter(rows)
        for place, (row, score, picture) in enumerate(zip(rows.tolist(), found.tolist(), self._rows.pictures.of[rows].tolist(),
                                                          strict=True)):
            if picture in self._seen:
                self.folded += 1
                continue
            self._seen.add(picture)
            same = pictures.near(place)
            if same is None:
                self.found.append(Found(row, score, self.folded))
                self._join(self.found[-1], picture)
                continue
            self.folded += 1
            if same >= first:
                self._join(self.found[same], picture)
        pictures.leave()

    def _join(self, hit: Found, picture: int) -> None:
        if self._rows.pictures.size(picture) == 1 and self._rows.pictures.of[hit.row] == picture:
            return
        rows = self._rows.pictures.rows(picture)
        rows = rows[self._allowed.rows[rows] & (rows != hit.row)]
        hit.size += len(rows)
        hit.group += rows[: MAX_GROUP - len(hit.group)].tolist()


class Pictures:
    """Knows by their vectors which rows of a block look like a hit that stands already; without a space it knows nothing."""

    def __init__(self, space: Space | None, vectors: Groups | None) -> None:
        self._space, self._vectors = space, vectors
        self._hits = np.empty((0, space.dims if space else 0), np.float32)
        self._earlier: list[int] = []
        self._twins: list[bool] = []

    def enter(self, rows: Ints) -> None:
        """Begin a block."""
        if self._space is None or self._vectors is None:
            self._earlier, self._twins = [-1] * len(rows), [False] * len(rows)
            return
        at = self._vectors.of[rows].astype(np.int64)
        self._block = np.zeros((len(rows), self._space.dims), np.float32)
        self._block[at >= 0] = self._space.vectors(at[at >= 0])
        like_hits = self._block @ self._hits.T >= SAME
        self._like_others = self._block @ self._block.T >= SAME
        if len(self._hits):
            self._earlier = np.where(like_hits.any(axis=1), like_hits.argmax(axis=1), -1).tolist()
        else:
            self._earlier = [-1] * len(rows)
        self._twins = (self._like_others.sum(axis=1) > 1).tolist()
        self._new: list[int] = []

    def near(self, place: int) -> int | None:
        """The first hit that looks like the row at this place of the block; None makes the row a hit itself."""
        if self._earlier[place] >= 0:
            return self._earlier[place]
        if self._twins[place] and (alike := self._like_others[place, self._new]).any():
            return len(self._hits) + int(alike.argmax())
        if self._space is not None:
            self._new.append(place)
        return None

    def leave(self) -> None:
        """End a block."""
        if self._space is not None:
            self._hits = np.concatenate([self._hits, self._block[self._new]])


def by_score(rows: Rows, vectors: Groups, allowed: Allowed,
             found: Iterator[tuple[Ints, Matrix]]) -> Iterator[tuple[Ints, Matrix]]:
    """Allowed rows in the order of the list, from positions in an index."""
    for positions, score in found:
        members, which = vectors.expand(positions)
        here = allowed.rows[members]
        members, each = members[here], score[which[here]]
        order = np.lexsort((rows.rank[members], -each))
        yield members[order], each[order]


def by_uid(rows: Rows, allowed: Allowed) -> Iterator[tuple[Ints, Matrix]]:
    """Allowed rows in the order of their uids, all with the score 0."""
    for start in range(0, rows.num_rows, BLOCK * 64):
        some = rows.order[start : start + BLOCK * 64].astype(np.int64)
        some = some[allowed.rows[some]]
        yield some, np.zeros(len(some), np.float32)


def _blocks(ordered: Iterator[tuple[Ints, Matrix]]) -> Iterator[tuple[Ints, Matrix]]:
    """The same list in pieces of BLOCK rows, the last one shorter."""
    rows, found = np.empty(0, np.int64), np.empty(0, np.float32)
    for more_rows, more_found in ordered:
        rows, found = np.concatenate([rows, more_rows]), np.concatenate([found, more_found])
        whole = len(rows) - len(rows) % BLOCK
        for at in range(0, whole, BLOCK):
            yield rows[at : at + BLOCK], found[at : at + BLOCK]
        rows, found = rows[whole:], found[whole:]
    if len(rows):
        yield rows, found
