"""A JPEG without its metadata, its pixels untouched: the segments that decoding needs, and nothing else (ITU-T T.81, annex B)."""

from collections.abc import Iterator

_SOI, _EOI, _SOS, _COM, _ADOBE = 0xD8, 0xD9, 0xDA, 0xFE, 0xEE
_APP = range(0xE0, 0xF0)
_RESTART = bytes(range(0xD0, 0xD8))


def stripped(data: bytes) -> bytes | None:
    """The file without comments, EXIF, XMP, colour profiles, further pictures and what follows its end; None for no whole JPEG.

    What Adobe's APP14 says stays: without it the colours would be read wrongly.
    """
    kept: list[bytes] = []
    try:
        for marker, segment in _segments(data):
            if marker == _ADOBE or marker not in (*_APP, _COM):
                kept.append(segment)
    except ValueError:
        return None
    return b"".join(kept)


def _segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(marker, the segment with its marker; a scan with its data) up to the end of the picture. Raises ValueError."""
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
    while (at := data.find(b"\xff", at)) >= 0:
        follows = data[at + 1:at + 2]
        if follows == b"\xff":          # a fill byte
            at += 1
        elif follows and (follows == b"\0" or follows in _RESTART):
            at += 2
        else:
            return at
    raise ValueError("no end")
