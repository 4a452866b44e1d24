import asyncio
import hashlib
import io
import re
import resource
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from curate.decoding import images
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
        "original_height_px": 400, "exif_gps": True, "opt_out_signal": None, "opt_out_value": None}
    assert images.probe(stored) == ("jpeg", 192, 256)
    spec = load_step("download")
    assert row.keys() | {"image"} == spec.columns({}).keys()
    assert spec.volatile == {"fetch_seconds", "attempts"}
    assert list(spec.reads) == ["url", "face_bboxes"]
    assert spec.optional == {"face_bboxes"}


def test_what_changes_the_picture_is_its_identity_and_what_changes_the_speed_is_not() -> None:
    operational = {name for name, setting in load_step("download").settings.items() if "operational" in setting.tags}
    assert load_step("download").settings.keys() - operational == {
        "image_size", "resize_mode", "resize_only_if_bigger", "encode_format", "encode_quality", "max_bytes", "max_pixels",
        "opt_out", "robots", "tdmrep", "opt_out_list", "engine", "skip_reencode"}


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


def evidence(row: dict[str, object]) -> tuple[object, ...]:
    return row["status"], row["opt_out_signal"], row["opt_out_value"]


@run
async def test_who_said_no_and_how_under_each_policy(tmp_path: Path) -> None:
    tagged = Answer(jpeg(), headers={"X-Robots-Tag": "Max-Image-Preview: large, NoAI"})
    routes = {"/robots.txt": Answer(b"User-agent: *\nDisallow: /no"), "/no": Answer(jpeg()), "/tag": tagged,
              "/listed": Answer(jpeg()),
              "/.well-known/tdmrep.json": Answer(b'[{"location": "/tdm", "tdm-reservation": 1}]'), "/tdm": Answer(jpeg())}
    free, tag = ("ok", None, None), ("opt_out", "x-robots-tag", "Max-Image-Preview: large, NoAI")
    no, tdm = ("opt_out", "robots.txt", "Disallow: /no"), ("opt_out", "tdmrep.json", '{"location": "/tdm", "tdm-reservation": 1}')
    async with site(routes) as here:
        (tmp_path / "list.txt").write_text(f"{here.url('/listed')}\n")
        entry = ("opt_out", "list", here.url("/listed"))
        for settings, extra, expected in (
                ({}, 1, [no, tag, free, entry]), ({"opt_out": "strict"}, 2, [no, tag, tdm, entry]),
                ({"opt_out": "off"}, 0, [free, free, free, entry]), ({"robots": False}, 0, [free, tag, free, entry]),
                ({"tdmrep": True}, 2, [no, tag, tdm, entry]),
                ({"opt_out": "strict", "tdmrep": False}, 1, [no, tag, free, entry])):
            here.asked.clear()
            urls = [here.url(path) for path in ("/no", "/tag", "/tdm", "/listed")]
            found = await downloaded(urls, opt_out_list=tmp_path / "list.txt", **settings)
            assert [evidence(row) for row, _ in found] == expected, settings
            assert here.asked["/robots.txt"] + here.asked["/.well-known/tdmrep.json"] == extra, settings
            assert here.asked["/listed"] == 0
        with pytest.raises(UserError, match="^tdmrep: true and opt_out: off contradict each other"):
            Download(opt_out="off", tdmrep=True)


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

        def store(*given: Any) -> Any:
            nonlocal waiting
            found = decode(*given)
            waiting -= 1
            return found

        monkeypatch.setattr(download._fetcher, "get", get)
        monkeypatch.setattr(download, "_store", store)
        found = await asyncio.gather(*[download.one(here.url("/")) for _ in range(200)])
        await download.close()
    assert {row["status"] for row, _ in found} == {"ok"}
    assert most <= 10


@run
async def test_a_decoder_that_crashes_costs_one_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("curate.steps.download.WORK", "tests.decoding:crashing")
    good, bad = jpeg(), jpeg(comment=b"CRASH")
    routes = {f"/{n}": Answer(bad if n in (3, 4, 11) else good) for n in range(20)}
    async with site(routes) as here:
        found = await downloaded([here.url(path) for path in routes], decoders=2, timeout_seconds=20, deadline_seconds=40)
    assert [n for n, (row, _) in enumerate(found) if row["status"] == "decode_crash"] == [3, 4, 11]
    assert [n for n, (row, _) in enumerate(found) if row["status"] != "ok"] == [3, 4, 11]
    assert len({stored for _, stored in found}) == 2
    row, stored = found[3]
    assert (row["error"], row["num_bytes"], stored) == (f"signal 6 ({signal.strsignal(6)})", len(bad), None)
    assert row["sha256"] == hashlib.sha256(bad).hexdigest()


@run
async def test_faces_are_blurred_and_without_readable_boxes_nothing_is_asked_for() -> None:
    noise = Image.effect_noise((200, 100), 100).convert("RGB")
    out = io.BytesIO()
    noise.save(out, "PNG")
    async with site({"/": Answer(out.getvalue())}) as here:
        download = Download(allow_private=LOOPBACK, encode_format="png")
        await download.start()
        answers = [await download.one(here.url("/"), boxes) for boxes in (None, [[]], [[[0.5, 0, 1, 1]], '[[0, 0, 0.2, 1]]'])]
        asked = here.asked["/"]
        refused = [await download.one(here.url("/"), boxes) for boxes in ([None], [[], None], [[[0, 0, 1]]], [[[0, 0, 90, 80]]])]
        assert here.asked["/"] == asked
        await download.close()
    plain, empty, blurred = (np.asarray(Image.open(io.BytesIO(stored or b""))) for _, stored in answers)
    assert np.array_equal(plain, np.asarray(noise))
    assert np.array_equal(empty, plain)
    assert np.array_equal(blurred[:, 60:80], plain[:, 60:80])
    assert blurred[:, 100:].std() < 15 < 60 < plain[:, 100:].std()
    assert blurred[:, :40].std() < 15
    assert {(row["status"], row["attempts"], stored) for row, stored in refused} == {("bad_boxes", 0, None)}
    assert refused[0][0]["error"] == "no boxes are known; a picture without any has []"


BROKEN = ("broken.png", "broken_data_stream.png", "truncated_end_chunk.png", "truncated_image.png", "truncated_jpeg.jpg",
          "fuzz_gif_5d62", "fuzz_jpeg_0045", "fuzz_jpeg_34d5", "fuzz_jpeg_6d54", "fuzz_jpeg_8287", "fuzz_jpeg_952c",
          "fuzz_jpeg_f3b2", "fuzz_png_0a1f", "fuzz_png_5bb6", "fuzz_png_a316", "fuzz_webp_21da", "fuzz_webp_d05a",
          "fuzz_webp_f7f4")
NO_PICTURE = ".bmp", ".tif", ".jp2", ".ico"


def expected(name: str) -> str:
    """What a person would say of a file of the hostile collection."""
    if name.endswith(NO_PICTURE) or name.startswith("fuzz_jpeg_19f1"):
        return "wrong_type"
    return "decode_error" if name.startswith(BROKEN) else "too_many_pixels" if name == "decompression_bomb.gif" else "ok"


@pytest.mark.skipif(not HOSTILE.is_dir(), reason="the hostile files are not here")
@run
async def test_every_hostile_file_has_the_status_that_a_person_would_expect() -> None:
    names = sorted(path.name for path in HOSTILE.iterdir())
    routes = {f"/{name}": Answer((HOSTILE / name).read_bytes()) for name in names}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    async with site(routes) as here:
        download = Download(allow_private=LOOPBACK, timeout_seconds=20, deadline_seconds=40, per_host=16, decoders=1)
        await download.start()
        found = await asyncio.gather(*[download.one(here.url(path)) for path in routes])
        (decoder,) = download._decoders._all
        peak = re.findall(r"VmHWM:\s*(\d+) kB", Path(f"/proc/{decoder._process.pid}/status").read_text())
        assert decoder.pictures == sum("sha256" in row for row, _ in found), "none was tried twice: no process died"
        await download.close()
    assert {name: row["status"] for name, (row, _) in zip(names, found, strict=True)} == {name: expected(name) for name in names}
    assert all((stored is not None) == (row["status"] == "ok") for row, stored in found)
    assert int(peak[0]) // 1024 < 100, "MB of a decoder"
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024 < 100, "MB"
