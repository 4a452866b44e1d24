"""The only way files come into being: whole or not at all, and the same bytes for the same content.

A file is written under a temporary name that carries the run's attempt, synced, then renamed. What a killed attempt left
behind is recognised by that name and swept by the next one.
"""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from curate import lean  # noqa: F401  before anybody makes an array
from curate.errors import RunStopped

TEMPORARY = ".tmp"
NO_PLACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS})


@contextmanager
def atomic(path: Path, attempt: str) -> Iterator[IO[bytes]]:
    """A binary file that appears at `path`, whole and on disk, when the block ends well; else nothing appears.

    Raises RunStopped where the disk is full, broken or read-only.
    """
    temporary = path.parent / f".{path.name}.{attempt}.{os.getpid()}{TEMPORARY}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in NO_PLACE:
            raise RunStopped(f"cannot write {path}: {error.strerror}; what is written stays") from error
        raise


def sync_folder(folder: Path) -> None:
    """Make renames and removals inside `folder` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sweep(root: Path, attempt: str = "") -> int:
    """Remove temporary files below `root`, all of them or an attempt's; how many there were. Only for the holder of the lock."""
    mark = f".{attempt}" if attempt else ""
    found = [Path(folder) / name for folder, folders, names in os.walk(root) for name in (*names, *folders)
             if name.startswith(".") and name.endswith(TEMPORARY) and mark in name]
    for path in found:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    return len(found)


def write_bytes(path: Path, data: bytes, attempt: str) -> None:
    """`data` at `path`, atomically."""
    with atomic(path, attempt) as file:
        file.write(data)


def write_json(path: Path, value: Any, attempt: str) -> None:
    """Indented JSON with a final newline; keys keep their order."""
    write_bytes(path, (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode(), attempt)


def read_json(path: Path, default: Any = None) -> Any:
    """The JSON value at `path`, or `default` where there is no such file."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return default


def write_table(path: Path, table: pa.Table, attempt: str, metadata: Mapping[str, str] | None = None,
                dictionary: Sequence[str] | bool = True) -> None:
    """A parquet file with fixed settings, so that equal tables give equal bytes; `metadata` goes into its footer.

    `dictionary` names the columns whose values come again; where none does, looking for them costs more time and bytes.
    """
    if metadata:
        table = table.replace_schema_metadata({**(table.schema.metadata or {}), **metadata})
    with atomic(path, attempt) as file:
        pq.write_table(table, file, compression="zstd", row_group_size=65536, write_page_index=False,
                       use_dictionary=dictionary)


def digest(value: Any, length: int = 16) -> str:
    """A hash of plain data (None, bool, int, float, str, bytes, lists and string-keyed maps), independent of map order.

    Raises TypeError on anything else: an identity must never rest on `str()` of an object.
    """
    text = json.dumps(_plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=length).hexdigest()


def file_digest(path: Path) -> str:
    """sha256 of a file's content, as hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    if isinstance(value, list | tuple):
        return value if set(map(type, value)) == {str} else [_plain(v) for v in value]
    if isinstance(value, Mapping) and all(isinstance(k, str) for k in value):
        return {k: _plain(v) for k, v in value.items()}
    raise TypeError(f"no stable identity for {type(value).__name__} {value!r}")


class Hashing:
    """A file that hashes what is written to it."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.sha256, self.bytes = file, hashlib.sha256(), 0

    def write(self, data: bytes) -> int:
        """Write and hash."""
        self.sha256.update(data)
        self.bytes += len(data)
        return self._file.write(data)
