"""`engine: img2dataset` beside our own on the faulty site: the same status for every url, the same sizes, nearly the same pixels.

Where they differ, and why, is DIFFERENT: what img2dataset's reader does with an odd picture.
"""

import asyncio
import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from curate.engine_img2dataset import failure_of
from curate.steps.download import Download
from tests.helpers_http import LOOPBACK, site
from tests.helpers_http import Answer as Reply
from tests.site.make import make
from tests.site.server import serve

Answer = tuple[dict[str, Any], bytes | None]
ENGINES = ("native", "img2dataset")
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")     # urllib leaves connections to the collector


def ask(engine: str, urls: list[str], **settings: Any) -> dict[str, Answer]:
    """url → what the step answers."""
    return asyncio.run(asking(engine, urls, **settings))


async def asking(engine: str, urls: list[str], **settings: Any) -> dict[str, Answer]:
    """url → what the step answers, sixteen at a time."""
    step = Download(engine=engine, allow_private=LOOPBACK, timeout_seconds=3, deadline_seconds=4, **settings)
    await step.start()
    turn = asyncio.Semaphore(16)

    async def one(url: str) -> Answer:
        async with turn:
            return await step.one(url)

    try:
        return dict(zip(urls, await asyncio.gather(*(one(url) for url in urls)), strict=True))
    finally:
        await step.close()


@pytest.mark.slow
def test_the_same_status_and_picture_for_every_url_of_the_faulty_site(tmp_path: Path) -> None:
    make(tmp_path / "site", 300, seed=3)
    with serve(tmp_path / "site") as web:
        truth = {row["url"]: row for row in pq.read_table(tmp_path / "site" / "truth.parquet").to_pylist()}
        fit: dict[str, Any] = {"image_size": 48, "resize_mode": "keep_ratio", "resize_only_if_bigger": False}
        ours = ask("native", list(truth), **fit)
        web.reset()
        theirs = ask("img2dataset", list(truth), **fit)
    assert {u: row["status"] for u, (row, _) in theirs.items()} == {u: row["expected_status"] for u, row in truth.items()}
    assert {u: row["status"] for u, (row, _) in ours.items()} == {u: row["expected_status"] for u, row in truth.items()}
    same = ("num_bytes", "sha256", "original_format", "original_width_px", "original_height_px", "opt_out_signal")
    differ = []
    for url, (row, file) in ours.items():
        other, their_file = theirs[url]
        assert {k: row.get(k) for k in same} == {k: other.get(k) for k in same}, (url, truth[url]["kind"])
        if file is not None and their_file is not None:
            differ.append(distance(file, their_file))
    flaky = [theirs[url][0]["attempts"] for url, row in truth.items() if row["kind"] == "flaky_500"]
    assert flaky and min(flaky) > 1, "attempts are counted, not assumed"
    assert len(differ) > 200 and np.median(differ) < 2 and max(differ) < 8      # of 255, mean over the picture


def distance(a: bytes, b: bytes) -> float:
    """Mean difference of the pixels of two files of one size, 0 to 255."""
    first, second = (np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), np.float32) for data in (a, b))
    assert first.shape == second.shape
    return float(np.abs(first - second).mean())


def odd(picture: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return odd(Image.new("RGB", (60, 40), "red"), "JPEG", exif=exif.tobytes())


GREY16 = Image.fromarray(np.full((40, 60), 128 * 257, np.uint16))
DIFFERENT = {
    "turned by EXIF: on its side for good": (turned(), ((40, 60), 76), ((60, 40), 76)),
    "16 bits a value: nearly white": (odd(GREY16, "PNG"), ((60, 40), 128), ((60, 40), 255)),
}
"""what → (file, (size in pixels, mean value) that ours stores, the same of img2dataset's)"""


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_where_they_differ(engine: str) -> None:
    async def stored() -> dict[str, Answer]:
        routes = {f"/{number}.jpg": Reply(data) for number, (data, _, _) in enumerate(DIFFERENT.values())}
        async with site(routes) as web:
            return await asking(engine, [web.url(path) for path in routes], resize_mode="no")

    for (what, (_, ours, theirs)), (row, file) in zip(DIFFERENT.items(), asyncio.run(stored()).values(), strict=True):
        assert row["status"] == "ok", (what, row)
        picture = Image.open(io.BytesIO(file or b""))
        size, mean = ours if engine == "native" else theirs
        assert picture.size == size, what
        assert np.asarray(picture.convert("RGB")).mean() == pytest.approx(mean, abs=10), what


@pytest.mark.parametrize(("error", "status", "http_status"), [
    ("HTTP Error 404: Not Found", "http_404", 404),
    ("HTTP Error 503: Service Unavailable", "http_5xx", 503),
    ("HTTP Error 302: The HTTP server returned a redirect error that would lead to an infinite loop.", "too_many_redirects",
     None),
    ("HTTP Error 302: Found - Redirection to url 'file:///etc/passwd' is not allowed", "bad_scheme", None),
    ("<urlopen error timed out>", "timeout", None),
    ("The read operation timed out", "timeout", None),
    ("<urlopen error [Errno 111] Connection refused>", "connect", None),
    ("<urlopen error [SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed>", "tls", None),
    ("<urlopen error unknown url type: ftp>", "bad_scheme", None),
    ("private_address: 10.0.0.1 is not a public address", "private_address", None),
    ("dns: no.such.host: Name or service not known", "dns", None),
    ("opt_out: X-Robots-Tag: noai", "opt_out", None),
    ("something nobody has seen", "bad_http", None),
])
def test_what_its_errors_mean(error: str, status: str, http_status: int | None) -> None:
    failure = failure_of(error)
    assert (failure.status, failure.http_status) == (status, http_status)
