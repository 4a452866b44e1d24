"""A run's folder: where everything lies, who may write, and how column parts become columns again.

    source/        rows, append-only              columns/<step>-<id>/00000.000.parquet   one part of one shard
    images/<id>/   stored pictures                kept/<chain>/00000.parquet              every row's state after a segment
    funnel.json  run.json  shards/                run.lock, run.workers                   one writer, and its workers

A part holds the rows (or, of a `@fetch` step, the images) measured in one task, never a row that was not measured. Parts only
add; where a row stands in several, the newest wins. A file exists whole or not at all, so "is it there" is the whole resume.
"""

import fcntl
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count, takewhile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curate import files, remote
from curate.errors import UserError

ERROR = "_error"
"""Why a row is quarantined; null for a row that was measured."""
ALIVE, DROPPED, UNKNOWN, QUARANTINED, REMOVED = range(5)
STATE_NAMES = ("kept", "dropped", "unknown", "quarantined", "removed")
REPEATED = -1
"""The stage at which a repeated row leaves: before the first."""
TAKEN = -2
"""The clause of rows that were taken down; they leave at the stage of the repeated ones, whatever was decided of them before."""

_KEPT = pa.schema([("state", pa.uint8()), ("stage", pa.int16()), ("clause", pa.int16())])


@dataclass
class Kept:
    """Where every row of a shard stands: its state, and the stage and clause that decided it (-1 where none did)."""

    state: np.ndarray
    stage: np.ndarray
    clause: np.ndarray

    @classmethod
    def fresh(cls, rows: int) -> "Kept":
        """All rows alive."""
        return cls(np.zeros(rows, np.uint8), np.full(rows, REPEATED, np.int16), np.full(rows, -1, np.int16))

    def leave(self, rows: np.ndarray, state: int, stage: int, clause: np.ndarray | int = -1) -> None:
        """`rows` (indices) leave with `state` at `stage`."""
        self.state[rows], self.stage[rows], self.clause[rows] = state, stage, clause

    @property
    def alive(self) -> np.ndarray:
        """Indices of the rows still in."""
        return np.flatnonzero(self.state == ALIVE)


class Store:
    """Paths, parts and kept files of one run's folder. `attempt` marks temporary files; readers need none."""

    def __init__(self, root: Path, attempt: str = "") -> None:
        self.root = root
        self.attempt = attempt

    @property
    def source(self) -> Path:
        """The folder of source shards."""
        return self.root / "source"

    @property
    def shards(self) -> Path:
        """The folder of finished shards."""
        return self.root / "shards"

    def images(self, column: str) -> Path:
        """The folder of a fetch step's stored pictures; `column` is `<step>-<id>`."""
        return self.root / "images" / column.rpartition("-")[2]

    def kept_path(self, chain: str, shard: int) -> Path:
        """The kept file of a shard at the end of a chain of stages."""
        return self.root / "kept" / chain / f"{shard:05d}.parquet"

    def parts(self, column: str, shard: int) -> list[Path]:
        """A shard's parts of a column folder, oldest first. They have no gaps, so none has to list a folder of all shards."""
        return list(takewhile(Path.exists, (self._part(column, shard, number) for number in count())))

    def next_part(self, column: str, shard: int) -> Path:
        """Where the next part goes."""
        return self._part(column, shard, len(self.parts(column, shard)))

    def _part(self, column: str, shard: int, number: int) -> Path:
        return self.root / "columns" / column / f"{shard:05d}.{number:03d}.parquet"

    def write_part(self, column: str, shard: int, table: pa.Table) -> None:
        """Add one part."""
        texts = [field.name for field in table.schema if pa.types.is_string(field.type)]
        files.write_table(self.next_part(column, shard), table, self.attempt, dictionary=texts)

    def read_parts(self, column: str, shard: int, names: list[str] | None = None) -> pa.Table | None:
        """All parts of a shard, oldest first, or None where there is none."""
        present = self.parts(column, shard)
        if not present:
            return None
        return pa.concat_tables([_read(p, names) for p in present])

    def write_kept(self, chain: str, shard: int, kept: Kept, uids: pa.Array, decided: str = "") -> None:
        """Record a shard's states; the footer carries the digest of the uids alive, for barriers.

        `decided` is the digest that barriers go on with, where rows were taken down after them.
        """
        table = pa.table([kept.state, kept.stage, kept.clause], schema=_KEPT)
        alive = uids.take(pa.array(kept.alive))
        metadata = {"alive": alive_digest(alive), "num_alive": str(len(alive)), **({"decided": decided} if decided else {})}
        files.write_table(self.kept_path(chain, shard), table, self.attempt, metadata)

    def has_kept(self, chain: str, shard: int) -> bool:
        """Whether a shard is through this chain."""
        return self.kept_path(chain, shard).exists()

    def read_kept(self, chain: str, shard: int) -> Kept:
        """A shard's states."""
        table = _read(self.kept_path(chain, shard))
        return Kept(*(table[name].to_numpy().copy() for name in _KEPT.names))

    def kept_footer(self, chain: str, shard: int) -> tuple[str, int]:
        """(digest of the alive uids, how many there are) without reading the rows."""
        metadata = pq.read_metadata(self.kept_path(chain, shard)).metadata
        return metadata[b"alive"].decode(), int(metadata[b"num_alive"])

    def decided_digest(self, chain: str, shard: int) -> str:
        """The digest of the rows that barriers after `chain` went by: those alive, and those that were taken down since.

        So a takedown does not undo what was decided of all other rows: no rank, no duplicate and no training is made anew.
        """
        metadata = pq.read_metadata(self.kept_path(chain, shard)).metadata
        return str(metadata.get(b"decided", metadata[b"alive"]).decode())

    def remove(self, chain: str, shard: int, rows: np.ndarray, uids: pa.Array) -> bool:
        """Rows leave as taken down, wherever they stood; False where they had left so before."""
        kept = self.read_kept(chain, shard)
        gone = rows[(kept.state[rows] != REMOVED) | (kept.clause[rows] != TAKEN)]
        if not len(gone):
            return False
        was_alive = bool((kept.state[gone] == ALIVE).any())
        before = pq.read_metadata(self.kept_path(chain, shard)).metadata
        decided = self.decided_digest(chain, shard) if was_alive or b"decided" in before else ""
        kept.leave(gone, REMOVED, REPEATED, TAKEN)
        self.write_kept(chain, shard, kept, uids, decided)
        return True

    @contextmanager
    def lock(self, part: str = "") -> Iterator[None]:
        """Hold the run for writing. Parts of one run (`--part i/n`) exclude a whole run and the same part, not each other."""
        remote.refuse_url(self.root, "a run's folder")
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            (self.root / "run.lock").touch()
        except OSError as error:
            raise UserError(f"cannot write in {self.root}: {error.strerror}") from None
        with _held(self.root / "run.lock", fcntl.LOCK_SH if part else fcntl.LOCK_EX):
            if not part:
                self._await_workers()
                yield
                return
            with _held(self.root / f"run.lock.{part.replace('/', '-of-')}", fcntl.LOCK_EX):
                yield

    def enlist(self) -> None:
        """Make this process a worker of the run: a later attempt begins when it has ended, however its driver did."""
        self._enlisted = open(self.root / "run.workers", "a")  # noqa: SIM115  open, and locked, as long as the process lives
        fcntl.flock(self._enlisted, fcntl.LOCK_SH)

    def _await_workers(self) -> None:
        with open(self.root / "run.workers", "a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(f"waiting for workers of an earlier run on {self.root} to end", file=sys.stderr)
                fcntl.flock(file, fcntl.LOCK_EX)

    @contextmanager
    def ingest_lock(self) -> Iterator[None]:
        """One process at a time writes source shards; the parts of a run wait for each other here."""
        self.source.mkdir(parents=True, exist_ok=True)
        with open(self.source / ".lock", "a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def probe(self) -> None:
        """Find out now, not after hours, that the folder can't be written or renamed in."""
        try:
            files.write_bytes(self.root / ".probe", b"", self.attempt)
            (self.root / ".probe").unlink()
        except OSError as error:
            raise UserError(f"cannot write in {self.root}: {error.strerror or error}") from None


def _read(path: Path, names: list[str] | None = None) -> pa.Table:
    """A small parquet file; `pq.read_table` would first look at it as if it were a data set."""
    with pq.ParquetFile(path) as file:
        return file.read(names)


@contextmanager
def _held(path: Path, how: int) -> Iterator[None]:
    with open(path, "a+") as file:
        try:
            fcntl.flock(file, how | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise UserError(f"{path.parent} is being written by another run ({file.read().strip() or 'unknown'})") from None
        if how == fcntl.LOCK_EX:
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            file.flush()
        yield


def alive_digest(uids: pa.Array) -> str:
    """A hash of uids in their order."""
    return files.digest(uids.to_pylist())


def newest(keys: np.ndarray, rows: int) -> np.ndarray:
    """For each of `rows` positions, the last index in `keys` that names it, or -1: how parts are laid over each other."""
    where = np.full(rows, -1, np.int64)
    where[keys] = np.arange(len(keys))
    return where


def take_or_null(values: pa.ChunkedArray, where: np.ndarray) -> pa.Array:
    """`values` at `where`, null at -1."""
    if len(values) == len(where) and values.num_chunks == 1 and np.array_equal(where, np.arange(len(where))):
        return values.chunk(0)
    index = pa.array(where, mask=where < 0)
    taken = values.combine_chunks().take(index) if values.num_chunks else pa.nulls(len(where), values.type)
    return taken.combine_chunks() if isinstance(taken, pa.ChunkedArray) else taken


def positions(keys: pa.Array, wanted: pa.Array) -> np.ndarray:
    """For each wanted key the last index in `keys`, or -1."""
    reversed_index = pc.index_in(wanted, value_set=keys[::-1])
    found = pc.fill_null(reversed_index, len(keys)).to_numpy(zero_copy_only=False).astype(np.int64)
    return np.where(found < len(keys), len(keys) - 1 - found, -1)
