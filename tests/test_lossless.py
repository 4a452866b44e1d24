"""A JPEG without its metadata: the same pixels, and nothing of what its file told besides."""

import io
import random
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from curate.decoding.images import BadImage, Fit, keep
from curate.decoding.lossless import ROWS, first_rows, needed, stripped

PHOTOS = Path(__file__).parents[1].parent / "shared" / "data" / "photos"


def jpeg(mode: str = "RGB", size: tuple[int, int] = (50, 40), **options: object) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(out, "JPEG", **options)
    return out.getvalue()


def exif(**tags: int) -> bytes:
    told = Image.Exif()
    told[0x0112] = tags.get("orientation", 1)
    told[0x010F] = "SecretCam"
    told.get_ifd(0x8825)[1] = "N"
    return told.tobytes()


def pixels(data: bytes) -> bytes:
    with Image.open(io.BytesIO(data)) as image:
        return image.tobytes()


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 2}, {"quality": 5}, {"optimize": True},
                                     {"subsampling": 0}], ids=str)
def test_the_pixels_stay_and_the_metadata_goes(options: dict[str, object]) -> None:
    told = jpeg(comment=b"call 555", exif=exif(), icc_profile=b"profile" * 99, **options)
    assert b"SecretCam" in told and b"call 555" in told and b"profile" in told
    plain = stripped(told + b"what follows the end")
    assert plain is not None
    assert pixels(plain) == pixels(told)
    assert not any(word in plain for word in (b"SecretCam", b"call 555", b"profile", b"Exif", b"JFIF", b"follows"))
    assert stripped(plain) == plain


def test_what_adobe_says_of_the_colours_stays() -> None:
    told = jpeg("CMYK")
    assert b"Adobe" in told
    assert pixels(stripped(told) or b"") == pixels(told)


@pytest.mark.parametrize("cut", [0, 1, 2, 3, 20, 200, -2, -1])
def test_a_file_that_is_cut_short_is_none(cut: int) -> None:
    assert stripped(jpeg()[:cut]) is None


@given(st.binary(max_size=200), st.integers(0, 2000))
def test_any_bytes_give_a_file_or_none(junk: bytes, at: int) -> None:
    whole = jpeg()
    found = stripped(whole[:at] + junk + whole[at:])
    assert found is None or (found.startswith(b"\xff\xd8") and found.endswith(b"\xff\xd9"))


def test_kept_as_it_came_where_nothing_is_to_change() -> None:
    picture, file = keep(jpeg(exif=exif()), Fit(256, "keep_ratio_largest", only_if_bigger=True)) or pytest.fail("encoded anew")
    assert (picture.format, picture.width, picture.height, picture.has_gps) == ("jpeg", 50, 40, True)
    assert b"SecretCam" not in file and pixels(file) == pixels(jpeg())


@pytest.mark.parametrize(("data", "fit"), [
    (jpeg(exif=exif(orientation=6)), Fit()),                                     # lies on its side
    (jpeg("CMYK"), Fit()),
    (jpeg(), Fit(20, "keep_ratio", only_if_bigger=True)),                        # too large
    (jpeg(), Fit(256, "keep_ratio")),                                            # too small
    (jpeg(), Fit(50, "border")),
], ids=["turned", "cmyk", "shrunk", "grown", "padded"])
def test_encoded_anew_where_something_is(data: bytes, fit: Fit) -> None:
    assert keep(data, fit) is None


def test_a_broken_picture_is_not_kept() -> None:
    whole = jpeg(size=(300, 300))
    with pytest.raises(BadImage) as error:
        keep(whole[:len(whole) // 2], Fit())
    assert error.value.status == "decode_error"


def test_of_one_plain_scan_the_first_rows_are_a_picture() -> None:
    whole = jpeg(size=(300, 200))
    rows = first_rows(needed(whole) or [])
    assert rows is not None and len(rows) < len(whole) / 4
    with Image.open(io.BytesIO(rows)) as image:
        assert image.size == (300, ROWS)
        image.load()
    assert first_rows(needed(jpeg(progressive=True)) or []) is None
    assert first_rows(needed(jpeg(size=(20, 5))) or []) is not None


def refused(data: bytes) -> bool:
    """Whether Pillow does not decode it to its end."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
    except (OSError, ValueError, SyntaxError, IndexError, struct.error):
        return True
    return False


@pytest.mark.parametrize("options", [{}, {"restart_marker_blocks": 2}, {"progressive": True}], ids=str)
def test_whatever_pillow_refuses_is_found(options: dict[str, object]) -> None:
    whole, rng, num_refused = jpeg(size=(90, 70), **options), random.Random(0), 0
    for _ in range(600):
        data = bytearray(whole)
        at = rng.randrange(2, 700 if rng.random() < 0.7 else len(data))
        data[at:at + rng.choice([0, 1, 1, 300, len(data)])] = rng.choice([b"", b"\xff\xd9", rng.randbytes(rng.randrange(1, 30))])
        if refused(bytes(data)):
            num_refused += 1
            try:
                assert keep(bytes(data), Fit()) is None, "not kept, but decoded and refused"
            except BadImage as error:
                assert error.status in ("decode_error", "wrong_type", "too_many_pixels")
    assert num_refused > 100


def test_real_photos() -> None:
    if not PHOTOS.is_dir():
        pytest.skip("no photographs here")
    for path in random.Random(0).sample(sorted(PHOTOS.iterdir()), 40):
        told = path.read_bytes()
        plain = stripped(told)
        assert plain is not None and len(plain) <= len(told)
        assert pixels(plain) == pixels(told)
