"""Tars that are the same bytes for the same members, and a reader that trusts none of them.

Written: plain USTAR headers with mode 0644, owner 0 and time 0. Read: an index of regular files (name, offset, length) from one
pass over the headers; links, devices, sparse files, absolute or climbing names, and a missing end are refused, never skipped.
"""

import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

BLOCK = 512


class BadTar(ValueError):
    """A tar that is cut short or holds what no image-text shard holds."""


@dataclass(frozen=True)
class Member:
    """One regular file in a tar: where its bytes lie."""

    name: str
    offset: int
    length: int


class TarWriter:
    """Writes members in the order given to an open binary file; `close` adds the end-of-archive blocks."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._at = 0

    def add(self, name: str, data: bytes) -> Member:
        """Append one member; where its bytes lie."""
        header = tarfile.TarInfo(name)
        header.size, header.mode = len(data), 0o644
        head = header.tobuf(tarfile.USTAR_FORMAT)
        padding = -len(data) % BLOCK
        self._file.write(head + data + b"\0" * padding)
        member = Member(name, self._at + len(head), len(data))
        self._at += len(head) + len(data) + padding
        return member

    def close(self) -> None:
        """End the archive as tar does: two empty blocks, padded to a record of 20."""
        end = 2 * BLOCK
        self._file.write(b"\0" * (end + -(self._at + end) % (20 * BLOCK)))


def members(file: IO[bytes]) -> Iterator[Member]:
    """The regular files of an open tar, in order. Raises BadTar where it is cut short or not what a shard is made of."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    end = 0
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            for info in archive:
                if info.isdir():
                    continue
                if not info.isreg() or info.issparse():
                    raise BadTar(f"member '{info.name}' is not a plain file")
                if not safe_name(info.name):
                    raise BadTar(f"member name '{info.name}' leaves the archive")
                end = info.offset_data + info.size + -info.size % BLOCK
                if end > size:
                    raise BadTar(f"cut short inside '{info.name}'")
                yield Member(info.name, info.offset_data, info.size)
    except tarfile.TarError as error:
        raise BadTar(str(error)) from None
    file.seek(end)
    if file.read(2 * BLOCK) != b"\0" * (2 * BLOCK):
        raise BadTar("cut short: no end of archive")


def safe_name(name: str) -> bool:
    """Whether a member's name stays inside the archive."""
    parts = name.removeprefix("./").split("/")
    return bool(name) and "\0" not in name and "\\" not in name and all(p not in ("", "..", ".") for p in parts)
