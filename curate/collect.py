"""The pictures of one shard, fetched so that nothing is lost: sealed in parts while it goes on, one tar in the end.

    00000.000.p000.tar, .p000.parquet     a sealed part: what arrived, in the order it arrived; the parquet commits the tar
    00000.000.tar                         all parts in the order of the shard, the same bytes however they arrived

A restart reads the sealed parts and asks only for the rest. What is under way and what is not sealed yet, of all shards that are
open together, never exceed `part_images`: that is what a kill costs at most. Hosts take turns (`turns`): one with thousands of
urls does not hold up the others.
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from curate import files
from curate.decoding import images
from curate.fetching.turns import Crowd, Turns
from curate.tar import Member, TarWriter

UNSEALED_BYTES = 256 * 2**20
"""A part is sealed earlier when all that are open hold this much, so that memory stays bounded whatever size pictures have."""
CONCURRENCY, PER_HOST = 64, 4
"""For a fetch step of a user that does not say."""

Row = dict[str, object]
Progress = Callable[[str], None]


class Downloader(Protocol):
    """What a fetch step is for us; `concurrency` and `per_host` (int attributes) bound how many urls it is given at once."""

    async def one(self, url: str) -> tuple[Row, bytes | None]:
        """The columns of one url but `image`, and the bytes to store."""


def crowd_of(downloader: Downloader, part_images: int) -> Crowd:
    """What bounds the urls that a fetch step is given at once: half a part, the other half is for what is not sealed yet."""
    under_way = min(4 * getattr(downloader, "concurrency", CONCURRENCY), part_images // 2)
    return Crowd(getattr(downloader, "per_host", PER_HOST), under_way, part_images // 2, UNSEALED_BYTES)


async def collect(downloader: Downloader, items: Sequence[tuple[str, str]], tar_path: Path, root: Path, attempt: str,
                  columns: Mapping[str, pa.DataType], crowd: Crowd, progress: Progress | None = None, order: int = 0) -> pa.Table:
    """Fetch (image_id, url) items into `tar_path`; image_id and the columns of each, in the order of the items.

    `image` is {file relative to root, offset, length} or null. `progress` gets the status of every item, those of sealed parts
    first. Call `discard_parts` once the table is committed. Shards that are collected side by side share a `crowd`, in which the
    lowest `order` comes first.
    """
    tell, wanted = progress or (lambda _: None), dict(items)
    parts = _Parts(tar_path, attempt, columns)
    sealed = await asyncio.to_thread(parts.read)
    for row in sealed.values():
        tell(str(row.get("status")))
    arrived: asyncio.Queue[asyncio.Task[_Finished] | None] = asyncio.Queue()
    turns = Turns([(i, url) for i, url in wanted.items() if i not in sealed], crowd, lambda: arrived.put_nowait(None), order)
    ids = list(wanted)
    del sealed, wanted
    await _gather(downloader, turns, arrived, parts, tell)
    return await asyncio.to_thread(parts.compact, ids, root)


async def _gather(downloader: Downloader, turns: Turns, arrived: "asyncio.Queue[asyncio.Task[_Finished] | None]", parts: "_Parts",
                  tell: Progress) -> None:
    """Fetch what waits, and seal it when it is time to. `arrived` gets None where `turns` wakes us."""
    running: dict[asyncio.Task[_Finished], str] = {}
    unsealed = _Unsealed()
    try:
        while running or turns.left:
            while item := turns.take():
                task = asyncio.create_task(_one(downloader, *item))
                task.add_done_callback(arrived.put_nowait)
                running[task] = item[1]
            if (done := await arrived.get()) is not None:
                unsealed.add(finished := done.result())
                turns.crowd.hold(turns, len(unsealed.items), unsealed.bytes)
                turns.done(running.pop(done))
                tell(str(finished.row.get("status")))
            if turns.crowd.must_seal(turns):
                await asyncio.to_thread(parts.seal, unsealed.items)
                unsealed = _Unsealed()
                turns.crowd.hold(turns, 0, 0)
        if unsealed.items:
            await asyncio.to_thread(parts.seal, unsealed.items)
    finally:
        await _cancelled(running, turns)


async def _cancelled(running: "Mapping[asyncio.Task[_Finished], str]", turns: Turns) -> None:
    """Leave nothing under way."""
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    for url in running.values():
        turns.done(url)
    turns.close()


def discard_parts(tar_path: Path) -> None:
    """Remove the parts of `tar_path`, the parquet first: what is left of a part is then no part."""
    for suffix in ("parquet", "tar"):
        for path in sorted(tar_path.parent.glob(f"{tar_path.stem}.p*.{suffix}")):
            path.unlink()


@dataclass(frozen=True)
class _Finished:
    image_id: str
    url: str
    row: Row
    data: bytes | None


@dataclass
class _Unsealed:
    items: list[_Finished] = field(default_factory=list)
    bytes: int = 0

    def add(self, finished: _Finished) -> None:
        self.items.append(finished)
        self.bytes += len(finished.data or b"")


async def _one(downloader: Downloader, image_id: str, url: str) -> _Finished:
    row, data = await downloader.one(url)
    return _Finished(image_id, url, row, data)


class _Parts:
    """The sealed parts of one shard on disk."""

    def __init__(self, tar_path: Path, attempt: str, columns: Mapping[str, pa.DataType]) -> None:
        self._tar_path, self._attempt, self._columns = tar_path, attempt, columns
        self._schema = pa.schema([("image_id", pa.string()), *columns.items()])
        self._next = 0

    def read(self) -> dict[str, Row]:
        """What was sealed of each image, `image` pointing into the part. A tar without its parquet is no part."""
        rows: dict[str, Row] = {}
        for path in self._tar_path.parent.glob(f"{self._tar_path.stem}.p*.parquet"):
            for row in pq.ParquetFile(path).read().to_pylist():
                rows[row.pop("image_id")] = row
            self._next = max(self._next, int(path.suffixes[-2][2:]) + 1)
        return rows

    def seal(self, items: Sequence[_Finished]) -> None:
        """Write a part and commit it."""
        tar = self._tar_path.with_name(f"{self._tar_path.stem}.p{self._next:03d}.tar")
        self._next += 1
        found = self._write_tar(tar, ((f.image_id, f.data) for f in items if f.data is not None), tar.name)
        rows = [{"image_id": f.image_id, **self._checked(f.row), "image": found.get(f.image_id)} for f in items]
        files.write_table(tar.with_suffix(".parquet"), self._table(rows), self._attempt)

    def compact(self, order: Sequence[str], root: Path) -> pa.Table:
        """One tar of all parts in this order, and the table of it."""
        rows = self.read()
        found = self._write_tar(self._tar_path, self._sealed(order, rows), self._tar_path.relative_to(root).as_posix())
        return self._table([{"image_id": i, **rows[i], "image": found.get(i)} for i in order])

    def _sealed(self, order: Sequence[str], rows: Mapping[str, Row]) -> Iterator[tuple[str, bytes]]:
        """The pictures in the parts, each read by opening its part anew: there may be more parts than files we may have open."""
        for image_id in order:
            ref: Any = rows[image_id].get("image")
            if ref is not None:
                with self._tar_path.with_name(ref["file"]).open("rb") as part:
                    part.seek(ref["offset"])
                    yield image_id, part.read(ref["length"])

    def _write_tar(self, path: Path, pictures: Iterator[tuple[str, bytes]], name: str) -> dict[str, Row]:
        """Members <image_id>.<ext> in the order given; where each lies, in the file called `name`."""
        with files.atomic(path, self._attempt) as file:
            tar = TarWriter(file)
            found = {i: _reference(name, tar.add(f"{i}.{images.extension(data)}", data)) for i, data in pictures}
            tar.close()
        return found

    def _table(self, rows: list[Row]) -> pa.Table:
        return pa.Table.from_pylist(rows, schema=self._schema)

    def _checked(self, row: Row) -> Row:
        if unknown := row.keys() - self._columns.keys():
            raise TypeError(f"the fetch step gave {', '.join(sorted(unknown))}, which it does not add")
        return row


def _reference(file: str, member: Member) -> Row:
    return {"file": file, "offset": member.offset, "length": member.length}
