"""A user's own files opened for the first time: tables, tars or pictures, and what their first rows show."""

import itertools
import os
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from curate import columns
from curate.columns import Chunk
from curate.errors import UserError
from curate.planning import guess
from curate.planning.guess import Look, shown
from curate.planning.sample import Counted, count_rows
from curate.sources import cut, locations, readers, samples
from curate.sources.locations import FOLDER, PICTURES, SIDECARS, TABLES, TARS, SourceFile

ROWS, PICTURE_ROWS, FILES = 1000, 200, 3
"""Rows looked at in a file, where all bytes of pictures have to be read for them, and files."""


@dataclass
class Given:
    """What the user named, opened: kind of source, files, and what a sample of them shows."""

    kind: str
    files: list[SourceFile]
    header: list[str] = field(default_factory=list)
    looks: list[Look] = field(default_factory=list)
    values: dict[str, pa.Array] = field(default_factory=dict)
    """the columns of the rows seen, as texts"""
    rows_seen: int = 0
    num_rows: int = 0
    exact: bool = True


def opened(sources: Sequence[str], caption: str | None, url: str | None) -> Given:
    """What the user named, looked at. `caption` and `url` name entries of the .json beside pictures. Raises UserError."""
    kinds = {_kind(s) for s in sources}
    if len(kinds) > 1:
        raise UserError(f"{' and '.join(sorted(kinds))} are two kinds of source; give one of them")
    [kind] = kinds
    formats = TARS if kind == "shards" else TABLES
    given = Given(kind, locations.find(list(sources), Path(), formats, pictures=kind == "images"))
    _look(given, caption, url)
    return given


def _kind(name: str) -> str:
    """pairs, shards or images, by the endings of what is there."""
    if "://" in name or not os.path.isdir(os.path.expanduser(name)):
        suffix = _suffix(name)
        if suffix in PICTURES:
            raise UserError(f"'{shown(name)}' is a picture; give the folder it lies in")
        return "shards" if suffix == ".tar" else "pairs"
    found = {_suffix(n) for _, _, names in os.walk(os.path.expanduser(name)) for n in names if not n.startswith(".")}
    tables = found & TABLES.keys()
    if ".tar" in found:
        return "shards"
    if found & PICTURES and tables - SIDECARS:
        raise UserError(f"'{shown(name)}' holds pictures and tables; give the tables, as in '{shown(name).rstrip('/')}/*"
                        f"{min(tables - SIDECARS)}', or a folder of pictures only")
    if not found & PICTURES and not tables:
        raise UserError(f"'{shown(name)}' holds no table, tar or picture")
    return "images" if found & PICTURES else "pairs"


def _suffix(name: str) -> str:
    return os.path.splitext(name.lower().removesuffix(".gz"))[1]


def _look(given: Given, caption: str | None, url: str | None) -> None:
    """Read the first rows of the first, the middle and the last file."""
    chosen = [given.files[i] for i in sorted({0, len(given.files) // 2, len(given.files) - 1})[:FILES]]
    chunks, read, consumed = [], [Counted(f.path, f.format) for f in chosen], 0
    for file in read:
        with cut.refusing(file):
            chunk, at, ended = _first(given, file, caption, url)
        chunks.append(chunk)
        consumed += file.stamp().bytes if ended else at
    given.rows_seen = sum(c.rows for c in chunks)
    given.num_rows, given.exact = count_rows(given.files, given.rows_seen, consumed, read)
    if not given.rows_seen:
        raise UserError(f"'{shown(given.files[0].shown)}' holds no row")
    given.values = _columns(chunks)
    given.looks = [guess.look(n, c) for n, c in given.values.items()]


def _first(given: Given, file: Counted, caption: str | None, url: str | None) -> tuple[Chunk, int, bool]:
    """The first rows of a file, how many bytes they took, whether they were all."""
    if given.kind != "pairs":
        reader = samples.READERS[file.format]
        rows = PICTURE_ROWS if file.format == FOLDER else ROWS
        found = reader(file, rows, samples.Wanted(caption, url or "url"), samples.Seen())
        return (*_taken(found, file), False) if file.format == FOLDER else _whole(found, file, rows)
    chunk, at, ended = _whole(readers.read_table(file, ROWS, given.header), file, ROWS)
    if file.format in ("csv", "tsv") and not given.header and any(guess.is_url(name) for name in chunk.fields):
        given.header = [f"column_{i}" for i in range(1, len(chunk.fields) + 1)]
        return _whole(readers.read_table(file, ROWS, given.header), file, ROWS)
    return chunk, at, ended


def _taken(found: Any, file: Counted) -> tuple[Chunk, int]:
    with closing(found):
        return next(found), file.consumed


def _whole(found: Any, file: Counted, rows: int) -> tuple[Chunk, int, bool]:
    with closing(found):
        chunk = next(found)
        at = file.consumed
        return chunk, at, chunk.rows < rows or next(found, None) is None


def _columns(chunks: Sequence[Chunk]) -> dict[str, pa.Array]:
    """The columns of all chunks as texts, null where a chunk has none."""
    names = dict.fromkeys(itertools.chain.from_iterable(c.fields for c in chunks))
    found = {}
    for name in names:
        parts = []
        for chunk in chunks:
            column = chunk.fields.get(name)
            is_text = column is not None and not pa.types.is_nested(column.type)
            parts.append(columns.as_strings(column)[0] if is_text else pa.nulls(chunk.rows, pa.string()))
        found[name] = pa.concat_arrays(parts)
    return found
