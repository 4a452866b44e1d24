"""A picture from the web → its columns and the file to store: what decoder processes do for `download`."""

import importlib
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any

from curate.decoding.images import QUALITY, BadImage, Encoding, Fit, encode, keep, load

WORK = "curate.decoding.convert:converter"
"""What `curate.decoding.decode.Decoders` is told."""
BYTES_PER_PIXEL, BYTES_BESIDE = 24, 256 * 2**20
"""What a decoder may take: a lossless WebP with alpha takes most, 21.3 bytes a pixel (64 million pixels, Pillow 13)."""


@dataclass(frozen=True)
class Recipe:
    """How a picture is to be stored."""

    fit: Fit
    encode_format: Encoding
    encode_quality: int | None
    max_pixels: int
    skip_reencode: bool = False

    @property
    def settings(self) -> dict[str, Any]:
        """The same as plain values."""
        return asdict(self)

    @property
    def quality(self) -> int:
        """What the encoder is told."""
        return QUALITY[self.encode_format] if self.encode_quality is None else self.encode_quality

    @property
    def memory_bytes(self) -> int:
        """What the largest picture may need, with everything beside it."""
        return BYTES_PER_PIXEL * self.max_pixels + BYTES_BESIDE


def converter(settings: Mapping[str, Any], alone: AbstractContextManager[None]) -> Any:
    """A function (file, {"boxes": [...]}) → (columns, file to store or None). `alone` is held while a picture is large."""
    recipe = Recipe(**{**settings, "fit": Fit(**settings["fit"])})
    importlib.import_module("curate.decoding.shrink")        # before memory is limited: what OpenCV maps is not a picture's

    def convert(body: bytes, ask: Mapping[str, Any]) -> tuple[dict[str, Any], bytes | None]:
        boxes = [tuple(box) for box in ask["boxes"]]
        try:
            may_stay = recipe.skip_reencode and recipe.encode_format == "jpg" and not boxes
            if may_stay and (kept := keep(body, recipe.fit, recipe.max_pixels)):
                picture, stored = kept
            else:
                picture = load(body, recipe.fit, recipe.max_pixels, boxes, alone)
                stored = encode(picture.image, recipe.encode_format, recipe.encode_quality)
        except BadImage as error:
            return {"status": error.status, "error": str(error)}, None
        return {"original_format": picture.format, "original_width_px": picture.width, "original_height_px": picture.height,
                "exif_gps": picture.has_gps}, stored

    return convert
