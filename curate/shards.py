"""Finished shards: tars and parquet as img2dataset and webdataset write them, and a manifest that proves what they hold.

    00000.tar        <key>.jpg <key>.txt <key>.json a row; the key is the uid, so no number depends on what was filtered
    00000.parquet    the same rows in the same order; the columns of the .json, image_id, and the vectors that are asked for
    00000_stats.json counts as img2dataset's, and the content key by which a second run sees that nothing changed
    manifest.json    sha256 of every file, rows and uid digest a shard; removed first, written last: where it is, the set is whole

Rows are packed inside fixed blocks of source shards, in source order: a row healed or removed rewrites its block, not the set.
"""

import bisect
import functools
import hashlib
import itertools
import json
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curate import files, step
from curate.decoding import images
from curate.errors import RunStopped
from curate.measure import Report, Shard, Worker
from curate.pipeline import ShardSettings
from curate.plan import Column
from curate.sources.source import Source
from curate.store import Store, alive_digest
from curate.tar import BadTar, TarWriter, members

LAYOUT = 1
NUMBERED = re.compile(r"\d{5,}(\.tar|\.parquet|_stats\.json)")
"""The files of a set of shards, but for its manifest."""
UID_PAIR = np.dtype("u8,u8")
"""DataComp's form of a uid: the two halves of its 32 hex digits."""
UID_BYTES = np.dtype("S16")
"""The same as 16 bytes, which sort alike and compare fast."""
_HEX = re.compile(r"[0-9a-f]{32}")
_PLAIN_KEY = re.compile(r"[A-Za-z0-9_-]{1,80}")


@dataclass(frozen=True)
class Tar:
    """What one numbered tar holds: `rows` alive rows, from the one after `skip` of source shard `first` on."""

    number: int
    first: int
    stop: int
    skip: int
    rows: int
    content: str


@dataclass(frozen=True)
class Block:
    """Neighbouring tars that one task writes."""

    index: int
    tars: tuple[Tar, ...]
    chain: str
    columns: tuple[tuple[str, Column], ...]
    folder: Path

    @property
    def label(self) -> str:
        """What messages call it."""
        return f"shards {self.tars[0].number} to {self.tars[-1].number}"


def packed_columns(columns: Mapping[str, Column], caption: str = "caption",
                   vectors: Sequence[str] = ()) -> tuple[tuple[str, Column], ...]:
    """The columns that go into shards: all but image references, notes on how a row was read, and vectors other than `vectors`.

    `key` is ours here; what a source calls so is `source_key`, unless it has that from shards that were packed before. Where
    another column than `caption` is the caption of a sample, it takes that name, and the source's text is `source_caption`.
    """
    chosen = {n: c for n, c in columns.items()
              if c.type != step.image and n != "source_error" and (n in vectors or not _is_vector(c.type))}
    ours = {"key": "source_key"} | ({"caption": "source_caption", caption: "caption"} if caption != "caption" else {})
    return tuple((ours.get(n, n), c) for n, c in chosen.items() if n not in ours or ours[n] not in chosen or ours[n] == "caption")


def _is_vector(kind: pa.DataType) -> bool:
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return bool(is_list and pa.types.is_floating(kind.value_type))


def plan_blocks(store: Store, source: Source, chain: str, columns: Mapping[str, Column], settings: ShardSettings,
                folder: Path) -> list[Block]:
    """How the alive rows of a chain are laid out: from the kept files' footers alone."""
    chosen = packed_columns(columns, settings.caption, settings.vectors)
    made_of = [LAYOUT, dict(source.settings), columns["image"].id, {n: c.id for n, c in chosen}]
    a_task = max(1, source.settings["shard_rows"] // settings.rows)   # so that not every small tar reads a large source shard
    blocks: list[Block] = []
    number = 0
    for first in range(0, source.num_shards, settings.block):
        shards = range(first, min(first + settings.block, source.num_shards))
        tars = list(_tars(store, source, chain, shards, settings.rows, number, made_of))
        for i in range(0, len(tars), a_task):
            blocks.append(Block(len(blocks), tuple(tars[i : i + a_task]), chain, (("image", columns["image"]), *chosen), folder))
        number += len(tars)
    return blocks


def _tars(store: Store, source: Source, chain: str, shards: range, rows: int, number: int,
          made_of: Sequence[Any]) -> Iterator[Tar]:
    """The tars of one block of source shards. A tar's content key says all that its bytes depend on."""
    alive = [store.kept_footer(chain, shard) for shard in shards]
    parts = [source.part(shard) for shard in shards]
    content = [[digest, part.sha256 or list(part.stamp)] for (digest, _), part in zip(alive, parts, strict=True)]
    ends = list(itertools.accumulate(n for _, n in alive))
    for start in range(0, ends[-1], rows):
        stop = min(start + rows, ends[-1])
        a, b = bisect.bisect_right(ends, start), bisect.bisect_left(ends, stop) + 1
        skip = start - (ends[a - 1] if a else 0)
        key = files.digest([*made_of, skip, stop - start, content[a:b]])
        yield Tar(number, shards[a], shards[b - 1] + 1, skip, stop - start, key)
        number += 1


def pack_block(worker: Worker, block: Block) -> Report:
    """Write a block's tars but those that are there already. Before the first, the set stops being a whole one."""
    begin = time.perf_counter()
    report = Report((block.index,))
    missing = [tar for tar in block.tars if not _is_packed(block.folder, tar)]
    if missing:
        (block.folder / "manifest.json").unlink(missing_ok=True)
    alive = functools.lru_cache(maxsize=1)(lambda shard: _alive(worker, block, shard))
    for tar in missing:
        try:
            _write_tar(worker, block.folder, tar, _tables(tar, alive))
        except OSError as error:
            raise RunStopped(f"cannot write {block.folder}/{tar.number:05d}.tar: {error}; run the same command again") from error
    report.measured["shards"] = sum(tar.rows for tar in missing)
    report.seconds = report.step_seconds["shards"] = time.perf_counter() - begin
    return report


def is_packed(block: Block) -> bool:
    """Whether all tars of a block are there as they should be."""
    return all(_is_packed(block.folder, tar) for tar in block.tars)


def _is_packed(folder: Path, tar: Tar) -> bool:
    path, parquet, stats_path = _files_of(folder / f"{tar.number:05d}.tar")
    stats = files.read_json(stats_path, {})
    return stats.get("content") == tar.content and parquet.exists() and path.exists() and path.stat().st_size == stats["bytes"]


def _alive(worker: Worker, block: Block, number: int) -> pa.Table:
    shard = Shard.at(worker.store, worker.source, number, block.chain)
    index = pa.array(shard.kept.alive)
    return pa.table({name: shard.column(ref).take(index) for name, ref in block.columns})


def _tables(tar: Tar, alive: Callable[[int], pa.Table]) -> Iterator[pa.Table]:
    """The rows of a tar, one source shard in memory at a time."""
    skip, left = tar.skip, tar.rows
    for number in range(tar.first, tar.stop):
        table = alive(number)[skip : skip + left]
        skip, left = 0, left - len(table)
        yield table


def _write_tar(worker: Worker, folder: Path, tar: Tar, tables: Iterator[pa.Table]) -> None:
    """One tar, its parquet and its stats. The stats go first and come last: while they are there, they tell the truth."""
    path, parquet, stats = _files_of(folder / f"{tar.number:05d}.tar")
    attempt = worker.store.attempt
    stats.unlink(missing_ok=True)
    with files.atomic(path, attempt) as file, ExitStack() as unchanged:
        for number in range(tar.first, tar.stop):
            unchanged.enter_context(worker.source.unchanged(number))
        out = files.Hashing(file)
        writer = TarWriter(out)  # type: ignore[arg-type]
        rows = pa.concat_tables([_write_rows(writer, table, worker.store.root) for table in tables])
        writer.close()
    files.write_table(parquet, rows, attempt)
    files.write_json(stats, {
        "file": path.name, "rows": len(rows), "count": len(rows), "successes": len(rows), "failed_to_download": 0,
        "failed_to_resize": 0, "status_dict": {"success": len(rows)}, "bytes": out.bytes, "sha256": out.sha256.hexdigest(),
        "parquet_sha256": files.file_digest(parquet), "uid_digest": alive_digest(rows["uid"]), "content": tar.content}, attempt)


def _write_rows(writer: TarWriter, table: pa.Table, root: Path) -> pa.Table:
    """Three members a row; the rows as they stand in the parquet file."""
    refs, table = table["image"].to_pylist(), table.drop_columns("image")
    keys = [key_of(uid) for uid in table["uid"].to_pylist()]
    table = table.add_column(0, "key", pa.array(keys, pa.string()))
    names = [n for n in table.column_names       # who reads the tar again makes the same image_id of url or bytes
             if n != "image_id" and not _is_vector(table[n].type)]
    rows = zip(*(_plain(table[n]) for n in names), strict=True)
    pictures = images.read_each(refs, root)
    for key, data, caption, row in zip(keys, pictures, table["caption"].to_pylist(), rows, strict=True):
        meta = json.dumps(dict(zip(names, row, strict=True)), ensure_ascii=False, default=_text)
        writer.add(f"{key}.{images.extension(data)}", data)
        writer.add(f"{key}.txt", (caption or "").encode())
        writer.add(f"{key}.json", meta.encode())
    return table


def _plain(column: pa.ChunkedArray) -> list[Any]:
    """A column for JSON: a float32 as its shortest decimal, not as the double it widens to; what is no number there as null."""
    if pa.types.is_nested(column.type):
        return [_finite(v) for v in column.to_pylist()]
    if not pa.types.is_floating(column.type):
        return list(column.to_pylist())
    values = column.to_numpy()
    if column.type == pa.float64():
        return [v if math.isfinite(v) else None for v in values.tolist()]
    return [float(str(v)) if math.isfinite(v) else None for v in values]


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    return [_finite(v) for v in value] if isinstance(value, list | tuple) else value


def _text(value: Any) -> str:
    """What JSON has no form for: bytes as hex; dates, times and decimals as Python writes them."""
    return value.hex() if isinstance(value, bytes) else str(value)


def key_of(uid: str) -> str:
    """The key of a row's members: its uid, or its hash where a dot or slash would break the tar's grouping."""
    return uid if _PLAIN_KEY.fullmatch(uid) else hashlib.blake2b(uid.encode(), digest_size=16).hexdigest()


def _files_of(tar: Path) -> tuple[Path, Path, Path]:
    return tar, tar.with_suffix(".parquet"), tar.with_name(f"{tar.stem}_stats.json")


def _numbered(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if NUMBERED.fullmatch(p.name)) if folder.exists() else []


def write_manifest(folder: Path, blocks: Sequence[Block], attempt: str,
                   decontaminated: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """Remove what is no longer part of the set, then commit it: the manifest is written last, and only if it changes.

    `decontaminated` is what `curate.certificate` says of the rows.
    """
    tars = [folder / f"{tar.number:05d}.tar" for block in blocks for tar in block.tars]
    expected = {path for tar in tars for path in _files_of(tar)}
    for path in _numbered(folder):
        if path not in expected:
            (folder / "manifest.json").unlink(missing_ok=True)
            path.unlink()
    shards = [_entry(_files_of(tar)[2]) for tar in tars]
    columns = ["key", *(n for n, _ in blocks[0].columns if n != "image")] if blocks else []
    manifest = {"layout": LAYOUT, "rows": sum(s["rows"] for s in shards), "columns": columns, "shards": shards,
                **({"decontaminated": list(decontaminated)} if decontaminated else {})}
    manifest["digest"] = files.digest(manifest)
    if files.read_json(folder / "manifest.json") != manifest:
        files.write_json(folder / "manifest.json", manifest, attempt)
    return manifest


def _entry(stats: Path) -> dict[str, Any]:
    content = files.read_json(stats)
    keys = ("file", "rows", "bytes", "sha256", "parquet_sha256", "uid_digest")
    return {**{k: content[k] for k in keys}, "stats_sha256": files.file_digest(stats)}


def verify(folder: Path) -> Iterator[str]:
    """What is wrong with a set of shards, one line each: re-hash every file, re-read every member. Nothing for a whole set."""
    path = folder / "manifest.json"
    try:
        manifest = files.read_json(path)
    except ValueError:
        manifest = {}
    if manifest is None:
        yield f"{folder}: no manifest.json: the set was never finished"
        return
    if not isinstance(manifest, dict) or manifest.pop("digest", "") != files.digest(manifest):
        yield f"{path}: not as it was written"
        return
    expected: set[Path] = set()
    for entry in manifest["shards"]:
        found = _files_of(folder / entry["file"])
        expected.update(found)
        yield from _verify_shard(entry, found)
    yield from (f"{path}: not in the manifest" for path in _numbered(folder) if path not in expected)


def _verify_shard(entry: Mapping[str, Any], found: tuple[Path, Path, Path]) -> Iterator[str]:
    wrong = list(_verify_files(entry, found))
    yield from wrong
    if wrong:
        return
    tar, parquet, _ = found
    try:
        with open(tar, "rb") as file:
            keys = list(dict.fromkeys(m.name.partition(".")[0] for m in members(file)))
    except BadTar as error:
        yield f"{tar}: {error}"
        return
    table = pq.read_table(parquet, columns=["key", "uid"], partitioning=None)
    same_uids = len(table) == entry["rows"] and alive_digest(table["uid"]) == entry["uid_digest"]
    if keys != table["key"].to_pylist() or not same_uids:
        yield f"{tar}: its rows are not those of the manifest"


def _verify_files(entry: Mapping[str, Any], found: tuple[Path, Path, Path]) -> Iterator[str]:
    for path, key in zip(found, ("sha256", "parquet_sha256", "stats_sha256"), strict=True):
        if not path.exists():
            yield f"{path}: missing"
        elif key == "sha256" and path.stat().st_size != entry["bytes"]:
            yield f"{path}: {path.stat().st_size:,} bytes, the manifest says {entry['bytes']:,}"
        elif files.file_digest(path) != entry[key]:
            yield f"{path}: sha256 differs from the manifest"


def uid_bytes(uids: Sequence[str]) -> np.ndarray:
    """The 16 bytes of uids of 32 hex digits, in an order that is DataComp's; a user's uid of another form enters by its hash."""
    text = "".join(uids)
    if not re.fullmatch(r"[0-9a-f]*", text) or set(map(len, uids)) - {32}:
        text = "".join(uid if _HEX.fullmatch(uid) else hashlib.blake2b(uid.encode(), digest_size=16).hexdigest() for uid in uids)
    return np.frombuffer(bytes.fromhex(text), UID_BYTES)
