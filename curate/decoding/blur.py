"""Parts of a picture made unrecognisable: faces, say, whose boxes came with the table.

    read_boxes([row's value, ...])       the boxes of all rows that hold a picture: [[x0, y0, x1, y1], ...] each
    blurred(picture, boxes)              the same picture without what is in them

Boxes are shares of width and height, 0 to 1 from the top left, as in DataComp's `face_bboxes` and for img2dataset's `bbox_col`.
What cannot be read raises BadBoxes: a picture is never stored unblurred because its boxes were broken.
"""

import json
import math
from collections.abc import Iterable
from typing import Any

from PIL import Image, ImageFilter

GROW = SIGMA = 0.1
"""Of the longer side of a box: how much is blurred around it, and how strongly, as for "A Study of Face Obfuscation in ImageNet"
(Yang et al. 2021; github.com/princetonvisualai/imagenet-face-obfuscation) and in img2dataset's blurrer.py. Ours replaces the
whole grown box and blurs each by its own size; theirs fade from its edge inwards, by the size of the largest (our choice)."""
LEAST, MOST = -1.0, 2.0
"""Detectors put boxes a little outside a picture; what lies further out is no share but pixels."""
MAX_BOXES = 1000
"""Of one picture, its rows together."""

Box = tuple[float, float, float, float]
"""left, top, right, bottom as shares of the picture, right of left and below top."""


class BadBoxes(ValueError):
    """Boxes that cannot be read; the message says why."""


def read_boxes(values: Iterable[Any]) -> tuple[Box, ...]:
    """The boxes of all values together, each once, sorted: the same in whatever order the rows come.

    A value is a list of [x0, y0, x1, y1], or JSON of one. Corners may be swapped. Raises BadBoxes for null, for anything else,
    for numbers that are none or lie below LEAST or above MOST, and for more than MAX_BOXES.
    """
    boxes: set[Box] = set()
    for value in values:
        boxes.update(_box(box) for box in _list(value))
        if len(boxes) > MAX_BOXES:
            raise BadBoxes(f"more than {MAX_BOXES} boxes")
    return tuple(sorted(boxes))


def blurred(picture: Image.Image, boxes: Iterable[Box]) -> Image.Image:
    """The picture, changed in place, with each box and GROW around it blurred."""
    for box in boxes:
        _blur(picture, box)
    return picture


def _list(value: Any) -> list[Any]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise BadBoxes("boxes are text that is no JSON") from None
    if not isinstance(value, list):
        raise BadBoxes("no list of boxes" if value is not None else "no boxes are known; a picture without any has []")
    return value


def _box(value: Any) -> Box:
    numbers = isinstance(value, list) and len(value) == 4 and all(isinstance(v, int | float) and v is not True and v is not False
                                                                  for v in value)
    if not numbers or not all(LEAST <= v <= MOST for v in value):       # NaN is not between anything
        raise BadBoxes(f"a box is four shares [x0, y0, x1, y1] of 0 to 1, not {str(value)[:80]}")
    x0, y0, x1, y1 = map(float, value)
    return min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)


def _blur(picture: Image.Image, box: Box) -> None:
    width, height = picture.size
    left, top, right, bottom = box[0] * width, box[1] * height, box[2] * width, box[3] * height
    longer = max(right - left, bottom - top)
    place = _within(picture, (left, top, right, bottom), GROW * longer)
    if place[0] >= place[2] or place[1] >= place[3]:
        return
    around = _within(picture, place, 3 * SIGMA * longer)
    soft = picture.crop(around).filter(ImageFilter.GaussianBlur(SIGMA * longer))
    inner = (place[0] - around[0], place[1] - around[1], place[2] - around[0], place[3] - around[1])
    picture.paste(soft.crop(inner), place[:2])


def _within(picture: Image.Image, box: Box, more: float) -> tuple[int, int, int, int]:
    """Whole pixels that hold the box and `more` around it, as far as there is a picture."""
    left, top, right, bottom = box
    return (max(0, math.floor(left - more)), max(0, math.floor(top - more)),
            min(picture.width, math.ceil(right + more)), min(picture.height, math.ceil(bottom + more)))
