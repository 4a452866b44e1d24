"""What a run's columns look like, before and after its keeps: one pass over the shards, in memory that does not grow with rows.

Before are the rows that have the value (a row dropped by its caption never had a picture), after are the rows kept.
"""

import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curate.folder import REASON, STATE, Folder
from curate.sketch import Sketch
from curate.store import REMOVED, STATE_NAMES

CODES = {"http_status"}
"""Numbers that name something: counted by value."""
NAMED = {"language": ("lang",), "download": ("status", "http_status", "original_format", "opt_out_signal"),
         "image_shape": ("format",), "same_image": ("same_how",), "decontaminate": ("contaminated_by", "contaminated_how"),
         "opt_out": ("opt_out_signal",)}
"""The columns of a step that are counted by value: few values, whatever the data."""
UNSHOWN = ("nsfw", "unsafe", "violence", "blocked", "private", "opt_out", "opted_out", "email", "phone")
"""A row that left for a reason with one of these words in it gives no example: a card repeats neither offence nor secret."""
EXAMPLES = 3
HOST = r"^[A-Za-z][A-Za-z0-9+.-]*://(?:[^/?#@\\]*@)?(?:www\.)?(\[[0-9A-Fa-f:.]+\]|[^/?#:\\]+)"


@dataclass(frozen=True)
class Example:
    """One row as a card shows it; `figure` is what was measured of it, where that matters."""

    caption: str
    uid: str
    why: str
    figure: float | None = None


@dataclass(frozen=True)
class Hosts:
    """How the kept rows spread over the hosts of their urls; shares are of the kept rows with a url, 0 to 1."""

    rows: int
    distinct: int
    source_distinct: int
    top: tuple[tuple[str, int], ...]
    top_10: int
    top_100: int
    hhi: float
    gini: float


@dataclass
class Census:
    """All figures of a run; every pair is (before, after)."""

    rows: int = 0
    kept: int = 0
    numbers: dict[str, tuple[Sketch, Sketch]] = field(default_factory=dict)
    values: dict[str, tuple[Counter[str], Counter[str]]] = field(default_factory=dict)
    truths: dict[str, tuple[Counter[bool], Counter[bool]]] = field(default_factory=dict)
    hosts: Hosts | None = None
    typical: list[Example] = field(default_factory=list)
    rejected: dict[str, list[Example]] = field(default_factory=dict)
    near: list[Example] = field(default_factory=list)

    def share(self, column: str, value: str) -> float:
        """The share of a value among the kept rows that have one, 0 to 1."""
        after = self.values[column][1]
        return after[value] / max(after.total(), 1)


def take(folder: Folder) -> Census:
    """Count a finished run. Reads every scalar column once, shard by shard."""
    census = Census()
    named = set(_named(folder))
    for name, ref in folder.columns.items():
        if name in named:
            census.values[name] = (Counter(), Counter())
        elif pa.types.is_boolean(ref.type):
            census.truths[name] = (Counter(), Counter())
        elif (pa.types.is_integer(ref.type) or pa.types.is_floating(ref.type)) and name not in CODES:
            census.numbers[name] = (Sketch(), Sketch())
    counted = [*census.values, *census.truths, *census.numbers]
    shown = [n for n in ("uid", "caption", "url") if n in folder.columns]
    tops = [s for s in folder.stages if "top" in s]
    with _HostCounts() as hosts:
        for number in range(folder.source.num_shards):
            table = folder.table(number, list(dict.fromkeys([*counted, *shown])))
            kept = pc.equal(table[STATE], STATE_NAMES[0])
            _count(census, table, kept)
            if "url" in shown:
                hosts.add(table["url"], kept)
            if "caption" in shown:
                _examples(census, table, tops)
        census.hosts = hosts.result()
    return census


def _named(folder: Folder) -> Iterator[str]:
    """The columns that are counted by value, under the names they have in this run."""
    for stage in folder.stages:
        for own in NAMED.get(stage.get("step", ""), ()):
            if stage["adds"].get(own) in folder.columns:
                yield stage["adds"][own]


def _count(census: Census, table: pa.Table, kept: pa.ChunkedArray) -> None:
    census.rows += len(table)
    after = table.filter(kept)
    census.kept += len(after)
    for rows, side in ((table, 0), (after, 1)):
        for name, sketches in census.numbers.items():
            sketches[side].add(rows[name].drop_null().to_numpy())
        for counters in (census.values, census.truths):
            for name, pair in counters.items():
                found = rows[name].drop_null().value_counts()
                pair[side].update(dict(zip(*(f.to_pylist() for f in found.flatten()), strict=True)))


def _examples(census: Census, table: pa.Table, tops: Sequence[Mapping[str, Any]]) -> None:
    """Keep the few rows of smallest uid, of those kept and of each reason; a uid is a hash, so that is as good as a draw."""
    table = table.filter(pc.and_(pc.is_valid(table["caption"]), pc.not_equal(table[STATE], STATE_NAMES[REMOVED])))
    for reason in pc.unique(table[REASON]).to_pylist():
        chosen = pc.is_null(table[REASON]) if reason is None else pc.fill_null(pc.equal(table[REASON], reason), False)
        if reason is not None and any(word in reason.lower() for word in UNSHOWN):
            continue
        rows = table.filter(chosen)
        held = census.typical if reason is None else census.rejected.setdefault(reason, [])
        count = 2 * EXAMPLES if reason is None else EXAMPLES - 1
        held += [Example(r["caption"], r["uid"], "kept" if reason is None else reason)
                 for r in _smallest(_shown(rows), "uid", "ascending", count)]
        held.sort(key=lambda e: e.uid)
        del held[count:]
    for stage in tops:
        _near(census, table, stage)


def _shown(rows: pa.Table) -> pa.Table:
    """Rows without those whose owner opted out: their captions are not ours to repeat."""
    for name in (n for n in rows.column_names if n.endswith("opt_out_signal")):
        rows = rows.filter(pc.is_null(rows[name]))
    if "status" not in rows.column_names:
        return rows
    return rows.filter(pc.fill_null(pc.not_equal(rows["status"], "opt_out"), True))


def _smallest(rows: pa.Table, by: str, order: str, count: int) -> list[dict[str, Any]]:
    keys = [(by, order), ("uid", "ascending")] if by != "uid" else [("uid", "ascending")]
    return list(rows.select(list(dict.fromkeys([by, "uid", "caption"]))).sort_by(keys)[:count].to_pylist())


def _near(census: Census, table: pa.Table, stage: Mapping[str, Any]) -> None:
    """The rows that a rank only just kept and only just dropped."""
    by = stage["top"]["by"]
    if by not in table.column_names:
        return
    rows = _shown(table.filter(pc.is_valid(table[by])))
    sides = (("just kept", pc.is_null(rows[REASON]), "ascending"),
             ("just dropped", pc.fill_null(pc.ends_with(rows[REASON], f": {stage['what']}"), False), "descending"))
    for side, chosen, order in sides:
        why = f"{side}: {stage['what']}"
        sign = 1 if order == "ascending" else -1
        found = [Example(r["caption"], r["uid"], why, r[by]) for r in _smallest(rows.filter(chosen), by, order, EXAMPLES)]
        both = sorted([e for e in census.near if e.why == why] + found, key=lambda e: (sign * (e.figure or 0), e.uid))
        census.near = [e for e in census.near if e.why != why] + both[:EXAMPLES]


class _HostCounts:
    """Rows a host, counted by DuckDB, on disk beyond a gigabyte: a pool of billions has tens of millions of hosts."""

    def __enter__(self) -> "_HostCounts":
        import duckdb

        self._folder = tempfile.TemporaryDirectory(prefix="curate-")
        self._database = duckdb.connect(f"{self._folder.name}/hosts.db", config={
            "memory_limit": "1GB", "temp_directory": self._folder.name, "threads": "1"})
        self._database.execute("create table parts (host varchar, num bigint, kept bigint)")
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()
        self._folder.cleanup()

    def add(self, urls: pa.ChunkedArray, kept: pa.ChunkedArray) -> None:
        """Count the urls of one shard."""
        self._database.register("shard", pa.table({"url": urls, "kept": kept}))
        self._database.execute("""insert into parts
            select lower(regexp_extract(url, $1, 1)) as host, count(*), count(*) filter (kept) from shard
            where url is not null group by host having host != ''""", [HOST])
        self._database.unregister("shard")

    def result(self) -> Hosts | None:
        """The spread over hosts; None where no kept row has a url."""
        ask = self._database.execute
        ask("create table hosts as select host, sum(num)::bigint as num, sum(kept)::bigint as kept from parts group by host")
        rows, distinct, source = ask(
            "select coalesce(sum(kept), 0), count(*) filter (kept > 0), count(*) from hosts").fetchall()[0]
        if not rows:
            return None
        top = ask("select host, kept from hosts where kept > 0 order by kept desc, host limit 100").fetchall()
        hhi, weighted = ask("""select sum((kept / $1) ** 2), sum(place * kept / $1) from
            (select kept, row_number() over (order by kept) as place from hosts where kept > 0)""", [float(rows)]).fetchall()[0]
        gini = 2 * float(weighted) / distinct - (distinct + 1) / distinct
        return Hosts(int(rows), distinct, source, tuple(top[:20]), sum(n for _, n in top[:10]), sum(n for _, n in top),
                     float(np.round(hhi, 6)), float(np.round(max(gini, 0.0), 6)))
