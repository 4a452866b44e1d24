"""What a fetch step reads besides the url. Its columns belong to images, so it gets the values of all rows that hold an image.

    async def one(self, url: str, face_bboxes: list[Any] | None = None): ...    # a value of each row; None without such a column
"""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curate.collect import Downloader, Row
from curate.measure import Shard, Worker
from curate.plan import BoundStep, Column, Segment
from curate.store import ALIVE

Values = Mapping[str, Sequence[list[Any] | None]]
"""url → what `one` gets after it."""


def with_rows(downloader: Any, worker: Worker, segment: Segment, bound: BoundStep, number: int,
              items: Sequence[tuple[str, str]]) -> Downloader:
    """The downloader for these (image_id, url) of a shard, told of each url what the rows of its image say.

    Rows that an earlier keep dropped speak too, where they have a value: they may come back without a new fetch. Rows of shards
    that borrow the image come after the shard's own.
    """
    further = list(bound.spec().reads)[1:]
    if not any(p in bound.reads for p in further):
        return downloader       # type: ignore[no-any-return]
    wanted = {i for i, _ in items}
    others = sorted(n for n, ids in worker.source.borrowers(number).items() if wanted & set(ids))
    shards = [Shard.at(worker.store, worker.source, n, segment.chain_in) for n in (number, *others)]
    values: dict[str, list[list[Any] | None]] = {url: [] for _, url in items}
    for parameter in further:
        found = _by_image(shards, bound.reads[parameter], wanted) if parameter in bound.reads else None
        said: dict[str, list[Any]] = defaultdict(list)
        for image_id, url in items:
            said[url] += found[image_id] if found is not None else ()
        for url, arguments in values.items():
            arguments.append(said[url] if found is not None else None)
    return _WithRows(downloader, values)


def _by_image(shards: Sequence[Shard], ref: Column, wanted: Collection[str]) -> Mapping[str, list[Any]]:
    """image_id → the values of its rows."""
    found: dict[str, list[Any]] = defaultdict(list)
    for shard in shards:
        ids, column = shard.source.table(shard.number, ["image_id"])["image_id"], shard.column(ref)
        speaks = (shard.kept.state == ALIVE) | column.is_valid().to_numpy(zero_copy_only=False)
        rows = pa.array(np.flatnonzero(speaks & pc.is_in(ids, pa.array(list(wanted), pa.string())).to_numpy()))
        for image_id, value in zip(ids.take(rows).to_pylist(), column.take(rows).to_pylist(), strict=True):
            found[image_id].append(value)
    return found


class _WithRows:
    """A downloader that is asked with a url alone."""

    def __init__(self, downloader: Any, values: Values) -> None:
        self._downloader, self._values = downloader, values

    async def one(self, url: str) -> tuple[Row, bytes | None]:
        """See `curate.collect.Downloader`."""
        answer: tuple[Row, bytes | None] = await self._downloader.one(url, *self._values[url])
        return answer
