"""What a run has packed: shards, the table of a run without them, funnel. Files that hold a row that goes are deleted at once and
packed anew from what is left; where the run is not finished, the next `curate run` packs them.
"""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from curate import files, funnel
from curate.folder import Folder
from curate.measure import Worker
from curate.pipeline import ShardSettings, load
from curate.shards import is_packed, pack_block, plan_blocks, write_manifest
from curate.store import Store
from curate.subset import write_subset
from curate.takedown.journal import Plan


def drop(root: Path, plan: Plan) -> Iterator[Path]:
    """Delete the tars, tables and stats that hold one of these rows, and the table of uids; the set stops being whole."""
    for parquet in sorted((root / "shards").glob("[0-9]*.parquet")):
        if not _holds(parquet, plan):
            continue
        (root / "shards" / "manifest.json").unlink(missing_ok=True)
        for path in (parquet.with_name(f"{parquet.stem}_stats.json"), parquet.with_suffix(".tar"), parquet):
            path.unlink(missing_ok=True)
        yield parquet.with_suffix(".tar")
    subset = root / "subset.parquet"
    if subset.exists() and _holds(subset, plan):
        subset.with_suffix(".npy").unlink(missing_ok=True)
        subset.unlink()
        yield subset


def _holds(parquet: Path, plan: Plan) -> bool:
    return len(plan.uids_in(pq.read_table(parquet, columns=["uid"], partitioning=None)["uid"])) > 0


def settings_of(root: Path) -> dict[str, Any]:
    """How a run packs its shards: as it recorded that; of a run of an earlier version, as its pipeline file says now."""
    record = files.read_json(root / "run.json")
    return dict(record["shards"] if "shards" in record else asdict(load(Path(record["pipeline"]), record.get("sets", ())).shards))


def pack(root: Path, settings: ShardSettings, attempt: str) -> Iterator[Path]:
    """Pack what is missing and count the funnel anew, where the run had come to its end; nothing where it had not."""
    folder, store = Folder.open(root), Store(root, attempt)
    if not all(folder.is_through(number) for number in range(folder.source.num_shards)) or not (root / "funnel.json").exists():
        return
    counted = funnel.recount(store, folder.source, folder.chain, [(s["what"], s["clauses"]) for s in folder.stages])
    if counted != files.read_json(root / "funnel.json"):
        files.write_json(root / "funnel.json", counted, attempt)
        yield root / "funnel.json"
    if not settings.write or "image" not in folder.columns:
        if not (root / "subset.npy").exists():
            write_subset(store, folder.source, folder.chain, folder.columns, root)
        return
    if not (root / "shards").exists():
        return
    worker = Worker(root, attempt)
    blocks = plan_blocks(store, folder.source, folder.chain, folder.columns, settings, store.shards)
    for block in (b for b in blocks if not is_packed(b)):
        pack_block(worker, block)
    write_manifest(store.shards, blocks, attempt, files.read_json(root / "run.json").get("decontaminated", ()))
