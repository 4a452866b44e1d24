"""The report: what a run measured, decided and kept, as one page that opens anywhere, from disk, without a network or a script.

    curate report RUN     →     RUN/report/index.html

The numbers come from `figures`, `examples`, `tallies` and `atlas`, the drawings from `charts`, the words from
`report.html.j2`. The same run gives the same bytes: the only time on the page is the one that run.json recorded.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from curate import expectation, files, recaptioned, searched
from curate.folder import Folder
from curate.pages import atlas, charts, tallies, wording
from curate.pages.atlas import Atlas, atlas_of
from curate.pages.examples import Border, Example, Leavers, examples, resolved
from curate.pages.figures import MAX_COLUMNS, ColumnFigures, check_finished, describe, identity
from curate.pages.histogram import QUANTILES, Histogram
from curate.pages.slices import Cell, Slices, slices_of
from curate.pages.tallies import Tallies, tally
from curate.pages.thresholds import Decision, decisions_of
from curate.pages.thumbnails import Thumbnails
from curate.report import funnel_of
from curate.store import STATE_NAMES

MAX_BYTES = 5_000_000
LEVELS = ((6, 128), (6, 96), (4, 88), (2, 72), (1, 56), (0, 0))
"""(examples a side of a line, their longer side in pixels): the first with which the page stays under MAX_BYTES is taken."""
CELL_PX = 44
_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Content:
    """All numbers of a report."""

    folder: Folder
    time: str
    funnel: list[dict[str, Any]]
    decisions: list[Decision]
    columns: list[ColumnFigures]
    borders: list[Border]
    leavers: list[Leavers]
    tallies: Tallies
    rounds: list[dict[str, Any]]
    atlas: Atlas | None
    slices: list[Slices] = field(default_factory=list)
    expect: Mapping[str, Any] | None = None
    """what the pipeline expects"""

    @property
    def searched(self) -> list[str]:
        """What was searched for among all rows, and how surely, in sentences."""
        return list(searched.lines(self.folder))

    @property
    def stand_ins(self) -> list[str]:
        """What stood in for something better, in sentences."""
        return list(searched.stand_ins(self.folder))

    @property
    def recaptioned(self) -> list[str]:
        """What became of synthetic captions, in sentences."""
        return list(recaptioned.lines(self.folder))


@dataclass(frozen=True)
class Judged:
    """A decision with its figures and its examples."""

    decision: Decision
    dropped: int
    unknown: int
    borders: list[Border]
    leavers: Leavers | None

    @property
    def anchor(self) -> str:
        """Its place on the page."""
        return f"s{self.decision.stage}c{self.decision.clause}"


def write(root: Path, attempt: str) -> Path:
    """Make the report of a finished run; where it lies. Raises UserError where the run is not finished."""
    path = root / "report" / "index.html"
    files.write_bytes(path, render(gather(root)).encode(), attempt)
    return path


def gather(root: Path) -> Content:
    """Read all numbers of a run."""
    funnel = funnel_of(root)
    folder = Folder.open(root)
    check_finished(folder, funnel)
    found = decisions_of(folder.stages, {n: c.type for n, c in folder.columns.items()})
    borders, leavers = examples(folder, found)
    decisions = resolved(found, borders)
    record = files.read_json(root / "run.json") or {}
    return Content(folder, str(record.get("time", "")), funnel, decisions, describe(folder, decisions), borders, leavers,
                   tally(folder), files.read_json(root / "rounds.json", []), atlas_of(folder), slices_of(folder),
                   record.get("expect"))


def render(content: Content, max_bytes: int = MAX_BYTES) -> str:
    """The page, with as many and as large thumbnails as fit."""
    page = ""
    for each, side_px in LEVELS:
        page = _page(content, each, side_px)
        if len(page.encode()) <= max_bytes:
            break
    return page


def _page(content: Content, each: int, side_px: int) -> str:
    thumbnails = Thumbnails(content.folder.root, side_px) if side_px else None
    decided = judged(content)
    return _environment().get_template("report.html.j2").render(
        content=content, tallies=content.tallies, map=content.atlas, title=Path(content.folder.pipeline).stem,
        pipeline=Path(content.folder.pipeline).name, facts=_facts(content), verdict=verdict(content), losses=_losses(content),
        stages=_stages(content), states=STATE_NAMES[1:], quantiles=QUANTILES, judged=decided, anchors={j.anchor for j in decided},
        each=each, has_images="image" in content.folder.columns, mosaic=_mosaic(content.atlas, thumbnails), kinds=_kinds(content),
        rounds=_rounds(content), max_columns=MAX_COLUMNS, thumb=lambda example: thumbnails.of(example) if thumbnails else None)


@cache
def _environment() -> jinja2.Environment:
    """Escapes everything; an unknown name in the template is an error."""
    found = jinja2.Environment(loader=jinja2.FileSystemLoader(_HERE), autoescape=True, undefined=jinja2.StrictUndefined,
                               trim_blocks=True, lstrip_blocks=True)
    found.filters |= {"count": wording.count, "brief": wording.brief, "figure": wording.figure, "shown": wording.shown}
    found.tests["numeric"] = _is_numeric
    found.globals |= {"charts": charts, "share": wording.share, "drawing": _drawing, "gone": _gone, "strip": _strip,
                      "values": _values, "tint": _tint}
    return found


def verdict(content: Content) -> str:
    """How much was kept, and where most was lost; and whether that is as the pipeline expects."""
    return " ".join([_kept(content), *(f"Warning: {line}." for line in expectation.drift(content.expect, content.funnel))])


def _kept(content: Content) -> str:
    rows, kept = content.funnel[0]["in"], content.funnel[-1]["kept"]
    said = f"{wording.count(kept)} of {wording.count(rows)} rows were kept ({wording.share(kept, rows)})"
    reasons = [(n, text) for e in content.funnel for text, n, _ in _reasons(e)]
    if not reasons or not rows:
        return f"{said}."
    most, text = max(reasons, key=lambda reason: reason[0])
    return f"{said}; most left at {wording.shown(text, 80)}: {wording.count(most)} rows ({wording.share(most, rows)} of all)."


def _facts(content: Content) -> list[tuple[str, str, str]]:
    """(label, what is shown, what it is in full)."""
    rows, kept = content.funnel[0]["in"], content.funnel[-1]["kept"]
    shards = content.folder.source.num_shards
    facts = [("rows in", wording.count(rows), f"in {shards} source shards"), ("rows kept", wording.count(kept), ""),
             ("kept", wording.share(kept, rows), "")]
    if content.time:
        facts.append(("finished", content.time.replace("T", " ").removesuffix("Z")[:16] + " UTC", content.time))
    return facts + [(name, digest[:10], digest) for name, digest in identity(content.folder).items()]


def _reasons(entry: Mapping[str, Any]) -> list[tuple[str, int, dict[str, int]]]:
    """Why rows left at a stage: text, how many, by state. What no clause explains stands for the stage itself, last."""
    clauses = [(c["text"], {s: c.get(s, 0) for s in ("dropped", "unknown")}) for c in entry.get("clauses", ())]
    told = {s: sum(by[s] for _, by in clauses) for s in ("dropped", "unknown")}
    rest = {s: entry[s] - told.get(s, 0) for s in STATE_NAMES[1:]}
    entries = [*clauses, (entry["what"], rest)]
    return [(text, sum(by.values()), {s: n for s, n in by.items() if n}) for text, by in entries if sum(by.values())]


def _losses(content: Content) -> list[tuple[int, dict[str, Any]]]:
    """The entries of the funnel at which rows left, with the numbers of their stages; the source's is -1."""
    return [(number - 1, entry) for number, entry in enumerate(content.funnel) if entry["in"] > entry["kept"]]


def _gone(stage: int, entry: Mapping[str, Any]) -> list[tuple[str, int, str, str]]:
    """The reasons of a stage for its row of the funnel: text, rows, how (where not simply dropped), anchor of its examples."""
    clauses = [c["text"] for c in entry.get("clauses", ())]
    found = []
    for text, number, by in _reasons(entry):
        how = ", ".join(f"{wording.count(n)} {s}" for s, n in by.items()) if set(by) != {"dropped"} else ""
        clause = clauses.index(text) if text in clauses else 0 if "dropped" in by else -1
        found.append((text, number, how, f"s{stage}c{clause}"))
    return found


def _stages(content: Content) -> list[tuple[str, dict[str, Any]]]:
    """Every entry of the funnel with its line of the pipeline."""
    lines = ["", *(str(s["line"]) for s in content.folder.stages)]
    return [(lines[i] if i < len(lines) else "", entry) for i, entry in enumerate(content.funnel)]


def judged(content: Content) -> list[Judged]:
    """The decisions in order, with what there is to look at; steps that could not measure a row last of their stage."""
    found = []
    leavers = {(x.stage, x.clause): x for x in content.leavers}
    for decision in content.decisions:
        key = (decision.stage, decision.clause)
        entry = content.funnel[decision.stage + 1]
        counts = entry["clauses"][decision.clause] if entry.get("clauses") else entry
        borders = [b for b in content.borders if (b.decision.stage, b.decision.clause) == key]
        found.append(Judged(decision, counts["dropped"], counts["unknown"], borders, leavers.get(key)))
    for x in content.leavers:
        if x.clause < 0:
            broken = Decision(x.stage, x.clause, x.line, f"{x.title} could not measure", ())
            found.append(Judged(broken, 0, 0, [], x))
    return sorted(found, key=lambda j: (j.decision.stage, j.decision.clause))


def _strip(border: Border, each: int) -> list[tuple[str, list[tuple[str, Example]]]]:
    """The two sides of a line from the lowest value to the highest: (which, [(value, row)])."""
    def valued(rows: Sequence[Example]) -> list[tuple[str, Example]]:
        return [(wording.figure(float(x.values[border.line.column])), x) for x in rows[:each]]

    if border.line.keeps == "above":
        return [("dropped", valued(border.dropped)[::-1]), ("passed", valued(border.passed))]
    return [("passed", valued(border.passed)[::-1]), ("dropped", valued(border.dropped))]


def _values(example: Example) -> str:
    """What a keep without a line read of a row; of a single truth there is nothing to say that the keep does not."""
    values = [(n, v) for n, v in example.values.items() if v is not None and n != "caption"]
    if len(values) == 1 and isinstance(values[0][1], bool):
        return ""
    texts = [str(v).lower() if isinstance(v, bool) else wording.figure(v) if isinstance(v, int | float) else wording.shown(v, 40)
             for _, v in values]
    return ", ".join(texts if len(values) == 1 else (f"{n} {t}" for (n, _), t in zip(values, texts, strict=True)))


def _tint(cell: Cell) -> str:
    """The strength of a cell's colour, 0 to 0.5: full from half or twice the rate of all on; none where chance may do it."""
    if cell.ratio is None or not cell.differs:
        return "0"
    return f"{min(abs(math.log2(max(cell.ratio, 0.5))), 1) / 2:.2f}"


def _is_numeric(column: ColumnFigures) -> bool:
    return isinstance(column.shape, Histogram)


def _drawing(column: ColumnFigures) -> Markup | None:
    if column.shape is None:
        return None
    return charts.histogram(column.shape, column.lines) if isinstance(column.shape, Histogram) else charts.bars(column.shape)


def _kinds(content: Content) -> list[str]:
    """The kinds of failure that have a column of their own in the table of hosts: the most frequent."""
    fetched = content.tallies.fetched
    return [s.name for s in fetched.statuses if s.name != tallies.OK][:6] if fetched else []


def _rounds(content: Content) -> dict[str, Any] | None:
    """The figures of every round side by side, and their chart where there are two rounds or more."""
    if not content.rounds:
        return None
    names = list(dict.fromkeys(name for r in content.rounds for name in r["figures"]))
    numbers = [r["round"] for r in content.rounds]
    series = {name: [r["figures"].get(name) for r in content.rounds] for name in names}
    chart = charts.rounds_chart(series, numbers) if len(numbers) > 1 and names else None
    return {"names": names, "rows": content.rounds, "chart": chart}


def _mosaic(found: Atlas | None, thumbnails: Thumbnails | None) -> str | None:
    return thumbnails.mosaic(found.cells, atlas.COLUMNS, atlas.ROWS, CELL_PX) if found and thumbnails else None
