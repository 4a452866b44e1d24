"""`curate shard`: shards from what is there already: a run, tars or a folder of images; all rows, a uid list, an expression."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curate import files
from curate.errors import UserError, did_you_mean
from curate.keep import Keep, parse
from curate.measure import Shard, decide
from curate.pipeline import OWN_COLUMNS, ShardSettings
from curate.plan import BoundKeep, Column
from curate.report import Folder
from curate.schedule import Tasks, drain
from curate.shards import UID_PAIR, plan_blocks, uid_pairs, write_manifest
from curate.source import Source, ingest, parse_source
from curate.store import DROPPED, Store
from curate.work import Task


@dataclass(frozen=True)
class Choice:
    """Which rows: of those a run kept (or all), those in a uid list, those for which an expression is true."""

    uids: np.ndarray | None
    keep: Keep | None
    dropped_too: bool

    def identity(self, chain: str) -> str:
        """The chain id of this choice made after `chain`."""
        uids = None if self.uids is None else files.digest(self.uids.tobytes())
        return files.digest(["shard", chain, uids, self.keep.text if self.keep else None, self.dropped_too])


def reshard(source: str, out: Path, *, uids: Path | None, where: str | None, rows: int, dropped_too: bool, workers: int,
            attempt: str) -> Iterator[str]:
    """Write the chosen rows of `source` as shards into `out`; lines that say what came out."""
    from curate.local import make_pool

    store, rows_source, columns, chain = _open(source, out, attempt)
    if "image" not in columns:
        raise UserError(f"{source} has no images to put into shards")
    keep = parse(where, {n: c.type for n, c in columns.items() if not pa.types.is_nested(c.type)}) if where else None
    choice = Choice(read_uids(uids) if uids else None, keep, dropped_too)
    with store.lock():
        chosen = choose(store, rows_source, columns, chain, choice)
        blocks = plan_blocks(store, rows_source, chosen, columns, ShardSettings(rows=rows), out)
        pool = make_pool(store.root, attempt, workers)
        try:
            for _ in drain(pool, Tasks([(Task("pack", block, shard=block.index), []) for block in blocks])):
                pass
        finally:
            pool.close()
        manifest = write_manifest(out, blocks, attempt)
    yield f"{manifest['rows']:,} of {rows_source.num_rows:,} rows in {len(manifest['shards'])} shards: {out}"
    if choice.uids is not None and manifest["rows"] < len(choice.uids):
        yield f"{len(choice.uids) - manifest['rows']:,} of the {len(choice.uids):,} uids have no kept row with an image here"


def choose(store: Store, source: Source, columns: Mapping[str, Column], chain: str, choice: Choice) -> str:
    """Record which rows are chosen as kept files of a chain of their own; its id."""
    chosen = choice.identity(chain)
    image = BoundKeep(2, "", None, {"mask": columns["image"]})
    for number in range(source.num_shards):
        if store.has_kept(chosen, number):
            continue
        shard = Shard.at(store, source, number, "" if choice.dropped_too else chain)
        uids = shard.column(columns["uid"])
        if choice.uids is not None:
            alive = shard.kept.alive
            wanted = np.isin(uid_pairs(uids.take(pa.array(alive)).to_pylist()), choice.uids)
            shard.kept.leave(alive[~wanted], DROPPED, 0)
        if choice.keep is not None:
            names = {c for clause in choice.keep.clauses for c in clause.columns}
            decide(BoundKeep(1, "", choice.keep, {n: columns[n] for n in names}), shard)
        decide(image, shard)
        store.write_kept(chosen, number, shard.kept, uids)
    return chosen


def read_uids(path: Path) -> np.ndarray:
    """A list of uids as DataComp's pairs: a `.npy` of dtype u8,u8, or the `uid` column of a parquet file."""
    if not path.exists():
        raise UserError(f"no file {path}")
    if path.suffix == ".npy":
        try:
            pairs = np.load(path, allow_pickle=False)
        except ValueError as error:
            raise UserError(f"{path} is not a numpy array of uids: {error}") from None
        if pairs.dtype != UID_PAIR:
            raise UserError(f"{path} holds {pairs.dtype}, a list of uids holds u8,u8 pairs")
        return np.unique(pairs)
    names = pq.read_schema(path).names
    if "uid" not in names:
        raise UserError(f"{path} has no column 'uid'{did_you_mean('uid', names)}")
    return np.unique(uid_pairs(pq.read_table(path, columns=["uid"], partitioning=None)["uid"].to_pylist()))


def _open(source: str, out: Path, attempt: str) -> tuple[Store, Source, dict[str, Column], str]:
    if (Path(source) / "run.json").exists():
        folder = Folder.open(Path(source))
        return Store(Path(source), attempt), folder.source, folder.columns, folder.chain
    is_folder = Path(source).is_dir() and not any(Path(source).glob("*.tar"))
    settings: dict[str, Any] = {"images": source} if is_folder else {"shards": source}
    store = Store(out / "run", attempt)
    store.root.mkdir(parents=True, exist_ok=True)
    rows = ingest(parse_source(settings), store.source, attempt, None)
    columns = {n: Column(n, t, f"source.{n}") for n, t in {**OWN_COLUMNS, **rows.columns}.items()}
    return store, rows, columns, ""
