"""Rows to look at: the last that passed a keep and the first that did not, on either side of every line that it draws.

Rows are chosen by how near they are to the line, ties by uid (which no order of the source favours); where a keep draws no line,
by uid alone. Rows taken down are never shown.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curate.folder import Folder
from curate.pages.figures import Mask, Rows, as_numbers, rows_at, rows_of
from curate.pages.thresholds import Decision, Line

EACH = 6
"""Rows a side."""
_SPARE = 5
"""So many times as many rows are looked at, to show different captions where several rows are as near."""
UNSAFE_FROM = 0.5
"""Probability of being unsafe (`nsfw_prob`) from which a picture is only hinted at; our choice, the usual threshold."""


@dataclass(frozen=True)
class Example:
    """One row to look at."""

    uid: str
    caption: str | None
    url: str | None
    image: dict[str, Any] | None
    """where its picture lies, or None where there is none"""
    values: dict[str, Any]
    """what the keep reads"""
    is_veiled: bool = False
    """whether the picture must not be shown plainly: a safety head measures in this run, and did not clear it"""
    error: str = ""
    """why a step could not measure it"""


@dataclass(frozen=True)
class Border:
    """The rows on both sides of one line, the nearest first."""

    decision: Decision
    line: Line
    passed: tuple[Example, ...]
    dropped: tuple[Example, ...]


@dataclass(frozen=True)
class Leavers:
    """Some rows that left at a keep without a line, or at a step that could not measure them."""

    title: str
    line: int
    stage: int
    clause: int
    rows: tuple[Example, ...]


class Place(NamedTuple):
    """A row: how it ranks among others, its uid, source shard and position there."""

    rank: float
    uid: str
    shard: int
    row: int


class Nearest:
    """The few rows of the lowest rank (ties by uid) among all that it is offered."""

    def __init__(self, number: int) -> None:
        self._number = number
        self.places: list[Place] = []

    def offer(self, shard: int, rows: np.ndarray, ranks: np.ndarray, uids: pa.Array) -> None:
        """`rows` of a shard with their ranks; `uids` are of all rows of the shard."""
        if len(rows):
            table = pa.table({"rank": ranks, "uid": uids.take(pa.array(rows)), "row": rows})
            best = table.take(pc.select_k_unstable(table, self._number, [("rank", "ascending"), ("uid", "ascending")]))
            columns = (best[name].to_pylist() for name in ("rank", "uid", "row"))
            found = [Place(rank, uid, shard, row) for rank, uid, row in zip(*columns, strict=True)]
            self.places = sorted([*self.places, *found])[: self._number]


@dataclass
class _Wanted:
    """One set of rows to find: which rows of a shard are candidates, and how they rank (lowest first)."""

    mask: Callable[[Rows], Mask]
    rank: Callable[[Rows, np.ndarray], np.ndarray]
    columns: tuple[str, ...]
    found: Nearest


def examples(folder: Folder, decisions: Sequence[Decision], each: int = EACH) -> tuple[list[Border], list[Leavers]]:
    """The rows around every line, and some of those that left elsewhere. The line of a top is that of its last row in."""
    lines = [(d, line) for d in decisions for line in d.lines]
    plain = [d for d in decisions if not d.lines]
    broken = [(n, s) for n, s in enumerate(folder.stages) if s.get("folder")]
    many = _SPARE * each
    sides = [_side(d, line, passed, many) for d, line in lines for passed in (True, False)]
    others = [_Wanted(_leaves(d), _no_rank, d.columns, Nearest(many)) for d in plain]
    failed = [_Wanted(_quarantined(n), _no_rank, (), Nearest(many)) for n, _ in broken]
    wanted = [*sides, *others, *failed]
    ranked = sorted({"uid", *(line.column for _, line in lines)})
    for rows in rows_of(folder, ranked):
        uids = rows.table["uid"].combine_chunks()
        for want in wanted:
            candidates = np.flatnonzero(want.mask(rows))
            want.found.offer(rows.number, candidates, want.rank(rows, candidates), uids)
    look = _Reader(folder, [(p, w.columns) for w in wanted for p in w.found.places], each)
    borders = [_border(d, line, look.rows(sides[2 * i]), look.rows(sides[2 * i + 1])) for i, (d, line) in enumerate(lines)]
    leavers = [Leavers(d.text, d.line, d.stage, d.clause, look.rows(w)) for d, w in zip(plain, others, strict=True)]
    errors = [Leavers(s["what"], s["line"], n, -1, look.failed(w, n)) for (n, s), w in zip(broken, failed, strict=True)]
    return borders, [x for x in [*leavers, *errors] if x.rows]


def at_places(folder: Folder, places: Sequence[Place], columns: tuple[str, ...] = ()) -> list[Example]:
    """The rows at some places, in their order."""
    look = _Reader(folder, [(p, columns) for p in places], len(places))
    return [look.row(p, columns) for p in places]


def resolved(decisions: Iterable[Decision], borders: Iterable[Border]) -> list[Decision]:
    """The decisions with the lines of tops as they were found; a top that kept nothing draws none."""
    known = {(b.decision.stage, b.decision.clause): b.line for b in borders if b.decision.is_top}
    found = ((d, known.get((d.stage, d.clause))) for d in decisions)
    return [d if line is None else replace(d, lines=() if np.isnan(line.value) else (line,)) for d, line in found]


def _side(decision: Decision, line: Line, passed: bool, number: int) -> _Wanted:
    """The rows nearest to a line that passed, or that it dropped: of the other line of a `between` are not meant."""
    sign = 1.0 if (line.keeps == "above") == passed else -1.0

    def mask(rows: Rows) -> Mask:
        values, has = as_numbers(rows.table[line.column])
        if passed:
            return has & rows.passed(decision.stage, decision.clause)
        beyond: Mask = values < line.value if line.keeps == "above" else values > line.value
        beyond |= (values == line.value) & (not line.inclusive)
        return (has if decision.is_top else has & beyond) & rows.dropped(decision.stage, decision.clause)

    def rank(rows: Rows, candidates: np.ndarray) -> np.ndarray:
        ranks: np.ndarray = sign * as_numbers(rows.table[line.column])[0][candidates]
        return ranks

    return _Wanted(mask, rank, decision.columns, Nearest(number))


def _leaves(decision: Decision) -> Callable[[Rows], Mask]:
    return lambda rows: rows.dropped(decision.stage, decision.clause)


def _quarantined(stage: int) -> Callable[[Rows], Mask]:
    return lambda rows: rows.quarantined(stage)


def _no_rank(rows: Rows, candidates: np.ndarray) -> np.ndarray:
    return np.zeros(len(candidates))


def _border(decision: Decision, line: Line, passed: tuple[Example, ...], dropped: tuple[Example, ...]) -> Border:
    if decision.is_top and passed:
        line = replace(line, value=float(passed[0].values[line.column]))
    return Border(decision, line, passed, dropped)


class _Reader:
    """Reads the rows at places, each shard once."""

    def __init__(self, folder: Folder, places: Sequence[tuple[Place, tuple[str, ...]]], each: int) -> None:
        self._folder, self._each = folder, each
        self._safety = [n for n, c in folder.columns.items() if c.name == "nsfw_prob"]
        self._always = [n for n in ("uid", "caption", "url", "image", *self._safety) if n in folder.columns]
        self._rows: dict[tuple[int, int], dict[str, Any]] = {}
        names = list(dict.fromkeys([*self._always, *(c for _, columns in places for c in columns)]))
        for number in sorted({p.shard for p, _ in places}):
            wanted = sorted({p.row for p, _ in places if p.shard == number})
            table = rows_at(folder, number, names).table.take(pa.array(wanted))
            self._rows |= {(number, row): values for row, values in zip(wanted, table.to_pylist(), strict=True)}

    def row(self, place: Place, columns: tuple[str, ...], error: str = "") -> Example:
        values = self._rows[place.shard, place.row]
        safe = [values[n] is not None and values[n] < UNSAFE_FROM for n in self._safety]
        read = {c: values[c] for c in columns}
        return Example(values["uid"], values.get("caption"), values.get("url"), values.get("image"), read, not all(safe), error)

    def rows(self, wanted: _Wanted) -> tuple[Example, ...]:
        return tuple(self.row(place, wanted.columns) for place in self._varied(wanted.found.places))

    def failed(self, wanted: _Wanted, stage: int) -> tuple[Example, ...]:
        return tuple(self.row(p, (), self._folder.error(stage, p.shard, p.row)) for p in self._varied(wanted.found.places))

    def _varied(self, places: Sequence[Place]) -> list[Place]:
        """The nearest; of rows equally near, those first whose caption no earlier one has."""
        seen: Counter[tuple[float, Any]] = Counter()
        order = []
        for place in places:
            key = place.rank, self._rows[place.shard, place.row].get("caption")
            order.append((place.rank, seen[key], place))
            seen[key] += 1
        return [place for _, _, place in sorted(order)[: self._each]]
