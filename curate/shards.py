"""Finished shards: tars and parquet as img2dataset and webdataset write them, and a manifest that proves what they hold.

    00000.tar        <key>.jpg <key>.txt <key>.json a row; the key is the uid, so no number depends on what was filtered
    00000.parquet    the same rows in the same order, all scalar columns
    00000_stats.json counts, and the content key by which a second run sees that nothing changed
    manifest.json    written last: sha256, rows and uid digest a shard

Rows are packed inside fixed blocks of source shards, in source order: a row healed or removed rewrites its block, not the set.
"""

import hashlib
import json
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa

from curate import files, images
from curate.measure import Report, Shard, Worker
from curate.pipeline import ShardSettings
from curate.plan import Column
from curate.source import Source
from curate.store import Store, alive_digest
from curate.tar import BadTar, TarWriter, members

LAYOUT = 1
_PLAIN_KEY = re.compile(r"[A-Za-z0-9_-]{1,80}")


@dataclass(frozen=True)
class Block:
    """A run of source shards that is packed by itself into tars numbered from `number`."""

    index: int
    first: int
    stop: int
    number: int
    tars: int
    rows: int
    chain: str
    content: str
    columns: tuple[tuple[str, Column], ...]
    folder: Path

    @property
    def label(self) -> str:
        """What messages call it."""
        return f"block {self.index}"


def scalar_columns(columns: Mapping[str, Column]) -> tuple[tuple[str, Column], ...]:
    """The columns that go into shards: no vectors, no image references."""
    return tuple((n, c) for n, c in columns.items() if not pa.types.is_nested(c.type))


def plan_blocks(store: Store, source: Source, chain: str, columns: Mapping[str, Column], settings: ShardSettings,
                folder: Path) -> list[Block]:
    """How the alive rows of a chain are laid out: from the kept files' footers alone."""
    blocks: list[Block] = []
    packed = (("image", columns["image"]), *scalar_columns(columns))
    number = 0
    for index, first in enumerate(range(0, source.num_shards, settings.block)):
        stop = min(first + settings.block, source.num_shards)
        alive = [store.kept_footer(chain, shard) for shard in range(first, stop)]
        tars = -(-sum(n for _, n in alive) // settings.rows)
        content = files.digest([LAYOUT, index, number, settings.rows, [d for d, _ in alive], {n: c.id for n, c in packed}])
        blocks.append(Block(index, first, stop, number, tars, settings.rows, chain, content, packed, folder))
        number += tars
    return blocks


def pack_block(worker: Worker, block: Block) -> Report:
    """Write a block's tars, unless they are there already."""
    begin = time.perf_counter()
    numbers = range(block.number, block.number + block.tars)
    report = Report((block.content,))
    if not all(_is_packed(block.folder, number, block.content) for number in numbers):
        rows = _rows(worker, block)
        for number in numbers:
            report.measured["shards"] = report.measured.get("shards", 0) + _write_shard(worker, block, number, rows)
    report.seconds = time.perf_counter() - begin
    return report


def write_manifest(folder: Path, blocks: Sequence[Block], attempt: str) -> dict[str, Any]:
    """Remove what is no longer part of the set, then commit it: the manifest is written last."""
    total = blocks[-1].number + blocks[-1].tars if blocks else 0
    listed = [files.read_json(folder / f"{n:05d}_stats.json") for n in range(total)]
    keep = {f"{n:05d}" for n in range(total)}
    for path in folder.glob("[0-9]*") if folder.exists() else ():
        if re.match(r"\d+", path.name)[0] not in keep:  # type: ignore[index]
            path.unlink()
    manifest = {
        "layout": LAYOUT,
        "rows": sum(s["count"] for s in listed),
        "columns": [name for name, _ in blocks[0].columns if name != "image"] if blocks else [],
        "shards": [{k: s[k] for k in ("file", "rows", "bytes", "sha256", "parquet_sha256", "uid_digest")} for s in listed],
    }
    files.write_json(folder / "manifest.json", manifest, attempt)
    return manifest


def verify(folder: Path) -> Iterator[str]:
    """What is wrong with a set of shards, one line each: re-hash every file, re-read every member. Nothing for a whole set."""
    manifest = files.read_json(folder / "manifest.json")
    if manifest is None:
        yield f"{folder}: no manifest.json: the set was never finished"
        return
    for entry in manifest["shards"]:
        yield from _verify_shard(folder, entry)
    listed = {s["file"] for s in manifest["shards"]}
    for path in sorted(folder.glob("*.tar")):
        if path.name not in listed:
            yield f"{path}: not in the manifest"


def write_subset(store: Store, source: Source, chain: str, columns: Mapping[str, Column], folder: Path) -> int:
    """`shards: none`: the alive rows as one table (subset.parquet) and DataComp's sorted `u8,u8` array of their uids."""
    import pyarrow.parquet as pq

    chosen = scalar_columns(columns)
    uids: list[np.ndarray] = []
    schema = pa.schema([(name, ref.type) for name, ref in chosen])
    with files.atomic(folder / "subset.parquet", store.attempt) as file, \
            pq.ParquetWriter(file, schema, compression="zstd") as out:
        for number in range(source.num_shards):
            shard = Shard.at(store, source, number, chain)
            alive = pa.array(shard.kept.alive)
            table = pa.table({name: shard.column(ref).take(alive) for name, ref in chosen}, schema=schema)
            out.write_table(table)
            uids.append(uid_pairs(table["uid"].to_pylist()))
    everything = np.sort(np.concatenate(uids)) if uids else np.empty(0, UID_PAIR)
    with files.atomic(folder / "subset.npy", store.attempt) as file:
        np.save(file, everything)
    return len(everything)


UID_PAIR = np.dtype("u8,u8")


def uid_pairs(uids: Iterable[str]) -> np.ndarray:
    """DataComp's form of uids: the two halves of 32 hex digits; a user's uid of another form enters by its hash."""
    def halves(uid: str) -> tuple[int, int]:
        text = uid if re.fullmatch(r"[0-9a-f]{32}", uid) else hashlib.blake2b(uid.encode(), digest_size=16).hexdigest()
        return int(text[:16], 16), int(text[16:], 16)
    return np.array([halves(uid) for uid in uids], UID_PAIR)


def key_of(uid: str) -> str:
    """The key of a row's members: its uid, or its hash where a dot or slash would break the tar's grouping."""
    return uid if _PLAIN_KEY.fullmatch(uid) else hashlib.blake2b(uid.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def _is_packed(folder: Path, number: int, content: str) -> bool:
    stats = files.read_json(folder / f"{number:05d}_stats.json")
    if stats is None or stats["content"] != content:
        return False
    tar = folder / f"{number:05d}.tar"
    return tar.exists() and tar.stat().st_size == stats["bytes"] and (folder / f"{number:05d}.parquet").exists()


def _rows(worker: Worker, block: Block) -> Iterator[tuple[dict[str, Any], Mapping[str, Any]]]:
    """(scalar values, image reference) of every alive row of a block, one source shard in memory at a time."""
    for number in range(block.first, block.stop):
        shard = Shard.at(worker.store, worker.source, number, block.chain)
        alive = pa.array(shard.kept.alive)
        if len(alive):
            columns = {name: _plain(shard.column(ref).take(alive)) for name, ref in block.columns}
            refs = columns.pop("image")
            for i, ref in enumerate(refs):
                yield {name: values[i] for name, values in columns.items()}, ref


def _plain(column: pa.Array) -> list[Any]:
    """Python values; a float32 as its shortest decimal, not as the double it widens to."""
    if column.type == pa.float32():
        return [None if v is None else float(str(np.float32(v))) for v in column.to_pylist()]
    return list(column.to_pylist())


class _Hashing:
    """A file that hashes what is written to it."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.sha256, self.bytes = file, hashlib.sha256(), 0

    def write(self, data: bytes) -> int:
        """Write and hash."""
        self.sha256.update(data)
        self.bytes += len(data)
        return self._file.write(data)


def _write_shard(worker: Worker, block: Block, number: int, rows: Iterator[tuple[dict[str, Any], Mapping[str, Any]]]) -> int:
    """One tar of up to `block.rows` rows, its parquet and its stats; how many rows it holds."""
    root, attempt = worker.store.root, worker.store.attempt
    name = block.folder / f"{number:05d}"
    table_rows: list[dict[str, Any]] = []
    with ExitStack() as stack:
        out = _Hashing(stack.enter_context(files.atomic(name.with_suffix(".tar"), attempt)))
        tar = TarWriter(out)  # type: ignore[arg-type]
        for values, ref in rows:
            data, key = images.read(ref, root), key_of(values["uid"])
            tar.add(f"{key}.{images.extension(data)}", data)
            tar.add(f"{key}.txt", (values["caption"] or "").encode("utf-8", "surrogatepass"))
            tar.add(f"{key}.json", json.dumps(values, ensure_ascii=False).encode("utf-8", "surrogatepass"))
            table_rows.append({"key": key, **values})
            if len(table_rows) == block.rows:
                break
        tar.close()
    schema = pa.schema([("key", pa.string()), *((n, c.type) for n, c in block.columns if n != "image")])
    files.write_table(name.with_suffix(".parquet"), pa.Table.from_pylist(table_rows, schema), attempt)
    stats = {
        "file": f"{number:05d}.tar", "rows": len(table_rows), "count": len(table_rows), "successes": len(table_rows),
        "bytes": out.bytes, "sha256": out.sha256.hexdigest(), "parquet_sha256": files.file_digest(name.with_suffix(".parquet")),
        "uid_digest": alive_digest(pa.array([r["uid"] for r in table_rows], pa.string())), "content": block.content,
    }
    files.write_json(block.folder / f"{number:05d}_stats.json", stats, attempt)
    return len(table_rows)


def _verify_shard(folder: Path, entry: Mapping[str, Any]) -> Iterator[str]:
    import pyarrow.parquet as pq

    path = folder / entry["file"]
    if not path.exists():
        yield f"{path}: missing"
        return
    if files.file_digest(path) != entry["sha256"]:
        yield f"{path}: sha256 differs from the manifest"
        return
    parquet = path.with_suffix(".parquet")
    if not parquet.exists() or files.file_digest(parquet) != entry["parquet_sha256"]:
        yield f"{parquet}: missing, or sha256 differs from the manifest"
        return
    try:
        with open(path, "rb") as file:
            keys = [m.name.partition(".")[0] for m in members(file)]
    except BadTar as error:
        yield f"{path}: {error}"
        return
    table = pq.read_table(parquet, columns=["key", "uid"], partitioning=None)
    same_uids = alive_digest(table["uid"].combine_chunks()) == entry["uid_digest"]
    if list(dict.fromkeys(keys)) != table["key"].to_pylist() or not same_uids:
        yield f"{path}: its rows are not those of the manifest"
