"""Draws fewer of what there is most of: a flat distribution over concepts, as MetaCLIP has it."""

from collections.abc import Generator
from hashlib import blake2b
from typing import Annotated, Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import Field

from curate.captions.words import counted
from curate.step import Chunks, bool_, float64, whole

Hashes = NDArray[np.uint64]
Answers = Generator[dict[str, NDArray[np.generic]], None, dict[str, Any]]


@whole(adds={"balance_kept": bool_, "balance_prob": float64})
def balance(concepts: Chunks, uid: Chunks, *, t: Annotated[int, Field(ge=1)] = 20_000, seed: int = 0) -> Answers:
    """Whether the row is drawn, and with which probability, 0 to 1.

    MetaCLIP (arXiv 2309.16671, section 3.3): over the rows alive here each entry counts the rows that contain it and is drawn in
    a row with min(1, t / count); a row is drawn if one of its entries is, so with 1 less the product of the entries' 1 - p. One
    without entries never is. t is 20,000 for MetaCLIP's 400M and 170,000 for its 2.5B pairs; on a small pool choose t so that
    the entries below t are some 6 % of all matches, MetaCLIP's share at 2.5B. Let it be the last step, and `keep: balance_kept`.

    A draw is a hash of seed, uid and entry: the same whatever the order of rows, the workers, or the other rows. So with a
    larger t every row stays that was drawn with a smaller one. Holds the distinct entries and their counts in memory.
    """
    counts = counted(concepts)
    probs = np.minimum(1, t / counts["num"].to_numpy())
    keys = _keys([f"{seed}\0{entry}" for entry in counts["entry"].to_pylist()])
    drawn = 0
    for lists, uids in zip(concepts, uid, strict=True):
        row = pc.list_parent_indices(lists).to_numpy()
        entry = pc.index_in(pc.list_flatten(lists), counts["entry"]).to_numpy(zero_copy_only=False)
        prob, rows = probs[entry], len(lists)
        hit = _uniform(_keys(uids.to_pylist())[row] ^ keys[entry]) < prob
        kept = np.bincount(row[hit], minlength=rows) > 0
        with np.errstate(divide="ignore"):
            never = np.bincount(row, weights=np.log1p(-prob), minlength=rows)
        drawn += int(kept.sum())
        yield {"balance_kept": kept, "balance_prob": 0 - np.expm1(never)}
    tail = counts["num"].to_numpy()
    return {"entries": len(tail), "drawn": drawn, "tail_share": float(tail[tail < t].sum() / max(tail.sum(), 1))}


def _keys(texts: list[str]) -> Hashes:
    return np.frombuffer(b"".join([blake2b(text.encode(), digest_size=8).digest() for text in texts]), np.uint64)


def _uniform(keys: Hashes) -> NDArray[np.float64]:
    """Numbers from 0 to below 1, one a key: splitmix64's mixing (Steele, Lea, Flood 2014)."""
    mixed = keys + np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    uniform: NDArray[np.float64] = ((mixed ^ (mixed >> np.uint64(31))) >> np.uint64(11)).astype(np.float64) / 2**53
    return uniform
