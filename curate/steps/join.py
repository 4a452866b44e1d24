"""Columns that somebody else measured: the rows of parquet or csv files, by key."""

import glob
import mmap
import tempfile
from collections.abc import Iterator
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from numpy.typing import NDArray
from pyarrow import csv, types

from curate.errors import UserError, did_you_mean
from curate.step import float32, step, string, vector

KEY = "key of the row"


def _types(*, file: str, on: str = "uid", columns: list[str] | None = None) -> dict[str, pa.DataType]:
    """What the step adds: the columns named, or all but the key."""
    schema = _open(file, on, columns or []).schema
    return {name: _type_here(schema.field(name)) for name in columns or schema.names if name != on}


@step(adds=_types, batch=16_384)
class Join:
    """The columns of a file, in its units, from the row whose `on` equals the uid (or what `reads` binds); null without one.

    Our choice, as nobody could say which row counts: a key that stands twice in the file is an error. Lists of numbers become
    vectors. Each worker copies the file once to an unnamed temporary file and maps it, so memory holds 16 bytes a key.
    """

    def __init__(self, *, file: Annotated[str, "file"], on: str = "uid", columns: list[str] | None = None) -> None:
        added = _types(file=file, on=on, columns=columns)
        self._schema, hashes = pa.schema([*added.items(), (KEY, string)]), [np.empty(0, np.int64)]
        with tempfile.TemporaryFile() as copy:
            with pa.ipc.new_file(copy, self._schema) as writer:
                for batch in _read(file, on, self._schema):
                    writer.write_batch(batch)
                    hashes.append(_hashes(batch[KEY]))
            copy.flush()
            mapped = pa.ipc.open_file(pa.py_buffer(mmap.mmap(copy.fileno(), 0, access=mmap.ACCESS_READ)))
        self._batches = [mapped.get_batch(i) for i in range(mapped.num_record_batches)]
        self._starts = np.cumsum([0, *map(len, self._batches)])
        unsorted = np.concatenate(hashes)
        self._places = np.argsort(unsorted, kind="stable")
        self._hashes = unsorted[self._places]
        twice = np.flatnonzero(self._hashes[1:] == self._hashes[:-1])
        if len(twice):
            first, second = self._take(self._places[twice[0] : twice[0] + 2])[KEY].to_pylist()
            assert first == second, "two keys have the same hash; other hashes are drawn at the next start"
            raise UserError(f"step 'join': key '{first}' stands twice in column '{on}' of {file}")

    def __call__(self, uid: pa.Array) -> dict[str, Any]:
        keys = uid.cast(string)
        wanted = _hashes(keys)
        near = np.searchsorted(self._hashes, wanted)
        hit = np.flatnonzero(near < len(self._hashes))
        hit = hit[self._hashes[near[hit]] == wanted[hit]]
        found = self._take(self._places[near[hit]])
        same = pc.equal(found[KEY], keys.take(pa.array(hit))).to_numpy()
        row = np.full(len(keys), -1)
        row[hit[same]] = np.flatnonzero(same)
        joined = found.take(pa.array(row, mask=row < 0))
        return {name: _values(joined[name]) for name in joined.column_names if name != KEY}

    def _take(self, places: NDArray[np.int64]) -> pa.Table:
        """Rows of the mapped copy, batch by batch: Arrow's own take would bring all of it into memory."""
        order = np.argsort(places)
        cuts = np.searchsorted(places[order], self._starts)
        parts = [batch.take(pa.array(places[order[low:high]] - start))
                 for batch, start, low, high in zip(self._batches, self._starts, cuts, cuts[1:], strict=False) if low < high]
        return pa.Table.from_batches(parts, self._schema).take(pa.array(np.argsort(order)))


def _open(file: str, on: str, columns: list[str]) -> ds.Dataset:
    """The files as one table; UserError where there is none, or one that cannot be read or lacks a column."""
    paths = sorted(glob.glob(file))
    if not paths:
        raise UserError(f"step 'join': no file {file}")
    text = ds.CsvFileFormat(convert_options=csv.ConvertOptions(column_types={on: string}))
    try:
        data = ds.dataset(paths, format=text if paths[0].endswith((".csv", ".csv.gz")) else "parquet")
        there = {part.path: part.physical_schema.names for part in data.get_fragments()}
    except pa.ArrowInvalid as error:
        raise UserError(f"step 'join': cannot read {file}: {error}") from None
    for path, names in there.items():
        for name in (on, *columns):
            if name not in names:
                raise UserError(f"step 'join': {path} has no column '{name}'{did_you_mean(name, names)}")
    return data


def _read(file: str, on: str, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """The rows with a key, in our types."""
    columns = {name: ds.field(on if name == KEY else name) for name in schema.names}
    data = _open(file, on, [name for name in schema.names if name != KEY])
    try:
        for batch in data.to_batches(columns=columns, batch_size=16_384, batch_readahead=2, fragment_readahead=1):
            yield batch.cast(schema).filter(pc.is_valid(batch[KEY]))
    except pa.ArrowInvalid as error:
        raise UserError(f"step 'join': cannot read {file}: {error}") from None


def _type_here(column: pa.Field) -> pa.DataType:
    kind = column.type
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return vector
    if types.is_nested(kind):
        raise UserError(f"step 'join': column '{column.name}' is {kind}; a run holds numbers, truth values, texts and vectors")
    if types.is_float16(kind):
        return float32
    return kind if types.is_boolean(kind) or types.is_integer(kind) or types.is_floating(kind) else string


def _hashes(keys: pa.Array) -> NDArray[np.int64]:
    return np.fromiter(map(hash, keys.to_pylist()), np.int64, len(keys))


def _values(column: pa.ChunkedArray) -> Any:
    """A column as steps return it: a vector is one array of numbers a row."""
    if column.type != vector:
        return column
    whole = column.combine_chunks()
    ends = np.cumsum(pc.fill_null(pc.list_value_length(whole), 0).to_numpy())
    rows = np.split(whole.flatten().to_numpy(zero_copy_only=False), ends)[:-1]
    return [row if valid else None for row, valid in zip(rows, whole.is_valid().to_pylist(), strict=True)]
