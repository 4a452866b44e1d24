"""A run's columns as one relation of DuckDB over its parquet files: a row a source row, null where it was not measured.

What `curate.measure.Shard` does for one shard in memory, this does for all of them out of core: parts are keyed by row position
(or by image), the newest part wins. Expressions of a user never run here: this connection reads files, that of `curate.keep`
cannot.
"""

import glob
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import duckdb

from curate import files
from curate.folder import Folder
from curate.plan import Column

MEMORY = "1GB"
THREADS = 2
BATCH = 131_072
POS, STATE, STAGE, CLAUSE = OWN = ("our pos", "our state", "our stage", "our clause")
"""Columns of every frame: shard << 32 | row, and what became of the row, as `curate.store.Kept` says it."""
_POS = f'"{POS}"'
_NAMED = "regexp_extract(filename, '([0-9]+)[.]([0-9]+[.])?parquet$', 1)::bigint"
_AGE = f"(regexp_extract(filename, '[.]([0-9]+)[.]parquet$', 1)::bigint << 48) | ({_NAMED} << 28) | file_row_number"
"""A number that is larger the later a row was written: of its part (below 2**15), its shard (2**20), its place there (2**28)."""


@contextmanager
def database(root: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """An empty database with bounded memory; what is more goes to a temporary folder in `root`, which exists."""
    spill = root / f".spill.{secrets.token_hex(4)}{files.TEMPORARY}"
    with duckdb.connect(config={"memory_limit": MEMORY, "threads": THREADS, "temp_directory": str(spill),
                                "preserve_insertion_order": False, "autoinstall_known_extensions": False}) as connection:
        yield connection


def position(pos: int) -> tuple[int, int]:
    """(source shard, row) of a `pos`."""
    return pos >> 32, pos & 0xFFFFFFFF


def frame(folder: Folder, names: Sequence[str]) -> str:
    """SQL of the frame: pos, state, stage, clause, the columns named, and for each of their folders `measured <folder>`."""
    columns = [folder.columns[n] for n in names]
    own = [n for n, c in zip(names, columns, strict=True) if not c.folder]
    made = dict.fromkeys((c.folder, c.by_image) for c in columns if c.folder)
    needs_image = any(by_image for _, by_image in made)
    chosen = [f"source.{quoted(n)}" for n in own]
    joins = [f"join ({_kept(folder)}) kept using ({_POS})"]
    for i, (place, by_image) in enumerate(made):
        here = {n: c for n, c in zip(names, columns, strict=True) if c.folder == place}
        key = "image_id" if by_image else _POS
        joins.append(f"left join ({_parts(folder, place, here, key)}) c{i} on c{i}.{key} = source.{key}")
        chosen += [f"c{i}.{quoted(n)}" for n in here] + [f"c{i}.{key} is not null as {quoted(measured(place))}"]
    rows = _source(folder, own, needs_image)
    ours = [f"source.{_POS}", *(f"kept.{quoted(n)}" for n in OWN[1:])]
    return f"select {', '.join([*ours, *chosen])} from ({rows}) source {' '.join(joins)}"


def measured(place: str) -> str:
    """The frame's column that says whether a step has measured the row."""
    return f"measured {place}"


def quoted(name: str) -> str:
    """An identifier of SQL."""
    return '"' + name.replace('"', '""') + '"'


def read(pattern: Path) -> str:
    """SQL that reads the numbered parquet files of a folder."""
    path = (glob.escape(str(pattern)) + "/[0-9]*.parquet").replace("'", "''")
    return f"read_parquet('{path}', filename = true, file_row_number = true, union_by_name = true)"


def _source(folder: Folder, names: Sequence[str], needs_image: bool) -> str:
    types = folder.source.columns
    chosen = [f"{quoted(n)}::varchar as {quoted(n)}" if str(types[n]) == "string" else quoted(n) for n in names]
    chosen += ["image_id"] * (needs_image and "image_id" not in names)
    if not folder.source.num_shards:
        return _nothing(POS, *names, "image_id")
    return f"select {', '.join([f'{_NAMED} << 32 | file_row_number as {_POS}', *chosen])} from {read(folder.store.source)}"


def _kept(folder: Folder) -> str:
    if not folder.source.num_shards:
        return _nothing(*OWN)
    names = [f"{n.removeprefix('our ')} as {quoted(n)}" for n in OWN[1:]]
    columns = ", ".join([f"{_NAMED} << 32 | file_row_number as {_POS}", *names])
    return f"select {columns} from {read(folder.store.kept_path(folder.chain, 0).parent)}"


def _parts(folder: Folder, place: str, here: dict[str, Column], key: str) -> str:
    """The newest value of each row (or image) of a step's folder; nothing where the step has measured nothing."""
    parts = [p.name for p in (folder.root / "columns" / place).glob("[0-9]*.parquet")]
    if not parts:
        return _nothing(key.strip('"'), *here)
    where = key if key == "image_id" else f"{_NAMED} << 32 | row as {_POS}"
    chosen = ", ".join([where, *(f"{quoted(c.name)} as {quoted(n)}" for n, c in here.items())])
    found = read(folder.root / "columns" / place)
    if key != "image_id" and len(parts) == len({name.split(".")[0] for name in parts}):
        return f"select {chosen} from {found}"
    values = ", ".join(map(quoted, here)) or "true"     # max_by, not a window: joined to one, DuckDB 2.0.0 loses rows
    aged = f'select {chosen}, {_AGE} as "our age" from {found}'
    newest = f'select {key}, max_by(row({values}), "our age") as v from ({aged}) group by 1'
    return f"select {', '.join([key, *(f'v[{i}] as {quoted(n)}' for i, n in enumerate(here, 1))])} from ({newest})"


def _nothing(*names: str) -> str:
    """These columns, and no row."""
    return f"select {', '.join(f'null as {quoted(n)}' for n in names)} limit 0"
