"""Columns that somebody else measured: the rows of parquet or csv files, by key."""

import glob
import mmap
import tempfile
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from numpy.typing import NDArray
from pyarrow import csv

from curate.errors import UserError, did_you_mean
from curate.step import float32, float64, step, string, vector

KEY = "key of the row"


def _types(*, file: str, on: str = "uid", columns: list[str] | None = None) -> dict[str, pa.DataType]:
    """What the step adds: the columns named, or all but the key."""
    schema = _open(file, on, columns or []).schema
    return {name: _type_here(schema.field(name)) for name in (schema.names if columns is None else columns) if name != on}


@step(adds=_types, batch=16_384)
class Join:
    """The columns of a file, in its own units, from the row whose `on` equals the uid (or what `reads` binds); null without such a row.

    Our choice, since nobody could say which row counts: a key that stands twice in the file is an error. Lists of numbers become
    vectors. The file is copied once a worker to an unnamed temporary file and mapped, so memory holds 16 bytes a key.
    """

    def __init__(self, *, file: Annotated[str, "file"], on: str = "uid", columns: list[str] | None = None) -> None:
        self._types = _types(file=file, on=on, columns=columns)
        schema = pa.schema([*self._types.items(), (KEY, string)])
        scanner = _open(file, on, list(self._types)).scanner(
            columns={**{name: ds.field(name) for name in self._types}, KEY: ds.field(on)}, filter=ds.field(on).is_valid(),
            batch_size=16_384, batch_readahead=2, fragment_readahead=1)
        hashes: list[NDArray[np.int64]] = [np.empty(0, np.int64)]
        with tempfile.TemporaryFile() as copy:
            with pa.ipc.new_file(copy, schema) as writer:
                for batch in _batches(scanner, file):
                    writer.write_batch(batch.cast(schema))
                    hashes.append(_hashes(batch[KEY].cast(string)))
            copy.flush()
            reader = pa.ipc.open_file(pa.py_buffer(mmap.mmap(copy.fileno(), 0, access=mmap.ACCESS_READ)))
        self._batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        self._starts = np.cumsum([0, *map(len, self._batches)])
        joined = np.concatenate(hashes)
        self._places = np.argsort(joined, kind="stable")
        self._hashes = joined[self._places]
        self._refuse_twice(file, on)

    def __call__(self, uid: pa.Array) -> dict[str, Any]:
        wanted = _hashes(uid.cast(string))
        near = np.searchsorted(self._hashes, wanted)
        hit = np.flatnonzero(near < len(self._hashes))
        hit = hit[self._hashes[near[hit]] == wanted[hit]]
        found = self._take(self._places[near[hit]])
        hit = hit[...]
        return {}
