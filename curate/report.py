"""What a run's folder says about itself: the funnel, how far it is, and why one row went where it went."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from curate import files, step
from curate.errors import UserError
from curate.folder import Folder
from curate.keep import KEPT, evaluate, parse
from curate.measure import Shard
from curate.step import REQUIRED, Spec, known_steps, load_step
from curate.store import ALIVE, STATE_NAMES
from curate.verdict import ended

_STATES = STATE_NAMES[1:]


def funnel_of(root: Path) -> list[dict[str, Any]]:
    """The funnel of a finished run."""
    found = files.read_json(root / "funnel.json")
    if found is None:
        raise UserError(f"{root} has no funnel yet: the run is not finished; see 'curate status {root}'")
    return list(found)


def funnel_lines(funnel: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The funnel as text: a line a stage that lost rows, and a line a reason."""
    first = max(funnel[0]["in"], 1)
    yield f"{'rows':>12}  {'share':>6}  stage"
    for entry in funnel:
        yield f"{entry['kept']:>12,}  {entry['kept'] / first:>6.1%}  {entry['what']}"
        reasons = entry.get("clauses") or [{"text": "", **{s: entry[s] for s in _STATES}}]
        for reason in reasons:
            gone = ", ".join(f"{reason[s]:,} {s}" for s in _STATES if reason.get(s))
            if gone:
                yield f"{'':>20}  - {gone}" + (f": {reason['text']}" if reason["text"] else "")


def statuses(folder: Folder, column: str = "status") -> Counter[str]:
    """How many fetched images ended in which status, or have which value of another column of the download."""
    ref = folder.columns.get(column)
    return ended(folder.store, folder.source, ref.folder, column) if ref is not None and ref.by_image else Counter()


def status_lines(root: Path) -> Iterator[str]:
    """How far a run is: a line a step with the shards that have it, then what is finished.

    Behind a barrier that was not reached nothing has its identity yet: such steps have not begun.
    """
    folder = Folder.open(root)
    shards = folder.source.num_shards
    yield f"{root}: {folder.source.num_rows:,} rows in {shards} source shards, pipeline {folder.pipeline}"
    steps = [stage for stage in folder.stages if "step" in stage]
    for stage in steps:
        have = {p.name.split(".")[0] for p in (root / "columns" / stage["folder"]).glob("*.parquet")} if stage["folder"] else ()
        yield f"  {stage['what']:24} " + (f"{len(have)} of {shards} shards" if stage["folder"] else "not begun")
    through = sum(folder.store.has_kept(folder.chain, s) for s in range(shards))
    so_far = all(stage["folder"] for stage in steps)
    yield f"  {'through all stages' if so_far else 'through those begun':24} {through} of {shards} shards"
    manifest = files.read_json(root / "shards" / "manifest.json")
    if manifest is not None:
        yield f"  {'finished shards':24} {len(manifest['shards'])}, {manifest['rows']:,} rows"
    for kind, number in statuses(folder).most_common():
        yield f"  images {kind:17} {number:,}"
    for signal, number in statuses(folder, "opt_out_signal").most_common():
        yield f"  opt-out by {signal:13} {number:,}"


def why(root: Path, wanted: str) -> Iterator[str]:
    """Everything about the rows with this uid or url: measurements, the verdict of every keep, the one that decided."""
    folder = Folder.open(root)
    rows = list(_find(folder, wanted))
    if not rows:
        raise UserError(f"no row in {root} has the uid or url '{wanted}'")
    for number, row in rows:
        yield from _why_row(folder, number, row)


def _find(folder: Folder, wanted: str) -> Iterator[tuple[int, int]]:
    for number in range(folder.source.num_shards):
        table = folder.source.table(number, ["uid", "url"] if "url" in folder.source.columns else ["uid"])
        for name in table.column_names:
            for row, value in enumerate(table[name].to_pylist()):
                if value == wanted:
                    yield number, row


def _why_row(folder: Folder, number: int, row: int) -> Iterator[str]:
    shard = Shard.at(folder.store, folder.source, number, "")
    values = {name: shard.column(ref)[row].as_py() for name, ref in folder.columns.items()}
    yield f"uid {values['uid']}"
    for name, value in values.items():
        if name != "uid" and not pa.types.is_list(folder.columns[name].type):
            yield f"  {name} = {value!r}"
    if row in set(folder.source.repeated(number).tolist()):
        yield "dropped: repeated_row (the same uid stands earlier in the source)"
        return
    yield from _verdicts(folder, values)
    if not folder.is_through(number):
        yield "its shard is not through all stages yet"
        return
    kept = folder.store.read_kept(folder.chain, number)
    state, stage = int(kept.state[row]), int(kept.stage[row])
    if state == ALIVE:
        yield "kept"
        return
    error = folder.error(stage, number, row)
    yield f"{STATE_NAMES[state]} at {folder.place(stage, int(kept.clause[row]))}" + (f" ({error})" if error else "")


def _verdicts(folder: Folder, values: Mapping[str, Any]) -> Iterator[str]:
    types = {n: c.type for n, c in folder.columns.items()}
    for stage in folder.stages:
        for text in stage["clauses"]:
            keep = parse(text, types)
            table = pa.table({c: pa.array([values[c]], types[c]) for c in keep.clauses[0].columns})
            verdict = evaluate(keep, table).state[0]
            says = "yes" if verdict == KEPT else "unknown" if any(values[c] is None for c in keep.clauses[0].columns) else "no"
            yield f"  line {stage['line']}: {text} → {says}"


def step_lines(names: Sequence[str] = ()) -> Iterator[str]:
    """Every step: what it measures, reads, adds and takes, from its signature."""
    for name in names or known_steps():
        spec = load_step(name)
        yield f"{name}: {spec.summary}"
        yield f"    reads {', '.join(p + (' (if there)' if p in spec.optional else '') for p in spec.reads) or 'nothing'}"
        yield f"    adds  {_adds(spec)}"
        for setting in spec.settings.values():
            default = "required" if setting.default is REQUIRED else f"default {setting.default!r}"
            yield f"    takes {setting.name} ({default})"


def _adds(spec: Spec) -> str:
    if callable(spec.adds):
        return "columns that depend on its settings"
    return ", ".join(f"{n} ({_type_name(t)})" for n, t in spec.adds.items())


def _type_name(kind: pa.DataType) -> str:
    return "vector" if kind == step.vector else "image" if kind == step.image else str(kind)
