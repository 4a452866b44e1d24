"""Where a publication goes: a folder of this machine, or an object store by an fsspec url."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Protocol

from curate import files, remote
from curate.errors import RunStopped, UserError

CHUNK = 1 << 20


class Target(Protocol):
    """A place for files by relative path."""

    def sizes(self) -> dict[str, int]:
        """Path → bytes of every file there; nothing where the place does not exist."""

    def write(self, path: str) -> Any:
        """A context manager of a binary file that is there, whole, when the block ended well."""

    def read(self, path: str) -> bytes | None:
        """The content of a small file, or None where there is none."""

    def remove(self, path: str) -> None:
        """Remove a file."""

    def sha256(self, path: str) -> str:
        """The hash of a file there, or nothing where that would mean to fetch it."""

    def digest(self, path: str) -> str:
        """The sha256 of a file there, read whole wherever it is."""

    def tidy(self) -> None:
        """Remove what an interrupted attempt left half written; only for a place that is known to be ours."""


def target_of(to: str, attempt: str) -> Target:
    """The place that `--to` names. Raises UserError for a url of an unknown kind and for a path that is a file."""
    if "://" in to:
        return Remote(to)
    if Path(to).exists() and not Path(to).is_dir():
        raise UserError(f"--to {to} is a file; give a folder")
    return Local(Path(to), attempt)


class Local:
    """A folder."""

    def __init__(self, root: Path, attempt: str) -> None:
        self._root, self._attempt = root, attempt

    def sizes(self) -> dict[str, int]:
        """See `Target`."""
        found = [p for p in sorted(self._root.rglob("*")) if not p.is_dir()]
        found = [p for p in found if not (p.name.startswith(".") and p.suffix == files.TEMPORARY)]
        return {p.relative_to(self._root).as_posix(): p.lstat().st_size for p in found}

    def write(self, path: str) -> Any:
        """See `Target`."""
        return files.atomic(self._root / path, self._attempt)

    def read(self, path: str) -> bytes | None:
        """See `Target`."""
        found = self._root / path
        return found.read_bytes() if found.is_file() else None

    def remove(self, path: str) -> None:
        """See `Target`; a folder that this leaves empty goes too."""
        (self._root / path).unlink(missing_ok=True)
        folder = (self._root / path).parent
        if folder != self._root and not any(folder.iterdir()):
            folder.rmdir()

    def sha256(self, path: str) -> str:
        """See `Target`."""
        return files.file_digest(self._root / path)

    digest = sha256

    def tidy(self) -> None:
        """See `Target`."""
        files.sweep(self._root)


class Remote:
    """A folder of an fsspec file system. A file appears there when it is closed."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")
        self._system, self._root = remote.file_system_of(self._url)
        self._root = self._root.rstrip("/")

    def sizes(self) -> dict[str, int]:
        """See `Target`."""
        self._system.invalidate_cache()
        with remote.told(f"read {self._url}"):
            try:
                found = self._system.find(self._root, detail=True)
            except FileNotFoundError:
                found = {}
        if not found:
            remote.check_bucket(self._system, self._root, self._url)
        return {path[len(self._root) :].lstrip("/"): int(info["size"] or 0) for path, info in sorted(found.items())}

    @contextmanager
    def write(self, path: str) -> Iterator[IO[bytes]]:
        """See `Target`."""
        full = f"{self._root}/{path}"
        with self._told():
            if not remote.has_buckets(self._system):    # where making a folder may mean to make the bucket
                self._system.makedirs(full.rpartition("/")[0], exist_ok=True)
            try:
                with self._system.open(full, "wb") as file:
                    yield file
            except BaseException:       # what was written so far appeared when it was closed
                with suppress(*remote.trouble()):
                    self._system.rm_file(full)
                raise

    def read(self, path: str) -> bytes | None:
        """See `Target`."""
        with remote.told(f"read {self._url}/{path}"):
            try:
                return bytes(self._system.cat_file(f"{self._root}/{path}"))
            except FileNotFoundError:
                return None

    def remove(self, path: str) -> None:
        """See `Target`."""
        with self._told():
            self._system.rm_file(f"{self._root}/{path}")

    def sha256(self, path: str) -> str:
        """See `Target`."""
        return ""

    def digest(self, path: str) -> str:
        """See `Target`."""
        hashed = hashlib.sha256()
        with remote.told(f"read {self._url}/{path}"), remote.open_object(f"{self._url}/{path}") as file:
            while chunk := file.read(remote.BLOCK_BYTES):
                hashed.update(chunk)
        return hashed.hexdigest()

    def tidy(self) -> None:
        """See `Target`: nothing half written is ever seen there but a file of the wrong size."""

    @contextmanager
    def _told(self) -> Iterator[None]:
        """What the other side says, as one line."""
        try:
            yield
        except remote.trouble() as error:
            told = f"cannot publish to {self._url}: {remote.reason(error)}; the same command goes on from there"
            raise RunStopped(told) from error


def copy(source: Path, out: IO[bytes]) -> str:
    """Copy a file into `out`; the sha256 of what was copied."""
    hashed = hashlib.sha256()
    with open(source, "rb") as file:
        while chunk := file.read(CHUNK):
            hashed.update(chunk)
            out.write(chunk)
    return hashed.hexdigest()


