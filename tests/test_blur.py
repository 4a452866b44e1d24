import json
import math
from typing import Any

import numpy as np
import pytest
from PIL import Image

from curate.decoding.blur import MAX_BOXES, BadBoxes, blurred, read_boxes
from curate.decoding.images import Fit, load
from tests.test_images import saved

FACE = (0.5, 0.25, 0.75, 0.75)


def noise(width: int = 200, height: int = 100) -> Image.Image:
    """A picture in which a blur is seen everywhere."""
    return Image.fromarray(np.random.default_rng(3).integers(0, 2, (height, width, 3), np.uint8) * 255)


def changed(before: Image.Image, after: Image.Image) -> np.ndarray:
    """Which pixels differ, as a mask (height, width)."""
    mask: np.ndarray = (np.asarray(before) != np.asarray(after)).any(2)
    return mask


def rough(image: Image.Image) -> float:
    """The standard deviation of what is left of noise: 127 untouched."""
    return float(np.asarray(image, np.float32).std())


def test_a_box_and_a_tenth_around_it_are_blurred_and_nothing_else() -> None:
    before = noise()
    after = blurred(before.copy(), [FACE])
    mask = changed(before, after)
    inside = np.zeros_like(mask)
    inside[20:80, 95:155] = True            # 100..150 x 25..75, and 5 pixels around
    assert not mask[~inside].any()
    assert mask[inside].mean() > 0.99
    assert rough(after.crop((95, 20, 155, 80))) < 20


def test_boxes_at_the_border_and_beyond() -> None:
    before = noise()
    places = [((-0.1, -0.1, 0.1, 0.2), (slice(0, 24), slice(0, 24))),
              ((0.9, 0.9, 1.2, 1.4), (slice(84, 100), slice(174, 200))),
              ((-1.0, -1.0, 2.0, 2.0), (slice(0, 100), slice(0, 200)))]
    for box, area in places:
        mask = changed(before, blurred(before.copy(), [box]))
        assert mask[area].mean() > 0.98
        mask[area] = False
        assert not mask.any()
    for nothing in [(1.2, 0.1, 1.3, 0.2), (0.5, 0.5, 0.5, 0.5)]:
        assert changed(before, blurred(before.copy(), [nothing])).sum() <= 4


def test_blurring_is_the_same_every_time() -> None:
    boxes = read_boxes([[[0.1, 0.1, 0.5, 0.5]], [[0.4, 0.4, 0.9, 0.9], [0.1, 0.1, 0.5, 0.5]]])
    assert boxes == read_boxes([[[0.4, 0.4, 0.9, 0.9]], [[0.1, 0.1, 0.5, 0.5]]])
    assert blurred(noise(), boxes).tobytes() == blurred(noise(), boxes).tobytes()


@pytest.mark.parametrize(("values", "expected"), [
    ([], ()), ([[]], ()), ([[], []], ()), ([[[0, 0, 1, 1]]], ((0.0, 0.0, 1.0, 1.0),)),
    ([[[0.75, 0.5, 0.25, 0.125]]], ((0.25, 0.125, 0.75, 0.5),)), (["[]"], ()), (["[[0, 0.5, 1, 1]]"], ((0.0, 0.5, 1.0, 1.0),)),
    ([[[0.1, 0.1, 0.2, 0.2]], [[0.1, 0.1, 0.2, 0.2]], [[0, 0, 0.5, 1.02]]], ((0.0, 0.0, 0.5, 1.02), (0.1, 0.1, 0.2, 0.2))),
])
def test_boxes_of_all_rows_together(values: list[Any], expected: Any) -> None:
    assert read_boxes(values) == expected


@pytest.mark.parametrize("value", [
    None, "no boxes", "{}", "[" * 5000, "null", 7, {"x": 1}, [0.1, 0.1, 0.2, 0.2], [[0.1, 0.1, 0.2]], [[0.1, 0.1, 0.2, None]],
    [[0.1, 0.1, 0.2, "0.2"]], [[0, 0, True, 1]], [[0.1, math.nan, 0.2, 0.2]], [[0.1, 0.1, math.inf, 0.2]], [[10, 20, 110, 220]],
    [[0, 0, 10**400, 1]], [None], "[[NaN, 0, 1, 1]]",
])
def test_what_cannot_be_read_is_refused(value: Any) -> None:
    for values in ([value], [[[0, 0, 1, 1]], value]):
        with pytest.raises(BadBoxes, match=r"^(a box is four shares|boxes are text|no list|no boxes are known)"):
            read_boxes(values)


def test_a_thousand_boxes_are_enough() -> None:
    many = [[n / 2000, 0, 1, 1] for n in range(MAX_BOXES + 1)]
    assert len(read_boxes([many[:-1]])) == MAX_BOXES
    with pytest.raises(BadBoxes, match="^more than 1000 boxes$"):
        read_boxes([json.dumps(many)])


@pytest.mark.parametrize("mode", ["no", "keep_ratio", "keep_ratio_largest", "center_crop", "border"])
def test_the_face_is_found_after_any_resizing(mode: Any) -> None:
    data, fit = saved(noise(), "PNG"), Fit(64, mode)
    mask = changed(load(data, fit).image, load(data, fit, boxes=[FACE]).image)
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    scale = {"no": 1.0, "keep_ratio": 0.64, "keep_ratio_largest": 0.32, "center_crop": 0.64, "border": 0.32}[mode]
    left, top = {"center_crop": (-32, 0), "border": (0, 16)}.get(mode, (0, 0))
    expected = [95 * scale + left, min(155 * scale + left, mask.shape[1]), 20 * scale + top, 80 * scale + top]
    found = [columns[0], columns[-1] + 1, rows[0], rows[-1] + 1]
    assert np.abs(np.subtract(found, expected)).max() <= 2


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_picture_is_blurred_where_the_box_lies_in_either_reading(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(noise(), "PNG", exif=exif)
    plain, shown = load(data, Fit()).image, load(data, Fit(), boxes=[FACE]).image
    as_stored = Image.new("L", (200, 100))
    as_stored.paste(255, (100, 25, 150, 75))
    turn = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}
    upright = as_stored.transpose(Image.Transpose(turn[orientation])) if orientation > 1 else as_stored
    width, height = plain.size
    as_shown = Image.new("L", plain.size)
    as_shown.paste(255, (width // 2, height // 4, width * 3 // 4, height * 3 // 4))
    for face in (upright, as_shown):
        assert changed(plain, shown)[np.asarray(face) > 0].mean() > 0.98
    assert changed(plain, shown).mean() < 0.5
