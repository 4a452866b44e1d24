"""Whom the keeps treat otherwise: the pass rate of every keep by language, country of the domain, size of the picture, words.

A slice is told at the stage that measures it, so keeps before that stage have no rate by it: of the rows that they dropped nobody
knows the slice. Shards are read one after the other; what is held is a count a slice and stage.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from curate.folder import Folder
from curate.pages.figures import Rows, as_numbers, rows_of
from curate.pages.tallies import SIZES, added_by, hosts
from curate.store import ALIVE, DROPPED, REMOVED, REPEATED
from curate.units import wilson

MOST = 10
"""Slices shown of a kind: those with most rows (our choice)."""
FEW = 30
"""A slice of fewer rows at a keep is not called different, whatever its rate (our choice)."""
EDGES = (64, 128, 256, 512, 1024)
"""Where classes of the shorter side begin, in pixels (our choice)."""
CLASSES = (f"< {EDGES[0]} px", *(f"{a}–{b - 1} px" for a, b in zip(EDGES, EDGES[1:], strict=False)), f"≥ {EDGES[-1]} px")
NOT_COUNTRIES = frozenset({"ac", "eu", "su", "ai", "co", "fm", "gg", "io", "ly", "me", "sh", "tk", "to", "tv", "ws"})
"""Two-letter domains that are no ISO country, or mostly sold to the whole world (our choice): counted with the generic ones."""
GENERIC = "none"
WORDS = "words of the caption"
ALL = ""
"""The slice of all rows whose slice is known."""
_ISO = {"uk": "gb"}
_LEXICON = Path(__file__).parent / "lexicon.json"

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Cell:
    """A slice at a keep: rows that came and stayed, the rate over all rows' rate, and whether chance would hardly do that."""

    came: int
    stayed: int
    ratio: float | None
    """None where nobody came"""
    differs: bool
    """the 95 % interval (Wilson's) of the slice's rate leaves out the rate of all, and the slice is not small"""


@dataclass(frozen=True)
class Judge:
    """A keep over the slices of one kind; the last of all is the way from the slice being known to the end."""

    what: str
    line: int
    rate: float
    """of all rows that came and whose slice is known, 0 to 1"""
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Slices:
    """One kind of slice: its slices with their rows, and every keep behind the stage that tells it and that stopped a row."""

    kind: str
    names: tuple[str, ...]
    rows: tuple[int, ...]
    judges: tuple[Judge, ...]
    hidden: int
    """slices that are too many to show"""


@dataclass
class _Kind:
    """How a kind is told of a shard's rows: ALL and names, each with the mask of its rows."""

    title: str
    columns: tuple[str, ...]
    from_stage: int
    tell: Callable[[pa.Table], Iterator[tuple[str, NDArray[np.bool_]]]]
    names: Sequence[str] = ()
    """in which order its slices stand; where nothing is said, those with most rows come first"""


def slices_of(folder: Folder) -> list[Slices]:
    """Every kind of slice that a run has columns for."""
    kinds = list(_kinds(folder))
    counts: list[dict[str, Counts]] = [defaultdict(lambda: np.zeros(len(folder.stages) + 2, np.int64)) for _ in kinds]
    for rows in rows_of(folder, sorted({c for kind in kinds for c in kind.columns})):
        left, usable = _left(rows, len(folder.stages) + 1)
        for kind, found in zip(kinds, counts, strict=True):
            for name, mask in kind.tell(rows.table):
                found[name] += np.bincount(left[mask & usable], minlength=len(folder.stages) + 2)
    shown = (_slices(folder, kind, found) for kind, found in zip(kinds, counts, strict=True))
    return [s for s in shown if s.judges and len(s.names) > (s.kind != WORDS)]


def _left(rows: Rows, end: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The stage at which each row left (`end`: it stayed), and which rows count: neither repeated nor taken down."""
    kept = rows.kept
    repeated = (kept.stage == REPEATED) & (kept.state == DROPPED)
    return np.where(kept.state == ALIVE, end, np.maximum(kept.stage, 0)).astype(np.int64), ~repeated & (kept.state != REMOVED)


def _slices(folder: Folder, kind: _Kind, found: Mapping[str, Counts]) -> Slices:
    """Rates from how many rows of a slice left at which stage; a kind of one slice says nothing and is left out."""
    known = {name: counts.copy() for name, counts in found.items()}
    for counts in known.values():
        counts[: kind.from_stage] = 0
    order = sorted((n for n in known if n != ALL and known[n].sum()), key=lambda n: (-int(known[n].sum()), n))
    names = [n for n in kind.names if n in order] or order[:MOST]
    judges = []
    for number, stage in enumerate(folder.stages):
        decides = number >= kind.from_stage and (stage["clauses"] or "top" in stage)
        if decides and known[ALL][number]:
            judges.append(_judge(stage["what"].removeprefix("keep "), stage["line"], known, names, number, number + 1))
    if len(judges) > 1:
        judges.append(_judge("kept at the end", 0, known, names, kind.from_stage, len(folder.stages) + 1))
    return Slices(kind.title, tuple(names), tuple(int(known[n].sum()) for n in names), tuple(judges), len(order) - len(names))


def _judge(what: str, line: int, known: Mapping[str, Counts], names: Sequence[str], first: int, stop: int) -> Judge:
    """Rows that came to stage `first` and did not leave before stage `stop`."""
    came, stayed = (int(known[ALL][at:].sum()) for at in (first, stop))
    return Judge(what, line, stayed / came, tuple(_cell(known[n], first, stop, stayed / came) for n in names))


def _cell(counts: Counts, first: int, stop: int, rate: float) -> Cell:
    came, stayed = (int(counts[at:].sum()) for at in (first, stop))
    low, high = wilson(stayed, came)
    return Cell(came, stayed, stayed / came / rate if came and rate else None, came >= FEW and not low <= rate <= high)


def _kinds(folder: Folder) -> Iterator[_Kind]:
    made = {name: i for i, s in enumerate(folder.stages) for name in s.get("adds", {}).values()}
    types = {n: c.type for n, c in folder.columns.items()}
    if language := added_by(folder, "language", "lang"):
        yield _Kind("language", (language,), made[language] + 1, lambda table: _by_value(table[language]))
    if pa.types.is_string(types.get("url", pa.null())):
        yield _Kind("country of the domain", ("url",), 0, lambda table: _by_value(countries(hosts(table["url"]))))
    pair = next((p for p in SIZES if all(pa.types.is_integer(types.get(n, pa.null())) for n in p)), None)
    if pair:
        begin = max(made.get(n, -1) for n in pair) + 1
        yield _Kind("shorter side", pair, begin, lambda table: _by_value(_sizes(table, pair)), CLASSES)
    if pa.types.is_string(types.get("caption", pa.null())):
        yield _Kind(WORDS, ("caption",), 0, lambda table: _by_words(table["caption"]), list(_groups()))


def _by_value(column: pa.Array | pa.ChunkedArray) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    coded = array.dictionary_encode()
    codes = pc.fill_null(coded.indices, -1).to_numpy(zero_copy_only=False)
    yield ALL, codes >= 0
    for code, name in enumerate(coded.dictionary.to_pylist()):
        yield name, codes == code


def countries(host: pa.Array) -> pa.Array:
    """The country that a host's last label stands for (country domains are ISO 3166 codes, but for uk); `none` for all others."""
    last = pc.struct_field(pc.extract_regex(host, r"\.(?P<last>[a-z]{2})$"), "last")
    country = pc.if_else(pc.is_in(last, value_set=pa.array(sorted(NOT_COUNTRIES))), pa.scalar(None, pa.string()), last)
    for label, code in _ISO.items():
        country = pc.if_else(pc.equal(country, label), code, country)
    return pc.if_else(pc.is_valid(host), pc.fill_null(country, GENERIC), pa.scalar(None, pa.string()))


def _sizes(table: pa.Table, pair: tuple[str, str]) -> pa.Array:
    (width, has_width), (height, has_height) = (as_numbers(table[n]) for n in pair)
    place = np.searchsorted(EDGES, np.minimum(width, height), side="right")
    return pa.array(np.array(CLASSES, object)[place], pa.string(), mask=~(has_width & has_height))


@cache
def _groups() -> dict[str, str]:
    """Group → the pattern of its words."""
    groups = json.loads(_LEXICON.read_text())["groups"]
    return {name: rf"(^|[^a-z])({'|'.join(words)})($|[^a-z])" for name, words in groups.items()}


def _by_words(captions: pa.ChunkedArray) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """Captions that hold a word of a group; one may be of several."""
    texts = pc.ascii_lower(captions.combine_chunks())
    anything = "|".join(f"(?:{pattern})" for pattern in _groups().values())
    hits = np.flatnonzero(pc.fill_null(pc.match_substring_regex(texts, anything), False).to_numpy(zero_copy_only=False))
    few = texts.take(pa.array(hits))
    yield ALL, pc.is_valid(texts).to_numpy(zero_copy_only=False)
    for name, pattern in _groups().items():
        mask = np.zeros(len(texts), bool)
        mask[hits[pc.match_substring_regex(few, pattern).to_numpy(zero_copy_only=False)]] = True
        yield name, mask
