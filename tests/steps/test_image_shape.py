import io

import pytest
from PIL import Image

from curate.decoding.images import BadImage
from curate.steps.image_shape import image_shape


def file(kind: str, width: int, height: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (width, height), "teal").save(out, kind)
    return out.getvalue()


def test_exact() -> None:
    files = [file("JPEG", 640, 480), file("PNG", 100, 301), file("WEBP", 64, 64), file("GIF", 3, 1)]
    assert image_shape(files) == {
        "width_px": [640, 100, 64, 3],
        "height_px": [480, 301, 64, 1],
        "aspect": [640 / 480, 3.01, 1.0, 3.0],
        "num_pixels": [307_200, 30_100, 4096, 3],
        "image_bytes": [len(data) for data in files],
        "format": ["jpeg", "png", "webp", "gif"],
    }


def test_only_the_header_is_read() -> None:
    whole = file("JPEG", 640, 480)
    values = image_shape([whole[: len(whole) // 2]])
    assert (values["width_px"], values["height_px"], values["image_bytes"]) == ([640], [480], [len(whole) // 2])


@pytest.mark.parametrize("data", [b"", b"<html></html>", b"\xff\xd8\xff\xe0", b"BM" + bytes(60)])
def test_no_picture_is_refused(data: bytes) -> None:
    with pytest.raises(BadImage):
        image_shape([data])


def test_empty_batch() -> None:
    assert image_shape([]) == {"width_px": [], "height_px": [], "aspect": [], "num_pixels": [], "image_bytes": [], "format": []}
