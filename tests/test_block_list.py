"""The operator's block list: what its lines say, that they are never shown, that `download` stores nothing of what it names."""

import hashlib
import io
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from curate import block_list
from curate.block_list import BlockList, image_id_of, md5_of, of_lines, sha256_of
from curate.errors import UserError
from curate.fetching.opt_out_list import ALLOWED
from curate.fingerprint import phash
from curate.step import Operational, load_step
from tests.helpers_http import Answer, run, site
from tests.steps.test_download import downloaded


def picture(seed: int = 1) -> Image.Image:
    spots = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    return Image.fromarray(spots).resize((90, 90), Image.Resampling.BICUBIC)


def encoded(kind: str = "PNG", seed: int = 1, **options: Any) -> bytes:
    out = io.BytesIO()
    picture(seed).save(out, kind, **options)
    return out.getvalue()


def moved(value: str, bits: int) -> str:
    """A hash so many bits away."""
    return f"{int(value, 16) ^ (1 << bits) - 1:0{len(value)}x}"


def test_a_line_is_told_by_its_form_or_by_its_word() -> None:
    data = encoded()
    found = of_lines(["# not this", "", hashlib.sha256(data).hexdigest().upper(), md5_of(data), f"uid_sha256:{sha256_of('u1')}",
                      "uid:u2", f"image_id:{'0' * 32}", "sha256:" + "1" * 64, "bad.example", "url:https://a.example/x/",
                      phash(picture()) + "/0"])
    assert found.sha256 == {hashlib.sha256(data).hexdigest(), "1" * 64}
    assert (found.md5, found.image_id) == ({md5_of(data)}, {"0" * 32})
    assert found.uid_sha256 == {sha256_of("u1"), sha256_of("u2")}
    urls = ("http://img.bad.example/1", "http://a.example/x/1?q", "http://a.example/y", "no url")
    assert [found.match_url(url) for url in urls] == ["url", "url", "", ""]
    assert (found.match_bytes(data), found.match_bytes(data + b" "), found.match_picture(picture())) == ("sha256", "", "phash")


def test_an_address_is_also_found_by_its_image_id() -> None:
    assert of_lines([f"image_id:{image_id_of('http://a.example/1')}"]).match_url("http://a.example/1") == "image_id"


@pytest.mark.parametrize(("suffix", "off", "found"), [
    ("", 4, True), ("", 5, False), ("/0", 1, False), ("/8", 8, True), ("/8", 9, False)])
def test_a_phash_may_be_off_by_its_bits(suffix: str, off: int, found: bool) -> None:
    listed = of_lines([moved(phash(picture()), off) + suffix])
    assert bool(listed.match_picture(picture())) is found


def test_a_blank_picture_looks_like_none() -> None:
    blank = Image.new("RGB", (64, 64), "white")
    assert of_lines([phash(blank)]).match_picture(blank) == ""


def test_the_digest_is_of_the_entries_not_of_their_order_or_comments() -> None:
    lines = ["a.example", "b.example", "0" * 64]
    assert of_lines(lines).digest == of_lines(["# x", *reversed(lines)]).digest != of_lines(lines[1:]).digest


@pytest.mark.parametrize(("line", "message"), [
    ("sha256:abc", f"the list:2: {block_list.SAYS}"), ("image_id:" + "z" * 32, f"the list:2: {block_list.SAYS}"),
    ("0" * 64 + "/3", f"the list:2: {block_list.SAYS}"), ("0" * 16 + "/9", "the list:2: a phash may be off by at most 8 bits"),
    ("not a host", f"the list:2: {ALLOWED}"),
    ("pdq:" + "0" * 64, "the list holds PDQ hashes, which need the package pdqhash: pip install pdqhash")])
def test_a_line_that_cannot_be_read_is_told_by_its_number_alone(line: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        of_lines(["a.example", line])
    assert str(error.value) == message and line not in message


def test_pdq_counts_within_31_bits_where_the_quality_is_50(monkeypatch: pytest.MonkeyPatch) -> None:
    quality = [50]
    fake = types.ModuleType("pdqhash")
    fake.compute = lambda array: (np.unpackbits(np.full(32, 0x5A, np.uint8)), quality[0])  # type: ignore[attr-defined]
    fake.__spec__ = types.SimpleNamespace()  # type: ignore[assignment]
    monkeypatch.setitem(sys.modules, "pdqhash", fake)
    near, far = (of_lines([f"pdq:{moved('5a' * 32, bits)}"]) for bits in (31, 32))
    assert (near.match_picture(picture()), far.match_picture(picture())) == ("pdq", "")
    quality[0] = 49
    assert near.match_picture(picture()) == ""


def listing(tmp_path: Path, line: str) -> BlockList:
    (tmp_path / "list.txt").write_text(line + "\n")
    return block_list.read(tmp_path / "list.txt")


@pytest.mark.slow
@run
async def test_what_is_listed_is_not_stored_and_leaves_its_kind_and_the_list_alone(tmp_path: Path) -> None:
    data = encoded()
    async with site({"/1.png": Answer(data), "/2.jpg": Answer(encoded("JPEG", quality=60)), "/3.png": Answer(encoded(seed=3)),
                     "/to1": Answer(b"", 302, headers={"Location": "/1.png"})}) as here:
        urls = [here.url(path) for path in ("/1.png", "/2.jpg", "/3.png", "/to1")]
        for line, kind, hits in ((hashlib.sha256(data).hexdigest(), "sha256", [0, 3]), (md5_of(data), "md5", [0, 3]),
                                 (phash(picture()), "phash", [0, 1, 3]), (urls[0], "url", [0, 3]),
                                 (f"image_id:{image_id_of(urls[0])}", "image_id", [0, 3])):
            listed = listing(tmp_path, line)
            asked = len(here.requests)
            found = await downloaded(urls, block_list=tmp_path / "list.txt")
            assert [i for i, (row, _) in enumerate(found) if row["status"] == "blocked"] == hits, kind
            for i, (row, stored) in enumerate(found):
                if i in hits:
                    assert stored is None and row.keys() == {"status", "error", "fetch_seconds", "attempts"}
                    assert row["error"] == f"{kind} on list {listed.digest}"
                else:
                    assert row["status"] == "ok" and stored is not None
            if kind == "url":
                assert [r.path for r in here.requests[asked:]].count("/1.png") == 1, "asked for by the redirect alone"


def test_a_longer_list_fetches_nothing_anew() -> None:
    setting = load_step("download").settings["block_list"]
    assert Operational in setting.tags and "file" in setting.tags
