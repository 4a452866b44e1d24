"""RUN/tombstones: what was taken down and must not come back, as hashes alone. Every later run of the folder honours it.

It is a list as `curate.block_list` reads it: image_id (a hash of the url), sha256 of the file as it came and as it was stored,
phash, and the sha256 of the uid. So a row that comes again is blanked as it is read, a picture that comes again from another
address is thrown away before it is stored, and `curate takedown OTHER --list RUN/tombstones` clears another place by it.

The hashes are plain, not salted: the list has to match elsewhere, and a salt would lie beside it. Who has the file can test
whether an address or a picture he has was taken down; he learns no other. It is to be kept as secret as the list it came from.
"""

import asyncio
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from curate import block_list, files
from curate.block_list import BlockList
from curate.decoding import images
from curate.decoding.images import BadImage
from curate.errors import UserError

NAME, PENDING = "tombstones", "takedown.pending.json"
HEAD = "# Taken down: hashes of what must not come back. Not for publication.\n"
TAKEN_DOWN = "taken down"
"""What `source_error` says of a row that was: all its other columns are null, but for a uid that means nothing."""
REMOVED = "removed"
"""The status of a picture that came and was thrown away, because a tombstone is for it."""


def path_of(root: Path) -> Path:
    """Where they lie."""
    return root / NAME


def read(root: Path) -> BlockList | None:
    """The tombstones of a run's folder; None where nothing was ever taken down."""
    return block_list.read(path_of(root)) if path_of(root).exists() else None


def add(root: Path, entries: Iterable[str], attempt: str) -> None:
    """Put further lines among them: sorted, each once."""
    path = path_of(root)
    lines = [line for line in path.read_text().split("\n") if line and not line.startswith("#")] if path.exists() else []
    wanted = sorted({*lines, *entries})
    if wanted != lines:
        files.write_bytes(path, (HEAD + "".join(f"{line}\n" for line in wanted)).encode(), attempt)


def refuse_unfinished(root: Path) -> None:
    """Raises UserError where a takedown was begun and not ended: nothing may be made from what is half there."""
    if (root / PENDING).exists():
        raise UserError(f"a takedown of {root} did not come to its end; `curate takedown {root}` goes on with it, then this runs")


def state_of(root: Path) -> tuple[bool, int]:
    """Changes when something is taken down: whether that is under way, and the time of the tombstones."""
    path = path_of(root)
    return (root / PENDING).exists(), path.stat().st_mtime_ns if path.exists() else 0


def barred_rows(table: pa.Table, listed: BlockList | None, shard: int) -> pa.Table:
    """A source shard as it is written: rows that were taken down are blanked before they are."""
    if listed is None or not len(table):
        return table
    gone = pc.is_in(table["image_id"], pa.array(list(listed.image_id), pa.string())).to_numpy()
    if listed.uid_sha256:
        gone = gone | np.array([block_list.sha256_of(uid or "") in listed.uid_sha256 for uid in table["uid"].to_pylist()])
    return blanked(table, gone, shard) if gone.any() else table


def blank_rows(shard: Path) -> NDArray[np.int64]:
    """The rows of a source shard (RUN/source/00000.parquet) that were taken down."""
    if not path_of(shard.parents[1]).exists():
        return np.empty(0, np.int64)
    said = pq.read_table(shard, columns=["source_error"], partitioning=None)["source_error"].cast(pa.string())
    return np.flatnonzero(pc.fill_null(pc.equal(said, TAKEN_DOWN), False).to_numpy())


def blanked(table: pa.Table, gone: NDArray[np.bool_], shard: int) -> pa.Table:
    """A source shard with nothing left of the rows under the mask but their place."""
    where = pa.array(np.arange(len(table)), mask=gone)
    columns = {name: table[name].take(where) for name in table.column_names}
    nobody = [files.digest([TAKEN_DOWN, shard, row]) for row in np.flatnonzero(gone).tolist()]
    columns["uid"] = pc.replace_with_mask(columns["uid"].combine_chunks(), pa.array(gone), pa.array(nobody, columns["uid"].type))
    error = columns["source_error"].cast(pa.string()).combine_chunks()
    columns["source_error"] = pc.if_else(pa.array(gone), pa.scalar(TAKEN_DOWN), error)
    return pa.table(columns)


class Barred:
    """A downloader that gives away nothing a tombstone is for. The rest of the row goes too."""

    def __init__(self, downloader: Any, listed: BlockList, columns: Iterable[str]) -> None:
        self._downloader, self._listed, self._columns = downloader, listed, frozenset(columns)

    async def one(self, url: str) -> tuple[dict[str, object], bytes | None]:
        """See `curate.collect.Downloader`."""
        row, data = await self._downloader.one(url)
        if not await asyncio.to_thread(self._is_gone, row, data):
            return row, data
        return ({"status": REMOVED} if "status" in self._columns else {}), None

    def _is_gone(self, row: dict[str, object], data: bytes | None) -> bool:
        return row.get("sha256") in self._listed.sha256 or (data is not None and _is_listed(data, self._listed))


def _is_listed(data: bytes, listed: BlockList) -> bool:
    if hashlib.sha256(data).hexdigest() in listed.sha256:
        return True
    if not listed.by_looks:
        return False
    try:
        return bool(listed.match_picture(images.decode(data)))
    except BadImage:
        return False


def barred(downloader: Any, root: Path, columns: Iterable[str]) -> Any:
    """The downloader of a run's folder, which may have tombstones; `columns` are those that its step adds."""
    listed = read(root)
    return downloader if listed is None else Barred(downloader, listed, columns)


def lines_for(image_id: str, hashes: Iterable[tuple[str, str]], bits: int) -> Iterator[str]:
    """The tombstone of a picture: `hashes` are (sha256, value) or (phash, value), a phash to be matched within `bits`."""
    yield f"image_id:{image_id}"
    for kind, value in hashes:
        if kind != "phash":
            yield f"{kind}:{value}"
        elif len(block_list.telling([value])):
            yield f"phash:{value}/{bits}"
