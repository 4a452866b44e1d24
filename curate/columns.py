"""Values of any file format → typed Arrow columns, and the one type that fits the same column of two files.

Nothing is lost on the way: what has no common type becomes text, and what is no valid text keeps its place with U+FFFD in it.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc


class Unreadable(ValueError):
    """A file that cannot be read as what its name says; the message does not name it."""


class Place(NamedTuple):
    """Where the bytes of a picture lie: a local path or url, and the range inside it. The fields of `curate.step.image`."""

    file: str
    offset: int
    length: int


LONE_SURROGATE = re.compile("[\ud800-\udfff]")
INTEGER = r"^(0|-?[1-9][0-9]{0,17})$"
DECIMAL = r"^-?(0|[1-9][0-9]{0,14})(\.[0-9]+)?([eE][+-]?[0-9]{1,3})?$"


def from_texts(values: Sequence[str | None]) -> tuple[pa.Array, list[int]]:
    """Texts as a string column, and the rows in which something that is no Unicode had to become U+FFFD.

    That is: bytes that are not UTF-8 (decoded with `surrogateescape`) and escapes like a lone `\\ud800` in JSON.
    """
    try:
        return pa.array(values, pa.string()), []
    except UnicodeEncodeError:
        mended = [v if v is None else LONE_SURROGATE.sub("\ufffd", v) for v in values]
        return pa.array(mended, pa.string()), [i for i, (a, b) in enumerate(zip(values, mended, strict=True)) if a != b]


def from_values(values: Sequence[Any]) -> tuple[pa.Array, list[int]]:
    """JSON values as a column: one kind keeps its type, integers and decimals make float64, lists, maps and mixtures JSON text.

    The second value is as in `from_texts`.
    """
    kinds = set(map(type, values)) - {type(None)}
    if not kinds:
        return pa.nulls(len(values)), []
    if kinds == {bool}:
        return pa.array(values, pa.bool_()), []
    if kinds <= {int, float} and all(-(2**63) <= v < 2**63 for v in values if type(v) is int):
        return pa.array(values, pa.int64() if kinds == {int} else pa.float64(), from_pandas=False), []
    return from_texts(values if kinds == {str} else [_as_text(v) for v in values])


def _as_text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def inferred(column: pa.Array) -> pa.Array:
    """A column of a text file in the narrowest of int64, float64 and string that gives every value back; empty is null.

    A leading zero, a plus sign or more digits than a number holds make it text: `007` is a name, not seven.
    """
    column = pc.if_else(pc.equal(column, ""), pa.scalar(None, pa.string()), column)
    if column.null_count == len(column):
        return pa.nulls(len(column))
    for pattern, type_ in ((INTEGER, pa.int64()), (DECIMAL, pa.float64())):
        if pc.all(pc.match_substring_regex(column, pattern)).as_py():
            return column.cast(type_)
    return column


def plain(column: pa.Array) -> tuple[pa.Array, list[int]]:
    """A parquet column without the ways to store it (dictionary, large and view types), its texts valid UTF-8 (`from_texts`)."""
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_large_string(column.type) or pa.types.is_string_view(column.type):
        column = column.cast(pa.string())
    if not pa.types.is_string(column.type):
        return column, []
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        raw = column.cast(pa.binary()).to_pylist()
        return from_texts([v if v is None else v.decode("utf-8", "surrogateescape") for v in raw])
    return column, []


def as_strings(column: pa.Array) -> tuple[pa.Array, list[int]]:
    """Text, bytes, numbers and truth values as text; see `from_texts`. Raises TypeError for what has no text of its own."""
    if pa.types.is_string(column.type):
        return column, []
    if pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
        return from_texts([v if v is None else v.decode("utf-8", "surrogateescape") for v in column.to_pylist()])
    if pa.types.is_nested(column.type):
        raise TypeError(f"{column.type}, not text")
    return column.cast(pa.string()), []


def common_type(a: pa.DataType, b: pa.DataType) -> pa.DataType:
    """The type that holds the values of both: the wider number, the type that is not null, else string."""
    if a == b or pa.types.is_null(b):
        return a
    if pa.types.is_uint64(a) or pa.types.is_uint64(b):  # Arrow would choose int64, which is too small
        return b if pa.types.is_null(a) else pa.string()
    try:
        pair = [pa.schema([("x", t)]) for t in (a, b)]
        wider = pa.unify_schemas(pair, promote_options="permissive").field("x").type
        pa.nulls(0, a).cast(wider), pa.nulls(0, b).cast(wider)
    except (pa.ArrowTypeError, pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return pa.string()
    return wider


def merged(old: pa.Schema | None, new: pa.Schema) -> pa.Schema:
    """The columns of both, in the order they were first seen; names that differ only in case are one column (SQL's rule)."""
    if old is None:
        return new.remove_metadata()
    fields = {f.name.lower(): f for f in old}
    for f in new:
        known = fields.get(f.name.lower())
        fields[f.name.lower()] = f if known is None else pa.field(known.name, common_type(known.type, f.type))
    return pa.schema(list(fields.values()))


def settled(schema: pa.Schema) -> pa.Schema:
    """A column that never had a value is text."""
    return pa.schema([pa.field(f.name, pa.string() if pa.types.is_null(f.type) else f.type) for f in schema])


def conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The table with exactly these columns and types; a column it lacks is null."""
    names = {n.lower(): n for n in table.column_names}
    columns = [_cast(table.column(names[f.name.lower()]), f.type) if f.name.lower() in names else pa.nulls(len(table), f.type)
               for f in schema]
    return pa.Table.from_arrays(columns, schema=schema)


def _cast(column: pa.ChunkedArray, type_: pa.DataType) -> pa.ChunkedArray:
    if column.type == type_:
        return column
    if pa.types.is_string(type_) and pa.types.is_nested(column.type):
        return pa.chunked_array([pa.array([_as_text(v) for v in column.to_pylist()], type_)])
    return column.cast(type_, safe=not pa.types.is_floating(type_))


@dataclass
class Chunk:
    """Some rows of one source file, in file order, under the file's own column names."""

    fields: dict[str, pa.Array]
    rows: int
    errors: dict[int, str] = field(default_factory=dict)
    """row of the chunk → what of it could not be read"""
    is_text: bool = False
    """every field is a string whose type is still to be inferred"""
    places: list[Place | None] | None = None
    """where each picture lies; None for a source of urls"""
    image_ids: list[str | None] | None = None
    """hashes of the pictures' bytes, where they had to be read"""

    def __getstate__(self) -> dict[str, Any]:
        """Of columns that are slices only the slice goes to a worker; their own pickle holds all that they were cut from."""
        sink = pa.BufferOutputStream()
        batch = pa.record_batch(list(self.fields.values()), names=list(self.fields))
        with pa.ipc.new_stream(sink, batch.schema) as stream:
            stream.write_batch(batch)
        return {**self.__dict__, "fields": sink.getvalue().to_pybytes()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        batch = pa.ipc.open_stream(state["fields"]).read_next_batch()
        self.__dict__.update(state, fields=dict(zip(batch.schema.names, batch.columns, strict=True)))

    def note(self, row: int, error: str) -> None:
        """Say one more thing that is wrong with a row."""
        self.errors[row] = f"{self.errors[row]}; {error}" if row in self.errors else error

    def head(self, rows: int) -> "Chunk":
        """The first rows of it."""
        if rows >= self.rows:
            return self
        return replace(self, rows=rows, fields={n: c[:rows] for n, c in self.fields.items()},
                       errors={i: e for i, e in self.errors.items() if i < rows},
                       places=self.places and self.places[:rows], image_ids=self.image_ids and self.image_ids[:rows])

    def take(self, rows: Sequence[int]) -> "Chunk":
        """These rows of it, in this order."""
        index = pa.array(rows, pa.int64())
        return replace(self, rows=len(rows), fields={n: c.take(index) for n, c in self.fields.items()},
                       errors={new: self.errors[old] for new, old in enumerate(rows) if old in self.errors},
                       places=self.places and [self.places[i] for i in rows],
                       image_ids=self.image_ids and [self.image_ids[i] for i in rows])


def chunk_of(fields: Iterable[tuple[str, tuple[pa.Array, list[int]]]], rows: int, errors: dict[int, str],
             is_text: bool = False) -> Chunk:
    """A chunk from converted columns, with a note for every row that lost characters."""
    chunk = Chunk({}, rows, errors, is_text)
    for name, (column, mended) in fields:
        chunk.fields[name] = column
        for row in mended:
            chunk.note(row, f"{name}: invalid characters replaced")
    return chunk


def chunk_of_objects(objects: Sequence[Mapping[str, Any]], errors: dict[int, str]) -> Chunk:
    """A chunk from JSON objects; its columns are all the keys there are, in the order they first come."""
    names = dict.fromkeys(chain.from_iterable(objects))
    return chunk_of(((clean(n), from_values([o.get(n) for o in objects])) for n in names), len(objects), errors)


def clean(name: str) -> str:
    """A column name without what no Arrow schema can hold."""
    return LONE_SURROGATE.sub("\ufffd", name)


def nfc(texts: pa.Array) -> pa.Array:
    """Texts in Unicode's composed form. Marks after the 16th on a letter are cut: to bring many in order takes quadratic time."""
    return pc.utf8_normalize(pc.replace_substring_regex(texts, r"(\p{M}{16})\p{M}+", r"\1"), form="NFC")
