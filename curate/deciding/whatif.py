"""`curate whatif`: what a keep would do to a finished run, from the columns that are there: counts, shifts, rows to look at.

Nothing is measured, and nothing written. Where a row left before a column was measured, a count is a range: from the rows that
are known to stay to those that may. Ranks and steps over all rows are taken as they are, and named where they would run again.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from curate.deciding.frame import database, position
from curate.deciding.judged import NO, PERHAPS, YES, Shown, judge
from curate.deciding.question import Question, ask, barriers, single, trained
from curate.deciding.shift import Medians, Shares, medians, shares
from curate.errors import UserError
from curate.folder import Folder
from curate.pages.figures import check_finished
from curate.pages.tallies import SIZES, added_by
from curate.pages.thresholds import lines_of
from curate.pages.wording import figure, shown
from curate.report import funnel_of

NOW, THEN = "was", f"\"then\" = {YES}"
"""The two sets, as conditions over the table `judged`: kept now, and kept if the question became the keep."""


SCATTERED = "pos % 2147483647 * 1103515245 % 2147483647"
"""An order of rows that none of the source favours, the same every time."""


@dataclass(frozen=True)
class Range:
    """A count: at least, and at most where some rows were not measured."""

    least: int
    most: int


@dataclass(frozen=True)
class Sample:
    """A row to look at."""

    uid: str
    caption: str | None
    url: str | None
    values: dict[str, Any]
    """what the expression reads"""
    now: str
    """`kept`, or where the row left"""


@dataclass(frozen=True)
class Samples:
    """Some rows and what they have in common."""

    what: str
    rows: tuple[Sample, ...]


@dataclass(frozen=True)
class Answer:
    """All of it; `curate whatif --json` prints this."""

    run: str
    keep: str
    instead_of: str
    """the keep that would go, with its line; empty where the question stands by itself"""
    behind: str
    """the stage behind which (instead of a keep: at which) it would stand"""
    source_rows: int
    passes: Range
    """of the source's distinct rows, whatever else decides"""
    alive: int
    """rows alive where it would stand"""
    alive_passes: Range
    clauses: tuple[tuple[str, int], ...]
    """clause → rows alive there that it is the first to stop"""
    kept_now: int
    kept_then: Range
    both: int
    only_then: Range
    only_now: int
    run_again: tuple[tuple[int, str], ...]
    """(line, stage)"""
    notes: tuple[str, ...]
    shift: tuple[Medians | Shares, ...]
    samples: tuple[Samples, ...]


def whatif(root: Path, text: str, instead_of: str | None = None, rows: int = 3) -> Answer:
    """Answer for a finished run. Raises UserError where it is not finished, or where the expression could be no keep."""
    if rows < 0:
        raise UserError(f"--rows {rows}: a number of 0 or more")
    funnel = funnel_of(root)
    folder = Folder.open(root)
    check_finished(folder, funnel)
    question = ask(folder, text, instead_of)
    with database(root) as connection:
        judge(connection, folder, question, _columns(folder))
        return _Answering(connection, folder, question, rows).answer()


def lines(answer: Answer) -> Iterator[str]:
    """The answer for people; strangers' texts on one line and harmless."""
    yield f"{answer.run}: keep {answer.keep}"
    yield f"  instead of {answer.instead_of}" if answer.instead_of else f"  by itself, behind {answer.behind}"
    of_source = f"{_range(answer.passes)} of the source's {answer.source_rows:,} rows pass"
    yield f"{of_source}{'' if answer.passes.least == answer.passes.most else ' (a range: some left before they were measured)'}"
    yield f"{_range(answer.alive_passes)} of the {answer.alive:,} alive there pass ({_share(answer.alive_passes, answer.alive)})"
    yield from (f"  - {number:,} stopped: {clause}" for clause, number in answer.clauses if number)
    yield (f"kept: {answer.kept_now:,} now, {_range(answer.kept_then)} then; both {answer.both:,}, "
           f"only then {_range(answer.only_then)}, only now {answer.only_now:,}")
    yield from (f"would run again: {what} (line {line})" for line, what in answer.run_again)
    yield from (f"note: {note}" for note in answer.notes)
    yield from _shift_lines(answer)
    for samples in answer.samples:
        yield f"{samples.what}:"
        yield from map(_sample_line, samples.rows)


def record(answer: Answer) -> dict[str, Any]:
    """The answer as JSON takes it."""
    return asdict(answer)


def _shift_lines(answer: Answer) -> Iterator[str]:
    if answer.shift:
        yield "shift, kept now → then:"
    for entry in answer.shift:
        if isinstance(entry, Medians):
            before, after = ("–" if v is None else f"{v:,}" for v in (entry.before, entry.after))
            yield f"  {entry.name}: median {before} → {after}"
        else:
            yield f"  {entry.name}: " + ", ".join(f"{shown(n, 40)} {b:.1%} → {a:.1%}" for n, b, a in entry.top)


def _sample_line(row: Sample) -> str:
    values = ", ".join(f"{n} {figure(v) if isinstance(v, int | float) and not isinstance(v, bool) else shown(v, 30)}"
                       for n, v in row.values.items() if n != "caption" and v is not None)
    return f"  {shown(row.uid, 40)}  {values}  {shown(row.now, 60)}  “{shown(row.caption or '', 100)}”"


def _range(found: Range) -> str:
    return f"{found.least:,}" if found.least == found.most else f"{found.least:,} to {found.most:,}"


def _share(found: Range, whole: int) -> str:
    ends = [f"{n / whole:.1%}" if whole else "–" for n in (found.least, found.most)]
    return " to ".join(dict.fromkeys(ends))


def _columns(folder: Folder) -> Shown:
    """What a shift is looked for in."""
    types = {n: c.type for n, c in folder.columns.items()}
    sides = next((p for p in SIZES if all(n in types and pa.types.is_integer(types[n]) for n in p)), ())
    url = "url" if "url" in types and pa.types.is_string(types["url"]) else ""
    return Shown(added_by(folder, "language", "lang"), added_by(folder, "caption_length", "num_words"), sides, url)


class _Answering:
    """Asks the table `judged`."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, folder: Folder, question: Question, rows: int) -> None:
        self._ask, self._folder, self._question, self._rows = connection, folder, question, rows
        self._reads = list(question.keep.columns)

    def answer(self) -> Answer:
        """Everything."""
        [counts] = self._ask.execute(f"""
            select count(*) filter (says = {YES}), count(*) filter (says > {NO}), count(*) filter (alive),
                   count(*) filter (alive and says = {YES}), count(*) filter (alive and says > {NO}), count(*) filter (was),
                   count(*) filter ({THEN}), count(*) filter ("then" > {NO}), count(*) filter (was and {THEN}),
                   count(*) filter (not was and {THEN}), count(*) filter (not was and "then" > {NO}),
                   count(*) filter (was and not {THEN}), count(*) filter (alive and ({self._moves()}))
            from judged""").fetchall()
        least, most, alive, alive_least, alive_most, now, then, then_most, both, only, only_most, gone, moved = map(int, counts)
        folder, question, replaced = self._folder, self._question, self._question.replaced
        again = barriers(folder, replaced.stage if replaced else question.place) if moved else []
        return Answer(
            str(folder.root), question.keep.text, f"line {replaced.line}: {replaced.text}" if replaced else "",
            self._behind(), folder.source.num_rows,
            Range(least, most), alive, Range(alive_least, alive_most), self._clauses(), now, Range(then, then_most), both,
            Range(only, only_most), gone, tuple(again), tuple(self._notes(bool(again), then_most > then)), self._shift(),
            tuple(self._samples()))

    def _behind(self) -> str:
        if self._question.place < 0:
            return "the source"
        stage = self._folder.stages[self._question.place]
        return f"{stage['what']} (line {stage['line']})"

    def _moves(self) -> str:
        """Whether a row alive there would fare otherwise: what makes everything behind it stale."""
        replaced = self._question.replaced
        if replaced is None:
            return f"says < {YES}"
        clause = f" and clause = {replaced.clause}" if replaced.clause >= 0 else ""
        return f"(not was and stage = {replaced.stage}{clause}) = (says > {NO})"

    def _clauses(self) -> tuple[tuple[str, int], ...]:
        found = dict(self._ask.execute(f"select fails, count(*) from judged where alive and says = {NO} group by 1").fetchall())
        return tuple((c.text, found.get(i, 0)) for i, c in enumerate(single(self._question.keep)))

    def _notes(self, again: bool, is_range: bool) -> Iterator[str]:
        loop = sorted(trained(self._folder) & set(self._reads))
        if loop:
            yield (f"{', '.join(loop)} depends on the weights the loop trains: a pipeline refuses a fixed threshold on it; "
                   f"use keep: {{top: 0.3, by: {loop[0]}}}")
        if again:
            yield "the counts take the verdicts of what would run again as they are now"
        if is_range:
            yield "rows that come back were not measured further; how many stay shows when they are"

    def _shift(self) -> tuple[Medians | Shares, ...]:
        found = [medians(self._ask, "caption words", "words", NOW, THEN),
                 medians(self._ask, "shorter side, px", "side", NOW, THEN),
                 shares(self._ask, "language", "lang", NOW, THEN), shares(self._ask, "domain", "authority", NOW, THEN)]
        return tuple(f for f in found if f is not None)

    def _samples(self) -> Iterator[Samples]:
        for number, clause in enumerate(single(self._question.keep)):
            for line in lines_of(clause.text):
                value = f"v{self._reads.index(line.column)}"
                far = f"abs({value}::double - ({line.value!r}))"
                side = ">" if line.keeps == "below" else "<"
                beyond = f"fails = {number} and {value} {side}{'' if line.inclusive else '='} {line.value!r}"
                near = f"nearest to {line.column} {line.text}"
                yield from self._some(f"{near}, pass", f"alive and says = {YES}", far)
                yield from self._some(f"{near}, stopped", f"alive and says < {YES} and {beyond}", far)
        yield from self._some("only then", f'not was and "then" >= {PERHAPS}', SCATTERED)
        yield from self._some("only now", f"was and not {THEN}", SCATTERED)

    def _some(self, what: str, condition: str, far: str) -> Iterator[Samples]:
        """The nearest rows, ties as if at random, but always the same."""
        values = ", ".join(["was", "stage", "clause", *(f"v{i}" for i in range(len(self._reads)))])
        order = f"order by {far}, {SCATTERED}, pos limit {self._rows}"
        found = self._ask.execute(f"select pos, {values} from judged where {condition} {order}")
        rows = tuple(self._sample(*row) for row in found.fetchall())
        if rows:
            yield Samples(what, rows)

    def _sample(self, pos: int, was: bool, stage: int, clause: int, *values: Any) -> Sample:
        shard, row = position(pos)
        names = [n for n in ("uid", "caption", "url") if n in self._folder.source.columns]
        [texts] = self._folder.source.table(shard, names)[row : row + 1].to_pylist()
        return Sample(texts["uid"], texts.get("caption"), texts.get("url"), dict(zip(self._reads, values, strict=True)),
                      "kept" if was else self._folder.place(stage, clause))
