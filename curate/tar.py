"""Tars that are the same bytes for the same members, and a reader that trusts none of them.

Written: plain USTAR headers with mode 0644, owner 0 and time 0. Read: an index of regular files (name, offset, length) from one
pass over the headers. Refused, never skipped: links, devices, sparse files, names that are absolute, climb, stand twice or stand
in an extension header (where readers disagree about them), a broken header, a missing end, and what follows the end.
"""

import os
import re
import zlib
from collections.abc import Collection, Iterator, Sequence
from typing import IO, NamedTuple

BLOCK = 512
_CHUNK = 2**20
MAX_EXTENSION = 2**16
"""The largest extension header in bytes that is read."""
_ZEROS = bytes(BLOCK)
_MODE_AND_OWNER = b"0000644\0" + 2 * b"0000000\0"
_TIME = b"00000000000\0"
_REST = b"0" + bytes(100) + b"ustar\x0000" + bytes(247)
_SPACES = b" " * 8
"""What a header's checksum takes its own field for."""
_RECORD = re.compile(rb"([1-9][0-9]{0,5}) ([^=\n]*)=")
_TIME_ONLY = re.compile(rb"([1-9][0-9]) mtime=[0-9.]+\n")
"""The one record of the header that Python's tarfile, and so webdataset, writes before every member."""
_NUMBERS = re.compile(rb"([0-7]{11})[\0 ].{12}([0-7]{6})[\0 ]{2}", re.DOTALL)
"""Length, time and checksum as nearly everybody writes them."""
_AHEAD = 16
"""Blocks that are read at once: headers of a text, and of what stands beside it, lie close together."""
_NAMING = (b"path", b"linkpath", b"size", b"hdrcharset")
"""What a PAX header may not say: it would name or measure the member anew."""
_PART = r"(?!\.{1,2}(?:/|\Z))[^/\\\0]+"
_SAFE_NAME = re.compile(rf"(?:\./)?{_PART}(?:/{_PART})*")


class BadTar(ValueError):
    """A tar that is cut short or holds what no image-text shard holds."""


class Member(NamedTuple):
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
        """Append one member; where its bytes lie. Raises ValueError for a name that this module's reader would refuse."""
        padding = -len(data) % BLOCK
        self._file.write(_header(name, len(data)))
        self._file.write(data)
        self._file.write(_ZEROS[:padding])
        member = Member(name, self._at + BLOCK, len(data))
        self._at += BLOCK + len(data) + padding
        return member

    def close(self) -> None:
        """End the archive as tar does: two empty blocks, padded to a record of 20."""
        end = 2 * BLOCK
        self._file.write(bytes(end + -(self._at + end) % (20 * BLOCK)))


def _header(name: str, length: int) -> bytes:
    """The USTAR header of a regular file. By hand: Python's versions differ in the device fields, and take four times as long."""
    text = name.encode()
    if len(text) > 100 or length >= 8**11 or not safe_name(name):
        raise ValueError(f"'{name}' of {length} bytes cannot be a tar's member")
    head = text.ljust(100, b"\0") + _MODE_AND_OWNER + b"%011o\0" % length + _TIME
    return head + b"%06o\0 " % sum(head + _SPACES + _REST) + _REST


def blanked(file: IO[bytes], out: IO[bytes], gone: Sequence[Member]) -> None:
    """Copy a tar of ours with zeros for `gone`, which are in order, under names that say nothing; the rest stays put."""
    at = 0
    for member in gone:
        _copy(file, out, at, member.offset - BLOCK)
        out.write(_header(f"removed-{member.offset}", member.length))
        at = member.offset + member.length
        for start in range(0, member.length, _CHUNK):
            out.write(bytes(min(_CHUNK, member.length - start)))
    _copy(file, out, at, file.seek(0, os.SEEK_END))


def without(file: IO[bytes], out: IO[bytes], gone: Collection[str]) -> None:
    """Copy any tar that `members` reads but for the members called so; what stays are the bytes it was, headers too."""
    at = 0
    for member in members(file):
        end = member.offset + member.length + -member.length % BLOCK
        if member.name not in gone:
            _copy(file, out, at, end)
        at = end
    _copy(file, out, at, file.seek(0, os.SEEK_END))


def _copy(file: IO[bytes], out: IO[bytes], start: int, end: int) -> None:
    file.seek(start)
    while start < end:
        chunk = file.read(min(_CHUNK, end - start))
        out.write(chunk)
        start += len(chunk)


def members(file: IO[bytes]) -> Iterator[Member]:
    """The regular files of an open tar, in order. Raises BadTar where it is cut short or not what a shard is made of."""
    size = file.seek(0, os.SEEK_END)
    at = 0
    names: set[str] = set()
    window = _Window(file)
    while (head := window.block(at)) != _ZEROS:
        name, length, kind = _parsed(head)
        end = at + BLOCK + length + -length % BLOCK
        if end > size:
            raise BadTar(f"cut short inside '{name}'")
        if kind in b"0\0":
            if not safe_name(name):
                raise BadTar(f"member name '{name}' leaves the archive")
            if name in names:
                raise BadTar(f"member '{name}' stands twice")
            names.add(name)
            yield Member(name, at + BLOCK, length)
        elif kind in b"xg":
            _check_extension(window, at + BLOCK, length)
        elif kind in b"LK":
            raise _outside_header("path")
        elif kind != b"5":
            raise BadTar(f"member '{name}' is not a plain file")
        at = at + BLOCK if kind == b"5" else end
    _check_end(file, at)


class _Window:
    """A few blocks of a file, read anew where others are asked for."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._at, self._blocks = file, 0, b""

    def read(self, at: int, length: int) -> bytes:
        """So many bytes from there, fewer at the end of the file."""
        begin = at - self._at
        if begin < 0 or begin + length > len(self._blocks):
            self._file.seek(at)
            self._at, self._blocks, begin = at, self._file.read(max(length, _AHEAD * BLOCK)), 0
        return self._blocks[begin:begin + length]

    def block(self, at: int) -> bytes:
        """The block that begins there. Raises BadTar where the file ends before it does."""
        begin = at - self._at
        head = self._blocks[begin:begin + BLOCK] if begin >= 0 else b""
        if len(head) == BLOCK:
            return head
        head = self.read(at, BLOCK)
        if len(head) < BLOCK:
            raise BadTar("cut short: no end of archive" if at else "not a tar")
        return head


def _parsed(head: bytes) -> tuple[str, int, bytes]:
    """(name, length, type) of a header, its checksum proven."""
    numbers = _NUMBERS.match(head, 124)
    length, checksum = (int(numbers[1], 8), int(numbers[2], 8)) if numbers else (_octal(head[124:136]), _octal(head[148:156]))
    # Adler's low half is one more than the sum of the bytes, modulo 65521, at a thirtieth of the time of `sum`.
    if (checksum + 1) % 65521 != zlib.adler32(head[:148] + _SPACES + head[156:]) & 0xFFFF:
        raise BadTar("broken header, or not a tar")
    name = head[:100].partition(b"\0")[0]
    if head[345] and head[257:263] == b"ustar\0":
        name = head[345:500].partition(b"\0")[0] + b"/" + name
    text, kind = name.decode("utf-8", "surrogateescape"), head[156:157]
    return text, length, b"5" if kind == b"\0" and text.endswith("/") else kind


def _octal(field: bytes) -> int:
    digits = field.strip(b" \0") or b"0"
    if not digits.isdigit() or b"8" in digits or b"9" in digits:
        raise BadTar("broken header, or not a tar")
    return int(digits, 8)


def _check_extension(window: _Window, start: int, length: int) -> None:
    """Refuse a PAX header that says more than times and owners. Its records are `length key=value\\n`."""
    if length > MAX_EXTENSION:
        raise BadTar("an extension header is too large")
    data, at = window.read(start, length), 0
    if (time := _TIME_ONLY.fullmatch(data)) and int(time[1]) == length:
        return
    while at < length:
        record = _RECORD.match(data, at)
        end = at + int(record[1]) if record else 0
        if record is None or end < record.end() or data[end - 1:end] != b"\n":
            raise BadTar("broken extension header")
        if record[2] in _NAMING or record[2].startswith(b"GNU.sparse"):
            raise _outside_header(record[2].decode(errors="replace"))
        at = end


def _outside_header(what: str) -> BadTar:
    return BadTar(f"a member's {what} stands in an extension header, where readers differ; pack the files anew, under names of "
                  "100 ASCII characters at most")


def _check_end(file: IO[bytes], at: int) -> None:
    """Two empty blocks, and nothing but empty ones after them: no second archive that some readers see and some do not."""
    file.seek(at)
    left = file.read(2 * BLOCK)
    if len(left) < 2 * BLOCK:
        raise BadTar("cut short: no end of archive")
    while left:
        if left.strip(b"\0"):
            raise BadTar("something follows the end of the archive")
        left = file.read(2**20)


def safe_name(name: str) -> bool:
    """Whether a member's name stays inside the archive."""
    return bool(_SAFE_NAME.fullmatch(name))
