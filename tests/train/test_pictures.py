"""From bytes to the pixels of a crop."""

import io

import numpy as np
import pytest
from PIL import Image

from tests.train.toys import encoded, scene
from train.pictures import BrokenPicture, TrainCrop, decode

MIDDLE = np.array([0.5, 0.5, 0.5, 0.5, 0.9])


def gradient(width: int, height: int) -> Image.Image:
    across = np.linspace(0, 255, width, dtype=np.uint8)
    return Image.fromarray(np.repeat(np.repeat(across[None, :, None], height, 0), 3, 2))


def test_boxes_stay_inside_and_have_the_area() -> None:
    crop = TrainCrop(32, (0.5, 1.0))
    draws = np.random.default_rng(0).random((200, 5))
    boxes = np.array([crop.box((300, 200), d) for d in draws])
    assert (boxes[:, :2] >= 0).all() and (boxes[:, 2] <= 300 + 1e-9).all() and (boxes[:, 3] <= 200 + 1e-9).all()
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    assert area.min() > 0.5 * 0.75 * 60_000 and area.max() <= 60_000 + 1e-6


def test_squash_shows_the_whole_of_a_wide_picture() -> None:
    whole = TrainCrop(32, (1.0, 1.0), squash=True).box((300, 200), np.array([0.5, 0.5, 0.3, 0.3, 0.9]))
    assert whole == pytest.approx((0, 0, 300, 200))
    left, top, right, bottom = TrainCrop(32, (1.0, 1.0)).box((300, 200), MIDDLE)
    assert (right - left, bottom - top) == pytest.approx((60_000**0.5, 200))


def test_crops_are_mirrored_only_where_asked() -> None:
    picture = gradient(64, 64)
    plain, mirrored = TrainCrop(32)(picture, MIDDLE), TrainCrop(32, flip=True)(picture, np.array([0.5, 0.5, 0.5, 0.5, 0.1]))
    assert (plain[0, 0] < plain[0, -1]).all()
    assert (mirrored == plain[:, ::-1]).all()
    assert (TrainCrop(32, flip=True)(picture, MIDDLE) == plain).all()


def test_small_models_get_reduced_pictures() -> None:
    assert TrainCrop(64).decode(encoded(gradient(400, 200))).size == (160, 80)
    assert TrainCrop(64).decode(encoded(gradient(60, 50))).size == (60, 50)
    assert TrainCrop(224).decode(encoded(gradient(400, 300))).size == (400, 300)


def test_jpegs_are_decoded_smaller_but_large_enough() -> None:
    assert decode(encoded(gradient(1600, 1200), "JPEG"), 224).size == (800, 600)
    assert decode(encoded(gradient(1600, 1200), "JPEG")).size == (1600, 1200)


def test_upright_and_on_white() -> None:
    out = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    gradient(40, 20).save(out, "JPEG", exif=exif)
    assert decode(out.getvalue()).size == (20, 40)
    out = io.BytesIO()
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(out, "PNG")
    assert np.asarray(decode(out.getvalue())).min() == 255
    out = io.BytesIO()
    Image.fromarray(np.full((4, 4), 32768, np.uint16)).save(out, "PNG")
    assert np.asarray(decode(out.getvalue())).tolist() == [[[127] * 3] * 4] * 4


@pytest.mark.parametrize("data", [b"", b"<html>", encoded(scene(0), "JPEG")[:200], encoded(scene(0), "BMP")])
def test_broken_pictures(data: bytes) -> None:
    with pytest.raises(BrokenPicture):
        decode(data)


def test_a_bomb_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.pictures.MAX_PIXELS", 100)
    with pytest.raises(BrokenPicture, match="40x40 pixels"):
        decode(encoded(scene(0)))
