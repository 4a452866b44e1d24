"""What two runs' pipelines differ in: stages that came or went, settings, versions, weights; their funnels in one table."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

from curate.cards.facts import StepFact, steps
from curate.folder import Folder


@dataclass(frozen=True)
class Change:
    """One difference: of what, and what it is on either side; empty where it is not there."""

    what: str
    a: str
    b: str


@dataclass(frozen=True)
class Side:
    """One stage of either funnel or both: rows kept behind it; None where a run has no such stage."""

    what: str
    a: int | None
    b: int | None


def changes(a: Folder, b: Folder) -> Iterator[Change]:
    """Everything that the two runs did otherwise, source first, then stage by stage."""
    if a.source.digest != b.source.digest:
        yield Change("source", *(f"{f.source.num_rows:,} rows, {f.source.digest[:12]}" for f in (a, b)))
    facts_a, facts_b = ({f.what: f for f in steps(folder)} for folder in (a, b))
    for old, new in aligned([s["what"] for s in a.stages], [s["what"] for s in b.stages]):
        if old == new and old in facts_a and old in facts_b:
            yield from _of_step(facts_a[old], facts_b[old])
        elif old != new:
            yield Change("stage", old or "", new or "")


def sides(a: Sequence[Mapping[str, Any]], b: Sequence[Mapping[str, Any]]) -> list[Side]:
    """Two funnels beside each other, stage by stage."""
    kept_a, kept_b = iter(a), iter(b)
    found = []
    for old, new in aligned([e["what"] for e in a], [e["what"] for e in b]):
        here, there = (next(kept)["kept"] if name is not None else None for name, kept in ((old, kept_a), (new, kept_b)))
        if old is not None and new is not None and old != new:
            found += [Side(old, here, None), Side(new, None, there)]
        else:
            found.append(Side(old if old is not None else str(new), here, there))
    return found


def aligned(a: Sequence[str], b: Sequence[str]) -> Iterator[tuple[str | None, str | None]]:
    """Both lists in order: equal names together, and what was exchanged one for one, a keep with a keep, a step with a step."""
    for tag, i, j, k, n in SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        if tag == "equal" or [_is_keep(x) for x in a[i:j]] == [_is_keep(x) for x in b[k:n]]:
            yield from zip(a[i:j], b[k:n], strict=True)
        else:
            yield from ((x, None) for x in a[i:j])
            yield from ((None, x) for x in b[k:n])


def _is_keep(what: str) -> bool:
    return what.startswith("keep ")


def _of_step(a: StepFact, b: StepFact) -> Iterator[Change]:
    if a.id == b.id:
        return
    before = {**a.settings, "version": a.version, "reads": ", ".join(a.reads), "weights": a.weights[:12]}
    after = {**b.settings, "version": b.version, "reads": ", ".join(b.reads), "weights": b.weights[:12]}
    names = [n for n in dict.fromkeys([*before, *after]) if before.get(n, "") != after.get(n, "")]
    for name in names:
        yield Change(f"{a.what}: {name}", *(str(side.get(name, "")) for side in (before, after)))
    if not names:
        yield Change(f"{a.what}: what it read", a.id[:12], b.id[:12])
