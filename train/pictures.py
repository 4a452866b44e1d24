"""From stored bytes to the square of pixels a model is trained on.

Decoded as strangers' files are: four formats, a limit on pixels, upright, alpha on white. A JPEG is decoded at a half, a quarter
or an eighth where that is still twice what is needed.
"""

import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageOps

FORMATS = ("JPEG", "PNG", "WEBP", "GIF")
MAX_PIXELS = 89_478_485
"""Pillow's own threshold for a decompression bomb."""
SMALL = 128
"""Models up to this many pixels a side get pictures reduced once to `ROOM` times their side, so that all may stay in memory."""
ROOM = 1.25
RATIO = (3 / 4, 4 / 3)
"""Shape of a training crop: torchvision's RandomResizedCrop, which open_clip uses."""

# What Pillow's decoders raise on broken data; the data lies in memory, so an OSError is not a disk's.
_DATA_ERRORS = (OSError, ValueError, SyntaxError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError,
                struct.error, zlib.error, UserWarning)

warnings.filterwarnings("ignore", module=r"PIL\.")


class BrokenPicture(ValueError):
    """Bytes that are no picture we take."""


@dataclass(frozen=True)
class TrainCrop:
    """A random resized crop as open_clip does it: a share `area` of the picture, resized to `size` pixels a side."""

    size: int
    area: tuple[float, float] = (0.9, 1.0)
    flip: bool = False
    squash: bool = False
    """the whole picture pressed into a square, for models whose preprocessing does so: `RATIO` is then to the picture's shape"""

    @property
    def reduced(self) -> int | None:
        """The shorter side of pictures kept in memory between epochs, or None where the model takes large ones."""
        return round(self.size * ROOM) if self.size <= SMALL else None

    def decode(self, data: bytes) -> Image.Image:
        """The picture in RGB, reduced where `reduced` says so. Raises BrokenPicture."""
        picture = decode(data, self.size)
        short = min(picture.size)
        if self.reduced is None or short <= self.reduced:
            return picture
        width, height = (max(1, round(side * self.reduced / short)) for side in picture.size)
        return picture.resize((width, height), Image.Resampling.BICUBIC)

    def __call__(self, picture: Image.Image, draws: NDArray[np.float64]) -> NDArray[np.uint8]:
        """The crop that five numbers in [0, 1) pick, (size, size, 3).

        Of a picture kept small by fractions of its pixels; of a large one by whole pixels, as torchvision's, and resized by
        torch's integer kernel, which is bicubic and antialiased as Pillow's and takes a quarter of its time.
        """
        box = self.box(picture.size, draws)
        if self.reduced is None:
            pixels = _resized(np.array(picture), box, self.size)
        else:
            pixels = np.asarray(picture.resize((self.size, self.size), Image.Resampling.BICUBIC, box=box))
        return pixels[:, ::-1] if self.flip and draws[4] < 0.5 else pixels

    def box(self, size: tuple[int, int], draws: NDArray[np.float64]) -> tuple[float, float, float, float]:
        """(left, top, right, bottom) of the crop; a shape that does not fit is cut to the picture's side."""
        low, high = self.area
        area = size[0] * size[1] * (low + (high - low) * draws[0])
        ratio = np.exp(np.log(RATIO[0]) + (np.log(RATIO[1]) - np.log(RATIO[0])) * draws[1])
        if self.squash:
            ratio *= size[0] / size[1]
        width, height = min(np.sqrt(area * ratio), size[0]), min(np.sqrt(area / ratio), size[1])
        left, top = (size[0] - width) * draws[2], (size[1] - height) * draws[3]
        return float(left), float(top), float(left + width), float(top + height)


def _resized(pixels_HWC: NDArray[np.uint8], box: tuple[float, float, float, float], size: int) -> NDArray[np.uint8]:
    left, top, right, bottom = (round(edge) for edge in box)
    cut = torch.from_numpy(pixels_HWC)[top : max(bottom, top + 1), left : max(right, left + 1)].permute(2, 0, 1)[None]
    resized = F.interpolate(cut, size=(size, size), mode="bicubic", antialias=True)
    return np.asarray(resized[0].permute(1, 2, 0).numpy())


def decode(data: bytes, at_least: int = 0) -> Image.Image:
    """The picture in RGB, upright, alpha on white. A JPEG may come smaller, its sides no less than twice `at_least`.

    Raises BrokenPicture.
    """
    try:
        picture = Image.open(io.BytesIO(data), formats=FORMATS)
        if picture.width * picture.height > MAX_PIXELS:
            raise BrokenPicture(f"{picture.width}x{picture.height} pixels")
        if at_least:
            picture.draft(None, (2 * at_least, 2 * at_least))
        ImageOps.exif_transpose(picture, in_place=True)
        return _rgb(picture)
    except (Image.DecompressionBombError, *_DATA_ERRORS) as error:
        raise BrokenPicture(" ".join(str(error).split())[:200] or type(error).__name__) from None


def decoded(stored: Iterator[bytes], batch: int) -> Iterator[list[tuple[int, Image.Image]]]:
    """(number, picture) of all that decode, in order, `batch` stored ones at a time; only these are in memory."""
    counted = enumerate(stored)
    with ThreadPoolExecutor(2) as pool:
        while chunk := list(islice(counted, batch)):
            yield [(i, picture) for i, picture in pool.map(_decoded, chunk) if picture is not None]


def _decoded(numbered: tuple[int, bytes]) -> tuple[int, Image.Image | None]:
    try:
        return numbered[0], decode(numbered[1])
    except BrokenPicture:
        return numbered[0], None


def _rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I"):          # 16 bits of grey; a plain conversion would clip instead of scaling
        picture = picture.convert("I").point(lambda value: value * (1 / 257)).convert("L")
    if picture.has_transparency_data:
        rgba = picture.convert("RGBA")
        plain = Image.new("RGB", picture.size, "white")
        plain.paste(rgba, mask=rgba.getchannel("A"))
        return plain
    picture.load()
    return picture if picture.mode == "RGB" else picture.convert("RGB")
