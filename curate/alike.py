"""Near-duplicates among many vectors, greedily from the first place down: what is removed names the kept vector it is near to.

A vector is removed if and only if a *kept* one at an earlier place is at least `cos` near, of those that are looked at; the first
such is its witness. Only kept vectors are looked at, so ten thousand copies cost ten thousand comparisons and not their square.

Up to EXACT vectors everything is looked at. Above, k-means cuts space into cells; a vector lies in one cell and looks into the
`probes` cells nearest to it. Cells are joined one by one: the vectors of a block that look into it with the kept ones that lie in
it. Matrix products only nominate pairs; each is decided by its own exact cosine (`VectorFile.cosines`).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curate.index import Cells, sample
from curate.recall import Recall, Run, measured
from curate.vectors import SLACK, Ints, Matrix, VectorFile

EXACT = 20_000
"""Vectors up to which each is compared with every kept one: some ten seconds of one core at 512 dimensions (ours)."""
POINTS_A_CELL = 16
"""Vectors a cell that k-means sees (ours)."""
BLOCK = 65_536
"""Vectors that look at the kept ones together: what is kept is read from the file once a block."""
ROWS, COLUMNS = 1024, 4096
"""Of one matrix product."""
SMALL, MOST = 1024, 1 << 22
"""A block with more than MOST near pairs is cut in halves, down to SMALL vectors, which cannot have as many."""
AT_ONCE = 64
"""Cells whose pairs may wait in memory for those of the cells before them."""


@dataclass(frozen=True)
class Alike:
    """For each of the vectors, in order: the place of its witness (its own where it is kept), and the cosine of the two."""

    witness: Ints
    cosine: Matrix
    cells: int
    probes: int
    recall: Recall | None
    """None where every vector was compared with every kept one"""


def num_cells(rows: int) -> int:
    """1 up to EXACT, else 2 sqrt(rows): half of what FAISS' wiki begins with, as finding cells costs more than joining them."""
    return 1 if rows <= EXACT else int(2 * np.sqrt(rows))


def remove(vectors: VectorFile, places: Ints, cos: float, threads: int = 1) -> Alike:
    """Decide over the vectors at `places` (ascending, each with a direction). Threads change how long it takes, no more."""
    number = num_cells(len(places))
    with _in_threads(threads) as run:
        cells = Cells(vectors.unit(places[sample(len(places), number * POINTS_A_CELL)]), number)
        recall = measured(vectors, places, cells, np.float32(cos), run) if number > 1 else None
        greedy = _Greedy(vectors, cells, recall.probes if recall else 1, np.float32(cos), run)
        for start in range(0, len(places), BLOCK):
            greedy.take(places[start : start + BLOCK])
    return Alike(*greedy.answer(places), number, greedy.probes, recall)


@contextmanager
def _in_threads(threads: int) -> Iterator[Run]:
    """A `map` whose results come in order, and no more than AT_ONCE before they are asked for."""
    if threads == 1:
        yield map
        return
    with ThreadPoolExecutor(threads) as pool:
        def run(function: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
            for start in range(0, len(items), AT_ONCE):
                yield from pool.map(function, items[start : start + AT_ONCE])
        yield run


@dataclass(frozen=True)
class _Block:
    """Places that are decided together: their unit vectors, and the cells they look into, their own first."""

    places: Ints
    unit: Matrix
    looks: Ints

    def cut(self, chosen: slice | NDArray[np.bool_]) -> "_Block":
        return _Block(self.places[chosen], self.unit[chosen], self.looks[chosen])

    def by_cell(self) -> list[tuple[int, Ints]]:
        """(cell, who looks into it, ascending)."""
        if not len(self.places):
            return []
        order = np.argsort(self.looks, axis=None, kind="stable")
        cells, starts = np.unique(self.looks.ravel()[order], return_index=True)
        return list(zip(cells.tolist(), np.split(order // self.looks.shape[1], starts[1:]), strict=True))


@dataclass
class _Greedy:
    """What is decided so far. `kept`: places by cell, ascending in each; cell c begins at `starts[c]`."""

    vectors: VectorFile
    cells: Cells
    probes: int
    cos: np.float32
    run: Run
    kept: Ints = field(default_factory=lambda: np.empty(0, np.int64))
    cell: Ints = field(default_factory=lambda: np.empty(0, np.int64))
    starts: Ints = field(init=False)
    removed: list[tuple[Ints, Ints, Matrix]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.starts = np.zeros(self.cells.num + 1, np.int64)

    def take(self, places: Ints) -> None:
        """Decide over further places, all behind those taken before."""
        todo = [self._looked_up(places)]
        while todo:
            block = todo.pop()
            block = block.cut(~self._beside_kept(block))
            pairs = self._pairs_in(block)
            if pairs is None:
                half = len(block.places) // 2
                todo += [block.cut(slice(half, None)), block.cut(slice(half))]
            else:
                stays = ~self._in_order(block, *pairs)
                self._keep(block.places[stays], block.looks[stays, 0])

    def answer(self, places: Ints) -> tuple[Ints, Matrix]:
        """Witness and cosine for each place."""
        witness, cosine = places.copy(), np.ones(len(places), np.float32)
        for gone, by, cosines in self.removed:
            at = np.searchsorted(places, gone)
            witness[at], cosine[at] = by, cosines
        return witness, cosine

    def _looked_up(self, places: Ints) -> _Block:
        unit = np.empty((len(places), self.vectors.dims), np.float32)

        def look(start: int) -> Ints:
            part = slice(start, start + ROWS)
            unit[part] = self.vectors.unit(places[part])
            return self.cells.nearest(unit[part], self.probes)

        return _Block(places, unit, np.concatenate(list(self.run(look, range(0, len(places), ROWS)))))

    def _beside_kept(self, block: _Block) -> NDArray[np.bool_]:
        """Which of a block are near to a vector that was kept before it; they are removed."""
        def join(item: tuple[int, Ints]) -> tuple[Ints, Ints]:
            cell, looking = item
            kept = self.kept[self.starts[cell] : self.starts[cell + 1]]
            found = []
            for at in range(0, len(kept), COLUMNS):
                columns = self.vectors.unit(kept[at : at + COLUMNS]).T
                for start in range(0, len(looking), ROWS):
                    rows = looking[start : start + ROWS]
                    row, column = _first_near(block.unit[rows] @ columns, self.cos)
                    found.append((rows[row], kept[at + column]))
            return _joined(found)

        row, place = _joined(self.run(join, block.by_cell()))
        cosine = self.vectors.cosines(block.places[row], place)
        near = cosine >= self.cos
        row, place, cosine = row[near], place[near], cosine[near]
        order = np.lexsort((place, row))
        gone, first = np.unique(row[order], return_index=True)
        self.removed.append((block.places[gone], place[order][first], cosine[order][first]))
        return np.isin(np.arange(len(block.places)), gone)

    def _pairs_in(self, block: _Block) -> tuple[Ints, Ints] | None:
        """(later, earlier) of all near pairs inside a block, unless there are too many of them."""
        most = MOST if len(block.places) > SMALL else SMALL * SMALL

        def join(item: tuple[int, Ints]) -> tuple[Ints, Ints]:
            cell, looking = item
            lying = looking[block.looks[looking, 0] == cell]
            found, count = [], 0
            for start in range(0, len(looking), ROWS):
                rows = looking[start : start + ROWS]
                before = lying[: np.searchsorted(lying, rows[-1])]
                for at in range(0, len(before), COLUMNS):
                    columns = before[at : at + COLUMNS]
                    products = block.unit[rows] @ block.unit[columns].T
                    later, earlier = np.nonzero((products >= self.cos - SLACK) & (columns < rows[:, None]))
                    found.append((rows[later], columns[earlier]))
                    count += len(later)
                if count > most:
                    break
            return _joined(found)

        found, count = [], 0
        for pairs in self.run(join, block.by_cell()):
            found.append(pairs)
            count += len(pairs[0])
            if count > most:
                return None
        return _joined(found)

    def _in_order(self, block: _Block, later: Ints, earlier: Ints) -> NDArray[np.bool_]:
        """Which of a block are near to an earlier one of it that is kept; they are removed."""
        cosine = self.vectors.cosines(block.places[later], block.places[earlier])
        near = np.flatnonzero(cosine >= self.cos)
        near = near[np.lexsort((earlier[near], later[near]))]
        gone = np.zeros(len(block.places), bool)
        by = []
        for pair, one, other in zip(near.tolist(), later[near].tolist(), earlier[near].tolist(), strict=True):
            if not gone[one] and not gone[other]:
                gone[one] = True
                by.append(pair)
        self.removed.append((block.places[later[by]], block.places[earlier[by]], cosine[by]))
        return gone

    def _keep(self, places: Ints, cells: Ints) -> None:
        cell = np.concatenate([self.cell, cells])
        order = np.argsort(cell, kind="stable")
        self.kept, self.cell = np.concatenate([self.kept, places])[order], cell[order]
        self.starts = np.searchsorted(self.cell, np.arange(self.cells.num + 1))


def _first_near(products: Matrix, cos: np.float32) -> tuple[Ints, Ints]:
    """Of each row the first column that is surely near, and those before it that may be."""
    sure = products >= cos + SLACK
    first = np.where(sure.any(axis=1), sure.argmax(axis=1), products.shape[1])
    row, column = np.nonzero(products >= cos - SLACK)
    wanted = column <= first[row]
    return row[wanted], column[wanted]


def _joined(pairs: Iterable[tuple[Ints, Ints]]) -> tuple[Ints, Ints]:
    parts = list(pairs)
    none = np.empty(0, np.int64)
    return np.concatenate([none, *(a for a, _ in parts)]), np.concatenate([none, *(b for _, b in parts)])
