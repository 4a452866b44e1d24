"""`curate shard`: shards from what is there already: a run, tars, or images with captions; all rows, a uid list, an expression.

A row is its uid: of several rows with one uid the first is taken, and once, however often the list names it (DataComp's own
resharder repeats a sample as often as the list does). Tars and images are read in place; their own uid, if their .json has one,
stays theirs.
"""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curate import files, remote
from curate.certificate import certified_source
from curate.errors import UserError, did_you_mean
from curate.folder import Folder
from curate.keep import Keep, parse
from curate.measure import Shard, decide
from curate.pipeline import OWN_COLUMNS, ShardSettings, check_vectors
from curate.plan import BoundKeep, Column
from curate.schedule import Tasks, drain
from curate.shards import NUMBERED, UID_BYTES, UID_PAIR, plan_blocks, uid_bytes, write_manifest
from curate.sources.ingest import ingest
from curate.sources.locations import TABLES, parse_source
from curate.sources.source import Source
from curate.store import DROPPED, Store
from curate.tombstones import refuse_unfinished
from curate.work import Task

WORK = ".curate"
"""The folder inside the output that holds the lock, and what is known of the source while shards are written."""


@dataclass(frozen=True)
class Rows:
    """Where the rows come from: a store with its source, the columns there are, and the chain that says which were kept."""

    store: Store
    source: Source
    columns: Mapping[str, Column]
    decontaminated: Sequence[Mapping[str, Any]]
    """what is certified of these rows, so of any choice of them"""
    chain: str = ""
    caption: str = "caption"
    """the column that is the caption of a sample"""


@dataclass(frozen=True)
class Choice:
    """Which rows: of those a run kept (or all), those in a list of uids, those for which an expression is true."""

    uids: np.ndarray | None = None
    """sorted, as `uid_bytes` gives them; 16 bytes of memory each"""
    keep: Keep | None = None


def reshard(source: str, out: Path, *, uids: Path | None, where: str | None, rows: int, dropped_too: bool, workers: int,
            attempt: str, vectors: Sequence[str] = ()) -> Iterator[str]:
    """Write the chosen rows of `source` as shards into `out`, these embeddings in their tables; lines that say what came out."""
    wanted = read_uids(uids) if uids else None
    is_run = (Path(source) / "run.json").exists()
    if dropped_too and not is_run:
        raise UserError(f"--dropped-too: {source} is no run, nothing was dropped from it")
    remote.refuse_url(out, "--out")
    with _held(out):
        given = _of_run(Path(source), dropped_too, attempt) if is_run else rows_of_files(source, out / WORK, attempt)
        _refuse_itself(given.source, out)
        types = {n: c.type for n, c in given.columns.items()}
        check_vectors("--vectors", vectors, types)
        keep = parse(where, {n: t for n, t in types.items() if not pa.types.is_nested(t)}) if where else None
        settings = ShardSettings(rows=rows, caption=given.caption, vectors=tuple(vectors))
        with given.store.lock() if is_run else nullcontext():
            manifest = _pack(given, Choice(wanted, keep), settings, out, workers)
    yield f"{manifest['rows']:,} of {given.source.num_rows:,} rows in {len(manifest['shards'])} shards: {out}"
    if given.source.num_repeated:
        yield f"{given.source.num_repeated:,} rows are left out because an earlier row has the same uid"
    if wanted is not None and manifest["rows"] < len(wanted):
        yield f"{len(wanted) - manifest['rows']:,} of the {len(wanted):,} uids have no kept row with an image here"


@contextmanager
def _held(out: Path) -> Iterator[None]:
    """Nobody else writes into `out`, which is new or of ours. After a mistake of the user's it is as it was."""
    if (out.parent / "run.json").exists() and out.name == "shards":
        raise UserError(f"--out {out} is where a run keeps its own shards; give a folder of its own")
    foreign = [] if _is_ours(out) or not out.exists() else [p.name for p in out.iterdir() if NUMBERED.fullmatch(p.name)]
    if foreign:
        raise UserError(f"--out {out} holds '{min(foreign)}', which is not of a set of ours; give a folder of its own")
    new = next((path for path in (out, out / WORK) if not path.exists()), None)
    with Store(out / WORK).lock():
        try:
            for left in out.glob(f".*{files.TEMPORARY}"):
                left.unlink()
            yield
        except UserError:
            if new:
                shutil.rmtree(new)
            raise
        shutil.rmtree(out / WORK)


def _is_ours(out: Path) -> bool:
    """Whether a set of shards in `out` is one that `reshard` made, or was making when it was killed."""
    try:
        manifest = files.read_json(out / "manifest.json", {})
    except ValueError:
        manifest = {}
    return (out / WORK).exists() or (isinstance(manifest, dict) and "layout" in manifest)


def _pack(given: Rows, choice: Choice, settings: ShardSettings, out: Path, workers: int) -> dict[str, Any]:
    from curate.local import make_pool

    chosen = f".shard.{given.store.attempt}{files.TEMPORARY}"     # swept with all temporary files if this is killed
    try:
        for number in range(given.source.num_shards):
            choose(given, choice, number, chosen)
        blocks = plan_blocks(given.store, given.source, chosen, given.columns, settings, out)
        tasks = Tasks([(Task("pack", block, shard=block.index), []) for block in blocks])
        pool = make_pool(given.store.root, given.store.attempt, min(workers, len(blocks)) if len(blocks) > 1 else 0)
        try:
            for _ in drain(pool, tasks):
                pass
        finally:
            pool.close()
        return write_manifest(out, blocks, given.store.attempt, given.decontaminated)
    finally:
        shutil.rmtree(given.store.kept_path(chosen, 0).parent, ignore_errors=True)


def choose(given: Rows, choice: Choice, number: int, chosen: str) -> None:
    """Record which rows of a source shard are chosen, as the kept file of a chain of its own."""
    shard = Shard.at(given.store, given.source, number, given.chain)
    uids = shard.column(given.columns["uid"])
    if choice.uids is not None:
        alive = shard.kept.alive
        shard.kept.leave(alive[~_is_in(uid_bytes(uids.take(pa.array(alive)).to_pylist()), choice.uids)], DROPPED, 0)
    if choice.keep is not None:
        names = {c for clause in choice.keep.clauses for c in clause.columns}
        decide(BoundKeep(1, "", choice.keep, {n: given.columns[n] for n in names}), shard)
    decide(BoundKeep(2, "", None, {"mask": given.columns["image"]}), shard)
    given.store.write_kept(chosen, number, shard.kept, uids)


def _is_in(values: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Which of `values` stand in the sorted `among`."""
    if not len(among):
        return np.zeros(len(values), bool)
    where = np.minimum(np.searchsorted(among, values), len(among) - 1)
    found: np.ndarray = among[where] == values
    return found


def read_uids(path: Path) -> np.ndarray:
    """A list of uids, sorted and each once: a `.npy` of DataComp's pairs, or the `uid` column of a parquet file."""
    if not path.is_file():
        raise UserError(f"no file {path}")
    try:
        return np.unique(_of_pairs(path) if path.suffix == ".npy" else _of_table(path))
    except (ValueError, pa.ArrowException):
        raise UserError(f"{path}: --uids takes a .npy of u8,u8 pairs, or a parquet file with a column 'uid'") from None


def _of_pairs(path: Path) -> np.ndarray:
    pairs = np.lib.format.open_memmap(path, mode="r")
    if pairs.dtype != UID_PAIR:
        raise ValueError(f"{pairs.dtype} are no uids")
    return np.stack([pairs["f0"], pairs["f1"]], axis=1).astype(">u8").view(UID_BYTES).reshape(-1)


def _of_table(path: Path) -> np.ndarray:
    names = pq.read_schema(path).names
    if "uid" not in names:
        raise UserError(f"{path} has no column 'uid'{did_you_mean('uid', names)}")
    return uid_bytes(pq.read_table(path, columns=["uid"], partitioning=None)["uid"].drop_null().cast(pa.string()).to_pylist())


def _of_run(root: Path, dropped_too: bool, attempt: str) -> Rows:
    folder = Folder.open(root)
    refuse_unfinished(root)
    store, chain = Store(root, attempt), "" if dropped_too else folder.chain
    if chain and not all(store.has_kept(chain, shard) for shard in range(folder.source.num_shards)):
        raise UserError(f"{root} is not finished; run its pipeline again first, or take --dropped-too")
    if "image" not in folder.columns:
        raise UserError(f"{root} has no images to put into shards")
    record = files.read_json(root / "run.json")
    certified = record.get("decontaminated", []) if chain else certified_source(folder.source)
    caption = record["shards"].get("caption", "caption") if chain else "caption"    # a row that was dropped may have no other
    return Rows(store, folder.source, folder.columns, certified, chain, caption)


def rows_of_files(source: str, work: Path, attempt: str) -> Rows:
    """Tars, else a folder or a table of images; read anew, because what an earlier attempt knew may not be true any more."""
    path = Path(source)
    is_images = path.suffix in TABLES or (path.is_dir() and not any(path.rglob("*.tar")))
    store = Store(work, attempt)
    shutil.rmtree(store.source, ignore_errors=True)
    rows = ingest(parse_source({"images" if is_images else "shards": source}), store.source, attempt)
    columns = {n: Column(n, t, f"source.{n}") for n, t in {**OWN_COLUMNS, **rows.columns}.items()}
    return Rows(store, rows, columns, certified_source(rows))


def _refuse_itself(source: Source, out: Path) -> None:
    if any(Path(part.path).resolve().parent == out.resolve() for part in source.parts if "://" not in part.path):
        raise UserError(f"--out {out} is where the source's own tars lie; give a folder of its own")
