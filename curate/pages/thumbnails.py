"""Small pictures inside a page: decoded within the limits of `curate.decoding.images`, shrunk, as WebP in a `data:` address.

A picture that is gone or broken is None, never an error: reports are made of runs of long ago too.
"""

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from curate.decoding import images
from curate.decoding.images import BadImage, Fit
from curate.pages.examples import Example

QUALITY = 55
VEILED_PX = 6
"""The longer side of a picture that must not be shown plainly, before it is blown up again: colours, and nothing else."""
MAX_PIXELS = 64_000_000
"""As the download's own limit; a larger picture is shown as a broken one."""


class Thumbnails:
    """Thumbnails of a run with sides of at most `side_px`; each picture is decoded once."""

    def __init__(self, root: Path, side_px: int) -> None:
        self.side_px = side_px
        self._root = root
        self._known: dict[tuple[Any, ...], str | None] = {}

    def of(self, example: Example) -> str | None:
        """The address of a row's picture, or None where none can be shown."""
        if example.image is None:
            return None
        key = (example.image["file"], example.image["offset"], example.is_veiled)
        if key not in self._known:
            picture = self._picture(example, self.side_px)
            self._known[key] = None if picture is None else address(picture)
        return self._known[key]

    def mosaic(self, cells: Mapping[tuple[int, int], Example], columns: int, rows: int, cell_px: int) -> str | None:
        """One picture of many: each cell a row's picture cut to a square, clear where there is none; None where all are empty."""
        canvas = Image.new("RGBA", (columns * cell_px, rows * cell_px))
        for (x, y), example in cells.items():
            picture = self._picture(example, 2 * cell_px)
            if picture is not None:
                canvas.paste(ImageOps.fit(picture, (cell_px - 1, cell_px - 1)), (x * cell_px, y * cell_px))
        return address(canvas) if canvas.getbbox() else None

    def _picture(self, example: Example, side_px: int) -> Image.Image | None:
        if example.image is None:
            return None
        try:
            data = images.read(example.image, self._root)
            picture = images.load(data, Fit(side_px, "keep_ratio_largest", only_if_bigger=True), MAX_PIXELS).image
        except (BadImage, OSError):
            return None
        if example.is_veiled:
            size = picture.size
            picture.thumbnail((VEILED_PX, VEILED_PX))
            picture = picture.resize(size, Image.Resampling.NEAREST)
        return picture


def address(picture: Image.Image) -> str:
    """The picture itself as an address."""
    return "data:image/webp;base64," + base64.b64encode(images.encode(picture, "webp", QUALITY)).decode()
