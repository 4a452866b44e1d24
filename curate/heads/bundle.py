"""TensorFlow's tensor bundle: `variables.index`, a table of names in LevelDB's format, and `variables.data`, the tensors' bytes.

Read after tensorflow/core/protobuf/tensor_bundle.proto and LevelDB's table_format.md. What published heads hold is read and all
else refused: one data file, little endian, uncompressed blocks, float32. Every block and every tensor has a CRC-32C, which is
checked.
"""

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from curate.heads.protowire import BadBytes, all_bytes, one_bytes, one_int, varint

MAGIC = 0xDB4775248B80FB57
FOOTER, TRAILER = 48, 5
MASK = 0xA282EAD8
FLOAT = 1
"""DT_FLOAT in tensorflow/core/framework/types.proto."""


def _crc_table() -> list[int]:
    table = []
    for n in range(256):
        for _ in range(8):
            n = n >> 1 ^ (0x82F63B78 if n & 1 else 0)
        table.append(n)
    return table


CRC = _crc_table()


def masked_crc(data: bytes) -> int:
    """CRC-32C, rotated and shifted as LevelDB stores it."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = CRC[(crc ^ byte) & 255] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + MASK) & 0xFFFFFFFF


@dataclass(frozen=True)
class Bundle:
    """The names in an index, each with its entry, and the bytes they point into."""

    entries: dict[str, bytes]
    data: bytes

    def tensor(self, name: str) -> NDArray[np.float32]:
        """A float32 tensor by its full name; BadBytes where there is none, or it is another type, or broken."""
        entry = self.entries.get(name)
        if entry is None:
            raise BadBytes(f"there is no tensor '{name}'")
        if one_int(entry, 1) != FLOAT or one_int(entry, 3):
            raise BadBytes(f"'{name}' is not float32 in one data file")
        shape = [one_int(dim, 1) for dim in all_bytes(one_bytes(entry, 2), 2)]
        offset, size = one_int(entry, 4), one_int(entry, 5)
        if size != 4 * math.prod(shape) or offset + size > len(self.data):
            raise BadBytes(f"'{name}' of shape {shape} has {size} bytes at {offset} of {len(self.data)}")
        raw = self.data[offset : offset + size]
        if masked_crc(raw) != struct.unpack("<I", one_bytes(entry, 6, bytes(4)))[0]:
            raise BadBytes(f"the bytes of '{name}' are not what was written")
        return np.frombuffer(raw, "<f4").reshape(shape).astype(np.float32)


def read(index: bytes, data: bytes) -> Bundle:
    """The bundle of an index file and its only data file; BadBytes for anything else."""
    if len(index) < FOOTER or struct.unpack("<Q", index[-8:])[0] != MAGIC:
        raise BadBytes("variables.index is no tensor bundle")
    footer = index[-FOOTER:]
    _, at = varint(footer, 0)       # where the block of metadata lies, of no use here
    _, at = varint(footer, at)
    offset, at = varint(footer, at)
    size, at = varint(footer, at)
    entries: dict[bytes, bytes] = {}
    for _, handle in _block(index, offset, size):
        start, after = varint(handle, 0)
        entries.update(_block(index, start, varint(handle, after)[0]))
    header = entries.pop(b"", b"")
    if one_int(header, 1) != 1 or one_int(header, 2):
        raise BadBytes("the bundle has several data files, or is big endian")
    return Bundle({k.decode("utf-8", "replace"): v for k, v in entries.items()}, data)


def _block(file: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """(key, value) of a block; keys share the start of the key before them."""
    if offset + size + TRAILER > len(file) or size < 4:
        raise BadBytes(f"a block of {size} bytes at {offset} of {len(file)}")
    body, kind = file[offset : offset + size], file[offset + size]
    if kind:
        raise BadBytes("a block is compressed")
    if masked_crc(file[offset : offset + size + 1]) != struct.unpack("<I", file[offset + size + 1 : offset + size + TRAILER])[0]:
        raise BadBytes("the bytes of a block are not what was written")
    end = size - 4 - 4 * struct.unpack("<I", body[-4:])[0]
    at, key = 0, b""
    while at < end:
        shared, at = varint(body, at)
        own, at = varint(body, at)
        length, at = varint(body, at)
        if shared > len(key) or at + own + length > end:
            raise BadBytes("an entry reaches over the end of its block")
        key = key[:shared] + body[at : at + own]
        yield key, body[at + own : at + own + length]
        at += own + length
