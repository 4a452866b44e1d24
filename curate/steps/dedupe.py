"""Which rows show nearly the same as a better row, by their embeddings."""

import os
from collections.abc import Generator, Mapping
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import Field

from curate.alike import Alike, remove
from curate.errors import UserError
from curate.step import Chunks, Maker, Operational, bool_, float32, int64, string, whole
from curate.vectors import Ints, VectorFile

ADDS = {"is_dup": bool_, "dup_of": string, "dup_cos": float32, "dup_group": string, "dup_group_size": int64}


def _completes(settings: Mapping[str, Any], makers: Mapping[str, Maker]) -> Mapping[str, Any]:
    """Refuses embeddings of the loop: `cos` would mean something else every round."""
    maker = makers.get("image_emb")
    if maker is not None and maker.loop:
        raise UserError("step 'dedupe' reads embeddings of the weights that the loop trains, for which a fixed cos means "
                        "something else every round; it takes a frozen clip_embed")
    return settings


@whole(adds=ADDS, completes=_completes)
def dedupe(image_emb: Chunks, uid: Chunks, quality: Chunks | None, *, cos: Annotated[float, Field(gt=0, le=1)] = 0.96,
           threads: Annotated[int, Field(ge=0), Operational] = 0) -> Generator[dict[str, pa.Array], None, dict[str, Any]]:
    """Whether a kept, better row has an embedding at least cos near; which, how near (dup_cos, cos to 1), and its group.

    Greedy in the order of quality, best first, equal ones and those without by uid; the quality is any number that `reads` names:
    `dedupe: {of: ref, reads: {quality: ref_clip_cos}}`. A row is a duplicate if and only if a better row that is none is near;
    dup_of is the best such. So every row removed has a witness that stays, and chains of drifting pictures do not collapse as
    connected components do (at cos 0.90 these left 65 % of what they removed without one, SemDeDup's rule 16 %; ours none). The
    order of rows and shards does not matter. dup_group is dup_of, and a kept row's own uid: rows of one dup_group are one
    picture's, so their captions are its other captions (`select dup_group, list(caption) ... group by dup_group`). A row whose
    embedding has no direction (zero, NaN, infinite) gets nulls, which no keep lets pass.

    Embeddings that are equal are one. Up to 20,000 different ones all are compared, above that those in near cells of k-means,
    with the recall measured against brute force: it stands in the card. Every decision is the exact cosine of two stored
    embeddings. `cos` is our choice: SemDeDup (arXiv 2303.09540) tries several, and below 0.95 different pictures of one product
    merge. Takes 2 bytes a number in TMPDIR, which should fit into memory, and 250 bytes a row. `threads`: 0 is every core.
    """
    uids, rank = _ranked(uid, quality)
    vectors = _stored(image_emb, rank)
    leader = vectors.first_equal() if vectors else np.arange(len(rank))
    has = vectors.squares > 0 if vectors else np.zeros(len(rank), bool)
    places = np.flatnonzero((leader == np.arange(len(leader))) & has)
    found = remove(vectors, places, cos, threads or _cores()) if vectors and len(places) else None
    witness, cosine = np.arange(len(rank)), np.ones(len(rank), np.float32)
    if found:
        at = np.searchsorted(places, leader[has])
        witness[has], cosine[has] = found.witness[at], found.cosine[at]
    size = np.bincount(witness, minlength=len(rank))
    start = 0
    for shard in uid:
        here = rank[start : start + len(shard)]
        start += len(shard)
        is_dup, nowhere, group = witness[here] != here, ~has[here], uids.take(pa.array(witness[here])).cast(string)
        yield {"is_dup": pa.array(is_dup, mask=nowhere), "dup_of": _masked(group, ~is_dup), "dup_group": _masked(group, nowhere),
               "dup_group_size": pa.array(size[witness[here]], mask=nowhere), "dup_cos": pa.array(cosine[here], mask=~is_dup)}
    return _facts(len(rank), int(has.sum()), len(places), cos, found)


def _ranked(uid: Chunks, quality: Chunks | None) -> tuple[pa.Array, Ints]:
    """The uids from the best row down, and the place of each row among them."""
    uids = pa.chunked_array([part.cast(pa.large_string()) for part in uid], pa.large_string())
    parts = [_numbers(part) for part in quality] if quality is not None else []
    values = np.concatenate(parts) if parts else np.full(len(uids), np.nan)
    missing = np.isnan(values)
    table = pa.table({"missing": missing, "quality": np.where(missing, 0, values), "uid": uids})
    order = pc.sort_indices(table, [("missing", "ascending"), ("quality", "descending"), ("uid", "ascending")]).to_numpy()
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    return uids.take(pa.array(order)).combine_chunks(), rank


def _numbers(part: pa.Array) -> NDArray[np.float64]:
    if not (pa.types.is_integer(part.type) or pa.types.is_floating(part.type) or pa.types.is_null(part.type)):
        raise UserError(f"step 'dedupe': quality is {part.type}, not a number; 'reads: {{quality: COLUMN}}' names another column")
    values: NDArray[np.float64] = part.cast(pa.float64()).to_numpy(zero_copy_only=False)
    return values


def _stored(image_emb: Chunks, rank: Ints) -> VectorFile | None:
    """All embeddings, in the order of rank; None where there is none."""
    vectors, start = None, 0
    for part in image_emb:
        if not len(part):
            continue
        lengths = pc.min_max(pc.list_value_length(part)).as_py()
        dims = vectors.dims if vectors else lengths["max"]
        if not dims:
            raise UserError("step 'dedupe': image_emb has vectors of no numbers")
        if lengths != {"min": dims, "max": dims}:
            other = lengths["min"] if lengths["min"] != dims else lengths["max"]
            raise UserError(f"step 'dedupe': image_emb has vectors of {dims} and of {other} numbers; of: names one model's")
        vectors = vectors or VectorFile(len(rank), dims)
        flat = part.flatten().to_numpy(zero_copy_only=False)
        with np.errstate(over="ignore"):
            vectors.put(rank[start : start + len(part)], flat.astype(np.float16).reshape(len(part), dims))
        start += len(part)
    return vectors


def _facts(rows: int, directed: int, different: int, cos: float, found: Alike | None) -> dict[str, Any]:
    """How it was searched, for the card."""
    facts: dict[str, Any] = {"rows": rows, "without_direction": rows - directed, "different": different, "cos": cos}
    if found and found.recall:
        return {**facts, "how": "cells", "cells": found.cells, "probes": found.probes, "recall": found.recall.figures()}
    return {**facts, "how": "exact"}


def _masked(values: pa.Array, nothing: NDArray[np.bool_]) -> pa.Array:
    return pc.if_else(pa.array(nothing), pa.scalar(None, string), values)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
