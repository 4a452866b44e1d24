"""takedown.pending.json: what a takedown has decided to do, while it does it; takedowns.jsonl: what was done.

The first is the commit point. It is written before anything changes and removed when all is done, so a takedown that was killed
goes on with the same rows, whatever of them is blank already. Like the tombstones it holds hashes, and places of rows, as long as
it is there. The second stays, and names nobody: time, digest of the list, counts, files, models.
"""

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from curate import block_list, files
from curate.takedown.find import Found
from curate.tombstones import PENDING

RECORD = "takedowns.jsonl"


@dataclass(frozen=True)
class Plan:
    """What goes, by place and by name, the tombstones that stay, and what has to be made anew."""

    list_digest: str
    rows: dict[int, list[int]]
    image_ids: list[str]
    uid_hashes: list[str]
    """sha256 of the uids, as a user's own may say who it is about"""
    tombstones: list[str]
    kept_rows: int
    """of the rows, those that the run had kept"""
    models: list[str]
    published: list[str]
    again: list[str]
    """index, report, card: those there were"""
    shards: dict[str, Any]
    """how they are packed"""
    index_model: str = ""

    @property
    def num_rows(self) -> int:
        """How many rows go."""
        return sum(map(len, self.rows.values()))

    @cached_property
    def _hashed(self) -> frozenset[str]:
        return frozenset(self.uid_hashes)

    def uids_in(self, values: pa.ChunkedArray) -> pa.Array:
        """Those of a column's values that are uids of rows that go, each once."""
        found = pc.unique(values).drop_null().cast(pa.string())
        return found.filter(pa.array([block_list.sha256_of(uid) in self._hashed for uid in found.to_pylist()], pa.bool_()))


def plan_of(found: Found, list_digest: str, bits: int, **told: Any) -> Plan:
    """The plan for what was found; `told` are its other fields."""
    return Plan(list_digest, {n: found.rows[n] for n in sorted(found.rows)}, sorted(found.image_ids),
                sorted(map(block_list.sha256_of, found.uids)), found.tombstones(bits), **told)


def read(root: Path) -> Plan | None:
    """The takedown that was begun and not ended."""
    known = files.read_json(root / PENDING)
    return None if known is None else Plan(**{**known, "rows": {int(n): rows for n, rows in known["rows"].items()}})


def begin(root: Path, plan: Plan, attempt: str) -> None:
    """From here on it will be done."""
    files.write_json(root / PENDING, {**asdict(plan), "rows": {str(n): rows for n, rows in plan.rows.items()}}, attempt)


def end(root: Path, plan: Plan, rewritten: int, attempt: str) -> None:
    """It is done: record it, once, and forget whom it was about."""
    record(root, {"list": plan.list_digest, "rows": plan.num_rows, "kept_rows": plan.kept_rows, "pictures": len(plan.image_ids),
                  "files_rewritten": rewritten, "models": plan.models, "published": plan.published}, attempt,
           files.digest([plan.list_digest, plan.tombstones]))
    (root / PENDING).unlink(missing_ok=True)
    files.sync_folder(root)


def record(root: Path, told: dict[str, Any], attempt: str, identity: str) -> None:
    """Append a line to the record, unless the last one is this one already."""
    lines = list(_lines(root / RECORD))
    if lines and json.loads(lines[-1])["id"] == identity:
        return
    line = json.dumps({"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "id": identity, **told})
    files.write_bytes(root / RECORD, "".join(f"{entry}\n" for entry in [*lines, line]).encode(), attempt)


def _lines(path: Path) -> Iterator[str]:
    if path.exists():
        yield from (line for line in path.read_text().split("\n") if line)
