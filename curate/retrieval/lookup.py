"""The rows of an index: by uid, by condition, by the vector or the picture that they share.

Memory holds some 60 bytes a row; texts and image references are mapped from hits.arrow, and columns are read from rows.parquet
when a condition asks for them. Both files stay open, so an index that is built anew meanwhile changes nothing here.
"""

import hashlib
from bisect import bisect_right
from collections.abc import Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from curate.errors import UserError
from curate.keep import KEPT, Keep, evaluate
from curate.retrieval.indexed import BATCH, PICTURE, VECTOR, kind_of
from curate.shards import UID_BYTES, uid_bytes
from curate.store import STATE_NAMES

Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]
SCALARS = ("number", "text", "boolean")


class Groups:
    """Rows that share a number: a vector's position, a picture. Rows of a group come in the order of their uids."""

    def __init__(self, of: NDArray[np.int32], rank: NDArray[np.int32]) -> None:
        self.of = of
        """each row's number, or -1"""
        self.count = int(of.max(initial=-1)) + 1
        order = np.lexsort((rank, of)).astype(np.int32)
        self._rows = order[np.count_nonzero(of < 0):]
        self._start = np.searchsorted(of[self._rows], np.arange(self.count + 1)).astype(np.int32)

    def rows(self, number: int) -> Ints:
        """The rows of one group."""
        return self._rows[self._start[number] : self._start[number + 1]].astype(np.int64)

    def size(self, number: int) -> int:
        """How many rows a group has."""
        return int(self._start[number + 1] - self._start[number])

    def expand(self, numbers: Ints) -> tuple[Ints, Ints]:
        """All rows of these groups, and for each the place of its group in `numbers`."""
        sizes = self._start[numbers + 1] - self._start[numbers]
        which = np.repeat(np.arange(len(numbers)), sizes)
        inside = np.arange(len(which)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        return self._rows[self._start[numbers][which] + inside].astype(np.int64), which


class Rows:
    """The rows of an opened index."""

    def __init__(self, folder: Path, manifest: Mapping[str, Any]) -> None:
        """`manifest` is that of `folder`, whose files were compared with it. Raises UserError where they do not fit together."""
        self._parquet = pa.memory_map(str(folder / "rows.parquet")).read_buffer()
        arrow = pa.ipc.open_file(pa.memory_map(str(folder / "hits.arrow")))
        self._batches = [{f.name: batch.column(f.name) for f in arrow.schema}
                         for batch in map(arrow.get_batch, range(arrow.num_record_batches))]
        self._starts = [0, *accumulate(len(b["uid"]) for b in self._batches)]
        self.num_rows = self._starts[-1]
        file = self._file()
        self.schema: pa.Schema = file.schema_arrow
        uids = np.concatenate([uid_bytes(b["uid"].to_pylist()) for b in self._batches])
        if (self.num_rows, file.metadata.num_rows) != (manifest["rows"],) * 2 or _sha256(uids) != manifest["uid_digest"]:
            raise UserError(f"{folder}: the rows are not those that index.json tells of; build the index anew")
        self.order = np.argsort(uids, kind="stable").astype(np.int32)
        """rows in the order of their uids"""
        self._uids = uids[self.order]
        self.rank = np.empty(self.num_rows, np.int32)
        self.rank[self.order] = np.arange(self.num_rows, dtype=np.int32)
        self.kept = self._states() == STATE_NAMES.index("kept")
        self.pictures = Groups(self._numbers(PICTURE), self.rank)
        self.vectors = {name: Groups(self._numbers(VECTOR[name]), self.rank) for name in manifest["indexes"]}

    @property
    def columns(self) -> dict[str, pa.DataType]:
        """What a condition may read: the scalar columns, state and reason; not our own."""
        own = {PICTURE, *VECTOR.values()}
        return {f.name: f.type for f in self.schema if f.name not in own and kind_of(f.type) in SCALARS}

    def row_of(self, uid: str) -> int | None:
        """The row with this uid."""
        try:
            key = uid_bytes([uid])[0]
        except UnicodeEncodeError:
            return None
        place = int(np.searchsorted(self._uids, key))
        if place == self.num_rows or self._uids[place] != key:
            return None
        row = int(self.order[place])
        return row if self.shown(row)["uid"] == uid else None     # a uid of another form is found by its hash

    def shown(self, row: int) -> dict[str, Any]:
        """What a hit shows: uid, caption, url, width_px, height_px, state, reason."""
        batch = bisect_right(self._starts, row) - 1
        place = row - self._starts[batch]
        return {name: column[place].as_py() for name, column in self._batches[batch].items() if name != "image"}

    def image(self, row: int) -> dict[str, Any] | None:
        """Where a row's picture lies."""
        batch = bisect_right(self._starts, row) - 1
        ref: dict[str, Any] | None = self._batches[batch]["image"][row - self._starts[batch]].as_py()
        return ref

    def uid(self, row: int) -> str:
        """A row's uid."""
        batch = bisect_right(self._starts, row) - 1
        return str(self._batches[batch]["uid"][row - self._starts[batch]])

    def passing(self, keep: Keep) -> Mask:
        """Which rows pass a condition; unknown does not."""
        mask, first = np.zeros(self.num_rows, bool), 0
        for batch in self._file().iter_batches(batch_size=BATCH, columns=list(keep.columns)):
            mask[first : first + batch.num_rows] = evaluate(keep, pa.table(batch)).state == KEPT
            first += batch.num_rows
        return mask

    def values(self, row: int) -> pa.Table:
        """All columns of one row."""
        file, first = self._file(), 0
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            if row < first + rows:
                return file.read_row_group(group).slice(row - first, 1)
            first += rows
        raise IndexError(row)

    def _file(self) -> pq.ParquetFile:
        return pq.ParquetFile(pa.BufferReader(self._parquet))

    def _numbers(self, name: str) -> NDArray[np.int32]:
        column = self._file().read(columns=[name])[name]
        numbers: NDArray[np.int32] = column.fill_null(-1).to_numpy().astype(np.int32)
        return numbers

    def _states(self) -> NDArray[np.uint8]:
        names = pa.array(STATE_NAMES)
        found = [pc.index_in(b["state"], value_set=names).to_numpy() for b in self._batches]
        return np.concatenate(found).astype(np.uint8)


def _sha256(uids: NDArray[Any]) -> str:
    return hashlib.sha256(uids.astype(UID_BYTES).tobytes()).hexdigest()
