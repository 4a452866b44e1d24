"""A finished run as a dataset to give away: which files it consists of, and the proof that they hold exactly the rows kept.

    with pictures   shards/00000.tar shards/00000.parquet shards/00000_stats.json … shards/manifest.json
    without         metadata/00000.parquet …      the same parquet files, byte for byte

A run with `shards: none` has one table, subset.parquet, which is metadata/00000.parquet here.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from curate import files
from curate.errors import UserError
from curate.folder import Folder
from curate.store import alive_digest

TAR, PARQUET, JSON, NPY, TEXT = ("application/x-tar", "application/x-parquet", "application/json", "application/octet-stream",
                                 "text/plain")
MEDIA_TYPES = {".tar": TAR, ".parquet": PARQUET, ".json": JSON, ".npy": NPY, ".md": "text/markdown", "": TEXT}


@dataclass(frozen=True)
class DatasetFile:
    """One file of the dataset: its path in it, where it lies here, size, sha256, and the rows of a parquet file."""

    path: str
    local: Path
    bytes: int
    sha256: str
    rows: int | None = None

    @property
    def media_type(self) -> str:
        """What kind of file it is."""
        return MEDIA_TYPES[Path(self.path).suffix]


@dataclass(frozen=True)
class Dataset:
    """The files that hold the rows, in the order of the rows; `manifest` is that of the shards, or None."""

    files: tuple[DatasetFile, ...]
    rows: int
    schema: pa.Schema
    row_bytes: int
    """bytes of all parquet columns before compression, from the footers"""
    manifest: dict[str, Any] | None
    with_images: bool

    @property
    def tables(self) -> tuple[DatasetFile, ...]:
        """The parquet files."""
        return tuple(f for f in self.files if f.media_type == PARQUET)

    @property
    def tars(self) -> tuple[DatasetFile, ...]:
        """The files with pictures."""
        return tuple(f for f in self.files if f.media_type == TAR)

    @property
    def folder(self) -> str:
        """The folder of the dataset that holds the tables."""
        return "shards" if self.with_images else "metadata"

    @property
    def bytes(self) -> int:
        """Size of all files together."""
        return sum(f.bytes for f in self.files)


def finished(root: Path) -> Folder:
    """A run that is through all its stages. Raises UserError for one that is not."""
    folder = Folder.open(root)
    left = sum(not folder.is_through(shard) for shard in range(folder.source.num_shards))
    if left or not (root / "funnel.json").exists():
        raise UserError(f"{root} is not finished ({left} of {folder.source.num_shards} source shards are not through all "
                        "stages); run its pipeline again first")
    return folder


def open_dataset(folder: Folder, with_images: bool) -> Dataset:
    """The dataset of a finished run, from its manifest and footers. Raises UserError where rows and files do not agree."""
    manifest = files.read_json(folder.store.shards / "manifest.json")
    if manifest is None:
        found, with_images = [_table("metadata/00000.parquet", folder.root / "subset.parquet")], False
    elif with_images:
        found = list(_shard_files(folder.store.shards, manifest))
    else:
        shards = folder.store.shards
        found = [_table(f"metadata/{tar.stem}.parquet", shards / f"{tar.stem}.parquet", entry["parquet_sha256"])
                 for entry in manifest["shards"] for tar in [Path(entry["file"])]]
    if not found:
        raise UserError(f"{folder.root} kept no row; there is nothing to describe")
    rows = sum(f.rows or 0 for f in found)
    kept = sum(folder.store.kept_footer(folder.chain, s)[1] for s in range(folder.source.num_shards))
    if rows != kept:
        raise UserError(f"{folder.root}: its files hold {rows:,} rows and the run kept {kept:,}; run its pipeline to the end "
                        "first")
    footers = [pq.read_metadata(f.local) for f in found if f.media_type == PARQUET]
    row_bytes = sum(footer.row_group(i).total_byte_size for footer in footers for i in range(footer.num_row_groups))
    return Dataset(tuple(found), rows, footers[0].schema.to_arrow_schema(), row_bytes, manifest, with_images)


def _table(path: str, local: Path, sha256: str | None = None) -> DatasetFile:
    if not local.exists():
        raise UserError(f"there is no {local}: the run did not get as far as its files; run its pipeline to the end first")
    try:
        rows = pq.read_metadata(local).num_rows
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"cannot read {local}: {str(error).splitlines()[0]}") from None
    return DatasetFile(path, local, local.stat().st_size, sha256 or files.file_digest(local), rows)


def _shard_files(shards: Path, manifest: dict[str, Any]) -> Iterator[DatasetFile]:
    for entry in manifest["shards"]:
        tar = shards / entry["file"]
        stats = tar.with_name(f"{tar.stem}_stats.json")
        yield DatasetFile(f"shards/{tar.name}", tar, entry["bytes"], entry["sha256"])
        yield _table(f"shards/{tar.stem}.parquet", tar.with_suffix(".parquet"), entry["parquet_sha256"])
        size = stats.stat().st_size if stats.is_file() else 0      # that it is not there is for the strict check to say
        yield DatasetFile(f"shards/{stats.name}", stats, size, entry["stats_sha256"])
    path = shards / "manifest.json"
    yield DatasetFile("shards/manifest.json", path, path.stat().st_size, files.file_digest(path))


def conserved(folder: Folder, dataset: Dataset) -> str:
    """Why the tables do not hold exactly the rows kept, each once and in order; empty if they do.

    The kept files carry a digest of the uids alive in each source shard; the tables, read one after the other, must give the
    same digests.
    """
    uids = _uids(dataset)
    left = pa.chunked_array([], pa.string())
    for number in range(folder.source.num_shards):
        digest, alive = folder.store.kept_footer(folder.chain, number)
        while len(left) < alive:
            more = next(uids, None)
            if more is None:
                return f"the tables end before the kept rows of source shard {number} do"
            left = pa.chunked_array([*left.chunks, *more.chunks], pa.string())
        if alive_digest(left[:alive]) != digest:
            return f"the tables do not hold the rows that were kept of source shard {number}"
        left = left[alive:]
    surplus = len(left) + sum(len(more) for more in uids)
    return f"the tables hold {surplus:,} rows more than were kept" if surplus else ""


def _uids(dataset: Dataset) -> Iterator[pa.ChunkedArray]:
    for table in dataset.tables:
        with pq.ParquetFile(table.local) as parquet:
            for batch in parquet.iter_batches(columns=["uid"]):
                yield pa.chunked_array([batch.column(0).cast(pa.string())])
