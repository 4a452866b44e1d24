import io
import os
import resource
import struct
import subprocess
import sys
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from curate.decoding import images
from curate.decoding.images import BadImage, Fit, decode, encode, extension, load, probe, read
from curate.errors import UserError

HOSTILE = Path(__file__).parents[1].parent / "shared" / "data" / "hostile"
WHOLE = Fit()
LEFT, RIGHT = (200, 30, 30), (30, 30, 200)


def picture(width: int = 40, height: int = 30) -> Image.Image:
    """Red on the left, blue on the right, a black corner at the top left."""
    image = Image.new("RGB", (width, height), LEFT)
    image.paste(RIGHT, (width // 2, 0, width, height))
    image.paste((0, 0, 0), (0, 0, width // 4, height // 4))
    return image


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def chunk(tag: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + tag + data + struct.pack(">I", zlib.crc32(tag + data))


def png(width: int, height: int, *extra: bytes, depth: int = 1, body: bytes = b"") -> bytes:
    """A PNG whose header says any size, with further chunks before its data."""
    head = struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0)
    chunks = [chunk(b"IHDR", head), *extra, chunk(b"IDAT", zlib.compress(body)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def far(a: Image.Image, b: Image.Image) -> float:
    """The largest difference of any value, 0 to 255."""
    assert a.size == b.size
    return float(np.abs(np.asarray(a, np.int16) - np.asarray(b, np.int16)).max())


def status(data: bytes, fit: Fit = WHOLE, max_pixels: int = images.MAX_PIXELS) -> str:
    try:
        load(data, fit, max_pixels)
    except BadImage as error:
        return error.status
    return "ok"


@pytest.mark.parametrize(("kind", "name", "ext"), [("JPEG", "jpeg", "jpg"), ("PNG", "png", "png"), ("WEBP", "webp", "webp"),
                                                   ("GIF", "gif", "gif")])
def test_allowed_formats(kind: str, name: str, ext: str) -> None:
    data = saved(picture(), kind)
    assert probe(data) == (name, 40, 30)
    assert extension(data) == ext
    assert decode(data).mode == "RGB"


@pytest.mark.parametrize("kind", ["BMP", "TIFF", "ICO", "PPM", "TGA", "JPEG2000", "PDF"])
def test_other_formats_are_the_wrong_type(kind: str) -> None:
    assert status(saved(picture(), kind)) == "wrong_type"


@pytest.mark.parametrize(("data", "expected"), [
    (b"", "empty"), (b"<html>no</html>", "wrong_type"), (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "wrong_type"),
    (b"PK\x03\x04zip", "wrong_type"), (b"\xff\xd8\xff", "decode_error"), (b"\x89PNG\r\n\x1a\n", "decode_error"),
    (b"RIFF\x04\x00\x00\x00WEBP", "decode_error"), (b"GIF89a", "decode_error"),
    (b"\xff\xd8\xff\xe0" + b"\0" * 5000, "decode_error"),
])
def test_what_is_no_picture(data: bytes, expected: str) -> None:
    assert status(data) == expected


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF"])
def test_a_truncated_picture_is_an_error_and_not_half_grey(kind: str) -> None:
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (120, 160, 3), np.uint8))
    data = saved(noise, kind)
    assert status(data) == "ok"
    assert {status(data[:len(data) * k // 10]) for k in range(1, 10)} == {"decode_error"}


def test_bombs_are_seen_in_the_header() -> None:
    assert status(png(50_000, 50_000)) == "too_many_pixels"
    assert status(png(12_000, 9_000)) == "too_many_pixels"
    assert status(png(100_000, 10)) == "too_many_pixels"
    assert status(png(0, 10)) == "decode_error"
    frame = struct.pack("<HH", 65_500, 65_500)
    assert status(b"GIF89a" + frame + b"\0\0\0" + b"," + b"\0" * 4 + frame + b"\0\x02\0\0;") == "too_many_pixels"
    huge = bytearray(saved(picture(), "JPEG"))
    at = huge.index(b"\xff\xc0")
    huge[at + 5:at + 9] = struct.pack(">HH", 65_000, 65_000)
    assert status(bytes(huge)) == "too_many_pixels"
    assert status(saved(picture(100, 100), "PNG"), max_pixels=9_999) == "too_many_pixels"


def riff(*chunks: tuple[bytes, bytes]) -> bytes:
    """A WebP file of these chunks."""
    body = b"WEBP" + b"".join(tag + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2) for tag, data in chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def test_the_largest_webp_is_seen_in_its_header(monkeypatch: pytest.MonkeyPatch) -> None:
    lossless = riff((b"VP8L", b"\x2f" + struct.pack("<I", 16_382 | 16_382 << 14) + b"\0" * 60))
    extended = riff((b"VP8X", b"\x10\0\0\0" + (16_382).to_bytes(3, "little") * 2), (b"VP8L", lossless[20:]))
    lossy = riff((b"VP8 ", b"\x10\x08\0\x9d\x01\x2a" + struct.pack("<HH", 16_383, 16_383) + b"\0" * 60))
    opened: list[object] = []
    monkeypatch.setattr(Image, "open", opened.append)
    for data in (lossless, extended, lossy):
        assert status(data) == "too_many_pixels"
    assert not opened, "Pillow takes memory for all frames of a WebP when it opens it"
    monkeypatch.undo()
    assert status(riff((b"VP8L", b""))) == status(riff((b"VP8X", b""))) == status(riff((b"WHAT", bytes(40)))) == "decode_error"
    real = saved(Image.new("RGB", (16_383, 40)), "WEBP")
    assert status(real) == "ok"
    assert status(real, max_pixels=16_383 * 40 - 1) == "too_many_pixels"


def test_resizing_cannot_blow_a_picture_up() -> None:
    strip = saved(Image.new("RGB", (60_000, 1)), "PNG")
    assert status(strip, Fit(256, "keep_ratio")) == "too_many_pixels"
    assert status(strip, Fit(256, "keep_ratio_largest")) == "ok"
    assert status(strip, Fit(256, "keep_ratio", only_if_bigger=True)) == "ok"


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_text_and_profile_bombs_and_junk_exif() -> None:
    text = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"a" * 50_000_000))
    profile = chunk(b"iCCP", b"icc\0\0" + zlib.compress(b"b" * 50_000_000))
    assert status(png(8, 8, text, body=b"\0\0" * 8)) == "decode_error"
    assert status(png(8, 8, profile, body=b"\0\0" * 8)) in ("ok", "decode_error")
    body = saved(picture(), "JPEG")
    junk = b"Exif\0\0" + b"MM\0*\0\0\0\x08" + b"\xff\xff" + bytes(range(256)) * 200
    loop = b"Exif\0\0" + b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHII", 0x8825, 4, 1, 8) + struct.pack("<I", 8)
    for exif in (junk, loop):
        assert status(body[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + body[2:]) == "ok"
    assert far(decode(saved(picture(), "PNG", icc_profile=b"broken")), picture()) == 0
    whole = decode(body)
    for profile in (b"broken", b"\0\0\2\x0cADBE" + b"\xff" * 600, bytes(range(256)) * 900):
        assert far(decode(saved(picture(), "JPEG", icc_profile=profile)), whole) == 0


def test_only_the_first_frame_of_many() -> None:
    frames = [Image.new("P", (16, 16), n % 256) for n in range(300)]
    assert load(saved(frames[0], "GIF", save_all=True, append_images=frames[1:]), Fit()).image.size == (16, 16)
    one = saved(frames[0], "GIF")
    assert far(decode(one[:-1] + one[one.index(b","):-1] * 9_999 + b";"), decode(one)) == 0
    control = struct.pack(">IIIIIHHBB", 0, 16, 16, 0, 0, 1, 10, 0, 0)
    still = saved(frames[0].convert("RGB"), "PNG")
    behind = still.index(b"IDAT") - 4
    count = chunk(b"acTL", struct.pack(">II", 10_000, 0)) + chunk(b"fcTL", control)
    frame = chunk(b"fcTL", control) + chunk(b"fdAT", b"\0\0\0\1" + zlib.compress(b"\0" * 784))
    assert far(decode(still[:behind] + count + still[behind:-12] + frame * 10_000 + still[-12:]), frames[0].convert("RGB")) == 0
    moving = saved(picture(), "WEBP", lossless=True, save_all=True, append_images=[Image.new("RGB", (40, 30))])
    assert far(decode(moving), picture()) == 0


def test_alpha_is_laid_on_white() -> None:
    half = picture().convert("RGBA")
    half.putalpha(Image.new("L", half.size, 51))
    for kind in ("PNG", "WEBP"):
        shown = decode(saved(half, kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {})))
        assert shown.getpixel((5, 25)) == (244, 210, 210)      # 51/255 of (200, 30, 30), the rest white
    grey = Image.new("LA", (4, 4), (100, 0))
    assert decode(saved(grey, "PNG")).getpixel((0, 0)) == (255, 255, 255)
    palette = picture().quantize(8)
    hidden = palette.getpixel((0, 0))
    for kind in ("PNG", "GIF"):
        shown = decode(saved(palette, kind, transparency=hidden))
        assert shown.getpixel((0, 0)) == (255, 255, 255)
        assert shown.getpixel((5, 25)) == LEFT
    by_bytes = saved(palette, "PNG", transparency=bytes([255] * 8))
    assert far(decode(by_bytes), picture()) == 0


def test_odd_modes_keep_their_colours() -> None:
    assert far(decode(saved(picture().convert("CMYK"), "JPEG", quality=95)), picture()) < 30
    ramp = np.linspace(0, 65_535, 256).astype(np.uint16)[None, :].repeat(4, 0)
    assert np.array_equal(np.asarray(decode(saved(Image.fromarray(ramp), "PNG")))[0, :, 0], ramp[0] // 257)
    assert far(decode(saved(picture().convert("L"), "JPEG", quality=95)), picture().convert("L").convert("RGB")) < 12
    assert decode(saved(Image.new("1", (9, 9), 1), "PNG")).getpixel((0, 0)) == (255, 255, 255)
    assert far(decode(saved(picture().quantize(4), "PNG")), picture()) == 0
    deep = np.asarray(picture(), np.uint16) * 257
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in deep)
    head = struct.pack(">IIBBBBB", 40, 30, 16, 2, 0, 0, 0)
    sixteen = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    assert far(decode(sixteen), picture()) == 0


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_stand_upright(kind: str, orientation: int) -> None:
    upright = picture(400, 200)
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
    stored = upright.transpose(Image.Transpose(undo[orientation])) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    shown = load(saved(stored, kind, exif=exif, quality=95), Fit(100, "keep_ratio_largest"))
    assert (shown.width, shown.height, shown.image.size) == (400, 200, (100, 50))
    corner, left, right = (shown.image.getpixel(at) for at in ((5, 3), (20, 40), (80, 40)))
    assert max(corner) < 40
    assert left[0] > 150 > right[0]


def test_all_eight_orientations_of_a_picture_are_the_same_bytes() -> None:
    undo = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 256, (33, 50, 3), np.uint8))
    stored = set()
    for orientation, turn in undo.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        turned = noise if turn is None else noise.transpose(Image.Transpose(turn))
        shown = load(saved(turned, "PNG", exif=exif), Fit(256, "keep_ratio_largest", only_if_bigger=True)).image
        assert far(shown, noise) == 0
        stored.add(encode(shown, "jpg"))
    assert len(stored) == 1


def test_a_multipage_tiff_and_a_nested_icon_are_not_even_opened() -> None:
    page = struct.pack("<H", 1) + struct.pack("<HHII", 256, 4, 1, 1)
    chain = b"II*\0" + struct.pack("<I", 8) + b"".join(page + struct.pack("<I", 8 + 18 * (n + 1)) for n in range(1000))
    icon = b"\0\0\1\0\1\0" + bytes(8) + struct.pack("<II", 100, 22)
    for data in (chain, icon + icon * 50):
        assert status(data) == "wrong_type"


def test_metadata_is_gone_and_a_position_is_told() -> None:
    exif = Image.Exif()
    exif[0x010F] = "SECRETCAMERA"
    exif.get_ifd(0x8825)[1] = "N"
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "SECRETCAMERA")
    for data in (saved(picture(), "JPEG", exif=exif, comment=b"SECRETCAMERA", icc_profile=b"SECRETCAMERA"),
                 saved(picture(), "PNG", exif=exif, pnginfo=text), saved(picture(), "WEBP", exif=exif, xmp=b"SECRETCAMERA")):
        assert b"SECRETCAMERA" in data
        shown = load(data, Fit())
        assert shown.has_gps
        assert shown.image.info == {}
        for encoding in ("jpg", "png", "webp"):
            stored = encode(shown.image, encoding)
            assert b"SECRETCAMERA" not in stored
            assert not Image.open(io.BytesIO(stored)).getexif()
    assert not load(saved(picture(), "JPEG"), Fit()).has_gps


@pytest.mark.parametrize(("mode", "size", "expected"), [
    ("no", (300, 200), (300, 200)), ("keep_ratio", (300, 200), (150, 100)), ("keep_ratio_largest", (300, 200), (100, 67)),
    ("center_crop", (300, 200), (100, 100)), ("border", (300, 200), (100, 100)), ("keep_ratio", (30, 60), (100, 200)),
    ("keep_ratio_largest", (30, 60), (50, 100)), ("border", (30, 60), (100, 100)), ("center_crop", (30, 60), (100, 100)),
    ("keep_ratio_largest", (1000, 1), (100, 1)), ("keep_ratio_largest", (100, 7), (100, 7)),
])
def test_resize_modes(mode: images.ResizeMode, size: tuple[int, int], expected: tuple[int, int]) -> None:
    data = saved(picture(*size), "PNG")
    shown = load(data, Fit(100, mode))
    assert shown.image.size == expected
    assert (shown.width, shown.height) == size
    if max(size) <= 100:
        assert load(data, Fit(100, mode, only_if_bigger=True)).image.size == size


def test_border_is_white_and_crop_is_central() -> None:
    data = saved(picture(300, 200), "PNG")
    bordered = load(data, Fit(100, "border")).image
    assert [y for y in (0, 15, 16, 82, 83, 99) if bordered.getpixel((50, y)) == (255, 255, 255)] == [0, 15, 83, 99]
    cropped = load(data, Fit(100, "center_crop")).image
    assert cropped.getpixel((48, 90))[0] > 150 > cropped.getpixel((51, 90))[0]


def test_a_jpeg_shrunk_while_decoded_is_the_same_picture() -> None:
    y, x = np.mgrid[0:1200, 0:1600]
    waves = np.stack([127 + 120 * np.sin(x / 40), 127 + 120 * np.cos(y / 55), 127 + 120 * np.sin((x + y) / 90)], 2)
    data = saved(Image.fromarray(waves.astype(np.uint8)), "JPEG", quality=95)
    shrunk = load(data, Fit(256, "keep_ratio_largest")).image
    whole = decode(data).resize((256, 192), Image.Resampling.HAMMING)
    assert far(shrunk, whole) < 12


def test_same_pixels_same_bytes() -> None:
    data = saved(picture(700, 500), "JPEG")
    for encoding in ("jpg", "png", "webp"):
        one, two = (encode(load(data, Fit(256, "keep_ratio_largest")).image, encoding) for _ in range(2))
        assert one == two
        assert extension(one) == encoding


def test_quality() -> None:
    rough, fine = (encode(picture(300, 200), "jpg", quality) for quality in (20, 95))
    assert len(rough) < len(fine)
    with pytest.raises(UserError, match="^encode_quality: png takes 0 to 9, not 95$"):
        images.check_quality("png", 95)
    with pytest.raises(BadImage, match="do not fit into a webp"):
        encode(Image.new("RGB", (17_000, 1)), "webp")


def test_large_pictures_are_decoded_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "LARGE_PIXELS", 100)
    data = saved(picture(), "JPEG")
    with images._LARGE:
        worker = threading.Thread(target=decode, args=(data,))
        worker.start()
        worker.join(0.1)
        assert worker.is_alive()
    worker.join()


def test_read_a_reference(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    shard = tmp_path / "images" / "0.tar"
    shard.write_bytes(b"0123456789")
    ref = {"file": "images/0.tar", "offset": 3, "length": 4}
    assert read(ref, tmp_path) == b"3456"
    assert read({**ref, "file": str(shard)}, Path("/nowhere")) == b"3456"
    assert read({**ref, "file": f"file://{shard}"}, tmp_path) == b"3456"
    (tmp_path / "new").write_bytes(b"abcdefghij")
    os.replace(tmp_path / "new", shard)
    assert read(ref, tmp_path) == b"defg"
    with pytest.raises(OSError, match="^images/0.tar: 9 bytes wanted at 3, 7 there$"):
        read({**ref, "length": 9}, tmp_path)
    with pytest.raises(FileNotFoundError):
        read({**ref, "file": "images/1.tar"}, tmp_path)


def test_reading_keeps_few_files_open(tmp_path: Path) -> None:
    for n in range(100):
        (tmp_path / str(n)).write_bytes(b"x")
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
    for n in range(100):
        read({"file": str(n), "offset": 0, "length": 1}, tmp_path)
    if before:
        assert len(os.listdir("/proc/self/fd")) - before <= 64


@pytest.mark.skipif(not HOSTILE.is_dir(), reason="the hostile files are not here")
@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_hostile_files_each_have_a_status() -> None:
    found = {path.name: status(path.read_bytes(), Fit(256, "keep_ratio_largest")) for path in HOSTILE.iterdir()}
    assert set(found.values()) == {"ok", "wrong_type", "decode_error", "too_many_pixels"}
    assert all(s == "wrong_type" for name, s in found.items() if name.endswith((".bmp", ".tif", ".jp2", ".ico")))
    assert found["decompression_bomb.gif"] == "too_many_pixels"
    assert found["truncated_jpeg.jpg"] == found["truncated_image.png"] == found["broken.png"] == "decode_error"
    assert found["hopper_bad_exif.jpg"] == found["sugarshack_bad_mpo_header.jpg"] == "ok"


BOUNDED = """
import pathlib, resource, sys, warnings
from curate.decoding.images import BadImage, Fit, load
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in map(pathlib.Path, sys.argv[1:]):
    try:
        load(path.read_bytes(), Fit(256, "keep_ratio_largest"), 10_000_000)
    except BadImage as error:
        pass
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_memory_stays_bounded(tmp_path: Path) -> None:
    rows = zlib.compressobj(9)
    big = b"".join(rows.compress(b"\0" * 3_751) for _ in range(30_000)) + rows.flush()
    head = struct.pack(">IIBBBBB", 30_000, 30_000, 1, 0, 0, 0, 0)
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", big) + chunk(b"IEND", b""))
    junk = zlib.compress(b"a" * 200_000_000)
    (tmp_path / "text.png").write_bytes(png(8, 8, chunk(b"zTXt", b"C\0\0" + junk), body=b"\0\0" * 8))
    (tmp_path / "profile.png").write_bytes(png(8, 8, chunk(b"iCCP", b"C\0\0" + junk), body=b"\0\0" * 8))
    huge = bytearray(saved(picture(), "JPEG"))
    at = huge.index(b"\xff\xc0")
    huge[at + 5:at + 9] = struct.pack(">HH", 65_500, 65_500)
    (tmp_path / "huge.jpg").write_bytes(huge)
    (tmp_path / "huge.png").write_bytes(png(50_000, 50_000))
    (tmp_path / "huge.webp").write_bytes(riff((b"VP8L", b"\x2f" + struct.pack("<I", 16_382 | 16_382 << 14) + b"\0" * 60)))
    gif = saved(Image.new("P", (16, 16)), "GIF")
    (tmp_path / "many.gif").write_bytes(gif[:-1] + gif[gif.index(b","):-1] * 10_000 + b";")
    names = [*tmp_path.iterdir(), *(HOSTILE.iterdir() if HOSTILE.is_dir() else ())]
    done = subprocess.run([sys.executable, "-c", BOUNDED, *map(str, names)], capture_output=True, text=True, check=True,
                          preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (2**31, 2**31)))
    assert int(done.stdout) < 150, "MB above the start"
    assert done.stderr == ""
