"""Pictures made a little smaller: as near to an antialiased resize as two of those are to each other."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from curate.decoding.shrink import BLURRED_FROM, bilinear

PHOTOS = Path(__file__).parents[1].parent / "shared" / "data" / "photos"
TIMES = (1.0, 1.13, 1.3, 1.46, 1.5, 1.51, 1.75, 2.0, 2.25)


def smooth(size: tuple[int, int]) -> Image.Image:
    coarse = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def decibels(one: Image.Image, other: Image.Image) -> float:
    """Peak signal to noise between two pictures of one size."""
    assert one.size == other.size
    square = np.square(np.asarray(one, np.float64) - np.asarray(other, np.float64)).mean()
    return float(10 * np.log10(255**2 / max(square, 1e-9)))


@pytest.mark.parametrize("times", TIMES)
def test_the_same_picture_as_by_hamming(times: float) -> None:
    picture = smooth((500, 375))
    size = round(500 / times), round(375 / times)
    assert decibels(bilinear(picture, size), picture.resize(size, Image.Resampling.HAMMING)) > 47


@pytest.mark.parametrize("times", TIMES)
def test_photographs_too(times: float) -> None:
    if not PHOTOS.is_dir():
        pytest.skip("no photographs here")
    far = []
    for path in sorted(PHOTOS.iterdir())[::16]:
        with Image.open(path) as opened:
            picture = opened.convert("RGB")
        size = round(picture.width / times), round(picture.height / times)
        far.append(decibels(bilinear(picture, size), picture.resize(size, Image.Resampling.HAMMING)))
    assert np.median(far) > (39 if times < 1.2 else 45)      # where hardly anything changes, Hamming blurs and this does not


def test_stripes_finer_than_a_pixel_become_grey() -> None:
    stripes = Image.fromarray(np.repeat(np.tile(np.uint8([0, 255]), 200)[None, :, None], 20, 0).repeat(3, 2))
    assert np.asarray(bilinear(stripes, (200, 10))).std() < 20
    assert np.asarray(bilinear(stripes, (round(400 / BLURRED_FROM) - 1, 13))).std() < 70, "blurred before"


@pytest.mark.parametrize(("size", "smaller"), [((1, 1), (1, 1)), ((2, 2), (1, 1)), ((3, 1), (2, 1)), ((1, 300), (1, 150)),
                                               ((60_000, 1), (30_000, 1)), ((65_000, 3), (40_000, 2))])
def test_any_shape(size: tuple[int, int], smaller: tuple[int, int]) -> None:
    red = bilinear(Image.new("RGB", size, (200, 30, 30)), smaller)
    assert red.size == smaller
    assert red.getextrema() == ((200, 200), (30, 30), (30, 30))
