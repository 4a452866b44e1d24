"""Every row of a run under a question: yes, no, or (where a row left before something was measured) perhaps.

Rows stream from the frame through `curate.keep`, a batch at a time, into a table of DuckDB that spills to disk. A clause over
columns that were all measured is answered; over one that was not reached it may be true, so counts come as bounds.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from curate.deciding.frame import BATCH, CLAUSE, OWN, POS, STAGE, STATE, frame, measured, quoted
from curate.deciding.question import Question, added_at, single
from curate.folder import Folder
from curate.keep import KEPT, Keep, evaluate
from curate.store import ALIVE, DROPPED, QUARANTINED, REMOVED, REPEATED

NO, PERHAPS, YES = 0, 1, 2
"""Of a row, in this order: what a clause says, and whether it would be kept."""
AUTHORITY = "^[A-Za-z][A-Za-z0-9+.-]*://[^/?#]*"
"""What of a url tells its host, cheap to find; `curate.pages.tallies.hosts` reads the host out of it."""
Codes = NDArray[np.uint8]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Shown:
    """Columns that go along: name in the table `judged` → column of the run."""

    language: str
    words: str
    sides: tuple[str, ...]
    url: str

    @property
    def names(self) -> list[str]:
        """Those that there are."""
        return [n for n in (self.language, self.words, *self.sides, self.url) if n]


def judge(connection: duckdb.DuckDBPyConnection, folder: Folder, question: Question, shown: Shown) -> None:
    """Make the table `judged`, a row a row of the source.

    pos, stage and clause where it left, was (kept now), alive (at the question's place), says (what the expression says),
    fails (its first clause that does not say yes), then (whether it would be kept), v0 … (what the expression reads, in order),
    lang, words, side, authority.
    """
    reads = list(question.keep.columns)
    names = list(dict.fromkeys([*reads, *(n for k in question.later for n in k.columns), *shown.names]))
    folders = dict.fromkeys(c.folder for n in names if (c := folder.columns[n]).folder)
    sides = [quoted(n) for n in shown.sides]
    streamed = [n for n in names if n != shown.url or n in reads]
    wanted = map(quoted, [*OWN, *streamed, *map(measured, folders)])
    host = f"regexp_extract({quoted(shown.url)}, '{AUTHORITY}')" if shown.url else "null::varchar"
    side = f"least({', '.join(sides)})::bigint" if sides else "null::bigint"
    chosen = ", ".join([*wanted, f'{host} as "our host"', f'{side} as "our side"'])
    batches = connection.cursor().sql(f"select {chosen} from ({frame(folder, names)})").to_arrow_reader(BATCH)
    judging = _Judging(folder, question, shown)
    connection.register("answers", pa.RecordBatchReader.from_batches(judging.schema, judging.batches(batches)))
    connection.execute("create table judged as from answers")
    connection.unregister("answers")


class _Judging:
    """Batches of the frame to batches of the table."""

    def __init__(self, folder: Folder, question: Question, shown: Shown) -> None:
        self._folder, self._question, self._shown = folder, question, shown
        self._clauses = single(question.keep)
        self._added, self._end = added_at(folder), len(folder.stages) + 1
        reads = [pa.field(f"v{i}", folder.columns[n].type) for i, n in enumerate(question.keep.columns)]
        self.schema = pa.schema([("pos", pa.int64()), ("stage", pa.int16()), ("clause", pa.int16()),
                                 ("was", pa.bool_()), ("alive", pa.bool_()), ("says", pa.uint8()), ("fails", pa.int16()),
                                 ("then", pa.uint8()), *reads, ("lang", pa.string()), ("words", pa.int64()),
                                 ("side", pa.int64()), ("authority", pa.string())])

    def batches(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            yield from self._answered(pa.table(batch)).to_batches()

    def _answered(self, table: pa.Table) -> pa.Table:
        question, shown = self._question, self._shown
        state, stage, clause = (table[n].to_numpy() for n in (STATE, STAGE, CLAUSE))
        left = np.where(state == ALIVE, self._end, stage)
        by_clause = np.array([self._says(c, table, left) for c in self._clauses])
        says, fails = by_clause.min(axis=0), np.argmax(by_clause < YES, axis=0)
        out = (stage == REPEATED) & (state == DROPPED) | (state == REMOVED)
        if question.replaced is None:
            alive = (left > question.place) & ~out
            then = np.where(alive, says, NO)
        else:
            alive, then = self._instead(table, left, state, says, out)
        none = pa.nulls(len(says), pa.string())
        columns = [table[POS], stage, clause, state == ALIVE, alive, np.where(out, NO, says), fails, then,
                   *(table[n] for n in question.keep.columns), table[shown.language] if shown.language else none,
                   table[shown.words] if shown.words else none, table["our side"], table["our host"]]
        return pa.table([_cast(c, f.type) for c, f in zip(columns, self.schema, strict=True)], schema=self.schema)

    def _instead(self, table: pa.Table, left: NDArray[np.int64], state: NDArray[np.uint8], says: Codes,
                 out: Mask) -> tuple[Mask, Codes]:
        """Which rows come to the replaced decision, and what becomes of them: of those it stopped all later ones are asked."""
        replaced = self._question.replaced
        assert replaced is not None
        at, clause = left == replaced.stage, table[CLAUSE].to_numpy()
        alive = ((left > replaced.stage) | (at & (clause >= replaced.clause))) & ~out
        stopped = at & (state != QUARANTINED) & ((clause == replaced.clause) | (replaced.clause < 0)) & alive
        back = np.minimum(says, PERHAPS) if self._question.is_open else says
        rows = np.flatnonzero(stopped & (back > NO))
        if len(rows) and self._question.later:
            few = table.take(pa.array(rows))
            later = [self._says(c, few, left[rows]) for c in self._question.later]
            back = back.copy()
            back[rows] = np.minimum(back[rows], np.minimum.reduce(later))
        kept = state == ALIVE
        return alive, np.where(stopped, back, np.where(kept, says, NO)).astype(np.uint8)

    def _says(self, clause: Keep, table: pa.Table, left: NDArray[np.int64]) -> Codes:
        yes = evaluate(clause, table).state == KEPT
        open_ = np.zeros(len(left), bool)
        for name in clause.columns:
            place = self._folder.columns[name].folder
            if place:
                open_ |= ~table[measured(place)].to_numpy() & (left < self._added[name])
        return np.where(yes, YES, np.where(open_, PERHAPS, NO)).astype(np.uint8)


def _cast(column: pa.ChunkedArray | NDArray[Any], kind: pa.DataType) -> pa.ChunkedArray:
    found = pa.chunked_array([pa.array(column)]) if isinstance(column, np.ndarray) else column
    return found.cast(kind)
