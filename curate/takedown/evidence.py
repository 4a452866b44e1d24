"""What a run's folder knows of its rows that can tie one to another, or to a list: a source shard at a time.

It is read from the column folders themselves, those of earlier settings too, by the names of their columns: what `download`,
`image_hash`, `same_image` and `dedupe` add, whoever adds it.
"""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curate.decoding import images
from curate.sources.source import Source
from curate.store import Store
from curate.takedown.wanted import Looks, Wanted

HASHES = ("sha256", "image_sha256", "pixel_hash", "phash")
LINKS = ("dup_of", "dup_group", "same_as")
"""Columns that name another row (its uid) or picture (its image_id)."""
TOGETHER = 64


@dataclass(frozen=True)
class ColumnFolder:
    """A folder of column parts and the columns in it."""

    name: str
    columns: frozenset[str]

    @property
    def by_image(self) -> bool:
        """Whether its parts are of pictures, not of rows."""
        return "image_id" in self.columns and "row" not in self.columns


@dataclass
class ShardEvidence:
    """One source shard: who its rows are, and (row or image_id, value) of everything known of them."""

    number: int
    uids: pa.Array
    image_ids: pa.Array
    urls: list[str | None]
    by_row: list[tuple[str, pa.Array, pa.Array]] = field(default_factory=list)
    """(column, rows, values)"""
    by_image: list[tuple[str, pa.Array, pa.Array]] = field(default_factory=list)
    """(column, image_ids, values)"""
    refs: dict[str, Mapping[str, object]] = field(default_factory=dict)
    """image_id → where its picture lies"""


class Evidence:
    """All of it, to be gone through as often as needed. Looks at pictures are remembered: some 300 bytes each."""

    def __init__(self, store: Store, source: Source, wanted: Wanted) -> None:
        self.store, self.source, self._wanted = store, source, wanted
        self.looks: dict[str, Looks] = {}

    @cached_property
    def folders(self) -> list[ColumnFolder]:
        """Every column folder there is."""
        found = []
        for path in sorted((self.store.root / "columns").glob("*")):
            part = next(path.glob("*.parquet"), None) if not path.name.startswith(".") else None
            if part is not None:
                found.append(ColumnFolder(path.name, frozenset(pq.read_schema(part).names)))
        return found

    def shards(self) -> Iterator[ShardEvidence]:
        """The shards, in order."""
        for number in range(self.source.num_shards):
            yield self._shard(number)

    def _shard(self, number: int) -> ShardEvidence:
        names = [n for n in ("uid", "image_id", "url", "image") if n in self.source.columns]
        own = self.source.table(number, names)
        urls = own["url"].to_pylist() if "url" in names else []
        found = ShardEvidence(number, own["uid"].combine_chunks(), own["image_id"].combine_chunks(), urls)
        if "image" in names:
            self._note_refs(found, own["image_id"], own["image"])
        for folder in self.folders:
            wanted = [n for n in (*HASHES, *LINKS) if n in folder.columns]
            key = "image_id" if folder.by_image else "row"
            refs = ["image"] if folder.by_image and "image" in folder.columns else []
            table = self.store.read_parts(folder.name, number, [key, *wanted, *refs]) if wanted or refs else None
            if table is None:
                continue
            side = found.by_image if folder.by_image else found.by_row
            side += [(name, table[key].combine_chunks(), table[name].combine_chunks()) for name in wanted]
            if refs:
                self._note_refs(found, table["image_id"], table["image"])
        return found

    def _note_refs(self, found: ShardEvidence, ids: pa.ChunkedArray, refs: pa.ChunkedArray) -> None:
        there = pc.and_(pc.is_valid(ids), pc.is_valid(refs))
        found.refs |= dict(zip(ids.filter(there).to_pylist(), refs.filter(there).to_pylist(), strict=True))

    def look(self, shard: ShardEvidence) -> None:
        """Read the stored pictures of which the columns do not tell enough; what they are stands in `looks`."""
        known: set[str] = set()
        if not self._wanted.must_look:
            measured = [rows for name, rows, _ in shard.by_row if name == "phash"]
            known = {i for rows in measured for i in shard.image_ids.take(rows).to_pylist() if i is not None}
        missing = [i for i in shard.refs if i not in known and i not in self.looks]
        with ThreadPoolExecutor() as pool:
            for start in range(0, len(missing), TOGETHER):
                few = missing[start : start + TOGETHER]
                pictures = images.read_each([shard.refs[i] for i in few], self.store.root)
                self.looks |= dict(zip(few, pool.map(self._wanted.look, pictures), strict=True))


def parts(root: Path) -> Iterator[Path]:
    """Every column part of a run, in order."""
    yield from sorted(p for p in (root / "columns").glob("*/*.parquet") if not p.parent.name.startswith("."))
