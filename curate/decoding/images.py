"""Pictures from strangers: looked at before they are decoded, decoded within limits, stored without metadata.

    probe(data)                      format and size from the header alone
    decode(data)                     an RGB picture: upright, alpha on white
    load(data, fit)                  the same, resized as img2dataset's modes do, with a JPEG shrunk while it is decoded
    encode(picture, "jpg", 95)       the same bytes for the same pixels, no metadata
    read(ref, root)                  the bytes behind an image reference; `read_each` for many

Everything that can be wrong with the data raises BadImage, whose `status` is a word for the `status` column. Only running out
of memory is not data. Colour profiles are ignored, as img2dataset and the usual CLIP preprocessing do.
"""

import io
import math
import os
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from PIL import Image, UnidentifiedImageError

from curate import remote
from curate.decoding.blur import Box, blurred
from curate.decoding.lossless import first_rows, needed
from curate.errors import RunStopped, UserError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF")
"""The decoders that may run at all; Pillow has some 40, and most of its security history lies in the others."""
MAX_PIXELS = 89_478_485
"""Pillow's own threshold for a decompression bomb, which LAION used too."""
MAX_SIDE = {"jpg": 65_500, "png": 65_500, "webp": 16_383}
"""The longest side in pixels: what libjpeg and libwebp can do."""
LARGE_PIXELS = 16_777_216
"""Larger pictures are decoded one at a time, so that memory holds one of them and not one a thread or decoder process."""
PIXELS_ABOVE = 1.125
"""A JPEG is decoded to at least so many times the wanted size. 60 photos of 1,600 pixels to 256: 38 dB from a full decode (41 dB
for five of 700 and more), at 1.7 times the speed; with twice the size it was 49 dB and more (our choice)."""
LITTLE = 2 * PIXELS_ABOVE
"""So many times smaller is what is left of a JPEG that was decoded at less than its size, and what `shrink` is for."""

ResizeMode = Literal["no", "border", "keep_ratio", "keep_ratio_largest", "center_crop"]
Encoding = Literal["jpg", "png", "webp"]
QUALITY: dict[str, int] = {"jpg": 95, "png": 6, "webp": 95}

# What Pillow's decoders and EXIF reader raise on broken data; data lies in memory, so an OSError is not a disk's.
_DATA_ERRORS = (OSError, ValueError, SyntaxError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError,
                EOFError, struct.error, zlib.error, UserWarning)
_ORIENTATION, _GPS = 0x0112, 0x8825
_UPRIGHT = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
            5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
            8: Image.Transpose.ROTATE_90}
_MAGIC = {b"\xff\xd8\xff": "jpg", b"\x89PNG\r\n\x1a\n": "png", b"GIF87a": "gif", b"GIF89a": "gif"}
_LARGE = threading.Lock()

# Pillow warns of odd files; a status says it better, and the limit on pixels is checked here.
warnings.filterwarnings("ignore", module=r"PIL\.")


class BadImage(ValueError):
    """Bytes that are no picture we take: `status` is wrong_type, empty, decode_error or too_many_pixels."""

    def __init__(self, status: str, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Fit:
    """img2dataset's resize modes: `keep_ratio` and `center_crop` set the shorter side, the other two the longer one."""

    size: int = 256
    mode: ResizeMode = "no"
    only_if_bigger: bool = False

    def scaled(self, width: int, height: int) -> tuple[int, int]:
        """Width and height after scaling, before cropping or padding; the same if this picture is left alone."""
        if not self.applies(width, height):
            return width, height
        scale = self.size / self._side(width, height)
        return max(1, round(width * scale)), max(1, round(height * scale))

    def finish(self, picture: Image.Image, width: int, height: int) -> Image.Image:
        """Crop to the middle or pad with white, where the mode says so; `width` and `height` are the original's."""
        if self.mode not in ("center_crop", "border") or not self.applies(width, height):
            return picture
        left, top = (self.size - picture.width) / 2, (self.size - picture.height) / 2
        if self.mode == "center_crop":      # albumentations floors the part cut off at the left, and that padded at the left
            left, top = int(left), int(top)
            return picture.crop((-left, -top, self.size - left, self.size - top))
        canvas = Image.new("RGB", (self.size, self.size), "white")
        canvas.paste(picture, (int(left), int(top)))
        return canvas

    def _side(self, width: int, height: int) -> int:
        return min(width, height) if self.mode in ("keep_ratio", "center_crop") else max(width, height)

    def applies(self, width: int, height: int) -> bool:
        """Whether a picture of this size is changed."""
        return self.mode != "no" and (not self.only_if_bigger or self._side(width, height) > self.size)


@dataclass(frozen=True)
class Picture:
    """A decoded picture and what its file was: format (jpeg, png, webp, gif), upright size in pixels, a GPS position inside."""

    image: Image.Image
    format: str
    width: int
    height: int
    has_gps: bool


def extension(data: bytes) -> str:
    """jpg, png, gif or webp by the first bytes; `bin` for anything else."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    return next((name for magic, name in _MAGIC.items() if data.startswith(magic)), "bin")


def probe(data: bytes, max_pixels: int = MAX_PIXELS) -> tuple[str, int, int]:
    """(format, width, height) from the header, nothing decoded: jpeg, png, webp or gif, pixels as stored.

    Raises BadImage on what is not one of these, or has more pixels than `max_pixels`.
    """
    image = _open(data, max_pixels)
    return _format(image), image.width, image.height


def decode(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The whole picture in RGB, upright, alpha on white. Raises BadImage."""
    return load(data, Fit(), max_pixels).image


def load(data: bytes, fit: Fit, max_pixels: int = MAX_PIXELS, boxes: Sequence[Box] = (),
         alone: AbstractContextManager[Any] = _LARGE) -> Picture:
    """The picture as `fit` wants it, in RGB, upright, alpha on white, `boxes` blurred, without metadata. Raises BadImage.

    `alone` is held while a large picture is decoded.
    """
    image = _open(data, max_pixels)
    try:
        with alone if image.width * image.height > LARGE_PIXELS else nullcontext():
            return _load(image, fit, max_pixels, boxes)
    except BadImage:
        raise
    except _DATA_ERRORS as error:
        raise BadImage("decode_error", _text(error)) from None


def keep(data: bytes, fit: Fit, max_pixels: int = MAX_PIXELS) -> tuple[Picture, bytes] | None:
    """A JPEG that `fit` leaves alone, and its file without metadata; None where it has to be encoded anew. Raises BadImage.

    All segments are walked to the end of the picture. Of one plain scan the first rows are then decoded: what Pillow refuses, it
    refuses there. Of other files, or where the walk finds no end, all is decoded, at an eighth of its size.
    """
    image = _open(data, max_pixels)
    orientation, has_gps = _exif(image)
    if image.format != "JPEG" or image.mode not in ("RGB", "L") or orientation != 1 or fit.applies(*image.size):
        return None
    width, height = image.size
    kept = needed(data)
    rows = None if kept is None else first_rows(kept)
    try:
        tried = image if rows is None else Image.open(io.BytesIO(rows), formats=("JPEG",))
        tried.draft(None, (1, 1))
        tried.load()
    except _DATA_ERRORS as error:
        raise BadImage("decode_error", _text(error)) from None
    picture = Picture(tried, "jpeg", width, height, has_gps)
    return None if kept is None else (picture, b"".join(segment for _, segment in kept))


def encode(picture: Image.Image, encoding: Encoding = "jpg", quality: int | None = None) -> bytes:
    """The file of an RGB picture. Quality: 0 to 100 for jpg and webp, the compression level 0 to 9 for png.

    Raises BadImage where a side is longer than the format can have.
    """
    if max(picture.size) > MAX_SIDE[encoding]:
        raise BadImage("too_many_pixels", f"{picture.width}x{picture.height} pixels do not fit into a {encoding}")
    out = io.BytesIO()
    quality = QUALITY[encoding] if quality is None else quality
    if encoding == "png":
        picture.save(out, "PNG", compress_level=quality)
    elif encoding == "webp":
        picture.save(out, "WEBP", quality=quality, method=4)
    else:
        picture.save(out, "JPEG", quality=quality)
    return out.getvalue()


def check_quality(encoding: Encoding, quality: int | None) -> None:
    """Raises UserError where the format has no such quality."""
    top = 9 if encoding == "png" else 100
    if quality is not None and not 0 <= quality <= top:
        raise UserError(f"encode_quality: {encoding} takes 0 to {top}, not {quality}")


def read(ref: Mapping[str, Any], root: Path) -> bytes:
    """The bytes of an image reference {file, offset, length}; a relative file lies below `root`, a url is read by range.

    Raises OSError where the file is gone or shorter than the reference says.
    """
    file, offset, length = ref["file"], ref["offset"], ref["length"]
    if "://" in file:
        try:
            return remote.read_window([remote.Range(file, offset, length)])[0]
        except RunStopped as error:
            raise OSError(str(error)) from None
    path = root / file
    now = path.stat()
    data = _handle(str(path), now.st_ino, now.st_mtime_ns).read(offset, length)
    if len(data) != length:
        raise OSError(f"{file}: {length} bytes wanted at {offset}, {len(data)} there")
    return data


def read_each(refs: Sequence[Mapping[str, Any]], root: Path) -> Iterator[bytes]:
    """As `read` for one reference after the other; where all are urls, many at a time and ahead of who takes them.

    Raises OSError, and RunStopped where an object store does not give what it had: that says nothing about the picture.
    """
    if all("://" in ref["file"] for ref in refs):
        return remote.read_each(remote.Range(ref["file"], ref["offset"], ref["length"]) for ref in refs)
    return (read(ref, root) for ref in refs)


class _Handle:
    """An open file, closed when nobody holds it any more: evicted from the cache or not, a reader keeps it alive."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def read(self, offset: int, length: int) -> bytes:
        return os.pread(self._file, length, offset)

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            os.close(self._file)


@lru_cache(maxsize=64)
def _handle(path: str, inode: int, changed_ns: int) -> _Handle:
    """The open file at `path`, opened anew after the file was replaced (another inode or time)."""
    return _Handle(path)


def _open(data: bytes, max_pixels: int) -> Image.Image:
    """The picture with its header read and checked, nothing decoded."""
    if not data:
        raise BadImage("empty", "no bytes")
    if extension(data) == "bin":
        raise BadImage("wrong_type", "not a JPEG, PNG, WebP or GIF")
    if data.startswith(b"RIFF"):            # Pillow takes memory for two whole frames when it opens one
        _check_size(*_webp_size(data), max_pixels, "")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadImage("too_many_pixels", _text(error)) from None
    except _DATA_ERRORS as error:
        raise BadImage("decode_error", _text(error)) from None
    _check_size(image.width, image.height, max_pixels, "")
    return image


def _webp_size(data: bytes) -> tuple[int, int]:
    """Width and height of a WebP by its first chunk (RFC 9649, section 2); 1 x 1 where that is none, for Pillow to judge."""
    def number(at: int, length: int) -> int:
        return int.from_bytes(data[at:at + length], "little")

    match data[12:16]:
        case b"VP8X":
            return number(24, 3) + 1, number(27, 3) + 1
        case b"VP8L":
            return (number(21, 4) & 0x3fff) + 1, (number(21, 4) >> 14 & 0x3fff) + 1
        case b"VP8 ":
            return number(26, 2) & 0x3fff, number(28, 2) & 0x3fff
    return 1, 1


def _check_size(width: int, height: int, max_pixels: int, when: str) -> None:
    if min(width, height) < 1:
        raise BadImage("decode_error", f"{width}x{height} pixels")
    if width * height > max_pixels or max(width, height) > MAX_SIDE["jpg"]:
        raise BadImage("too_many_pixels", f"{width}x{height} pixels{when}")


def _load(image: Image.Image, fit: Fit, max_pixels: int, boxes: Sequence[Box]) -> Picture:
    kind = _format(image)
    if kind == "png":
        image.load()            # its EXIF chunk may stand behind the pixels
    orientation, has_gps = _exif(image)
    turned = orientation >= 5
    width, height = image.size[::-1] if turned else image.size
    target = fit.scaled(width, height)
    _check_size(*target, max_pixels, " after resizing")
    small = blurred(_shrunk(image, target[::-1] if turned else target), boxes)
    # whether boxes speak of the picture as stored (img2dataset, DataComp) or upright, nobody knows: both places are blurred
    upright = blurred(small.transpose(_UPRIGHT[orientation]), boxes) if orientation in _UPRIGHT else small
    return Picture(fit.finish(upright, width, height), kind, width, height, has_gps)


def _shrunk(image: Image.Image, target: tuple[int, int]) -> Image.Image:
    """The picture in RGB at `target` size, as stored (not upright).

    Lanczos when growing, bilinear when shrinking a little, as what is left of a JPEG, Hamming when shrinking more.
    """
    grows = target[0] > image.width or target[1] > image.height
    if image.size != target and not grows:
        image.draft(None, (math.ceil(target[0] * PIXELS_ABOVE), math.ceil(target[1] * PIXELS_ABOVE)))
    rgb = _rgb(image)
    if rgb.size == target:
        small = rgb.copy()
    elif grows:
        small = rgb.resize(target, Image.Resampling.LANCZOS)
    elif rgb.width <= LITTLE * target[0] and rgb.height <= LITTLE * target[1]:
        from curate.decoding.shrink import bilinear  # OpenCV: not for who only reads pictures

        small = bilinear(rgb, target)
    else:
        small = rgb.resize(target, Image.Resampling.HAMMING, reducing_gap=2.0)
    small.info = {}
    return small


def _rgb(image: Image.Image) -> Image.Image:
    """Eight bits of red, green and blue, alpha laid on white."""
    if image.mode.startswith("I"):          # 16 bits of grey; a plain conversion would clip instead of scaling
        image = image.convert("I").point(lambda value: value * (1 / 257)).convert("L")
        image.info = {}
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        plain = Image.new("RGB", image.size, "white")
        plain.paste(rgba, mask=rgba.getchannel("A"))
        return plain
    return image if image.mode == "RGB" else image.convert("RGB")


def _exif(image: Image.Image) -> tuple[int, bool]:
    """(orientation 1 to 8, whether there is a GPS position); unreadable EXIF says nothing and spoils nothing."""
    try:
        exif = image.getexif()
        orientation = exif.get(_ORIENTATION, 1)
        return (orientation if orientation in _UPRIGHT else 1), bool(exif.get_ifd(_GPS))
    except _DATA_ERRORS:
        return 1, False


def _format(image: Image.Image) -> str:
    """`jpeg` for what Pillow calls MPO: a JPEG with further pictures behind the first."""
    return {"MPO": "jpeg"}.get(image.format or "", (image.format or "").lower())


def _text(error: BaseException) -> str:
    """What went wrong in one line that is the same in every run: no addresses of objects."""
    if isinstance(error, UnidentifiedImageError):
        return "broken header"
    return " ".join(str(error).split())[:200] or type(error).__name__
