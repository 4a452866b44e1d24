"""Objects in a store that fsspec knows (s3://…): what is there, which version of it, and ranges of its bytes. Nothing is copied.

A picture inside a tar is read where it lies, as a range. There the way takes the time and not the bytes: ranges that lie near
each other are one request, requests run side by side, and the next window of them is under way while the last one is used. A
request that fails says nothing about the data, so it stops the run; so does an object that is not the one that was scanned.
"""

import bisect
import re
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

from curate.errors import CurateError, RunStopped, UserError

REQUEST_BYTES = 1 << 20
"""What a request of several ranges may hold (our choice)."""
WINDOW_BYTES, WINDOW_RANGES = 1 << 24, 512
"""What is asked for at once; memory holds up to three windows."""
BLOCK_BYTES, BLOCKS = 1 << 22, 16
"""A file that is read through: bytes of a request, and how many of them memory holds (our choice)."""
BUCKETS = frozenset({"s3", "gs", "gcs"})
"""Stores whose first part of a path is a bucket, which has to be there."""
CLIENTS = {"botocore.exceptions": "BotoCoreError", "aiohttp": "ClientError", "google.auth.exceptions": "GoogleAuthError"}
"""Module → what its client raises besides OSError; a store whose module is not loaded is not in use."""
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.*)", re.DOTALL)


class Range(NamedTuple):
    """`length` bytes at `offset` of the object behind a url."""

    url: str
    offset: int
    length: int


def refuse_url(folder: Path, what: str) -> None:
    """Raises UserError for a folder that was given as a url; a `Path` keeps one slash of it."""
    if found := _URL.fullmatch(str(folder)):
        raise UserError(f"{what} must be a folder of this machine, not {found[1]}://{found[2]}; `curate publish --to` takes urls")


def file_system_of(url: str) -> tuple[Any, str]:
    """The fsspec file system of a url and the path on it. Raises UserError where fsspec knows none or lacks a package for it."""
    import fsspec

    try:
        return cast(tuple[Any, str], fsspec.core.url_to_fs(url))
    except (ValueError, ImportError) as error:
        raise UserError(f"cannot open '{url}': {error}") from None


def trouble() -> tuple[type[BaseException], ...]:
    """What file systems raise where they cannot reach, find or read something: OSError, and what their clients call it."""
    found = [getattr(sys.modules[module], name) for module, name in CLIENTS.items() if module in sys.modules]
    return (OSError, *found)


def reason(error: BaseException) -> str:
    """What went wrong, in one line."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__


@contextmanager
def told(doing: str, error: type[CurateError] = UserError, then: str = "") -> Iterator[None]:
    """What a store says against it, as one line of ours: `doing` are the words behind "cannot"."""
    try:
        yield
    except trouble() as failure:
        raise error(f"cannot {doing}: {reason(failure)}{then}") from None


def check_bucket(system: Any, path: str, url: str) -> None:
    """Raises UserError where the bucket of a path is not there. Nothing else says so: a missing bucket lists as an empty one."""
    bucket = path.strip("/").partition("/")[0]
    with told(f"open '{url}'"):
        if has_buckets(system) and not system.exists(bucket):
            raise UserError(f"cannot open '{url}': there is no bucket '{bucket}'")


def has_buckets(system: Any) -> bool:
    """Whether the first part of a path on it is a bucket."""
    return bool(BUCKETS.intersection([system.protocol] if isinstance(system.protocol, str) else system.protocol))


def open_object(url: str) -> IO[bytes]:
    """The object as a seekable file, for who reads all or most of it: a few blocks of it are in memory."""
    system, path = file_system_of(url)
    return cast(IO[bytes], system.open(path, "rb", block_size=BLOCK_BYTES, cache_type="blockcache",
                                       cache_options={"maxblocks": BLOCKS}))


def version(url: str, anew: bool = False) -> tuple[int, str]:
    """(bytes, what changes when the object does: its ETag if it has one); `anew` asks the store, whatever a listing said before.

    Raises UserError.
    """
    system, path = file_system_of(url)
    with told(f"read '{url}'"):
        if anew:
            system.invalidate_cache(path)
        info = system.info(path)
        return int(info["size"] or 0), str(info.get("ETag") or info.get("etag") or system.ukey(path))


@contextmanager
def unchanged(url: str, expected: tuple[int, str]) -> Iterator[None]:
    """All that is read in the block is of the version `expected`, since that one is still there at its end. Raises UserError."""
    try:
        yield
    except RunStopped:
        _refuse_another(url, expected)      # which explains the failure better, where it is so
        raise
    _refuse_another(url, expected)


def _refuse_another(url: str, expected: tuple[int, str]) -> None:
    if version(url, anew=True) != expected:
        raise UserError(f"'{url}' has changed since this run read it; a source only grows; use another --out")


def read_each(ranges: Iterable[Range]) -> Iterator[bytes]:
    """The bytes of each range, in the order given, read ahead of who takes them. Raises RunStopped where the store gives none."""
    coming: deque[Future[list[bytes]]] = deque()
    with ThreadPoolExecutor(1, thread_name_prefix="ahead") as ahead:
        for window in _windows(ranges):
            coming.append(ahead.submit(read_window, window))
            if len(coming) > 1:
                yield from coming.popleft().result()
        while coming:
            yield from coming.popleft().result()


def _windows(ranges: Iterable[Range]) -> Iterator[list[Range]]:
    """Neighbours of one object, as many as are asked for at once."""
    window: list[Range] = []
    size = 0
    for one in ranges:
        if window and (one.url != window[0].url or size + one.length > WINDOW_BYTES or len(window) == WINDOW_RANGES):
            yield window
            window, size = [], 0
        window.append(one)
        size += one.length
    if window:
        yield window


def read_window(window: Sequence[Range]) -> list[bytes]:
    """The bytes of some ranges of one object, by as few requests as they allow, side by side. Raises RunStopped."""
    url = window[0].url
    spans = joined(window)
    starts = [start for start, _ in spans]
    system, path = file_system_of(url)
    with told(f"read '{url}'", RunStopped, "; the same command goes on from there"):
        parts = system.cat_ranges([path] * len(spans), starts, [end for _, end in spans], on_error="raise")
    found = []
    for one in window:
        index = bisect.bisect_right(starts, one.offset) - 1
        at = one.offset - starts[index]
        data = bytes(parts[index][at:at + one.length])
        if len(data) != one.length:
            raise RunStopped(f"'{url}' ends before byte {one.offset + one.length}; the same command looks at it again")
        found.append(data)
    return found


def joined(window: Sequence[Range]) -> list[tuple[int, int]]:
    """The requests for some ranges of one object, as (start, end), ascending and apart: neighbours are one request, as long as it
    stays below REQUEST_BYTES and no more than half of it is unwanted (our choice: a request costs as much time as many bytes)."""
    spans: list[tuple[int, int]] = []
    wanted = 0
    for start, end in sorted({(one.offset, one.offset + one.length) for one in window}):
        first, last = spans[-1] if spans else (0, -1)
        new = end - max(start, last)
        if start < last or (spans and max(end, last) - first <= min(REQUEST_BYTES, 2 * (wanted + new))):
            spans[-1], wanted = (first, max(last, end)), wanted + max(new, 0)
        else:
            spans.append((start, end))
            wanted = end - start
    return spans
