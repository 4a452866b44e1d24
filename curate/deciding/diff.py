"""`curate diff A B`: two runs side by side: which rows only one kept and why the other did not, what was decided otherwise.

Rows are told by uid and joined in DuckDB, which spills: memory does not grow with rows. Nothing is written.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from curate.deciding.frame import BATCH, CLAUSE, POS, STAGE, STATE, database, frame, position, quoted
from curate.deciding.recipes import Change, Side, changes, sides
from curate.deciding.shift import psi
from curate.folder import Folder
from curate.pages.figures import as_numbers, check_finished, measured_columns
from curate.pages.wording import shown
from curate.report import funnel_of
from curate.sketch import Sketch
from curate.store import ALIVE, DROPPED, REPEATED, STATE_NAMES

MAX_COLUMNS = 40
"""So many columns are compared at most, the first of the pipeline (our choice)."""
DECILES = tuple(i / 10 for i in range(1, 10))
MANY = 1000
"""Texts of more different values are no categories."""


@dataclass(frozen=True)
class Reason:
    """Why one run did not keep rows that the other kept."""

    why: str
    rows: int


@dataclass(frozen=True)
class Gone:
    """Rows that one run alone kept: how many, the other's reasons, some of them (uid, caption)."""

    rows: int
    reasons: tuple[Reason, ...]
    samples: tuple[tuple[str, str | None], ...]


@dataclass(frozen=True)
class Shifted:
    """A column over the rows kept: the population stability index from A to B, over the deciles of A or the names of both."""

    column: str
    psi: float


@dataclass(frozen=True)
class Diff:
    """All of it; `curate diff --json` prints this."""

    a: str
    b: str
    both: int
    only_a: Gone
    only_b: Gone
    changes: tuple[Change, ...]
    funnel: tuple[Side, ...]
    shift: tuple[Shifted, ...]


def diff(root_a: Path, root_b: Path, rows: int = 3) -> Diff:
    """Compare two finished runs. Raises UserError where one is not finished."""
    funnels = [funnel_of(root) for root in (root_a, root_b)]
    folders = [Folder.open(root) for root in (root_a, root_b)]
    for folder, funnel in zip(folders, funnels, strict=True):
        check_finished(folder, funnel)
    a, b = folders
    with database(root_a) as connection:
        joined = " full join ".join(f"({_rows(f)}) {name}" for f, name in ((a, "a"), (b, "b")))
        connection.execute(f"""create table pairs as select uid, a.pos as pos_a, a.state as state_a, a.stage as stage_a,
            a.clause as clause_a, b.pos as pos_b, b.state as state_b, b.stage as stage_b, b.clause as clause_b
            from {joined} using (uid) where a.state = {ALIVE} or b.state = {ALIVE}""")
        [(both,)] = connection.execute(f"select count(*) from pairs where state_a = {ALIVE} and state_b = {ALIVE}").fetchall()
        gone = (_gone(connection, a, b, "a", "b", rows), _gone(connection, b, a, "b", "a", rows))
        shift = tuple(_shift(connection, a, b))
    return Diff(str(root_a), str(root_b), both, gone[0], gone[1], tuple(changes(a, b)), tuple(sides(*funnels)), shift)


def lines(found: Diff) -> Iterator[str]:
    """The comparison for people; strangers' texts on one line and harmless."""
    yield f"A {found.a}, B {found.b}"
    yield f"kept by both {found.both:,}, only by A {found.only_a.rows:,}, only by B {found.only_b.rows:,}"
    for name, other, gone in (("A", "B", found.only_a), ("B", "A", found.only_b)):
        yield from (f"  only {name}: {r.rows:,} left {other} at {shown(r.why, 120)}" for r in gone.reasons)
        yield from (f"    {shown(uid, 40)}  “{shown(caption or '', 100)}”" for uid, caption in gone.samples)
    yield "changed:" if found.changes else "nothing was decided or measured otherwise"
    yield from (f"  {shown(c.what, 60)}: {shown(c.a, 80) or '–'} → {shown(c.b, 80) or '–'}" for c in found.changes)
    yield f"{'A':>12}  {'B':>12}  kept behind"
    for side in found.funnel:
        a, b = ("–" if n is None else f"{n:,}" for n in (side.a, side.b))
        yield f"{a:>12}  {b:>12}  {shown(side.what, 120)}"
    yield "shift of kept rows from A to B (PSI; 0.1 is moderate, 0.25 large):"
    yield from (f"  {s.psi:8.3f}  {shown(s.column, 60)}" for s in sorted(found.shift, key=lambda s: (-s.psi, s.column))[:10])


def record(found: Diff) -> dict[str, Any]:
    """The comparison as JSON takes it."""
    return asdict(found)


def _rows(folder: Folder) -> str:
    """uid, pos, state, stage, clause of every row but repeated ones."""
    names = ", ".join(f"{quoted(n)} as {n.removeprefix('our ')}" for n in (POS, STATE, STAGE, CLAUSE))
    repeated = f"{quoted(STAGE)} = {REPEATED} and {quoted(STATE)} = {DROPPED}"
    return f"select uid, {names} from ({frame(folder, ['uid'])}) where not ({repeated})"


def _gone(connection: duckdb.DuckDBPyConnection, here: Folder, there: Folder, a: str, b: str, rows: int) -> Gone:
    """The rows that run `here`, called `a`, kept and run `there`, called `b`, did not."""
    only = f"from pairs where state_{a} = {ALIVE} and state_{b} is distinct from {ALIVE}"
    counts = connection.execute(f"select state_{b}, stage_{b}, clause_{b}, count(*) {only} group by 1, 2, 3").fetchall()
    reasons = sorted((Reason(_why(there, *at), n) for *at, n in counts), key=lambda r: (-r.rows, r.why))
    samples = connection.execute(f"select pos_{a}, uid {only} order by uid limit {rows}").fetchall()
    return Gone(sum(r.rows for r in reasons), tuple(reasons), tuple((uid, _caption(here, pos)) for pos, uid in samples))


def _why(folder: Folder, state: int | None, stage: int, clause: int) -> str:
    if state is None:
        return "its source, which has no such row"
    how = "" if STATE_NAMES[state] == "dropped" else f" ({STATE_NAMES[state]})"
    return folder.place(stage, clause) + how


def _caption(folder: Folder, pos: int) -> str | None:
    shard, row = position(pos)
    text: str | None = folder.source.table(shard, ["caption"])["caption"][row].as_py()
    return text


def _shift(connection: duckdb.DuckDBPyConnection, a: Folder, b: Folder) -> Iterator[Shifted]:
    """Every column of numbers, truths or a few texts that both runs have."""
    known = [n for n in measured_columns(a) if n in measured_columns(b) and _kind(a.columns[n].type) == _kind(b.columns[n].type)]
    names = known[:MAX_COLUMNS]
    numbers = [n for n in names if _kind(a.columns[n].type) == "number"]
    edges = _deciles(connection, a, numbers)
    counts = [_binned(connection, folder, edges) for folder in (a, b)]
    for name in names:
        if name in edges:
            yield Shifted(name, round(psi(*(c[name] for c in counts)), 6))
        elif _kind(a.columns[name].type) == "name":
            found = _by_name(connection, a, b, name)
            if found and len(found) <= MANY:
                yield Shifted(name, round(psi([n for n, _ in found], [n for _, n in found]), 6))


def _kind(kind: pa.DataType) -> str:
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return "number"
    return "name" if pa.types.is_boolean(kind) or pa.types.is_string(kind) else ""


def _kept(connection: duckdb.DuckDBPyConnection, folder: Folder, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
    wanted = ", ".join(map(quoted, names))
    query = f"select {wanted} from ({frame(folder, names)}) where {quoted(STATE)} = {ALIVE}"
    yield from connection.cursor().sql(query).to_arrow_reader(BATCH) if names else ()


def _deciles(connection: duckdb.DuckDBPyConnection, a: Folder, names: Sequence[str]) -> dict[str, np.ndarray]:
    """The inner edges of ten bins of each column, from A's kept rows; a column without a value there has none."""
    sketches = {name: Sketch() for name in names}
    for batch in _kept(connection, a, names):
        for name, sketch in sketches.items():
            values, has = as_numbers(batch[name])
            sketch.add(values[has])
    cuts = {n: [c for q in DECILES if (c := s.quantile(q)) is not None] for n, s in sketches.items()}
    return {n: np.unique(c) for n, c in cuts.items() if c}


def _binned(connection: duckdb.DuckDBPyConnection, folder: Folder, edges: dict[str, np.ndarray]) -> dict[str, list[int]]:
    counts = {name: np.zeros(len(cuts) + 1, np.int64) for name, cuts in edges.items()}
    for batch in _kept(connection, folder, list(edges)):
        for name, cuts in edges.items():
            values, has = as_numbers(batch[name])
            counts[name] += np.bincount(np.searchsorted(cuts, values[has]), minlength=len(cuts) + 1)
    return {name: c.tolist() for name, c in counts.items()}


def _by_name(connection: duckdb.DuckDBPyConnection, a: Folder, b: Folder, name: str) -> list[tuple[int, int]]:
    """Rows of A and of B by value; one more than MANY at most."""
    query = " union all ".join(
        f"select {quoted(name)}::varchar as v, {i} as which from ({frame(f, [name])}) where {quoted(STATE)} = {ALIVE}"
        for i, f in enumerate((a, b)))
    return [(n, m) for n, m in connection.execute(f"""select count(*) filter (which = 0), count(*) filter (which = 1)
        from ({query}) where v is not null group by v order by v limit {MANY + 1}""").fetchall()]
