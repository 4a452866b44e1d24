import hashlib
import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageEnhance

from curate.decoding.images import BadImage
from curate.steps import image_hash as module
from curate.steps.image_hash import image_hash

PLAIN, BLACK = "8000000000000000", "0000000000000000"


def scene(seed: int = 0, size: tuple[int, int] = (160, 120)) -> Image.Image:
    """A picture with structure at every scale, the same in every run."""
    draw = np.random.default_rng(seed)
    picture = Image.fromarray(draw.integers(0, 256, (6, 8, 3), np.uint8)).resize(size, Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(picture)
    for _ in range(6):
        x, y = draw.integers(0, size[0] - 30), draw.integers(0, size[1] - 30)
        pen.ellipse((x, y, x + 30, y + 30), fill=tuple(draw.integers(0, 256, 3).tolist()))
    return picture


def file(picture: Image.Image, kind: str = "PNG", quality: int = 75) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind, **({} if kind == "PNG" else {"quality": quality}))
    return out.getvalue()


def phash(picture: Image.Image) -> str:
    return image_hash([file(picture)])["phash"][0]


def bits(one: str, other: str) -> int:
    return (int(one, 16) ^ int(other, 16)).bit_count()


def by_the_book(picture: Image.Image) -> str:
    """phash as the imagehash package computes it, in floating point: bit 1 where a low frequency is above the median."""
    grey = np.asarray(picture.convert("L").resize((32, 32), Image.Resampling.LANCZOS), float)
    at = np.arange(32)
    low = np.array([[(grey * np.outer(np.cos(np.pi * (2 * at + 1) * v / 64), np.cos(np.pi * (2 * at + 1) * u / 64))).sum()
                     for u in range(8)] for v in range(8)])
    return f"{int(''.join('01'[int(above)] for above in (low > np.median(low)).ravel()), 2):016x}"


def test_exact() -> None:
    picture = Image.new("RGB", (2, 1))
    picture.putdata([(255, 0, 0), (0, 0, 255)])
    data = file(picture)
    values = image_hash([data])
    assert values["image_sha256"] == [hashlib.sha256(data).hexdigest()]
    assert values["pixel_hash"] == [hashlib.blake2b(b"2x1 \xff\0\0\0\0\xff", digest_size=16).hexdigest()]
    assert values["thumb"] == [("ff0000" * 2 + "0000ff" * 2) * 4]


@pytest.mark.parametrize("seed", range(20))
def test_phash_is_the_common_one(seed: int) -> None:
    assert phash(scene(seed)) == by_the_book(scene(seed))


def test_phash_of_one_scene() -> None:
    """Golden: a change here needs a new version of the step."""
    assert [phash(scene(seed)) for seed in range(3)] == ["8e1108cb57e4f979", "82f7f8bc39cb1230", "ed6c8d47db213198"]


def test_equal_pixels_in_other_bytes() -> None:
    one, other = image_hash([file(scene())])["pixel_hash"], image_hash([file(scene(), "WEBP", 100)])["pixel_hash"]
    assert one != other
    out = io.BytesIO()
    scene().save(out, "PNG", compress_level=1)
    values = image_hash([file(scene()), out.getvalue()])
    assert len(set(values["image_sha256"])) == 2
    assert [len(set(values[name])) for name in ("pixel_hash", "phash", "thumb")] == [1, 1, 1]


def test_the_same_pixels_in_another_shape_are_another_picture() -> None:
    values = image_hash([file(Image.new("RGB", (40, 10), "red")), file(Image.new("RGB", (20, 20), "red"))])
    assert len(set(values["pixel_hash"])) == 2


@pytest.mark.parametrize("edit", [
    lambda p: Image.open(io.BytesIO(file(p, "JPEG", 30))),
    lambda p: Image.open(io.BytesIO(file(p, "WEBP", 50))),
    lambda p: p.resize((80, 60)),
    lambda p: p.resize((320, 240)),
    lambda p: p.resize((120, 120)),
    lambda p: ImageEnhance.Brightness(p).enhance(1.1),
], ids=["jpeg", "webp", "half", "double", "square", "brighter"])
def test_an_edited_picture_stays_near(edit: Callable[[Image.Image], Image.Image]) -> None:
    assert max(bits(phash(scene(seed)), phash(edit(scene(seed)))) for seed in range(8)) <= 4


def test_other_pictures_are_far() -> None:
    hashes = [phash(scene(seed)) for seed in range(40)]
    assert min(bits(a, b) for i, a in enumerate(hashes) for b in hashes[:i]) >= 12


def test_plain_pictures_have_no_noise_in_their_hash() -> None:
    """In floating point the sums over a plain picture are near 0 and their signs differ between machines."""
    plain = [file(Image.new("RGB", (50, 40), (level, level, 255 - level))) for level in range(1, 256, 7)]
    assert set(image_hash(plain)["phash"]) == {PLAIN}
    assert image_hash([file(Image.new("RGB", (50, 40)))])["phash"] == [BLACK]
    assert len(set(image_hash(plain)["thumb"])) == len(plain)


def test_colour_is_in_the_thumb_only() -> None:
    def shirt(colour: str) -> bytes:
        picture = Image.new("RGB", (100, 100), "white")
        outline = [(20, 20), (80, 20), (95, 40), (75, 50), (75, 90), (25, 90), (25, 50), (5, 40)]
        ImageDraw.Draw(picture).polygon(outline, fill=colour)
        return file(picture)
    values = image_hash([shirt("#c02020"), shirt("#205ad0")])
    assert bits(*values["phash"]) <= 4
    one, other = (list(bytes.fromhex(thumb)) for thumb in values["thumb"])
    assert max(abs(a - b) for a, b in zip(one, other, strict=True)) > 100


def test_one_object_is_decoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []
    decode = module.decode
    monkeypatch.setattr(module, "decode", lambda data: decoded.append(data) or decode(data))
    one, other = file(scene(1)), file(scene(2))
    values = image_hash([one, one, other, one])
    assert decoded == [one, other]
    assert [values["phash"][0]] * 2 + values["phash"][2:] == [values["phash"][1], values["phash"][3], *values["phash"][2:]]


@pytest.mark.parametrize("data", [b"", b"<html></html>", file(scene())[:200]])
def test_no_picture_is_refused(data: bytes) -> None:
    with pytest.raises(BadImage):
        image_hash([data])


def test_empty_batch() -> None:
    assert image_hash([]) == {"image_sha256": [], "pixel_hash": [], "phash": [], "thumb": []}
