"""Nearest neighbours among unit vectors, by FAISS: exact or in lists, tuned to a recall that is measured, not hoped for.

    build(chunks, rows, dims, queries, recall)     train, add, measure against brute force, tune
    write(built, file)                             what plain `faiss.read_index` reads
    Space.open(path, entry)                        search
    Cells(points, cells)                           k-means: which vectors may be near each other at all

Vectors are kept in half precision, as on disk, and nothing more is lost: `flat` compares a query with all of them, `ivf` with
those in the lists nearest to it. Positions count from 0 in the order in which vectors came. One thread trains and adds, so the
same vectors in the same order give the same bytes. Knows numpy, faiss and files; nothing of runs.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import faiss as untyped
import numpy as np
from numpy.typing import NDArray

from curate.errors import UserError

faiss: Any = untyped      # its stubs lack what its Python side adds: named search parameters, selectors from arrays, callbacks
Matrix = NDArray[np.float32]
Ints = NDArray[np.int64]
Chunks = Callable[[], Iterator[Matrix]]
"""Reads all vectors anew: matrices (rows, dims) of length-1 rows that half precision holds exactly (see `unit`)."""

FLAT_VALUES = 25_600_000
"""Rows times dimensions up to which every vector is compared: 50,000 rows of 512, some 7 ms a query on one core (ours)."""
POINTS_A_LIST, ROUNDS, SEED = 40, 10, 0
"""k-means: FAISS warns below 39 points a list; 10 rounds are its own default for IVF."""
CELL_ROUNDS = 6
"""k-means of `Cells`: every further round costs a few per cent of a whole dedupe and finds no more pairs (ours)."""
AT, QUERIES = 40, 100
"""The recall is recall@40, the size of a page, over so many queries of each kind."""
SAME_SCORE = 1e-5
"""Scores nearer than this may be the same number summed in another order."""


@dataclass(frozen=True)
class Built:
    """A finished index, how it was made, and its recall as measured."""

    index: Any
    kind: str
    parameters: dict[str, int]
    recall: dict[str, Any]


def unit(vectors: NDArray[Any]) -> Matrix:
    """Rows scaled to length 1, as half precision holds them; rows without a direction (zero, NaN, infinite) are NaN."""
    wide = vectors.astype(np.float32)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        length = np.sqrt(np.einsum("ij,ij->i", wide, wide))
        wide /= length[:, None]
    wide[~(np.isfinite(length) & (length > 0))] = np.nan
    return wide.astype(np.float16).astype(np.float32)


def num_lists(rows: int) -> int:
    """The power of two nearest to 2 sqrt(rows), 2048 for a million (ours; FAISS' wiki has 4 to 16 sqrt, which trains longer)."""
    return int(2 ** round(math.log2(2 * math.sqrt(rows))))


def sample(rows: int, wanted: int) -> Ints:
    """Positions drawn without repetition, sorted; all where `wanted` is no fewer than there are. Always the same ones."""
    if wanted >= rows:
        return np.arange(rows, dtype=np.int64)
    return np.sort(np.random.default_rng(SEED).choice(rows, wanted, replace=False)).astype(np.int64)


def gather(chunks: Chunks, positions: Ints) -> Matrix:
    """The vectors at sorted positions."""
    found, first = [], 0
    for chunk in chunks():
        low, high = np.searchsorted(positions, [first, first + len(chunk)])
        found.append(chunk[positions[low:high] - first])
        first += len(chunk)
    return np.concatenate(found)


def build(chunks: Chunks, rows: int, dims: int, queries: Mapping[str, Matrix], recall: float,
          flat_values: int = FLAT_VALUES) -> Built:
    """The index of `rows` vectors whose recall@40 is at least `recall` for every kind of query (name → unit vectors).

    Raises UserError where no tuning reaches it.
    """
    faiss.omp_set_num_threads(1)
    index = _exact(dims) if rows * dims <= flat_values else _lists(gather(chunks, sample(rows, num_lists(rows) * POINTS_A_LIST)),
                                                                   num_lists(rows))
    truth = {name: np.full((len(q), min(AT, rows)), -2, np.float32) for name, q in queries.items()}
    for chunk in chunks():
        index.add(chunk)
        for name, best in truth.items():
            both = np.concatenate([best, queries[name] @ chunk.T], axis=1)
            truth[name] = np.partition(both, both.shape[1] - best.shape[1], axis=1)[:, -best.shape[1]:]
    least = {name: best.min(axis=1) for name, best in truth.items()}
    return _tuned(index, queries, least, min(AT, rows), recall)


def _exact(dims: int) -> Any:
    index = faiss.IndexScalarQuantizer(dims, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
    index.train(np.zeros((1, dims), np.float32))
    return index


def _lists(points: Matrix, lists: int) -> Any:
    dims = points.shape[1]
    index = faiss.IndexIVFScalarQuantizer(faiss.IndexFlatIP(dims), dims, lists, faiss.ScalarQuantizer.QT_fp16,
                                          faiss.METRIC_INNER_PRODUCT, False)
    index.cp.niter, index.cp.seed, index.cp.spherical = ROUNDS, SEED + 1, True
    index.cp.min_points_per_centroid, index.cp.max_points_per_centroid = 1, POINTS_A_LIST
    index.train(points)
    return index


def _tuned(index: Any, queries: Mapping[str, Matrix], least: Mapping[str, Matrix], at: int, wanted: float) -> Built:
    """The fewest lists that reach the wanted recall: doubled until they do, then halved between."""
    lists = getattr(index, "nlist", 1)

    def measured(probes: int) -> dict[str, float]:
        return {name: _recall(index, queries[name], least[name], at, probes) for name in queries}

    probes = next((p for p in (*_doubling(lists), lists) if min(measured(p).values()) >= wanted), lists)
    low = probes // 2
    while probes - low > 1 + probes // 16:
        middle = (low + probes) // 2
        low, probes = (low, middle) if min(measured(middle).values()) >= wanted else (middle, probes)
    of = measured(probes)
    if min(of.values()) < wanted:
        raise UserError(f"the index finds {min(of.values()):.4f} of the {at} nearest even when it looks at everything, "
                        f"and should find {wanted}; lower --recall")
    recall = {"at": at, "value": round(min(of.values()), 4), "of": {name: round(value, 4) for name, value in of.items()},
              "queries": {name: len(q) for name, q in queries.items()}, "how": "against brute force over all vectors"}
    if lists == 1:
        return Built(index, "flat", {}, recall)
    index.nprobe = probes
    return Built(index, "ivf", {"lists": lists, "probes": probes}, recall)


def _doubling(lists: int) -> Iterator[int]:
    yield from (2 ** i for i in range(lists.bit_length()) if 2 ** i < lists)


def _recall(index: Any, queries: Matrix, least: Matrix, at: int, probes: int) -> float:
    """The share of the `at` nearest that are found; what ties with the last of them counts as one of them."""
    scores, _ = index.search(queries, at, params=_parameters(index, probes, None))
    return float((scores >= least[:, None] - SAME_SCORE).mean())


def _parameters(index: Any, probes: int, only: Any) -> Any:
    if hasattr(index, "nprobe"):
        return faiss.SearchParametersIVF(nprobe=probes, sel=only)
    return faiss.SearchParameters(sel=only)


def write(built: Built, file: IO[bytes]) -> None:
    """The index as `faiss.read_index` reads it."""
    faiss.write_index(built.index, faiss.PyCallbackIOWriter(file.write))


def selector(allowed: NDArray[np.bool_]) -> Any:
    """Which positions a search may find, one bit each."""
    return faiss.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))


class Space:
    """An opened index. Searches are safe from several threads at once."""

    def __init__(self, index: Any, threads: int) -> None:
        self._index, self._threads = index, threads
        self.dims, self.rows = int(index.d), int(index.ntotal)
        self.lists, self.probes = int(getattr(index, "nlist", 1)), int(getattr(index, "nprobe", 1))
        if self.lists > 1:
            index.make_direct_map()
        self._sizes = np.array([index.get_list_size(i) for i in range(self.lists)]) if self.lists > 1 else np.array([self.rows])

    @classmethod
    def open(cls, path: Path, entry: Mapping[str, Any], threads: int = 1) -> "Space":
        """The index at `path`, whose file was compared with its sha256 before: FAISS trusts what it reads.

        `entry` says what it should be: kind, dims, vectors. Raises UserError where it is not that.
        """
        faiss.set_deserialization_vector_byte_limit(max(64 << 20, 4 * path.stat().st_size))
        try:
            index = faiss.read_index(str(path))
        except RuntimeError as error:
            raise UserError(f"{path} is no FAISS index: {str(error).splitlines()[0][:200]}") from None
        found = ("ivf" if hasattr(index, "nlist") else "flat", index.d, index.ntotal)
        if found != (entry["kind"], entry["dims"], entry["vectors"]):
            raise UserError(f"{path} holds {found}, and its manifest says {(entry['kind'], entry['dims'], entry['vectors'])}")
        return cls(index, threads)

    def search(self, query: Matrix, wanted: int, probes: int, only: Any = None) -> tuple[Ints, Matrix]:
        """Positions and scores of the `wanted` nearest in `probes` lists, best first; fewer where there are no more."""
        faiss.omp_set_num_threads(self._threads)      # of this thread: FAISS keeps the number per thread
        scores, positions = self._index.search(query[None], wanted, params=_parameters(self._index, probes, only))
        there = positions[0] >= 0
        return positions[0][there], scores[0][there]

    def above(self, query: Matrix, score: float) -> Ints:
        """All positions in the lists that a search looks at that score above `score`."""
        wanted = 256
        while self.lists == 1:      # FAISS' range search in such an index is ten times as slow as its search
            positions, near = self.search(query, min(wanted, self.rows), 1)
            if len(near) < wanted or near[-1] <= score:
                return positions[near > score]
            wanted *= 8
        faiss.omp_set_num_threads(self._threads)
        found: Ints = self._index.range_search(query[None], score, params=_parameters(self._index, self.probes, None))[2]
        return found

    def looked_at(self, query: Matrix, probes: int) -> int:
        """How many vectors lie in the `probes` lists nearest to a query."""
        if probes >= self.lists:
            return self.rows
        return int(self._sizes[self._index.quantizer.search(query[None], probes)[1][0]].sum())

    def vectors(self, positions: Ints) -> Matrix:
        """The vectors themselves, (rows, dims)."""
        if not len(positions):
            return np.empty((0, self.dims), np.float32)
        found: Matrix = self._index.reconstruct_batch(np.ascontiguousarray(positions, np.int64))
        return found


def scores(vectors: Matrix, query: Matrix) -> Matrix:
    """Cosines, summed in one fixed order: a pair's number does not depend on what else is scored with it."""
    summed: Matrix = (vectors * query).sum(axis=1)
    return summed


class Cells:
    """The space around `points` (unit vectors) cut into cells by k-means. Safe from several threads, and the same bits in all."""

    def __init__(self, points: Matrix, cells: int) -> None:
        faiss.omp_set_num_threads(1)
        self._centres = faiss.IndexFlatIP(points.shape[1])
        if cells > 1:
            means = faiss.Clustering(points.shape[1], cells)
            means.niter, means.seed, means.spherical = CELL_ROUNDS, SEED + 1, True
            means.min_points_per_centroid, means.max_points_per_centroid = 1, len(points)
            means.train(points, self._centres)
        self.num = cells

    def nearest(self, vectors: Matrix, wanted: int) -> Ints:
        """(rows, wanted): the cells of each vector, the nearest first, which is its own."""
        if self.num == 1:
            return np.zeros((len(vectors), 1), np.int64)
        faiss.omp_set_num_threads(1)      # of this thread; sums in another order would decide ties between cells otherwise
        found: Ints = self._centres.search(vectors, wanted)[1]
        return found
