"""Figures of embeddings and scores: retrieval with several right captions, accuracy, and how well scores tell right from wrong.

Pure functions, exact, and in chunks so that memory holds no full table of similarities.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]
Ints = NDArray[np.int64]

AT = (1, 5, 10)
CHUNK_BYTES = 64 << 20
"""Memory for one chunk of similarities."""
NEVER = np.iinfo(np.int64).max
"""The rank of what no comparison can rank."""


def recall_at_k(image_emb: Vectors, text_emb: Vectors, image_of_text: Ints, at: Sequence[int] = AT) -> dict[str, float]:
    """Share of queries whose right answer is among the k most similar, 0 to 1, both ways and their mean.

    Every caption of a picture is right for it. Equal similarities rank by position, as a stable sort does; other right
    captions of the same picture never push one down.
    """
    to_image = _ranks(text_emb, image_emb, np.arange(len(text_emb)), image_of_text)
    by_image = np.argsort(image_of_text, kind="stable")
    to_text = _ranks(image_emb, text_emb, image_of_text[by_image], by_image)
    figures: dict[str, float] = {}
    for k in at:
        both = float(np.mean(to_image < k)), float(np.mean(to_text < k))
        figures[f"text_to_image_recall_at_{k}"], figures[f"image_to_text_recall_at_{k}"] = both
        figures[f"recall_at_{k}"] = sum(both) / 2
    return figures


def auroc(scores: NDArray[Any], positive: NDArray[Any]) -> float:
    """Probability that a positive scores above a negative, ties counted half: 0.5 is chance. NaN without both kinds."""
    scores, positive = np.asarray(scores, np.float64), np.asarray(positive, bool)
    num_positive = int(positive.sum())
    num_negative = len(positive) - num_positive
    if not num_positive or not num_negative:
        return float("nan")
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    middle = np.cumsum(counts) - (counts - 1) / 2
    return float((middle[inverse][positive].sum() - num_positive * (num_positive + 1) / 2) / (num_positive * num_negative))


def accuracy_at_k(image_emb: Vectors, class_emb: Vectors, labels: Ints, at: Sequence[int] = (1, 5)) -> dict[str, float]:
    """Share of pictures whose class is among the k most similar, 0 to 1."""
    ranks = class_ranks(image_emb, class_emb, labels)
    return {f"accuracy_at_{k}": float(np.mean(ranks < k)) for k in at if k <= len(class_emb)}


def class_ranks(image_emb: Vectors, class_emb: Vectors, labels: Ints) -> Ints:
    """For each picture how many classes are more similar to it than its own; among equals the first in the list goes first."""
    return _ranks(image_emb, class_emb, np.arange(len(image_emb)), labels)


def mean_per_class(right: NDArray[np.bool_], labels: Ints) -> float:
    """The mean over the classes that occur of the share of their pictures that are right, 0 to 1: every class counts alike,
    however many pictures it has (the figure of Caltech-101, Flowers, Pets and others; Radford et al. 2021, table 9)."""
    _, numbers, counts = np.unique(labels, return_inverse=True, return_counts=True)
    return float((np.bincount(numbers, weights=right) / counts).mean())


def _ranks(queries: Vectors, candidates: Vectors, query_of_pair: Ints, right_of_pair: Ints) -> Ints:
    """For each query how many wrong candidates stand before its best right one; pairs (query, right candidate) by query.

    A query without a right candidate ranks behind everything. One whose similarity to it is no number, of a model that is
    broken, is never right, and what compares as none stands before all others.
    """
    ranks = np.full(len(queries), len(candidates), np.int64)
    step = max(1, CHUNK_BYTES // (4 * max(1, len(candidates))))
    for at in range(0, len(queries), step):
        similar = queries[at : at + step] @ candidates.T
        similar[np.isnan(similar)] = np.inf
        low, high = np.searchsorted(query_of_pair, [at, at + len(similar)])
        rows, rights = query_of_pair[low:high] - at, right_of_pair[low:high]
        own = np.where(np.isinf(similar[rows, rights]), -np.inf, similar[rows, rights])
        best_first = np.lexsort((rights, -own, rows))
        found, where = np.unique(rows[best_first], return_index=True)
        best = best_first[where]
        before = similar[found] > own[best, None]
        ties = similar[found] == own[best, None]
        ties &= np.arange(len(candidates)) < rights[best, None]
        ranks[at + found] = np.where(np.isinf(own[best]), NEVER, (before | ties).sum(1))
    return ranks
