"""A question: an expression that could be a keep of a finished run, where it would stand, and which keep it would stand for.

By itself it stands behind the last stage that adds a column it reads. Instead of a keep (or of one clause of it) it stands there,
or later where it reads a later column; all other decisions stay, and are asked again of the rows that would come back.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import pyarrow as pa

from curate import files
from curate.errors import UserError, did_you_mean
from curate.folder import Folder
from curate.keep import Keep, parse


@dataclass(frozen=True)
class Replaced:
    """The decision that would go: a stage of the run, and a clause of it (-1: the whole keep, or a top)."""

    stage: int
    clause: int
    text: str
    line: int


@dataclass(frozen=True)
class Question:
    """A checked expression and its place among the stages of a run."""

    keep: Keep
    place: int
    """the stage behind which (or, instead of a keep, at which) it stands; -1 is the source"""
    replaced: Replaced | None
    later: tuple[Keep, ...]
    """the decisions behind the replaced one that can be asked again, a clause each"""
    is_open: bool
    """whether a row that comes back can also be stopped by what nobody can ask: a step behind, or a rank"""


def ask(folder: Folder, text: str, instead_of: str | None = None) -> Question:
    """Check `text` as a keep over the columns of a run. Raises UserError, one line, as `curate run` would for a keep."""
    types = decidable(folder)
    keep, added = parse(text, types), added_at(folder)
    last = max((added[name] for name in keep.columns), default=-1)
    if instead_of is None:
        return Question(keep, last, None, (), False)
    replaced = _found(folder, instead_of, types)
    later: list[Keep] = []
    for number, stage in enumerate(folder.stages[replaced.stage:], replaced.stage):
        first = replaced.clause + 1 if replaced.clause >= 0 else len(stage["clauses"])
        texts = stage["clauses"][first if number == replaced.stage else 0:]
        later += [clause for t in texts for clause in single(parse(t, types))]
    behind = [s for s in folder.stages[replaced.stage + 1:] if not s["clauses"]]
    return Question(keep, max(last, replaced.stage), replaced, tuple(later), bool(behind))


def single(keep: Keep) -> list[Keep]:
    """A keep a clause."""
    return [Keep(c.text, (c,), {n: keep.columns[n] for n in c.columns}) for c in keep.clauses]


def decidable(folder: Folder) -> dict[str, pa.DataType]:
    """The columns that a keep may read, as in a pipeline."""
    return {n: c.type for n, c in folder.columns.items() if not pa.types.is_nested(c.type)}


def added_at(folder: Folder) -> dict[str, int]:
    """Column → the number of the stage that adds it; -1 for the source's own."""
    made = {name: i for i, stage in enumerate(folder.stages) for name in stage.get("adds", {}).values()}
    return {name: made.get(name, -1) for name in folder.columns}


def barriers(folder: Folder, behind: int) -> list[tuple[int, str]]:
    """(line, words) of what rests on all rows alive behind a stage: ranks, steps over all rows, and the steps that read these."""
    stale: set[str] = set()
    found = []
    for number, stage in enumerate(folder.stages):
        if number <= behind:
            continue
        read = sorted(stale & set(stage.get("reads", {}).values()))
        whole = "top" in stage or (folder.root / "columns" / (stage.get("folder") or "-") / "done.json").exists()
        if whole or read:
            stale |= set(stage.get("adds", {}).values())
            found.append((stage["line"], stage["what"] + ("" if whole else f", which reads {', '.join(read)}")))
    return found


def trained(folder: Folder) -> set[str]:
    """The columns that depend on weights which the run's loop trained."""
    weights = {r["weights"] for r in files.read_json(folder.root / "rounds.json", [])}
    found: set[str] = set()
    for stage in folder.stages:
        settings = stage.get("settings", {})
        own = {v for v in settings.values() if isinstance(v, str)}
        if own & weights or set(stage.get("reads", {}).values()) & found:
            found |= set(stage["adds"].values())
    return found


def _found(folder: Folder, wanted: str, types: Mapping[str, pa.DataType]) -> Replaced:
    known = list(_decisions(folder))
    name = " ".join(wanted.split()).removeprefix("keep ")
    number = name.removeprefix("line ")
    if number.isdigit():
        named = [r for r in known if r.line == int(number) and r.clause < 0]
        lines = ", ".join(str(r.line) for r in known if r.clause < 0)
        if not named:
            raise UserError(f"--instead-of {wanted}: no keep stands in this line; there are keeps in lines {lines or 'none'}")
        return named[0]
    named = [r for r in known if " ".join(r.text.split()) == name] or _alike(folder, name, known, types)
    if not named:
        raise UserError(f"--instead-of: no keep '{wanted}' in this run{did_you_mean(name, [r.text for r in known])}")
    if len({(r.stage, r.line) for r in named}) > 1:
        raise UserError(f"--instead-of: '{wanted}' stands in lines {', '.join(str(r.line) for r in named)}; give the line")
    return min(named, key=lambda r: r.clause)


def _decisions(folder: Folder) -> Iterator[Replaced]:
    for number, stage in enumerate(folder.stages):
        if stage["clauses"] or "top" in stage:
            yield Replaced(number, -1, stage["what"].removeprefix("keep "), stage["line"])
            for clause, text in enumerate(stage["clauses"]):
                yield Replaced(number, clause, text, stage["line"])


def _alike(folder: Folder, name: str, known: list[Replaced], types: Mapping[str, pa.DataType]) -> list[Replaced]:
    """Keeps of the same clauses, spaced or bracketed in another way."""
    try:
        clauses = [c.text for c in parse(name, types).clauses]
    except UserError:
        return []
    return [r for r in known if clauses == (folder.stages[r.stage]["clauses"] if r.clause < 0 else [r.text])]
