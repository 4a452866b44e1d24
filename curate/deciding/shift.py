"""How a set of rows differs from another one: medians of numbers, shares of names, and the population stability index."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curate.pages.tallies import domains, hosts

TOP = 5
"""Names shown of a column: those with most rows in either set."""


@dataclass(frozen=True)
class Medians:
    """A column of whole numbers: the smallest value that half of the rows do not exceed, before and after; None without rows."""

    name: str
    before: int | None
    after: int | None


@dataclass(frozen=True)
class Shares:
    """A column of names: of the most frequent ones, the share of the rows that have one, before and after (0 to 1)."""

    name: str
    top: tuple[tuple[str, float, float], ...]


def medians(connection: duckdb.DuckDBPyConnection, name: str, column: str, before: str, after: str) -> Medians | None:
    """Of the table `judged`; `before` and `after` are conditions over it. None where no row of either has a value."""
    found = [connection.execute(f"""
        with n as (select {column} as v, count(*) as c from judged where {some} and {column} is not null group by 1),
             r as (select v, sum(c) over (order by v) as upto, sum(c) over () as total from n)
        select min(v) from r where 2 * upto >= total""").fetchall()[0][0] for some in (before, after)]
    return Medians(name, *found) if found != [None, None] else None


def shares(connection: duckdb.DuckDBPyConnection, name: str, column: str, before: str, after: str) -> Shares | None:
    """Of the table `judged`, as `medians`; ties by name."""
    counted = f"""select {column} as name, count(*) filter (where {before}) as b, count(*) filter (where {after}) as a from judged
                  where ({before} or {after}) and {column} is not null group by 1"""
    if column == "authority":
        connection.execute(f"create or replace table by_name as {counted}")
        _to_domains(connection)
        counted = "select domain as name, sum(b) as b, sum(a) as a from by_domain where domain is not null group by 1"
    rows = connection.execute(f"""
        with n as ({counted}), t as (select greatest(sum(b), 1) as bs, greatest(sum(a), 1) as s from n)
        select name, (b / bs)::double, (a / s)::double from n, t
        order by greatest(b / bs, a / s) desc, name limit {TOP}""").fetchall()
    return Shares(name, tuple(rows)) if rows else None


def _to_domains(connection: duckdb.DuckDBPyConnection) -> None:
    """The registered domain of each authority, as the report counts them."""
    def batches() -> Iterator[pa.RecordBatch]:
        for batch in connection.cursor().sql("from by_name").to_arrow_reader(65536):
            found = hosts(pa.chunked_array([pc.binary_join_element_wise(batch["name"], "/", "")]))
            yield pa.record_batch([domains(found), batch["b"], batch["a"]], schema=schema)

    schema = pa.schema([("domain", pa.string()), ("b", pa.int64()), ("a", pa.int64())])
    connection.register("named", pa.RecordBatchReader.from_batches(schema, batches()))
    connection.execute("create or replace table by_domain as select domain, sum(b) as b, sum(a) as a from named group by 1")
    connection.unregister("named")


def psi(before: Sequence[int], after: Sequence[int]) -> float:
    """Population stability index of two sets of counts over the same bins: the sum of (q - p) ln(q / p), 0 for equal shares.

    Half a row is added to every bin (our choice), so that an empty one stays finite. From 0.1 a shift is usually called moderate,
    from 0.25 large (Siddiqi, Credit Risk Scorecards, 2006, chapter on monitoring).
    """
    p, q = (np.asarray(counts, np.float64) + 0.5 for counts in (before, after))
    p, q = p / p.sum(), q / q.sum()
    return float(np.sum((q - p) * np.log(q / p)))
