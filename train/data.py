"""Pictures and their captions: an index over tars or tables, held as flat arrays, never as one Python object a row.

Rows that share a picture become one picture with several captions: rows of a table with the same (file, offset), samples of
tars with the same `image_id` in their json, or a json with a list under `captions` or `caption`. Without a list the caption
is the txt member, else the json's. Blank captions and a caption that stands twice at one picture are left out.
"""

import glob
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from train.config import Data
from train.errors import DataError, did_you_mean
from train.files import read_json
from train.tars import Sample, samples

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Index:
    """All pictures of a data set, and where their bytes and their captions lie."""

    files: tuple[str, ...]
    """what the pictures lie in: tars, or any files"""
    pictures: Ints
    """(num_pictures, 3): number of the file, offset, length"""
    first: Ints
    """(num_pictures + 1,): the captions of picture i are first[i] .. first[i + 1] - 1"""
    text: bytes
    """every caption, utf-8, one behind the other"""
    text_end: Ints
    """(num_captions + 1,): caption j is text[text_end[j] : text_end[j + 1]]"""
    digest: str
    """of the rows and captions: what was trained on, wherever it lies"""
    num_blank: int = 0
    """rows left out because they have no caption"""
    _open: Callable[[str], "_Handle"] = field(default_factory=lambda: lru_cache(maxsize=256)(_Handle), repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.pictures)

    @property
    def num_captions(self) -> int:
        """Captions of all pictures together."""
        return len(self.text_end) - 1

    def caption(self, j: int) -> str:
        """The text of caption `j`."""
        return self.text[self.text_end[j] : self.text_end[j + 1]].decode()

    def captions(self, i: int) -> list[str]:
        """All captions of picture `i`."""
        return [self.caption(j) for j in range(self.first[i], self.first[i + 1])]

    def read(self, i: int) -> bytes:
        """The stored bytes of picture `i`. Raises DataError where the file is gone or shorter than the index says."""
        number, offset, length = self.pictures[i].tolist()
        try:
            found = self._open(self.files[number]).read(offset, length)
        except OSError as error:
            raise DataError(f"{self.files[number]}: {error.strerror or error}") from None
        if len(found) != length:
            raise DataError(f"{self.files[number]}: {length} bytes wanted at {offset}, {len(found)} there")
        return found

    def name(self, i: int) -> str:
        """Where picture `i` lies, for messages: `file@offset`."""
        return f"{self.files[self.pictures[i, 0]]}@{self.pictures[i, 1]}"


def open_data(data: Data) -> Index:
    """The index over `data`. Raises DataError, before anything is used, for what is missing, cut short or mispaired."""
    rows = _Rows()
    if data.shards:
        files = [str(path) for path in _matches(data.shards)]
        for number, file in enumerate(files):
            rows.start_file(f"{Path(file).name} {os.path.getsize(file)}")
            _add_tar(rows, number, Path(file))
    else:
        files = _add_tables(rows, _matches(data.table), Path(data.root))
    index = rows.index(tuple(files))
    if not len(index):
        raise DataError(f"no picture with a caption in {', '.join(data.shards or data.table)}")
    return index


def decontaminated(data: Data) -> dict[str, Any]:
    """{"decontaminated": what the manifests beside all of the tars say of benchmarks}; nothing where they say nothing."""
    folders = sorted({path.parent for path in _matches(data.shards)})
    said = [(read_json(folder / "manifest.json") or {}).get("decontaminated", []) for folder in folders]
    common = [entry for entry in (said[0] if said else []) if all(entry in entries for entries in said)]
    return {"decontaminated": common} if common else {}


class _Rows:
    """Collects (identity of the picture, place, caption) row by row in flat buffers, then groups them by picture."""

    def __init__(self) -> None:
        self._identity: list[int] = []
        self._place: list[tuple[int, int, int]] = []
        self._text_end: list[int] = [0]
        self._text = bytearray()
        self._hash = hashlib.sha256()
        self._blank = 0
        self._done: list[tuple[NDArray[np.uint64], Ints, Ints]] = []

    def start_file(self, name: str) -> None:
        """What comes next lies in this file; its rows so far go into arrays."""
        self._flush()
        self._hash.update(f"file {name}\n".encode())

    def add(self, identity: str, place: tuple[int, int, int], captions: Iterable[str]) -> None:
        """One row: a picture's identity and place, and its captions."""
        kept = [text for text in (caption.strip() for caption in captions) if text]
        self._blank += not kept
        number = int.from_bytes(hashlib.blake2b(identity.encode(), digest_size=8).digest(), "little")
        for caption in kept:
            encoded = caption.encode("utf-8", "replace")
            self._identity.append(number)
            self._place.append(place)
            self._text += encoded
            self._text_end.append(len(self._text))
            self._hash.update(f"{identity} {place[1]} {place[2]} {len(encoded)}\n".encode() + encoded)

    def index(self, files: tuple[str, ...]) -> Index:
        """The rows grouped: pictures in the order of their first row, their captions in the order of rows, each once."""
        self._flush()
        identity = np.concatenate([part[0] for part in self._done]) if self._done else np.empty(0, np.uint64)
        place = np.concatenate([part[1] for part in self._done]) if self._done else np.empty((0, 3), np.int64)
        end = np.concatenate([np.zeros(1, np.int64), *(part[2] for part in self._done)])
        _, first_row, group = np.unique(identity, return_index=True, return_inverse=True)
        rank = np.argsort(np.argsort(first_row, kind="stable"), kind="stable")
        rows = np.argsort(rank[group], kind="stable")
        rows, text, text_end = self._unique_captions(rows, rank[group], end)
        counts = np.bincount(rank[group][rows], minlength=len(first_row))
        return Index(files, place[np.sort(first_row)], np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), text, text_end,
                     self._hash.hexdigest(), self._blank)

    def _unique_captions(self, rows: Ints, group: Ints, end: Ints) -> tuple[Ints, bytes, Ints]:
        """Rows without those that repeat a caption of their picture, and the captions in that order."""
        kept, parts, seen, current = [], [], set[bytes](), -1
        for row in rows.tolist():
            if group[row] != current:
                seen, current = set(), int(group[row])
            caption = bytes(self._text[end[row] : end[row + 1]])
            if caption not in seen:
                seen.add(caption)
                kept.append(row)
                parts.append(caption)
        ends = np.concatenate([[0], np.cumsum([len(p) for p in parts])]).astype(np.int64)
        return np.array(kept, np.int64), b"".join(parts), ends

    def _flush(self) -> None:
        if self._identity:
            self._done.append((np.array(self._identity, np.uint64), np.array(self._place, np.int64),
                               np.array(self._text_end[1:], np.int64)))
        self._identity, self._place, self._text_end = [], [], [len(self._text)]


def _add_tar(rows: _Rows, number: int, path: Path) -> None:
    found = samples(path)
    handle = _Handle(str(path))
    for sample in found:
        meta = _json(path, sample, handle.read(sample.json.offset, sample.json.length)) if sample.json else {}
        txt = handle.read(sample.txt.offset, sample.txt.length).decode("utf-8", "replace") if sample.txt else None
        identity = meta.get("image_id")
        rows.add(str(identity) if identity else f"{number}:{sample.key}",
                 (number, sample.picture.offset, sample.picture.length), _captions(txt, meta))


def _json(path: Path, sample: Sample, raw: bytes) -> dict[str, Any]:
    """The json member; refused where it speaks of another key, as a shuffled shard's does."""
    try:
        meta = json.loads(raw)
    except ValueError:
        raise DataError(f"{path}: '{sample.key}.json' is not JSON") from None
    if not isinstance(meta, dict):
        raise DataError(f"{path}: '{sample.key}.json' is not a map")
    key = meta.get("key")
    if isinstance(key, str) and key != sample.key.rpartition("/")[2]:
        raise DataError(f"{path}: '{sample.key}.json' belongs to '{key}'")
    return meta


def _captions(txt: str | None, meta: dict[str, Any]) -> list[str]:
    """A list in the json, else the txt, else the json's one caption."""
    listed = meta.get("captions", meta.get("caption"))
    if isinstance(listed, list):
        return [value for value in listed if isinstance(value, str)]
    return [value for value in (txt, listed) if isinstance(value, str)][:1]


def _add_tables(rows: _Rows, tables: Sequence[Path], root: Path) -> list[str]:
    numbers: dict[str, int] = {}
    for path in tables:
        rows.start_file(path.name)
        for caption, image in _table_rows(path):
            if image is None or image["file"] is None:
                continue
            number = numbers.setdefault(image["file"], len(numbers))
            place = (number, int(image["offset"] or 0), int(image["length"] or 0))
            rows.add(f"{image['file']}:{place[1]}", place, [caption or ""])
    return [str(root / file) for file in numbers]


def _table_rows(path: Path) -> Iterator[tuple[Any, Any]]:
    """(caption, image) of every row of a parquet file, batch by batch."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            columns = file.schema_arrow.names
            for name in ("caption", "image"):
                if name not in columns:
                    raise DataError(f"{path} has no column '{name}'{did_you_mean(name, columns)}")
            for batch in file.iter_batches(columns=["caption", "image"]):
                yield from zip(batch["caption"].to_pylist(), batch["image"].to_pylist(), strict=True)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path}: {str(error).splitlines()[0]}") from None


def _matches(patterns: Sequence[str]) -> list[Path]:
    """The files that `patterns` name, sorted within each pattern, each once."""
    found: dict[str, None] = {}
    for pattern in patterns:
        matches = sorted(glob.glob(pattern)) if glob.has_magic(pattern) else [pattern] if Path(pattern).is_file() else []
        if not matches:
            raise DataError(f"no file matches {pattern}")
        found.update(dict.fromkeys(matches))
    return [Path(name) for name in found]


class _Handle:
    """An open file, closed when nobody holds it any more: dropped from the cache or not, a reader keeps it alive."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def read(self, offset: int, length: int) -> bytes:
        """`length` bytes from `offset`, fewer at the file's end; safe from many threads."""
        return os.pread(self._file, length, offset)

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            os.close(self._file)
