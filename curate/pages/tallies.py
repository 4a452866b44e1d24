"""What of a run is counted by name, however many names there are: hosts, domains, failures, languages, sizes, copies.

Rows stream through DuckDB, which groups them and spills to disk past its limit, so a hundred million hosts take no more memory
than ten.
"""

import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curate import files
from curate.folder import Folder
from curate.pages.examples import Example, Place, at_places
from curate.pages.figures import Rows, as_numbers, rows_of

OK = "ok"
TOP = 20
MEMORY = "512MB"
_HOST = r"^[A-Za-z][A-Za-z0-9+.-]*://(?:[^/?#]*@)?(?P<host>\[[^\]/]*\]|[^/?#:]*)"
_START = r"^(?P<start>[A-Za-z][A-Za-z0-9+.-]*://[^/?#]*)"
"""All of a url that can tell its host: found fast, and the same for many."""
_SECOND_LEVEL = "ac|co|com|ed|edu|go|gob|gov|gv|mil|ne|net|nom|or|org"
_DOMAIN = rf"(?P<domain>[^.]+\.(?:(?:{_SECOND_LEVEL})\.[a-z]{{2}}|[^.]+))$"
"""The last two labels, or three where the last but one is a country's word for companies and the like: an approximation of the
public suffix list, which changes weekly and would make two reports of one run differ."""
SIZES = (("original_width_px", "original_height_px"), ("original_width", "original_height"), ("width_px", "height_px"),
          ("width", "height"))
PER_OCTAVE, OCTAVES = 4, 16
"""Sizes are counted in a grid of quarter octaves from 1 px to 65,536 px."""


@dataclass(frozen=True)
class Named:
    """Rows of one name: all of them, and those kept."""

    name: str
    rows: int
    kept: int


@dataclass(frozen=True)
class HostFailures:
    """The fetches of one host that failed, by kind."""

    host: str
    rows: int
    failed: int
    kinds: dict[str, int]


@dataclass(frozen=True)
class Concentration:
    """How unevenly the rows lie over domains: the largest ones, and what share of the rows the first 10 and 100 hold.

    `gini` is 0 where every domain has as many rows, and near 1 where one has them all.
    """

    rows: int
    domains: int
    top: tuple[Named, ...]
    share_of_10: float
    share_of_100: float
    gini: float


@dataclass(frozen=True)
class Fetched:
    """What became of the rows that were fetched: by status, and the hosts with most failures. Rows, not pictures."""

    rows: int
    statuses: tuple[Named, ...]
    hosts: tuple[HostFailures, ...]


@dataclass(frozen=True)
class Sizes:
    """Rows by width and height in quarter octaves: cell [i, j] is widths from 2^(i/4) and heights from 2^(j/4) pixels."""

    columns: tuple[str, str]
    measured: np.ndarray
    kept: np.ndarray


@dataclass(frozen=True)
class Copies:
    """Pictures found to be copies of another one: how many, by what, the sizes of the groups, the largest groups to look at."""

    pictures: int
    groups: int
    how: tuple[tuple[str, int], ...]
    sizes: tuple[tuple[int, int], ...]
    """(pictures in a group, the one that stays included; groups of that size), the smallest first"""
    largest: tuple[tuple[int, tuple[Example, ...]], ...]
    """(pictures in the group, some of them: the one that stays first)"""


@dataclass(frozen=True)
class Tallies:
    """All of it; None where a run has no such column."""

    fetched: Fetched | None = None
    domains: Concentration | None = None
    languages: tuple[Named, ...] = field(default=())
    sizes: Sizes | None = None
    copies: Copies | None = None
    opt_outs: tuple[Named, ...] = field(default=())
    """Rows by the signal by which somebody said no: of the download, else of the step opt_out."""


def tally(folder: Folder) -> Tallies:
    """Count everything that a run has columns for."""
    status, language = added_by(folder, "download", "status"), added_by(folder, "language", "lang")
    has_urls = folder.columns.get("url") is not None and pa.types.is_string(folder.columns["url"].type)
    signal = added_by(folder, "download", "opt_out_signal") or added_by(folder, "opt_out", "opt_out_signal")
    names = [n for n in (status, language, signal, "url" if has_urls else "") if n]
    if not names:
        return Tallies(sizes=_sizes(folder), copies=_copies(folder))
    with _counted(folder, _named_rows(status, language, signal, has_urls), names) as query:
        return Tallies(_fetched(query) if status else None, _domains(query), _languages(query), _sizes(folder), _copies(folder),
                       _by_name(query, "signal"))


Query = Callable[[str], list[tuple[Any, ...]]]


def added_by(folder: Folder, step: str, own: str) -> str:
    """The name of a column that a step of the run added first; empty where there is none."""
    names = (s["adds"].get(own, "") for s in folder.stages if s.get("step") == step)
    return next((n for n in names if n in folder.columns), "")


@contextmanager
def _counted(folder: Folder, shape: Callable[[Rows], pa.Table], names: Sequence[str]) -> Iterator[Query]:
    """A table `counted`: the distinct rows of what `shape` makes of every shard, `rows` of each, and `kept` (0 or 1) summed."""
    spill = folder.root / f".spill.{secrets.token_hex(4)}{files.TEMPORARY}"
    with duckdb.connect(config={"memory_limit": MEMORY, "threads": 1, "temp_directory": str(spill)}) as connection:
        tables = (shape(rows) for rows in rows_of(folder, names))
        first = next(tables, None)
        if first is None:
            yield lambda query: []
            return
        keys = ", ".join(n for n in first.column_names if n != "kept")
        batches = (b for t in _chained(first, tables) for b in t.combine_chunks().to_batches())
        connection.register("pool", pa.RecordBatchReader.from_batches(first.schema, batches))
        connection.execute(f"create table counted as select {keys}, count(*)::bigint as rows, sum(kept)::bigint as kept "
                           f"from pool group by {keys}")
        yield lambda query: connection.execute(query).fetchall()


def _chained(first: pa.Table, rest: Iterator[pa.Table]) -> Iterator[pa.Table]:
    yield first
    yield from rest


def _named_rows(status: str, language: str, signal: str, has_urls: bool) -> Callable[[Rows], pa.Table]:
    def shape(rows: Rows) -> pa.Table:
        none = pa.nulls(len(rows.kept.state), pa.string())
        host = hosts(rows.table["url"]) if has_urls else none
        return pa.table({"host": host, "domain": domains(host) if has_urls else none,
                         "status": rows.table[status].cast(pa.string()) if status else none,
                         "lang": rows.table[language].cast(pa.string()) if language else none,
                         "signal": rows.table[signal].cast(pa.string()) if signal else none,
                         "kept": rows.is_kept.astype(np.int8)})
    return shape


def hosts(urls: pa.ChunkedArray) -> pa.Array:
    """The host of each url in small letters, without the port; null where there is none."""
    starts = pc.struct_field(pc.extract_regex(urls.combine_chunks(), _START), "start").dictionary_encode()
    lower = pc.utf8_rtrim(pc.utf8_lower(pc.struct_field(pc.extract_regex(starts.dictionary, _HOST), "host")), ".")
    return pc.if_else(pc.equal(lower, ""), pa.scalar(None, pa.string()), lower).take(starts.indices)


def domains(host: pa.Array) -> pa.Array:
    """The domain that somebody registered, nearly; an address or a name without a dot is its own."""
    is_address = pc.match_substring_regex(host, r"^(\d+\.\d+\.\d+\.\d+|\[.*)$")
    found = pc.struct_field(pc.extract_regex(host, _DOMAIN), "domain")
    return pc.if_else(is_address, host, pc.coalesce(found, host))


def _fetched(query: Query) -> Fetched:
    statuses = _by_name(query, "status")
    found = query(f"""
        with failing as (select host, sum(rows)::bigint as total, sum(rows) filter (status != '{OK}')::bigint as failed
                         from counted where status is not null and host is not null group by 1)
        select host, total, failed, status, sum(rows)::bigint as n from counted join failing using (host)
        where status != '{OK}' and host in (select host from failing where failed > 0 order by failed desc, host limit {TOP})
        group by 1, 2, 3, 4 order by failed desc, host, n desc, status""")
    by_host: dict[str, HostFailures] = {}
    for host, rows, failed, status, number in found:
        by_host.setdefault(host, HostFailures(host, rows, failed, {})).kinds[status] = number
    return Fetched(sum(s.rows for s in statuses), statuses, tuple(by_host.values()))


def _domains(query: Query) -> Concentration | None:
    """Over all rows with a url, kept or not."""
    by_domain = "select domain, sum(rows)::bigint as n, sum(kept)::bigint as k from counted where domain is not null group by 1"
    top = tuple(Named(*row) for row in query(f"{by_domain} order by n desc, domain limit {TOP}"))
    if not top:
        return None
    [(rows, number, ten, hundred, weighted)] = query(f"""
        with d as (select n, row_number() over (order by n desc, domain) as place, row_number() over (order by n, domain) as rank
                   from ({by_domain}))
        select sum(n)::bigint, count(*), sum(n) filter (place <= 10)::bigint, sum(n) filter (place <= 100)::bigint,
               sum(n::double * rank) from d""")
    gini = 2 * weighted / (number * rows) - (number + 1) / number
    return Concentration(rows, number, top, ten / rows, hundred / rows, gini)


def _languages(query: Query) -> tuple[Named, ...]:
    return _by_name(query, "lang")


def _by_name(query: Query, column: str) -> tuple[Named, ...]:
    """Rows by the values of a column, most frequent first."""
    return tuple(Named(*row) for row in query(
        f"select {column}, sum(rows)::bigint, sum(kept)::bigint from counted where {column} is not null "
        "group by 1 order by 2 desc, 1"))


def _sizes(folder: Folder) -> Sizes | None:
    pair = next((p for p in SIZES if all(n in folder.columns and pa.types.is_integer(folder.columns[n].type) for n in p)), None)
    if pair is None:
        return None
    side = PER_OCTAVE * OCTAVES
    grids = np.zeros((2, side * side), np.int64)
    for rows in rows_of(folder, pair):
        (width, has_width), (height, has_height) = (as_numbers(rows.table[n]) for n in pair)
        for which, mask in enumerate((has_width & has_height, has_width & has_height & rows.is_kept)):
            usable = mask & (width >= 1) & (height >= 1)
            i, j = (np.clip(np.log2(v[usable]) * PER_OCTAVE, 0, side - 1).astype(np.int64) for v in (width, height))
            grids[which] += np.bincount(i * side + j, minlength=side * side)
    return Sizes(pair, grids[0].reshape(side, side), grids[1].reshape(side, side)) if grids[0].any() else None


GROUPS, OF_EACH = 6, 8


def _copies(folder: Folder) -> Copies | None:
    name, how = added_by(folder, "same_image", "same_as"), added_by(folder, "same_image", "same_how")
    if not name or "image_id" not in folder.columns:
        return None

    def shape(rows: Rows) -> pa.Table:
        none = pa.nulls(len(rows.kept.state), pa.string())
        table = pa.table({"leader": rows.table[name], "image_id": rows.table["image_id"],
                          "how": rows.table[how] if how else none, "kept": rows.is_kept.astype(np.int8)})
        return table.filter(table["leader"].is_valid())

    with _counted(folder, shape, [n for n in (name, how, "image_id") if n]) as query:
        groups = "select leader, count(distinct image_id)::bigint + 1 as n from counted group by 1"
        largest = query(f"{groups} order by n desc, leader limit {GROUPS}")
        sizes = query(f"select n, count(*)::bigint from ({groups}) group by 1 order by 1")
        by_how = query("select how, count(distinct image_id)::bigint from counted where how is not null "
                       "group by 1 order by 2 desc, 1")
    if not sizes:
        return Copies(0, 0, (), (), ())
    members = _members(folder, name, [leader for leader, _ in largest])
    shown = tuple((n, tuple(members[leader])) for leader, n in largest)
    return Copies(sum((n - 1) * g for n, g in sizes), sum(g for _, g in sizes), tuple((h, n) for h, n in by_how),
                  tuple((n, g) for n, g in sizes), shown)


def _members(folder: Folder, name: str, leaders: list[str]) -> dict[str, list[Example]]:
    """Some rows of each group, a row a picture: of the picture that stays first, then of copies by image_id."""
    found: dict[str, dict[str, Place]] = {leader: {} for leader in leaders}
    wanted = pa.array(leaders, pa.string())
    for rows in rows_of(folder, ["uid", "image_id", name]):
        table = rows.table
        is_copy, is_leader = (pc.is_in(table[n], value_set=wanted) for n in (name, "image_id"))
        for row in np.flatnonzero(pc.or_(is_copy, is_leader).to_numpy()).tolist():
            group, image = table[name][row].as_py(), table["image_id"][row].as_py()
            group = group if group in found else image
            place = Place(float(image != group), table["uid"][row].as_py(), rows.number, row)
            found[group][image] = min(place, found[group].get(image, place))
            if len(found[group]) > 4 * OF_EACH:
                found[group] = _first(found[group], group)
    return {leader: at_places(folder, list(_first(images, leader).values())) for leader, images in found.items()}


def _first(images: dict[str, Place], leader: str) -> dict[str, Place]:
    return dict(sorted(images.items(), key=lambda item: (item[0] != leader, item[0]))[:OF_EACH])
