"""Protocol buffers, as far as reading other people's files needs: fields by number, every length checked before it is used."""

from collections.abc import Iterator

Value = int | bytes
VARINT_BYTES = 10


class BadBytes(ValueError):
    """The bytes are cut short or are not of this format."""


def varint(data: bytes, at: int) -> tuple[int, int]:
    """The number at a place, and the place after it."""
    value = 0
    for i in range(VARINT_BYTES):
        if at + i >= len(data):
            raise BadBytes("a number is cut short")
        value |= (data[at + i] & 127) << 7 * i
        if data[at + i] < 128:
            return value, at + i + 1
    raise BadBytes("a number has more than ten bytes")


def fields(message: bytes) -> Iterator[tuple[int, Value]]:
    """(field number, value): a number for wire type 0, else the bytes (8 and 4 of them for types 1 and 5)."""
    at = 0
    while at < len(message):
        tag, at = varint(message, at)
        if tag & 7 == 0:
            value, at = varint(message, at)
            yield tag >> 3, value
            continue
        if tag & 7 == 2:
            length, at = varint(message, at)
        elif tag & 7 in (1, 5):
            length = 8 if tag & 7 == 1 else 4
        else:
            raise BadBytes(f"wire type {tag & 7} is unknown")
        if length > len(message) - at:
            raise BadBytes(f"a field of {length} bytes where {len(message) - at} are left")
        yield tag >> 3, message[at : at + length]
        at += length


def all_bytes(message: bytes, number: int) -> list[bytes]:
    """Every value of a field that holds bytes, texts or messages."""
    return [v for n, v in fields(message) if n == number and isinstance(v, bytes)]


def one_bytes(message: bytes, number: int, default: bytes = b"") -> bytes:
    """The last value of such a field, as protocol buffers have it."""
    return next(reversed(all_bytes(message, number)), default)


def one_int(message: bytes, number: int, default: int = 0) -> int:
    """The last value of a field that holds a number."""
    return next((v for n, v in reversed(list(fields(message))) if n == number and isinstance(v, int)), default)


def texts(message: bytes, number: int) -> list[str]:
    """Every value of a text field; BadBytes where one is no UTF-8."""
    try:
        return [v.decode() for v in all_bytes(message, number)]
    except UnicodeDecodeError:
        raise BadBytes("a text is no UTF-8") from None
