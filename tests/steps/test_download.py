import asyncio
import hashlib
import io
import resource
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from curate import images
from curate.errors import UserError
from curate.step import load_step
from curate.steps.download import Download
from tests.helpers_http import LOOPBACK, Answer, run, site

HOSTILE = Path(__file__).parents[2].parent / "shared" / "data" / "hostile"


def jpeg(width: int = 400, height: int = 300, **options: Any) -> bytes:
    out = io.BytesIO()
    Image.linear_gradient("L").resize((width, height)).convert("RGB").save(out, "JPEG", quality=90, **options)
    return out.getvalue()


async def downloaded(urls: list[str], **settings: Any) -> list[tuple[dict[str, object], bytes | None]]:
    download = Download(allow_private=LOOPBACK, **{"timeout_seconds": 1, "deadline_seconds": 2, "per_host": 16, **settings})
    await download.start()
    try:
        return await asyncio.gather(*[download.one(url) for url in urls])
    finally:
        await download.close()


@run
async def test_a_picture_is_measured_resized_and_stored() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif.get_ifd(0x8825)[1] = "N"
    data = jpeg(exif=exif)
    async with site({"/a.jpg": Answer(data)}) as here:
        [(row, stored)] = await downloaded([here.url("/a.jpg")])
    assert stored is not None
    assert {k: v for k, v in row.items() if k != "fetch_seconds"} == {
        "status": "ok", "error": None, "http_status": 200, "attempts": 1, "num_bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(), "original_format": "jpeg", "original_width_px": 300,
        "original_height_px": 400, "exif_gps": True}
    assert images.probe(stored) == ("jpeg", 192, 256)
    spec = load_step("download")
    assert row.keys() | {"image"} == spec.columns({}).keys()
    assert spec.volatile == {"fetch_seconds", "attempts"}
    assert list(spec.reads) == ["url"]


def test_what_changes_the_picture_is_its_identity_and_what_changes_the_speed_is_not() -> None:
    operational = {name for name, setting in load_step("download").settings.items() if "operational" in setting.tags}
    assert load_step("download").settings.keys() - operational == {
        "image_size", "resize_mode", "resize_only_if_bigger", "encode_format", "encode_quality", "max_bytes", "max_pixels",
        "opt_out"}


@run
async def test_every_fault_has_its_status() -> None:
    good = jpeg()
    routes = {
        "/ok": Answer(good), "/404": Answer(b"", 404), "/html": Answer(b"<html>" * 99, headers={"Content-Type": "image/jpeg"}),
        "/empty": Answer(b""), "/cut": Answer(good[:len(good) // 3]), "/noise": Answer(b"\xff\xd8\xff" + b"\0" * 9000),
        "/noai": Answer(good, headers={"X-Robots-Tag": "max-image-preview:large, noai"}), "/big": Answer(jpeg(2000, 1100)),
        "/heavy": Answer(good + b"\0" * 200_000), "/loop": Answer(b"", 302, {"Location": "/loop"}),
        "/meta": Answer(b"", 302, {"Location": "http://169.254.169.254/latest/meta-data/"}), "/slow": Answer(good, delay=3),
        "/zip": Answer(good, headers={"Content-Encoding": "br"}), "/plain": Answer(good, headers={"Content-Type": "text/plain"})}
    async with site(routes) as here:
        found = await downloaded([here.url(path) for path in routes], max_bytes=150_000, max_pixels=2_000_000, retries=0)
    assert {path: row["status"] for path, (row, _) in zip(routes, found, strict=True)} == {
        "/ok": "ok", "/404": "http_404", "/html": "wrong_type", "/empty": "empty", "/cut": "decode_error",
        "/noise": "decode_error", "/noai": "opt_out", "/big": "too_many_pixels", "/heavy": "too_large",
        "/loop": "too_many_redirects", "/meta": "private_address", "/slow": "timeout", "/zip": "compressed", "/plain": "ok"}
    for row, stored in found:
        assert (stored is None) == (row["status"] != "ok") == (row["error"] is not None)
        assert (row.get("sha256") is None) == (row["status"] not in ("ok", "decode_error", "too_many_pixels"))


@run
async def test_settings() -> None:
    routes = {"/": Answer(jpeg(), headers={"X-Robots-Tag": "noai"}), "/odd": Answer(jpeg(), headers={"X-Robots-Tag": "?"})}
    async with site(routes) as here:
        [(row, stored)] = await downloaded([here.url("/")], opt_out="off", image_size=100, resize_mode="center_crop",
                                           encode_format="webp", encode_quality=50, user_agent="LabBot/1", contact="x@y.example")
        assert stored is not None
        assert images.probe(stored) == ("webp", 100, 100)
        assert here.requests[-1].headers["user-agent"] == "LabBot/1 (+x@y.example)"
        [(row, stored)] = await downloaded([here.url("/odd")], opt_out="strict")
        assert row["status"] == "opt_out"
        [(row, stored)] = await downloaded([here.url("/")], opt_out="off", image_size=1000)
        assert (row["original_width_px"], row["original_height_px"]) == (400, 300)
    with pytest.raises(UserError, match="^encode_quality: png takes 0 to 9, not 95$"):
        Download(encode_format="png", encode_quality=95)


@run
async def test_loopback_is_refused_unless_allowed() -> None:
    async with site({"/": Answer(jpeg())}) as here:
        download = Download()
        await download.start()
        row, stored = await download.one(here.url("/"))
        await download.close()
        assert (row["status"], stored, here.asked.total()) == ("private_address", None, 0)


@run
async def test_bodies_that_wait_for_a_decoder_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    waiting, most = 0, 0
    body = jpeg(64, 64)

    async with site({"/": Answer(body)}) as here:
        download = Download(allow_private=LOOPBACK, per_host=64, decoders=1)
        await download.start()
        got, decode = download._fetcher.get, download._store

        async def get(url: str) -> Any:
            nonlocal waiting, most
            outcome = await got(url)
            waiting += 1
            most = max(most, waiting)
            return outcome

        def store(data: bytes) -> Any:
            nonlocal waiting
            found = decode(data)
            waiting -= 1
            return found

        monkeypatch.setattr(download._fetcher, "get", get)
        monkeypatch.setattr(download, "_store", store)
        found = await asyncio.gather(*[download.one(here.url("/")) for _ in range(200)])
        await download.close()
    assert {row["status"] for row, _ in found} == {"ok"}
    assert most <= 10


@pytest.mark.skipif(not HOSTILE.is_dir(), reason="the hostile files are not here")
@pytest.mark.filterwarnings("ignore:.*:UserWarning")
@run
async def test_hostile_files_pass_through() -> None:
    routes = {f"/{n}": Answer(path.read_bytes()) for n, path in enumerate(sorted(HOSTILE.iterdir()))}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    async with site(routes) as here:
        found = await downloaded([here.url(path) for path in routes], timeout_seconds=10, deadline_seconds=20)
    assert {row["status"] for row, _ in found} == {"ok", "wrong_type", "decode_error", "too_many_pixels"}
    assert all((stored is not None) == (row["status"] == "ok") for row, stored in found)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024 < 150, "MB"
