"""Taking rows out of every file of a run that holds anything of them. Each file is rewritten whole or not at all, and each of
these may be done again: what is gone already changes nothing.

    images/     the bytes are zeros, the member's name says nothing; all other pictures stay where columns say they are
    source/     the row stays as a place: no value, and a uid that means nothing
    columns/    the row's values go, and where another row names it, that name
    kept/       the row leaves as `removed`, before the first stage
    models/     pairs and held-out tables lose the row; a training that is not at its end loses its checkpoints and begins anew;
                models do not change
"""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curate import files, tombstones
from curate.sources.source import Source
from curate.store import Store
from curate.takedown.evidence import LINKS, parts
from curate.takedown.journal import Plan
from curate.tar import blanked, members


def scrub(store: Store, source: Source, plan: Plan) -> Iterator[Path]:
    """Do all of it; every file that was rewritten."""
    ids = pa.array(plan.image_ids, pa.string())
    yield from _images(store, frozenset(plan.image_ids))
    yield from _source(store, source, plan, ids)
    for path in parts(store.root):
        yield from _filtered(store, path, lambda table, path=path: _part(table, path, plan, ids))  # type: ignore[misc]
    yield from _kept(store, source, plan)
    for path in sorted((store.root / "models").glob("*.parquet")):
        yield from _filtered(store, path, lambda table: _without(
            _without(table, "uid", plan.uids_in(table["uid"])), "image_id", ids))
    for folder in sorted((store.root / "models").glob("*/checkpoints")):
        if not any((folder.parent / "model").glob("*")):
            shutil.rmtree(folder)
            yield folder


def _filtered(store: Store, path: Path, change: Callable[[pa.Table], pa.Table]) -> Iterator[Path]:
    """Rewrite a table if it changes."""
    table = pq.read_table(path, partitioning=None, memory_map=False)
    changed = change(table)
    if changed is not table:
        files.write_table(path, changed, store.attempt)
        yield path


def _without(table: pa.Table, name: str, values: pa.Array) -> pa.Table:
    """The rows whose column is none of the values; the table itself where it is none anywhere."""
    if name not in table.column_names:
        return table
    gone = pc.is_in(table[name], values, skip_nulls=True)
    return table.filter(pc.invert(gone)) if pc.any(gone).as_py() else table


def _part(table: pa.Table, path: Path, plan: Plan, ids: pa.Array) -> pa.Table:
    """A column part without these rows, and without their names in others."""
    if "row" in table.column_names:
        rows = plan.rows.get(int(path.name.split(".")[0]), [])
        table = _without(table, "row", pa.array(rows, table["row"].type))
    else:
        table = _without(table, "image_id", ids)
    for name in (n for n in LINKS if n in table.column_names):
        named = pc.is_in(table[name], ids if name == "same_as" else plan.uids_in(table[name]), skip_nulls=True)
        if pc.any(named).as_py():
            at = table.column_names.index(name)
            table = table.set_column(at, name, pc.if_else(named, pa.scalar(None, table[name].type), table[name]))
    return table


def _images(store: Store, ids: frozenset[str]) -> Iterator[Path]:
    """Blank the pictures in every tar, sealed parts of a download that was killed too; their tables lose the rows."""
    def is_gone(name: str) -> bool:
        return name.partition(".")[0] in ids

    for path in sorted((store.root / "images").glob("*/*.tar")):
        with open(path, "rb") as tar:
            gone = [member for member in members(tar) if is_gone(member.name)]
            if gone:
                with files.atomic(path, store.attempt) as out:
                    blanked(tar, out, gone)
                yield path
    for path in sorted((store.root / "images").glob("*/*.parquet")):
        yield from _filtered(store, path, lambda table: _without(table, "image_id", pa.array(list(ids), pa.string())))


def _source(store: Store, source: Source, plan: Plan, ids: pa.Array) -> Iterator[Path]:
    for name in ("owners.parquet", "borrowers.parquet"):
        if (source.folder / name).exists():
            yield from _filtered(store, source.folder / name, lambda table: _without(table, "image_id", ids))
    for number, rows in plan.rows.items():
        path = source.path(number)
        table = pq.read_table(path, partitioning=None, memory_map=False)
        gone = np.zeros(len(table), np.bool_)
        gone[rows] = True
        gone[tombstones.blank_rows(path)] = False
        if gone.any():
            files.write_table(path, tombstones.blanked(table, gone, number), store.attempt)
            yield path


def _kept(store: Store, source: Source, plan: Plan) -> Iterator[Path]:
    """In every chain there is, so that no earlier setting brings a row back."""
    for number, rows in plan.rows.items():
        uids = source.table(number, ["uid"])["uid"].combine_chunks()
        for folder in sorted(p for p in (store.root / "kept").glob("*") if not p.name.startswith(".")):
            if store.has_kept(folder.name, number) and store.remove(folder.name, number, np.array(rows, np.int64), uids):
                yield store.kept_path(folder.name, number)
