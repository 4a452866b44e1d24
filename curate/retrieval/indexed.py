"""`curate index RUN`: everything a run has embedded, kept and dropped, made searchable.

    RUN/index/image.faiss, text.faiss     the distinct vectors; plain `faiss.read_index` reads them
    RUN/index/rows.parquet                the rows in source order: every scalar column, state, reason, where the picture lies;
                                          `_image_vector` and `_text_vector` are positions in the .faiss files (null: none),
                                          `_picture` is equal for rows that show the same picture
    RUN/index/hits.arrow                  what a hit shows of each row, uncompressed: mapped into memory, not read
    RUN/index/index.json                  what all this is, with a sha256 of each file; written last

Equal vectors are stored once, however many rows share them. Rows that were taken down or repeat another are in none of the files.
Shards are read one at a time, three times over; besides, memory holds the index and some 100 bytes a row.
"""

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from curate import files, index
from curate.errors import UserError, did_you_mean
from curate.folder import REASON, STATE, Embedder, Folder
from curate.index import Built, Ints, Matrix
from curate.keep import KINDS
from curate.measure import matrix
from curate.shards import UID_BYTES, uid_bytes
from curate.store import REMOVED, Store

LAYOUT = 1
IMAGE, TEXT = "image", "text"
VECTOR = {IMAGE: "_image_vector", TEXT: "_text_vector"}
PICTURE = "_picture"
SHOWN = pa.schema([("uid", pa.string()), ("caption", pa.string()), ("url", pa.string()), ("width_px", pa.int32()),
                   ("height_px", pa.int32()), (STATE, pa.string()), (REASON, pa.string()),
                   ("image", pa.struct([("file", pa.string()), ("offset", pa.int64()), ("length", pa.int64())]))])
"""The columns of hits.arrow; null where a run has no such column."""
ROW_GROUP, BATCH = 8192, 65536
SAME_BY = (("same_as", "same_as"), ("phash", "phash"))
"""Columns that say which pictures look alike, the better one first; without either, the cosine decides when a search is made."""
Digests = NDArray[np.bytes_]


@dataclass
class Side:
    """One index to be: the column of its vectors, and for every indexed row the position of its vector, or -1."""

    name: str
    column: str
    digests: Digests
    """of each row's vector, 16 bytes; empty where there is none"""
    dims: int

    @cached_property
    def _distinct(self) -> tuple[Ints, NDArray[np.int32]]:
        has = np.flatnonzero(self.digests != b"")
        _, first, which = np.unique(self.digests[has], return_index=True, return_inverse=True)
        rank = np.argsort(np.argsort(first)).astype(np.int32)
        position = np.full(len(self.digests), -1, np.int32)
        position[has] = rank[which]
        return np.sort(has[first]), position

    @property
    def firsts(self) -> Ints:
        """The first row of each distinct vector, in order: position n of the index is the vector of row firsts[n]."""
        return self._distinct[0]

    @property
    def positions(self) -> NDArray[np.int32]:
        """Where each row's vector stands in the index; -1 where there is none."""
        return self._distinct[1]


@dataclass(frozen=True)
class Scanned:
    """What the first reading of a run found: which rows of each shard are indexed, and the two sides."""

    rows: list[NDArray[np.int64]]
    sides: dict[str, Side]
    unusable: int
    """vectors without a direction: zero, NaN, infinite"""


def build(root: Path, *, model: str = "", recall: float = 0.95, attempt: str,
          flat_values: int = index.FLAT_VALUES) -> Iterator[str]:
    """Write RUN/index; lines that say what came out. Raises UserError, and leaves no index that could be opened."""
    if not 0 < recall <= 1:
        raise UserError(f"--recall {recall}: a share of the {index.AT} nearest, above 0 and at most 1")
    folder = Folder.open(root)
    with Store(root, attempt).lock():
        _refuse_unfinished(folder)
        embedder = chosen(folder, model)
        weights = _weights_digest(embedder)
        scanned = _scan(folder, embedder)
        out, earlier = root / "index", files.read_json(root / "index" / "index.json", {})
        (out / "index.json").unlink(missing_ok=True)
        entries = {}
        for name, side in scanned.sides.items():
            entries[name] = _entry(folder, scanned, side, recall, flat_values, earlier, out / f"{name}.faiss", attempt)
            yield _line(name, side, entries[name])
        counts = _write_rows(folder, scanned, out, attempt)
        manifest = {"layout": LAYOUT, **_state_of(folder), **counts, "same_by": _same_by(folder),
                    "model": {"prefix": embedder.prefix, "name": embedder.model, "weights_digest": weights}, "indexes": entries}
        written = [*(f"{name}.faiss" for name in entries), "rows.parquet", "hits.arrow"]
        manifest["files"] = {name: files.file_digest(out / name) for name in written}
        for name in {IMAGE, TEXT} - entries.keys():
            (out / f"{name}.faiss").unlink(missing_ok=True)
        files.write_json(out / "index.json", {**manifest, "digest": files.digest(manifest)}, attempt)
    yield f"{counts['rows']:,} rows, {counts['kept']:,} of them kept: {out}"
    if scanned.unusable:
        yield f"{scanned.unusable:,} vectors have no direction (zero, NaN or infinite) and are left out"


def chosen(folder: Folder, prefix: str) -> Embedder:
    """The embedder called `prefix`, or the only one there is."""
    there = {e.prefix: e for e in folder.embedders}
    if not there:
        raise UserError(f"{folder.root} has no embeddings to index: its pipeline has no clip_embed")
    if prefix in there:
        return there[prefix]
    if prefix:
        raise UserError(f"--model {prefix}: the run has no such model{did_you_mean(prefix, there)}")
    if len(there) > 1:
        raise UserError(f"the run has several models, choose one: --model {' or '.join(sorted(there))}")
    return next(iter(there.values()))


def open_manifest(folder: Folder) -> dict[str, Any]:
    """index.json of an index that is of this state of the run, and whole. Raises UserError of one line."""
    path, again = folder.root / "index" / "index.json", f"; `curate index {folder.root}` makes it anew"
    try:
        manifest = files.read_json(path)
    except ValueError:
        manifest = {}
    if manifest is None:
        raise UserError(f"{folder.root} has no index; `curate index {folder.root}` makes it")
    if not isinstance(manifest, dict) or manifest.pop("digest", "") != files.digest(manifest) or manifest.get("layout") != LAYOUT:
        raise UserError(f"{path} is not as it was written{again}")
    _refuse_unfinished(folder)
    if any(manifest[key] != value for key, value in _state_of(folder).items()):
        raise UserError(f"the run has changed since {path.parent} was built{again}")
    for name, sha256 in manifest["files"].items():
        if not (path.parent / name).is_file() or files.file_digest(path.parent / name) != sha256:
            raise UserError(f"{path.parent / name} is missing or not as it was written{again}")
    return manifest


def _refuse_unfinished(folder: Folder) -> None:
    if not all(folder.is_through(number) for number in range(folder.source.num_shards)):
        raise UserError(f"{folder.root} is not finished; run its pipeline again first")


def _state_of(folder: Folder) -> dict[str, str]:
    """What an index stands for: the stages, and the rows that came through them in every shard."""
    footers = [list(folder.store.kept_footer(folder.chain, number)) for number in range(folder.source.num_shards)]
    return {"chain": folder.chain, "kept_digest": files.digest([folder.source.digest, footers])}


def _weights_digest(embedder: Embedder) -> str:
    if not embedder.model:
        return ""
    from train.models.folder import weights_digest

    return weights_digest(embedder.model, embedder.weights)


def _scan(folder: Folder, embedder: Embedder) -> Scanned:
    """Read all vectors once: which rows have one, and a digest of each."""
    columns = {IMAGE: embedder.image, TEXT: embedder.text}
    rows, unusable, dims = [], 0, dict.fromkeys(columns, 0)
    digests: dict[str, list[Digests]] = {name: [] for name in columns}
    for number in range(folder.source.num_shards):
        found = {name: _vectors(folder, number, column) for name, column in columns.items() if column}
        rows.append(np.unique(np.concatenate([at for at, _, _ in found.values()])))
        for name, (at, vectors, bad) in found.items():
            unusable += bad
            dims[name] = _same_dims(columns[name], dims[name], vectors)
            digests[name].append(np.zeros(len(rows[-1]), UID_BYTES))
            digests[name][-1][np.searchsorted(rows[-1], at)] = [
                hashlib.blake2b(v.tobytes(), digest_size=16).digest() for v in vectors.astype(np.float16)]
    sides = {name: Side(name, columns[name], np.concatenate(digests[name]), dims[name]) for name in columns if dims[name]}
    if not sides:
        raise UserError(f"{folder.root} has no embeddings to index: no row reached '{embedder.image}'")
    return Scanned(rows, sides, unusable)


def _vectors(folder: Folder, number: int, column: str) -> tuple[Ints, Matrix, int]:
    """The rows of a shard that can be found by a vector, their vectors, and how many vectors have no direction."""
    shard = folder.shard(number)
    array = shard.column(folder.columns[column])
    out = shard.kept.state == REMOVED
    out[folder.source.repeated(number)] = True
    has = pc.is_valid(array).to_numpy(zero_copy_only=False) & ~out
    at = np.flatnonzero(has)
    lengths = pc.unique(pc.list_value_length(array.take(pa.array(at))))
    if len(lengths) > 1:
        raise UserError(f"vectors of '{column}' have different lengths: {', '.join(map(str, sorted(lengths.to_pylist())))}")
    if not len(at) or not lengths[0].as_py():
        return at[:0], np.empty((0, 0), np.float32), len(at)
    vectors = index.unit(matrix(array.take(pa.array(at))))
    good = np.isfinite(vectors).all(axis=1)
    return at[good], vectors[good], int((~good).sum())


def _same_dims(column: str, known: int, vectors: Matrix) -> int:
    if known and len(vectors) and vectors.shape[1] != known:
        raise UserError(f"vectors of '{column}' have different lengths: {known}, {vectors.shape[1]}")
    return known or (vectors.shape[1] if len(vectors) else 0)


def _entry(folder: Folder, scanned: Scanned, side: Side, recall: float, flat_values: int, earlier: Any, path: Path,
           attempt: str) -> dict[str, Any]:
    """One side's part of the manifest, and its file; taken over from the earlier index where nothing it depends on changed."""
    distinct = {n: hashlib.sha256(s.digests[s.firsts].tobytes()).hexdigest() for n, s in scanned.sides.items()}
    made_of = files.digest([LAYOUT, distinct, side.name, recall, flat_values, faiss.__version__])
    known = earlier.get("indexes", {}).get(side.name, {}) if isinstance(earlier, dict) else {}
    if known.get("made_of") == made_of and path.is_file() and earlier["files"].get(path.name) == files.file_digest(path):
        return {**known, "rows": int((side.positions >= 0).sum())}
    queries = {name: index.gather(partial(_distinct, folder, scanned, other), index.sample(len(other.firsts), index.QUERIES))
               for name, other in scanned.sides.items() if other.dims == side.dims}
    built = index.build(partial(_distinct, folder, scanned, side), len(side.firsts), side.dims, queries, recall, flat_values)
    with files.atomic(path, attempt) as file:
        index.write(built, file)
    return {**_described(built), "dims": side.dims, "vectors": len(side.firsts), "rows": int((side.positions >= 0).sum()),
            "made_of": made_of}


def _described(built: Built) -> dict[str, Any]:
    return {"kind": built.kind, "parameters": built.parameters, "recall": built.recall, "metric": "cosine (inner product)",
            "stored": "float16", "faiss": faiss.__version__, "threads": 1}


def _distinct(folder: Folder, scanned: Scanned, side: Side) -> Iterator[Matrix]:
    """The vectors that stand in the index, in order, a shard at a time."""
    first = 0
    for number, rows in enumerate(scanned.rows):
        at, vectors, _ = _vectors(folder, number, side.column)
        low, high = np.searchsorted(side.firsts, [first, first + len(rows)])
        yield vectors[np.searchsorted(at, rows[side.firsts[low:high] - first])]
        first += len(rows)


def _line(name: str, side: Side, entry: Mapping[str, Any]) -> str:
    recall, made = entry["recall"], entry["parameters"]
    how = f"ivf, {made['probes']} of {made['lists']} lists" if made else "flat"
    of = ", ".join(f"{value:.3f} for {recall['queries'][kind]} {kind} queries" for kind, value in recall["of"].items())
    vectors = f"{entry['rows']:,} rows, {entry['vectors']:,} distinct vectors of {side.dims} numbers"
    return f"{name}: {vectors}; {how}; recall@{recall['at']} {of}"


def _same_by(folder: Folder) -> str:
    return next((name for name, column in SAME_BY if column in folder.columns), "cosine")


def _write_rows(folder: Folder, scanned: Scanned, out: Path, attempt: str) -> dict[str, Any]:
    """rows.parquet and hits.arrow, shard by shard; how many rows, how many kept, and the digest of their uids in order."""
    names, picture = _columns(folder), _pictures(folder, scanned)
    uids, kept, first = hashlib.sha256(), 0, 0
    with ExitStack() as stack:
        hits = stack.enter_context(pa.ipc.new_file(stack.enter_context(files.atomic(out / "hits.arrow", attempt)), SHOWN))
        file, parquet = stack.enter_context(files.atomic(out / "rows.parquet", attempt)), None
        for number, rows in enumerate(scanned.rows):
            table = folder.table(number, names).take(pa.array(rows))
            here = slice(first, first + len(rows))
            for name, side in scanned.sides.items():
                position = side.positions[here]
                table = table.append_column(VECTOR[name], pa.array(position, mask=position < 0))
            table = table.append_column(PICTURE, pa.array(picture[here]))
            parquet = parquet or stack.enter_context(pq.ParquetWriter(file, table.schema, compression="zstd"))
            parquet.write_table(table, row_group_size=ROW_GROUP)
            hits.write_table(_shown(table), max_chunksize=BATCH)
            uids.update(uid_bytes(table["uid"].to_pylist()).tobytes())
            kept += pc.sum(pc.equal(table[STATE], "kept")).as_py() or 0
            first += len(rows)
    return {"rows": first, "kept": kept, "uid_digest": uids.hexdigest()}


def _columns(folder: Folder) -> list[str]:
    """All that a keep can read, the picture's place, and what everything has."""
    own = {STATE, REASON, PICTURE, *VECTOR.values()}
    readable = {n for n, c in folder.columns.items() if kind_of(c.type) or n == "image"}
    return [n for n in folder.columns if n in readable - own]


def kind_of(type_: pa.DataType) -> str:
    """What a column is to a keep (`number`, `text`, `boolean`, `list of …`), or nothing."""
    plain = str(type_.value_type if pa.types.is_dictionary(type_) else type_)
    return next((kind for kind, pattern in KINDS.items() if re.fullmatch(pattern, plain)), "")


def _shown(table: pa.Table) -> pa.Table:
    return pa.table([table[f.name].cast(f.type) if f.name in table.column_names else pa.nulls(len(table), f.type) for f in SHOWN],
                    schema=SHOWN)


def _pictures(folder: Folder, scanned: Scanned) -> NDArray[np.int32]:
    """A number for each row, equal where the picture is: the one that `same_as` names, one phash, or one image_id."""
    by = _same_by(folder)
    names = ["uid", "image_id", *([by] if by != "cosine" else [])]
    keys = [_keys(folder.table(number, names).take(pa.array(rows)), by) for number, rows in enumerate(scanned.rows)]
    return np.unique(np.concatenate(keys), return_inverse=True)[1].astype(np.int32)


def _keys(table: pa.Table, by: str) -> Digests:
    own: Callable[[str], pa.ChunkedArray] = lambda name: table[name].cast(pa.string())  # noqa: E731
    picture = pc.coalesce(own("image_id"), own("uid"))
    if by != "cosine":
        picture = pc.coalesce(own(by), picture)
    return uid_bytes(picture.to_pylist())
