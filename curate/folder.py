"""A run's folder opened for reading: rows with their columns and what became of each, whoever asks.

The report, the card, the index and `curate why` read runs through this and nothing else. Nothing here writes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from curate import files, remote, step
from curate.errors import UserError
from curate.measure import Shard
from curate.plan import Column
from curate.sources.source import Source
from curate.store import ERROR, REPEATED, STATE_NAMES, TAKEN, Kept, Store
from curate.tombstones import TAKEN_DOWN

STATE, REASON = "state", "reason"
"""The two columns that `Folder.table` adds to those asked for."""


@dataclass(frozen=True)
class Embedder:
    """A use of `clip_embed`: its model, the weights that measured this run last, and the names of its columns.

    Of a step of the user's own, model, weights and text are empty where it has none.
    """

    prefix: str
    model: str
    weights: str
    """a published tag, or a path; one that the run trained itself is below the run's folder"""
    image: str
    text: str


@dataclass(frozen=True)
class Folder:
    """A run's folder as `run.json` recorded it, and the store behind it."""

    store: Store
    source: Source
    chain: str
    stages: list[dict[str, Any]]
    """{what, line, clauses}; of a step also {step, settings, reads, adds, folder}, of a top {top: {by, fraction, of_source}}"""
    columns: dict[str, Column]
    pipeline: str

    @classmethod
    def open(cls, root: Path) -> "Folder":
        """Raises UserError where there is no run, or none that got as far as its first stage."""
        remote.refuse_url(root, "a run's folder")
        record = files.read_json(root / "run.json")
        if record is None:
            raise UserError(f"{root} holds no run (there is no {root / 'run.json'})")
        store = Store(root)
        source = Source.open(store.source)
        columns = {n: Column(**{**c, "type": _type(store, source, c)}) for n, c in record["columns"].items()}
        return cls(store, source, record["chain"], record["stages"], columns, record["pipeline"])

    @property
    def root(self) -> Path:
        """The folder itself."""
        return self.store.root

    @cached_property
    def embedders(self) -> tuple[Embedder, ...]:
        """What embedded this run's pictures, in the order of the pipeline: `clip_embed`, or any step that adds `image_emb`."""
        uses = [s for s in self.stages if (name := s.get("adds", {}).get("image_emb")) in self.columns
                and self.columns[name].type == step.vector]
        return tuple(Embedder(s["what"].partition(" as ")[2], s["settings"].get("model", ""),
                              self._located(s["settings"].get("pretrained", "")), s["adds"]["image_emb"],
                              s["adds"].get("text_emb", "")) for s in uses)

    def is_through(self, number: int) -> bool:
        """Whether a shard is through all stages."""
        return self.store.has_kept(self.chain, number)

    def shard(self, number: int) -> Shard:
        """A source shard as the run left it; of one that is not through all stages, as it came from the source."""
        return Shard.at(self.store, self.source, number, self.chain if self.is_through(number) else "")

    def table(self, number: int, names: Sequence[str]) -> pa.Table:
        """All rows of a source shard, in order: the columns asked for (null where not measured), and `state` (kept, dropped,
        unknown, quarantined, removed) and `reason` (the stage and clause that decided, as in `why`; null where kept)."""
        shard = self.shard(number)
        wanted = {n: shard.column(self.columns[n]) for n in names}
        return pa.table({**wanted, STATE: pa.array([STATE_NAMES[s] for s in shard.kept.state], pa.string()),
                         REASON: pa.array(self._reasons(shard.kept), pa.string())})

    def place(self, stage: int, clause: int) -> str:
        """The words for where a row left: the line of the pipeline and the clause of a keep."""
        if stage == REPEATED:
            return TAKEN_DOWN if clause == TAKEN else "repeated_row"
        if stage >= len(self.stages):
            return "the end: it has no image"
        entry = self.stages[stage]
        text = entry["clauses"][clause] if entry["clauses"] and clause >= 0 else entry["what"]
        return f"line {entry['line']}: {text}"

    def error(self, stage: int, number: int, row: int) -> str:
        """The words of a quarantine, from the step's own folder; empty where there are none."""
        if not 0 <= stage < len(self.stages) or not self.stages[stage].get("folder"):
            return ""
        errors = self.shard(number).column(Column(ERROR, pa.string(), "", self.stages[stage]["folder"]))
        return errors[row].as_py() or ""

    def _reasons(self, kept: Kept) -> list[str | None]:
        known = {pair: self.place(*pair) for pair in set(zip(kept.stage.tolist(), kept.clause.tolist(), strict=True))}
        gone = (kept.state > 0).tolist()
        return [known[s, c] if g else None for g, s, c in zip(gone, kept.stage.tolist(), kept.clause.tolist(), strict=True)]

    def _located(self, weights: str) -> str:
        inside = self.root / weights
        return str(inside) if weights and inside.exists() else weights


def _type(store: Store, source: Source, column: dict[str, Any]) -> pa.DataType:
    """A column's Arrow type: by its name, or, where that does not say all (lists, timestamps), from a file that holds it."""
    known = {str(t): t for t in (step.vector, step.image, pa.null())}
    if column["type"] in known:
        return known[column["type"]]
    try:
        return pa.type_for_alias(column["type"])
    except ValueError:
        pass
    if not column["folder"]:
        return source.columns[column["name"]]
    part = next((store.root / "columns" / column["folder"]).glob("*.parquet"), None)
    return pq.read_schema(part).field(column["name"]).type if part else pa.null()
