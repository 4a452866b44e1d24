"""A JPEG without its metadata, its pixels untouched: the segments that decoding needs, and nothing else (ITU-T T.81, annex B)."""

from collections.abc import Iterator, Sequence

_SOI, _EOI, _SOS, _COM, _ADOBE = 0xD8, 0xD9, 0xDA, 0xFE, 0xEE
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_PLAIN_FRAMES = (0xC0, 0xC1)
_APP = range(0xE0, 0xF0)
_RESTART = bytes(range(0xD0, 0xD8))

ROWS, SCAN_BYTES = 16, 4096
"""How much of a picture is decoded to know that its tables are sound."""

Segment = tuple[int, bytes]
"""A marker, and the segment with its marker; a scan with its data."""


def stripped(data: bytes) -> bytes | None:
    """The file without comments, EXIF, XMP, colour profiles, further pictures and what follows its end; None for no whole JPEG.

    What Adobe's APP14 says stays: without it the colours would be read wrongly.
    """
    kept = needed(data)
    return None if kept is None else b"".join(segment for _, segment in kept)


def needed(data: bytes) -> list[Segment] | None:
    """The segments of which `stripped` is made, from the first marker to the end of the picture."""
    try:
        return [(marker, segment) for marker, segment in _segments(data) if marker == _ADOBE or marker not in (*_APP, _COM)]
    except ValueError:
        return None


def first_rows(kept: Sequence[Segment]) -> bytes | None:
    """The tables of a picture and the beginning of its scan, as a picture of a few rows; None where it is not one plain scan.

    libjpeg looks at frame and tables before the first row, and what is wrong in the data of a sequential Huffman scan it only
    warns of (jdhuff.c): it decodes these rows where, and only where, it decodes the picture to its end.
    """
    *head, (last, scan), _ = kept
    frames = [number for number, (marker, _) in enumerate(head) if marker in _FRAMES]
    if last != _SOS or any(marker == _SOS for marker, _ in head) or len(frames) != 1 or head[frames[0]][0] not in _PLAIN_FRAMES:
        return None
    frame = head[frames[0]][1]
    rows = min(int.from_bytes(frame[5:7]), ROWS)
    head[frames[0]] = (0, frame[:5] + rows.to_bytes(2) + frame[7:])
    return b"".join(segment for _, segment in head) + scan[:SCAN_BYTES] + b"\xff\xd9"


def _segments(data: bytes) -> Iterator[Segment]:
    """All segments up to the end of the picture. Raises ValueError."""
    if data[:2] != b"\xff\xd8":
        raise ValueError("no JPEG")
    yield _SOI, data[:2]
    at = 2
    while True:
        while data[at:at + 2] == b"\xff\xff":       # fill bytes
            at += 1
        if data[at:at + 1] != b"\xff" or len(data) < at + 2:
            raise ValueError("no marker")
        marker = data[at + 1]
        if marker == _EOI:
            yield _EOI, b"\xff\xd9"
            return
        length = int.from_bytes(data[at + 2:at + 4])
        end = at + 2 + length
        if length < 2 or end > len(data):
            raise ValueError("a segment that is cut short")
        if marker == _SOS:
            end = _end_of_scan(data, end)
        yield marker, data[at:end]
        at = end


def _end_of_scan(data: bytes, at: int) -> int:
    """Where the marker stands that ends a scan: in it, 0xff stands before a zero or a restart marker only. Raises ValueError."""
    find, last = data.find, len(data) - 1
    while 0 <= (at := find(b"\xff", at)) < last:
        follows = data[at + 1]
        if not follows or follows in _RESTART:
            at += 2
        elif follows == 0xff:           # a fill byte
            at += 1
        else:
            return at
    raise ValueError("no end")
