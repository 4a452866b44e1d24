"""Tables of any format → chunks of rows, in file order, streamed: no file is ever in memory whole.

Each line, record or object is exactly one row: what cannot be read of it is null and said in `Chunk.errors`, because a row that
silently disappears cannot be counted. Empty lines are no rows. A file that is broken as a whole (no footer, a gzip cut short,
JSON that is no list) is refused. In tsv a line is always a row, as in the web's own tables: quotes are taken off a value that is
quoted as a whole, and mean nothing else.
"""

import csv
import gzip
import io
import itertools
import json
import re
import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import IO, Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from curate import columns
from curate.columns import Chunk, Unreadable
from curate.sources.locations import SourceFile

MAX_RECORD_LINES = 100
"""A quoted csv field that spans more lines than this was never closed."""
BLOCK_LINES = 128
MAX_OBJECT_CHARS = 1 << 26
"""Above this an element of a JSON list is taken to be a broken file."""
BLOCK = 1 << 20
SPACE = re.compile(r"[ \t\r\n]*")

Record = tuple[int, Sequence[str] | str]
"""Line number and the record's fields, or why it has none."""


def read_table(file: SourceFile, rows: int, header: Sequence[str] = (), group: int | None = None) -> Iterator[Chunk]:
    """Chunks of `rows` rows; the first comes even if it is empty, for its columns. `header` names the columns of a csv or tsv
    file that has no header line, `group` the one row group of a parquet file that is read. Raises Unreadable, or what Arrow and
    gzip raise, for one that is broken."""
    if file.format == "parquet":
        yield from _parquet(file, rows, group)
        return
    with file.open() as raw, gzip.open(raw) if file.is_gzip else raw as stream:
        text = io.TextIOWrapper(cast(IO[bytes], stream), "utf-8-sig", "surrogateescape", newline="\n")
        if file.format == "json":
            yield from _objects(((0, v) for v in _elements(text)), rows)
        elif file.format == "jsonl":
            yield from _objects(_json_lines(text), rows)
        else:
            yield from _delimited(_csv_records(text) if file.format == "csv" else _tsv_records(text), rows, header)


def _parquet(file: SourceFile, rows: int, group: int | None) -> Iterator[Chunk]:
    with ExitStack() as stack:
        source: Any = file.path
        if file.is_remote or file.is_gzip:
            source = stack.enter_context(file.open())
        if file.is_gzip:
            spool = stack.enter_context(tempfile.TemporaryFile())
            shutil.copyfileobj(stack.enter_context(gzip.open(source)), spool, BLOCK)
            source = spool
        parquet = stack.enter_context(pq.ParquetFile(source, pre_buffer=False, buffer_size=BLOCK))
        names = _unique(parquet.schema_arrow.names)
        batches = parquet.iter_batches(batch_size=rows, row_groups=None if group is None else [group])
        first = next(batches, pa.RecordBatch.from_pylist([], parquet.schema_arrow))
        while first is not None:
            yield columns.chunk_of(zip(names, map(columns.plain, first.columns), strict=True), len(first), {})
            first = next(batches, None)


def _unique(names: Sequence[str]) -> list[str]:
    """Column names, `column_3` for an empty one. Raises Unreadable where one stands twice."""
    named = [columns.clean(n.strip()) or f"column_{i}" for i, n in enumerate(names)]
    twice = [n for i, n in enumerate(named) if n in named[:i]]
    if twice:
        raise Unreadable(f"two columns are called '{twice[0]}'")
    return named


def _delimited(records: Iterator[Record], rows: int, header: Sequence[str]) -> Iterator[Chunk]:
    if not header:
        _, first = next(records, (1, "it is empty"))
        if isinstance(first, str):
            raise Unreadable(first)
        header = first
    names = _unique(header)
    first_chunk = True
    while True:
        chunk = _text_chunk(records, rows, names)
        if chunk.rows or first_chunk:
            yield chunk
        if chunk.rows < rows:
            return
        first_chunk = False


def _text_chunk(records: Iterator[Record], rows: int, names: Sequence[str]) -> Chunk:
    values: list[Sequence[str | None]] = []
    errors: dict[int, str] = {}
    nothing = (None,) * len(names)
    for line, fields in records:
        if isinstance(fields, str) or len(fields) != len(names):
            reason = fields if isinstance(fields, str) else f"{len(fields)} fields, not {len(names)}"
            errors[len(values)] = f"line {line}: {reason}"
            values.append(nothing)
        else:
            values.append(fields)
        if len(values) == rows:
            break
    by_column = zip(*values, strict=True) if values else [()] * len(names)
    return columns.chunk_of(zip(names, map(columns.from_texts, by_column), strict=True), len(values), errors, is_text=True)


def _tsv_records(text: IO[str]) -> Iterator[Record]:
    for number, line in enumerate(text, 1):
        line = line.rstrip("\r\n")
        if line:
            fields = line.split("\t")
            yield number, [_unquoted(f) for f in fields] if '"' in line else fields


def _unquoted(value: str) -> str:
    inside = value[1:-1].replace('""', "")
    quoted = len(value) > 1 and value[0] == value[-1] == '"' and '"' not in inside
    return value[1:-1].replace('""', '"') if quoted else value


class _Lines:
    """Lines that can be given back. As an iterator it feeds csv.reader, remembers what the record at hand is made of, and ends
    where a quote stays open for too long."""

    def __init__(self, text: IO[str]) -> None:
        self._text = text
        self._again: deque[str] = deque()
        self.number = 1
        self.taken: list[str] = []
        self.ended = False

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        line = self._again.popleft() if self._again else next(self._text, "")
        if not line or len(self.taken) == MAX_RECORD_LINES:
            self._again.extendleft([line] if line else [])
            self.ended = True
            raise StopIteration
        self.taken.append(line)
        return line

    def block(self) -> list[str]:
        """The next lines, all of them taken."""
        self.taken = [self._again.popleft() for _ in range(min(len(self._again), BLOCK_LINES))]
        self.taken += itertools.islice(self._text, BLOCK_LINES - len(self.taken))
        return self.taken

    def accept(self, lines: int) -> None:
        """Go on behind so many of the lines taken; the others are read again."""
        self.number += lines
        self._again.extendleft(reversed(self.taken[lines:]))
        self.taken = []
        self.ended = False


def _csv_records(text: IO[str]) -> Iterator[Record]:
    """Records after RFC 4180, block by block where each line is a record, else one by one."""
    lines = _Lines(text)
    while block := lines.block():
        try:
            records = list(csv.reader(block, strict=True))
        except csv.Error:
            records = []
        if len(records) == len(block):
            yield from ((number, fields) for number, fields in enumerate(records, lines.number) if fields)
            lines.accept(len(block))
        else:
            lines.accept(0)
            yield from _csv_one_by_one(lines, lines.number + len(block))


def _csv_one_by_one(lines: _Lines, end: int) -> Iterator[Record]:
    """Records up to line `end` or a little further. A quote that is never closed costs its own line only: those behind it are
    read again."""
    while lines.number < end:
        fields: list[str] | str | None
        try:
            fields = next(csv.reader(lines, strict=True), None)
        except csv.Error:
            fields = "a quote is never closed" if lines.ended or len(lines.taken) > 1 else _lenient(lines.taken)
            lines.accept(1)
            yield lines.number - 1, fields
            continue
        if fields is None:
            return
        if fields:
            yield lines.number, fields
        lines.accept(len(lines.taken))


def _lenient(line: list[str]) -> list[str] | str:
    """The fields of one line that has quotes where RFC 4180 allows none, or what is wrong with it."""
    try:
        return next(csv.reader(line))
    except csv.Error as error:
        return str(error).split(" - ")[0]


def _objects(values: Iterator[tuple[int, Any]], rows: int) -> Iterator[Chunk]:
    first_chunk = True
    while True:
        objects: list[dict[str, Any]] = []
        errors: dict[int, str] = {}
        for line, value in values:
            if not isinstance(value, dict):
                where = f"line {line}: " if line else ""
                errors[len(objects)] = where + (value.reason if isinstance(value, _NotJson) else "not an object")
                value = {}
            objects.append(value)
            if len(objects) == rows:
                break
        if objects or first_chunk:
            yield columns.chunk_of_objects(objects, errors)
        if len(objects) < rows:
            return
        first_chunk = False


class _NotJson:
    reason = "not JSON"


def _json_lines(text: IO[str]) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(text, 1):
        if not line.isspace():
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError):
                yield number, _NotJson()


def _elements(text: IO[str]) -> Iterator[Any]:
    """The elements of one JSON list, decoded one by one from blocks of text. Raises Unreadable where it is broken."""
    decode: Callable[[str, int], tuple[Any, int]] = json.JSONDecoder().raw_decode
    buffer = text.read(BLOCK)
    at = _skip(buffer, 0)
    if buffer[at:at + 1] != "[":
        raise Unreadable("not a list of objects")
    at = _skip(buffer, at + 1)
    if buffer[at:at + 1] == "]":
        return
    count = 0
    while True:
        try:
            value, end = decode(buffer, at)
            end = _skip(buffer, end)
        except (ValueError, RecursionError):
            end = len(buffer)
        if end == len(buffer):  # cut by the block, or broken: which of the two, more text will tell
            more = text.read(max(BLOCK, len(buffer)))
            if not more or len(buffer) > MAX_OBJECT_CHARS:
                raise Unreadable(f"broken or cut short after element {count}")
            buffer, at = buffer[at:] + more, 0
            at = _skip(buffer, at)
            continue
        yield value
        count += 1
        if buffer[end] == "]":
            return
        if buffer[end] != ",":
            raise Unreadable(f"broken after element {count}")
        at = _skip(buffer, end + 1)


def _skip(buffer: str, at: int) -> int:
    found = SPACE.match(buffer, at)
    return found.end() if found else at
