"""Small sources for tests, and what must come of them, computed another way than `curate` does."""

import hashlib
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

from curate.sources.ingest import ingest
from curate.sources.locations import SourceSettings, parse_source
from curate.sources.source import Source
from curate.tar import TarWriter

ROWS: list[dict[str, Any]] = [
    {"URL": "http://a.org/1.jpg", "TEXT": "a red cube", "WIDTH": 640, "SCORE": 0.5, "TAG": "x"},
    {"URL": "http://a.org/2.jpg", "TEXT": 'she said "hi", twice', "WIDTH": 480, "SCORE": 1.25, "TAG": "007"},
    {"URL": "http://a.org/3.jpg", "TEXT": "Müller's 犬 🐕", "WIDTH": 1024, "SCORE": 2.0, "TAG": None},
    {"URL": "http://a.org/4.jpg", "TEXT": "  spaces around ", "WIDTH": 7, "SCORE": -3e-5, "TAG": "y"},
    {"URL": "http://b.org/5.jpg", "TEXT": "the last one", "WIDTH": 8, "SCORE": 0.125, "TAG": "z"},
]
PNG = bytes.fromhex("89504e470d0a1a0a") + b"not really a picture"
TEXTS = st.one_of(st.none(), st.text(max_size=12), st.text(alphabet='a",\n\r\t \x1f\u0301é', max_size=8))
TABLES = st.lists(st.tuples(TEXTS, TEXTS), max_size=25)
"""(url, caption) rows"""


def pid(data: str | bytes) -> str:
    """What identifies a picture, written down once more."""
    return hashlib.blake2b(data.encode() if isinstance(data, str) else data, digest_size=16).hexdigest()


def uid(url: str, caption: str) -> str:
    """What identifies a row, written down once more."""
    return pid(pid(url) + "\0" + unicodedata.normalize("NFC", caption).strip())


def settings_of(where: Any, kind: str = "pairs", **more: Any) -> SourceSettings:
    """The settings of a source whose columns are called URL and TEXT, as in `ROWS`."""
    names = {"url": "URL", "caption": "TEXT"} if kind == "pairs" else {}
    return parse_source({kind: where if isinstance(where, list) else str(where), **names, **more})


def take(where: Any, out: Path, **more: Any) -> Source:
    """The source, ingested into out/source."""
    return ingest(settings_of(where, **more), out / "source", "attempt")


def rows_of(source: Source, *names: str) -> list[Any]:
    """Every row of every shard, as a value, or as a tuple of the named columns."""
    tables = [source.table(n, list(names) or None) for n in range(source.num_shards)]
    assert [len(t) for t in tables] == [source.rows(n) for n in range(source.num_shards)]
    rows = [row for t in tables for row in t.to_pylist()]
    return [row[names[0]] for row in rows] if len(names) == 1 else [tuple(row.values()) for row in rows] if names else rows


def write_pairs(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """A parquet file of these rows."""
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def urls(*numbers: int, caption: str = "caption") -> list[dict[str, Any]]:
    """A row for each number."""
    return [{"URL": f"http://a.org/{n}.jpg", "TEXT": f"{caption} {n}"} for n in numbers]


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    """A tar of these members."""
    with open(path, "wb") as file:
        tar = TarWriter(file)
        for name, data in members:
            tar.add(name, data)
        tar.close()
    return path


def stored(row: dict[str, Any]) -> bytes:
    """The bytes of a row's picture."""
    with open(row["image"]["file"], "rb") as file:
        file.seek(row["image"]["offset"])
        return file.read(row["image"]["length"])


def expected_uids(rows: list[tuple[str | None, str | None]]) -> list[str]:
    """The uids of (url, caption) rows of the first file of a source."""
    def one(number: int, url: str | None, caption: str | None) -> str:
        return uid(url, caption or "") if url and url.strip() else pid(f"row\0{0}\0{number}")
    return [one(number, *row) for number, row in enumerate(rows)]


@contextmanager
def memory_store() -> Iterator[Any]:
    """fsspec's object store in memory, empty before and after."""
    store = fsspec.filesystem("memory")
    store.store.clear()
    yield store
    store.store.clear()
