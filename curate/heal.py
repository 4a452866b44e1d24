"""Asking again for what may have passed: which pictures, and which decisions their coming back undoes.

A status that may pass (`addresses.PASSING`) is laid over by a newer part; what came stays as it is, so healing only turns
missing into present. What was decided after the fetch is forgotten for the shards concerned before anything is asked: a run that
is killed in between decides anew from whatever has come.
"""

from collections.abc import Sequence, Set

import pyarrow as pa

from curate.fetching.addresses import PASSING
from curate.plan import BoundStep, Segment
from curate.sources.source import Source
from curate.store import Store


def reopen(store: Store, source: Source, segments: Sequence[Segment], opened: Set[int] = frozenset()) -> set[int]:
    """Forget the decisions that asking again may change, from the first fetch among `segments` on; which shards these are.

    Of shards that were `opened` before, because a fetch before the last barrier asks again, all decisions are forgotten.
    """
    for number in opened:
        for segment in segments:
            store.kept_path(segment.chain_out, number).unlink(missing_ok=True)
    index = next((i for i, s in enumerate(segments) if s.kind == "fetch"), None)
    if index is None:
        return set(opened)
    fetch = segments[index].stages[0]
    assert isinstance(fetch, BoundStep)
    found = set(opened)
    for shard in range(source.num_shards):
        ids = may_come(store.read_parts(fetch.folder, shard, ["image_id", "status"]))
        for touched in [shard, *(b for b, lent in source.borrowers(shard).items() if ids & set(lent))] if ids else ():
            found.add(touched)
            for segment in segments[index:]:
                store.kept_path(segment.chain_out, touched).unlink(missing_ok=True)
    return found


def may_come(parts: pa.Table | None) -> set[str]:
    """The images whose newest status may pass; `parts` has image_id and status, oldest first."""
    if parts is None:
        return set()
    newest = dict(zip(parts["image_id"].to_pylist(), parts["status"].to_pylist(), strict=True))
    return {image_id for image_id, status in newest.items() if status in PASSING}
