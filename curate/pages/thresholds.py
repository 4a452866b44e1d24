"""Which numbers the keeps of a run hold its columns against: read from the clauses in `run.json`."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa

from curate import keep

Side = Literal["above", "below"]

_NAME = r'(?P<name>[A-Za-z_]\w*|"(?:[^"]|"")+")'
_NUMBER = r"-?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_COMPARED = re.compile(rf"{_NAME} (?P<how><=|>=|<|>) (?P<number>{_NUMBER})")
_TURNED = re.compile(rf"(?P<number>{_NUMBER}) (?P<how><=|>=|<|>) {_NAME}")
_BETWEEN = re.compile(rf"{_NAME} between (?P<low>{_NUMBER}) and (?P<high>{_NUMBER})")
_MIRROR = {"<": ">", ">": "<", "<=": ">=", ">=": "<="}


@dataclass(frozen=True)
class Line:
    """A number that decides: rows whose `column` lies above (or below) `value` pass; the value itself where `inclusive`."""

    column: str
    value: float
    keeps: Side
    inclusive: bool = True

    @property
    def text(self) -> str:
        """As a keep writes it: `>= 3`."""
        sign = ">" if self.keeps == "above" else "<"
        return f"{sign}{'=' if self.inclusive else ''} {self.value:.6g}"


@dataclass(frozen=True)
class Decision:
    """One clause of a keep, or a whole top: where it stands, what it reads, and the lines it draws (none: it draws none)."""

    stage: int
    clause: int
    line: int
    """of the pipeline file"""
    text: str
    columns: tuple[str, ...]
    lines: tuple[Line, ...] = ()
    is_top: bool = False


def decisions_of(stages: list[dict[str, Any]], types: Mapping[str, pa.DataType]) -> list[Decision]:
    """Every decision of a run in order. The line of a top is NaN until somebody finds it in the data."""
    found = []
    for number, entry in enumerate(stages):
        if "top" in entry:
            by = entry["top"]["by"]
            line = Line(by, float("nan"), "above")
            found.append(Decision(number, 0, entry["line"], entry["what"].removeprefix("keep "), (by,), (line,), is_top=True))
        for clause, text in enumerate(entry["clauses"]):
            found.append(Decision(number, clause, entry["line"], text, tuple(keep.parse(text, types).columns), lines_of(text)))
    return found


def lines_of(clause: str) -> tuple[Line, ...]:
    """The lines of a clause that compares one column with numbers: `aspect <= 3.0`, `0.3 < cos`, `num_words between 3 and 256`.

    Clauses are as `curate.keep` writes them anew, so there is one way to space them. Anything else draws no line.
    """
    if between := _BETWEEN.fullmatch(clause):
        name = _plain(between["name"])
        return Line(name, float(between["low"]), "above"), Line(name, float(between["high"]), "below")
    compared, turned = _COMPARED.fullmatch(clause), _TURNED.fullmatch(clause)
    found = compared or turned
    if not found:
        return ()
    how = found["how"] if compared else _MIRROR[found["how"]]
    return (Line(_plain(found["name"]), float(found["number"]), "above" if how[0] == ">" else "below", "=" in how),)


def _plain(name: str) -> str:
    return name[1:-1].replace('""', '"') if name.startswith('"') else name
