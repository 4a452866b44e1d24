"""The funnel: for every stage how many rows came in and where they went, from the kept files alone. It must add up."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from curate.sources.source import Source
from curate.stages import KeepUse, Stage
from curate.store import DROPPED, REMOVED, STATE_NAMES, Store
from curate.tombstones import TAKEN_DOWN

HAS_IMAGE = "keep the image is there"
"""The last decision before shards are packed: a row without a picture makes no sample."""


Told = tuple[str, Sequence[str]]
"""A stage as the funnel tells of it: what it is called, and the clauses of a keep."""


def count(store: Store, source: Source, chain: str, stages: Sequence[Stage]) -> list[dict[str, Any]]:
    """One entry a stage, the source first: {what, in, kept, dropped, unknown, quarantined, removed, clauses}.

    Raises RuntimeError where in ≠ kept + dropped + unknown + quarantined + removed, at any stage.
    """
    return recount(store, source, chain, [(s.label, [c.text for c in s.keep.clauses] if isinstance(s, KeepUse) else [])
                                          for s in stages])


def recount(store: Store, source: Source, chain: str, stages: Sequence[Told]) -> list[dict[str, Any]]:
    """The same for stages that a finished run has recorded."""
    most = max((len(clauses) for _, clauses in stages), default=0) or 1
    totals = np.zeros((len(stages) + 2, len(STATE_NAMES), most), np.int64)   # stage (repeated rows first), state, clause
    rows = 0
    for shard in range(source.num_shards):
        kept = store.read_kept(chain, shard)
        if len(kept.state) != source.rows(shard):
            raise RuntimeError(f"shard {shard}: {len(kept.state)} states for {source.rows(shard)} rows")
        rows += len(kept.state)
        gone = kept.state > 0
        np.add.at(totals, (kept.stage[gone] + 1, kept.state[gone], np.maximum(kept.clause[gone], 0)), 1)
    return list(_entries(totals, rows, stages))


def _entries(totals: np.ndarray, rows: int, stages: Sequence[Told]) -> Any:
    alive = rows
    names = ["source", *(label for label, _ in stages), HAS_IMAGE]
    for index, name in enumerate(names):
        if index == len(names) - 1 and not totals[index].any():
            continue
        by_state = dict(zip(STATE_NAMES, (int(n) for n in totals[index].sum(axis=1)), strict=True))
        kept = alive - sum(by_state.values())
        entry: dict[str, Any] = {"what": name, "in": alive, **by_state, "kept": kept}
        clauses = _clauses(totals[index], index, stages)
        if clauses:
            entry["clauses"] = clauses
        if kept < 0 or entry["in"] != kept + sum(entry[s] for s in STATE_NAMES[1:]):
            raise RuntimeError(f"the funnel does not add up at '{name}': {entry}")
        alive = kept
        yield entry


def _clauses(totals: np.ndarray, index: int, stages: Sequence[Told]) -> list[dict[str, Any]]:
    """The reasons: each top-level `and` of a keep its own."""
    if index == 0:
        repeated, taken = int(totals[DROPPED].sum()), int(totals[REMOVED].sum())
        return [*([{"text": "repeated_row", "dropped": repeated, "unknown": 0}] if repeated else []),
                *([{"text": TAKEN_DOWN, "dropped": 0, "unknown": 0, "removed": taken}] if taken else [])]
    clauses = stages[index - 1][1] if index <= len(stages) else ()
    return [{"text": text, "dropped": int(totals[1, i]), "unknown": int(totals[2, i])} for i, text in enumerate(clauses)]
