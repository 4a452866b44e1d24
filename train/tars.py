"""Webdataset tars, read without trust: an index of members from one pass over the headers, grouped into samples.

A tar that is cut short or goes on behind its end, holds links or devices, or whose members do not pair up (a picture without a
text or a text without a picture, two pictures under one key, a key that comes back later) is refused as a whole before anything
of it is used. Only members of `USED` are ever opened; anything else a shard may hold (class numbers, arrays, pickles) is left
alone.
"""

import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from train.errors import DataError

PICTURES = ("jpg", "jpeg", "png", "webp")
USED = (*PICTURES, "txt", "json")
BLOCK = 512
MAX_TEXT = 1 << 24
"""Bytes of a txt or json member; a longer one is no caption, and would fill the memory."""


@dataclass(frozen=True)
class Member:
    """One regular file in a tar: where its bytes lie."""

    name: str
    offset: int
    length: int


@dataclass(frozen=True)
class Sample:
    """The members of one key that matter here."""

    key: str
    picture: Member
    txt: Member | None
    json: Member | None


def samples(path: Path) -> list[Sample]:
    """The samples of the tar at `path`, in order. Raises DataError where it is not what a shard is made of."""
    try:
        with open(path, "rb") as file:
            return list(_paired(members(file)))
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from None


def members(file: IO[bytes]) -> Iterator[Member]:
    """The regular files of an open tar, in order. Raises DataError where it is cut short or holds what no shard holds."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    end = 0
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            for info in archive:
                if info.size < 0:
                    raise DataError(f"member '{info.name}' has a size below 0")
                end = info.offset_data + info.size + -info.size % BLOCK
                if info.isdir():
                    continue
                if not info.isreg() or info.issparse():
                    raise DataError(f"member '{info.name}' is not a plain file")
                if end > size:
                    raise DataError(f"cut short inside '{info.name}'")
                yield Member(info.name, info.offset_data, info.size)
    except tarfile.TarError as error:
        raise DataError(f"not a tar: {error}") from None
    file.seek(end)
    if file.read(2 * BLOCK) != bytes(2 * BLOCK):
        raise DataError("cut short: no end of archive")
    if any(rest.strip(b"\0") for rest in iter(lambda: file.read(1 << 20), b"")):
        raise DataError("more stands behind its end: two tars in one file?")


def split_name(name: str) -> tuple[str, str]:
    """`a/00012.jpg` → (`a/00012`, `jpg`): the key ends at the first dot of the base name, as webdataset has it."""
    folder, slash, base = name.rpartition("/")
    key, _, extension = base.partition(".")
    return folder + slash + key, extension.lower()


def _paired(found: Iterator[Member]) -> Iterator[Sample]:
    seen: set[str] = set()
    key, group = "", dict[str, Member]()
    for member in found:
        own_key, extension = split_name(member.name)
        if extension not in USED:
            continue
        if own_key != key:
            if group:
                yield _sample(key, group)
            if own_key in seen:
                raise DataError(f"the members of '{own_key}' do not stand together")
            seen.add(own_key)
            key, group = own_key, {}
        if extension in group:
            raise DataError(f"'{member.name}' stands twice")
        group[extension] = member
    if group:
        yield _sample(key, group)


def _sample(key: str, group: dict[str, Member]) -> Sample:
    pictures = [group[extension] for extension in PICTURES if extension in group]
    if not pictures:
        raise DataError(f"'{key}' has no picture ({', '.join(sorted(group))} only)")
    if len(pictures) > 1:
        raise DataError(f"'{key}' has {len(pictures)} pictures")
    if "txt" not in group and "json" not in group:
        raise DataError(f"'{key}' has a picture but neither txt nor json")
    long = next((group[extension].name for extension in ("txt", "json") if extension in group
                 and group[extension].length > MAX_TEXT), None)
    if long is not None:
        raise DataError(f"'{long}' is larger than {MAX_TEXT >> 20} MiB")
    return Sample(key, pictures[0], group.get("txt"), group.get("json"))
