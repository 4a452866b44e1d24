"""The pictures of one shard, fetched so that nothing is lost: sealed in parts while it goes on, one tar in the end.

    00000.000.p000.tar, .p000.parquet     a sealed part: what arrived, in the order it arrived; the parquet commits the tar
    00000.000.tar                         all parts in the order of the shard, the same bytes however they arrived

A restart reads the sealed parts and asks only for the rest. What is under way and what is not sealed yet never exceed one part,
so a kill costs at most `part_images` fetches. Hosts take turns, so one with thousands of urls does not hold up the others.
"""

import asyncio
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.parquet as pq

from curate import files, images
from curate.tar import Member, TarWriter

PART_BYTES = 64 * 2**20
"""A part is sealed earlier when it holds this much, so that memory stays bounded whatever size pictures have."""
CONCURRENCY, PER_HOST = 64, 4
"""For a fetch step of a user that does not say."""

Row = dict[str, object]
Progress = Callable[[str], None]


class Downloader(Protocol):
    """What a fetch step is for us; `concurrency` and `per_host` (int attributes) bound how many urls it is given at once."""

    async def one(self, url: str) -> tuple[Row, bytes | None]:
        """The columns of one url but `image`, and the bytes to store."""


async def collect(downloader: Downloader, items: Sequence[tuple[str, str]], tar_path: Path, root: Path, attempt: str,
                  columns: Mapping[str, pa.DataType], part_images: int = 256, progress: Progress | None = None) -> pa.Table:
    """Fetch (image_id, url) items into `tar_path`; image_id and the columns of each, in the order of the items.

    `image` is {file relative to root, offset, length} or null. `progress` gets the status of every item, those of sealed parts
    first. Call `discard_parts` once the table is committed.
    """
    tell, wanted = progress or (lambda _: None), dict(items)
    parts = _Parts(tar_path, attempt, columns)
    await asyncio.to_thread(parts.read)
    for row in parts.rows.values():
        tell(str(row.get("status")))
    queue = _Queue([(i, url) for i, url in wanted.items() if i not in parts.rows], getattr(downloader, "per_host", PER_HOST))
    limit = max(1, min(4 * getattr(downloader, "concurrency", CONCURRENCY), part_images // 2))
    running: set[asyncio.Task[_Finished]] = set()
    arrived: asyncio.Queue[asyncio.Task[_Finished]] = asyncio.Queue()
    unsealed = _Unsealed()
    try:
        while running or queue:
            while queue and len(running) < limit and len(running) + len(unsealed.items) < part_images:
                task = asyncio.create_task(_one(downloader, *queue.take()))
                task.add_done_callback(arrived.put_nowait)
                running.add(task)
            done = await arrived.get()
            running.discard(done)
            finished = done.result()
            queue.give_back(finished.url)
            unsealed.add(finished)
            tell(str(finished.row.get("status")))
            if len(unsealed.items) + len(running) >= part_images or unsealed.bytes >= PART_BYTES:
                await asyncio.to_thread(parts.seal, unsealed.items)
                unsealed = _Unsealed()
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
    if unsealed.items:
        await asyncio.to_thread(parts.seal, unsealed.items)
    return await asyncio.to_thread(parts.compact, list(wanted), root)


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


class _Queue:
    """Items that wait, hosts taking turns, and no host given more than `per_host` at once."""

    def __init__(self, items: Sequence[tuple[str, str]], per_host: int) -> None:
        self._free: dict[str, int] = defaultdict(lambda: max(1, per_host))
        self._waiting: dict[str, deque[tuple[str, str]]] = defaultdict(deque)
        for item in items:
            self._waiting[_host(item[1])].append(item)
        self._turns = deque(self._waiting)

    def __bool__(self) -> bool:
        """Whether some host has an item and a place for it."""
        return bool(self._turns)

    def take(self) -> tuple[str, str]:
        """The next item of the host whose turn it is."""
        host = self._turns.popleft()
        item = self._waiting[host].popleft()
        self._free[host] -= 1
        if self._waiting[host] and self._free[host]:
            self._turns.append(host)
        return item

    def give_back(self, url: str) -> None:
        """The place of a finished item at its host."""
        host = _host(url)
        self._free[host] += 1
        if self._free[host] == 1 and self._waiting[host]:
            self._turns.append(host)


def _host(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


class _Parts:
    """The sealed parts of one shard on disk; `rows` holds what they say of each image, `image` pointing into the part."""

    def __init__(self, tar_path: Path, attempt: str, columns: Mapping[str, pa.DataType]) -> None:
        self.rows: dict[str, Row] = {}
        self._tar_path, self._attempt, self._columns = tar_path, attempt, columns
        self._schema = pa.schema([("image_id", pa.string()), *columns.items()])
        self._next = 0

    def read(self) -> None:
        """Take up what earlier attempts sealed; a tar without its parquet is no part and will be overwritten."""
        for path in self._tar_path.parent.glob(f"{self._tar_path.stem}.p*.parquet"):
            for row in pq.ParquetFile(path).read().to_pylist():
                self.rows[row.pop("image_id")] = row
            self._next = max(self._next, int(path.suffixes[-2][2:]) + 1)

    def seal(self, items: Sequence[_Finished]) -> None:
        """Write a part and commit it."""
        tar = self._tar_path.with_name(f"{self._tar_path.stem}.p{self._next:03d}.tar")
        self._next += 1
        found = self._write_tar(tar, ((f.image_id, f.data) for f in items if f.data is not None), tar.name)
        rows = [{"image_id": f.image_id, **self._checked(f.row), "image": found.get(f.image_id)} for f in items]
        files.write_table(tar.with_suffix(".parquet"), self._table(rows), self._attempt)
        self.rows |= {str(row.pop("image_id")): row for row in rows}

    def compact(self, order: Sequence[str], root: Path) -> pa.Table:
        """One tar of all parts in this order, and the table of it."""
        found = self._write_tar(self._tar_path, self._sealed(order), self._tar_path.relative_to(root).as_posix())
        return self._table([{"image_id": i, **self.rows[i], "image": found.get(i)} for i in order])

    def _sealed(self, order: Sequence[str]) -> Iterator[tuple[str, bytes]]:
        """The pictures in the parts, each read by opening its part anew: there may be more parts than files we may have open."""
        for image_id in order:
            ref: Any = self.rows[image_id].get("image")
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
