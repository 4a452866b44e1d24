"""Pictures that lie here already → chunks of rows: tars as webdataset and img2dataset write them, and folders of files.

Nothing is copied: a row says in which file, where and how long its picture is. A sample is what shares a key (webdataset's rule:
the name up to the first dot of its last part), its text is `.txt` or the `caption` of `.json`, the other entries of `.json` are
columns. A sample without picture or text is a row with nulls; a tar that is cut short is refused as a whole.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from curate import columns
from curate.columns import Chunk, Place
from curate.sources.locations import PICTURES, SourceFile, names_in
from curate.tar import Member, members

_DECODER = json.JSONDecoder()
KEY = re.compile(r"^((?:.*/)?[^./]+)\.([^/]+)$", re.DOTALL)
"""webdataset's `base_plus_ext` (tariterators.py): names without an extension and hidden files belong to no sample."""


class Sample(NamedTuple):
    """One picture with what stands beside it."""

    fields: dict[str, Any]
    place: Place | None
    image_id: str | None
    error: str | None


class Wanted(NamedTuple):
    """Which entries of `.json` mean something: the caption's name (None: `.txt` first, then `caption`), the url's name."""

    caption: str | None
    url: str | None


class Seen:
    """A hash of everything that was read: names, places, texts, and pictures where their bytes were needed."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def add(self, *parts: str | int | bytes | None) -> None:
        """Each part with its length, so that no two series of parts give the same bytes."""
        pieces = [part if isinstance(part, bytes) else str(part).encode(errors="surrogateescape") for part in parts]
        self._hash.update(b"".join([b"%d:%b" % (len(piece), piece) for piece in pieces]))

    def add_places(self, members: Iterable[Member]) -> None:
        """Name, offset and length of each, as `add` does it."""
        text = "".join([f"{len(name)}:{name}{len(at := str(offset))}:{at}{len(size := str(length))}:{size}"
                        for name, offset, length in members])
        if text.isascii():
            self._hash.update(text.encode())
        else:
            self.add(*(part for member in members for part in member))

    def hexdigest(self) -> str:
        """sha256 as hex."""
        return self._hash.hexdigest()


def bytes_id(data: bytes) -> str:
    """The image_id of a picture that has no url: 128 bits of blake2b of its bytes, as 32 hex digits."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def read_tar(file: SourceFile, rows: int, wanted: Wanted, seen: Seen) -> Iterator[Chunk]:
    """The samples of one tar. Raises BadTar where it is cut short or no tar, which may come after its last chunk."""
    with file.open() as stream:
        def sample(key: str, group: dict[str, Member]) -> Sample:
            return _tar_sample(file.path, stream, key, group, wanted, seen)
        yield from _chunks((sample(key, group) for key, group in _groups(members(stream))), rows)


def read_folder(file: SourceFile, rows: int, wanted: Wanted, seen: Seen) -> Iterator[Chunk]:
    """The pictures of one folder (not of the folders below it) by name, with `.txt` and `.json` of the same stem."""
    folder = Path(file.path)
    names = names_in(folder)
    there = set(names)

    def beside(name: str, suffix: str) -> bytes | None:
        other = Path(name).stem + suffix
        return (folder / other).read_bytes() if other in there else None

    def sample(name: str) -> Sample:
        data, text, meta = (folder / name).read_bytes(), beside(name, ".txt"), beside(name, ".json")
        fields, error = _fields(text, meta, wanted)
        seen.add(name, len(data), bytes_id(data), text, meta)
        return Sample(fields, Place(str(folder / name), 0, len(data)), bytes_id(data), error)

    yield from _chunks((sample(n) for n in names if Path(n).suffix.lower() in PICTURES), rows)


def with_pictures(chunk: Chunk, column: str, folder: Path) -> Chunk:
    """A chunk of a table with the pictures its `column` names, relative to `folder`; a missing one is null and noted."""
    paths, _ = columns.as_strings(chunk.fields[column])
    chunk.places, chunk.image_ids = [], []
    last: tuple[str, Place | None, str | None, str | None] = ("", None, None, None)
    for row, name in enumerate(paths.to_pylist()):
        if row == 0 or name != last[0]:
            last = (name, *_picture(folder, name))
        chunk.places.append(last[1])
        chunk.image_ids.append(last[2])
        if last[3]:
            chunk.note(row, last[3])
    return chunk


def _picture(folder: Path, name: str | None) -> tuple[Place | None, str | None, str | None]:
    if not name:
        return None, None, None
    path = os.path.normpath(folder / name.removeprefix("file://"))
    try:
        data = Path(path).read_bytes()
    except (OSError, ValueError) as error:
        return None, None, f"no picture '{name}'" if isinstance(error, FileNotFoundError) else f"picture '{name}': {error}"
    return Place(path, 0, len(data)), bytes_id(data), None


def _groups(found: Iterable[Member]) -> Iterator[tuple[str, dict[str, Member]]]:
    """Neighbouring members of one key; a second member of the same extension starts the next sample."""
    key, group = "", dict[str, Member]()
    for member in found:
        name = KEY.match(member.name)
        if not name:
            continue
        extension = name[2].lower()
        if group and (name[1] != key or extension in group):
            yield key, group
            group = {}
        key = name[1]
        group[extension] = member
    if group:
        yield key, group


def _tar_sample(path: str, stream: IO[bytes], key: str, group: dict[str, Member], wanted: Wanted, seen: Seen) -> Sample:
    def read(member: Member | None) -> bytes | None:
        if member is None:
            return None
        stream.seek(member.offset)
        return stream.read(member.length)

    text, meta = read(group.get("txt")), read(group.get("json"))
    fields, error = _fields(text, meta, wanted)
    fields.setdefault("key", key)
    picture = next((m for extension, m in group.items() if f".{extension}" in PICTURES), None)
    url = fields.get(wanted.url) if wanted.url else None
    data = read(picture) if url is None or not str(url).strip() else None
    image_id = None if data is None else bytes_id(data)
    seen.add_places(group.values())
    seen.add(text, meta, image_id)
    return Sample(fields, None if picture is None else Place(path, picture.offset, picture.length), image_id, error)


def _fields(text: bytes | None, meta: bytes | None, wanted: Wanted) -> tuple[dict[str, Any], str | None]:
    """The entries of `.json` with the caption under its name, and what is wrong with the `.json`."""
    fields, error = _object(meta)
    if wanted.caption is None and text is not None:
        fields["caption"] = text.decode("utf-8", "surrogateescape")
    return fields, error


def _object(meta: bytes | None) -> tuple[dict[str, Any], str | None]:
    try:
        value = {} if meta is None else _decoded(meta.decode("utf-8", "surrogateescape"))
    except (ValueError, RecursionError):
        return {}, "its .json is not JSON"
    return (value, None) if isinstance(value, dict) else ({}, "its .json is not an object")


def _decoded(text: str) -> Any:
    """`json.loads`; for an object without white space around it, in less time."""
    value, end = _DECODER.raw_decode(text) if text.startswith("{") else (None, -1)
    return value if end == len(text) else json.loads(text)


def _chunks(samples: Iterable[Sample], rows: int) -> Iterator[Chunk]:
    batch: list[Sample] = []
    yielded = False
    for sample in samples:
        batch.append(sample)
        if len(batch) == rows:
            yield _chunk(batch)
            batch, yielded = [], True
    if batch or not yielded:
        yield _chunk(batch)


def _chunk(batch: list[Sample]) -> Chunk:
    chunk = columns.chunk_of_objects([s.fields for s in batch], {i: s.error for i, s in enumerate(batch) if s.error})
    chunk.places, chunk.image_ids = [s.place for s in batch], [s.image_id for s in batch]
    return chunk


Reader = Callable[[SourceFile, int, Wanted, Seen], Iterator[Chunk]]
READERS: dict[str, Reader] = {"tar": read_tar, "folder": read_folder}
