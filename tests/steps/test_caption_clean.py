import hashlib
import time
from collections.abc import Sequence
from pathlib import Path

import ftfy
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.captions.mend import CODINGS, MENDABLE
from curate.columns import nfc
from curate.errors import UserError
from curate.step import load_step
from curate.steps import caption_clean as module
from curate.steps.caption_clean import CaptionClean

clean_step = CaptionClean()


def clean(*captions: str, by: CaptionClean = clean_step) -> list[str | None]:
    return list(by(pa.array(captions, pa.string()))["caption_clean"].to_pylist())


def drops(caption: str, by: CaptionClean = clean_step) -> bool:
    return bool(by(pa.array([caption]))["is_boilerplate"][0].as_py())


@pytest.mark.parametrize(("caption", "expected"), [
    ("a dog runs", "a dog runs"),
    ("Tom &amp; Jerry", "Tom & Jerry"),
    ("&amp;amp;quot;Hi&amp;amp;quot;", '"Hi"'),
    ("5 &lt; 6 &#x41;&#66;", "5 < 6 AB"),
    ("AT&T, ?a=1&copy=2", "AT&T, ?a=1&copy=2"),
    ("schÃ¶n", "schön"),
    ("it\u2019s \u201chere\u201d", "it's \"here\""),
    ("ﬁne ＡＢＣ", "fine ABC"),
    ("cafe\u0301", "caf\u00e9"),
    ("  a\t dog\r\n runs\u00a0", "a dog runs"),
    ("null\0 byte\x7f", "null byte"),
    ("\u202eright to left\u202c", "right to left"),
    ("z\u200be\u00adro", "zero"),
    ("👩\u200d🚒 at work", "👩\u200d🚒 at work"),
    ("Stock Photo: Girls in grass", "Girls in grass"),
    ("Girls in grass — Stock Photo", "Girls in grass"),
    ("A beam of wood.  Royalty Free Stock Photography", "A beam of wood"),
    ("Lake at dawn | Shutterstock", "Lake at dawn"),
    ("Lake at dawn - Getty Images", "Lake at dawn"),
    ("A cup from Shutterstock", "A cup from Shutterstock"),
    ("Click to enlarge picture: photo of a dog", "a dog"),
    ("photo of image of a dog", "a dog"),
    ("photo offer", "photo offer"),
    ("livestock photo", "livestock photo"),
    ("Image via Flickr", "Flickr"),
    ("stock photo", ""),
    ("photo of", ""),
    ("", ""),
    ("<b>bold</b>", "<b>bold</b>"),
    ("=cmd()|' /C calc'!A0", "=cmd()|' /C calc'!A0"),
])
def test_exact(caption: str, expected: str) -> None:
    assert clean(caption) == [expected]


@pytest.mark.parametrize(("caption", "expected"), [
    ("Embedded image permalink", True), ("A dog - embedded image permalink", True), ("Profile Photo of Jo", True),
    ("a profile photo is here", False), ("profile photography", False), ("my dog", False), ("", False),
])
def test_what_cc3m_drops(caption: str, expected: bool) -> None:
    assert drops(caption) is expected
    assert clean(caption) == [caption]


HARD = st.one_of(st.text(max_size=20), st.sampled_from([
    "photo of ", " | Shutterstock", "stock photo", "&amp;", "&lt;", "amp;", "#38;", "Ã©", "â€œ", "\u00a0", "\0", " ", "ﬁ",
    "e\u0301", "Ä", "ы", "click to enlarge", "- ", "\u2019", "\ufffd", "Ã ", "犬", "!", "image via", "&#0;", "\r", "a"]))


@settings(max_examples=10, deadline=None, derandomize=True)
@given(st.lists(st.lists(HARD, max_size=8).map("".join), min_size=60, max_size=60))
def test_cleaning_twice_is_cleaning_once(captions: list[str]) -> None:
    once = [text for text in clean(*captions) if text is not None]
    assert clean(*once) == once


@settings(max_examples=10, deadline=None, derandomize=True)
@given(st.lists(st.text("äöüéèñßøЖдяλ€“”–… abc", max_size=12) | st.text(max_size=12), min_size=40, max_size=40))
def test_a_text_that_ftfy_would_change_is_never_passed_over(texts: list[str]) -> None:
    mistaken = [text.encode().decode(coding, "ignore") for text in texts for coding in CODINGS]
    composed = nfc(pa.array([*texts, *mistaken]))
    passed_over = composed.filter(pc.invert(pc.match_substring_regex(composed, MENDABLE))).to_pylist()
    assert [ftfy.fix_text(text, unescape_html=False) for text in passed_over] == passed_over


def test_entities_in_entities_without_end_are_null() -> None:
    nested = "<"
    for _ in range(20):
        nested = nested.replace("&", "&#38;") if "&" in nested else "&lt;"
    assert clean(nested, "a dog") == [None, "a dog"]


def test_rows_that_settle_at_different_times() -> None:
    captions = ["a dog", "&#38;#38;#38;lt;", "photo of  a cat", "x &amp; y"]
    assert clean(*captions) == [clean(c)[0] for c in captions] == ["a dog", "<", "a cat", "x & y"]


def test_lists_of_the_users_take_the_place_of_ours(tmp_path: Path) -> None:
    begins, ends = tmp_path / "begins.txt", tmp_path / "ends.json"
    begins.write_text("Foto von\n\n!Kein Bild\n")
    ends.write_text('["| bildarchiv"]')
    mine = CaptionClean(prefixes=begins, suffixes=ends)
    assert clean("foto  von einem Hund - Bildarchiv", "stock photo of a dog", by=mine) == ["einem Hund", "stock photo of a dog"]
    assert [drops("kein Bild", mine), drops("profile photo", mine)] == [True, False]
    assert clean("stock photo of a dog", by=CaptionClean(suffixes=ends)) == ["a dog"]


def test_a_list_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="^step 'caption_clean': cannot read the list .*gone.txt: "):
        CaptionClean(prefixes=tmp_path / "gone.txt")


def test_a_changed_list_of_ours_needs_a_new_version() -> None:
    """The shipped lists are not settings, so only the version says that the columns are other ones."""
    lists: Sequence[Path] = sorted(module.HERE.glob("caption_clean_*.txt"))
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in lists)).hexdigest()[:12]
    assert (load_step("caption_clean").version, digest) == (1, "e945aab57a0e")


def test_empty_batch_and_parts_of_arrays() -> None:
    assert clean() == []
    assert clean_step(pa.array(["x", "photo of y", "z"])[1:])["caption_clean"].to_pylist() == ["y", "z"]


def test_linear_time() -> None:
    captions = ["&amp;" * 200_000, "&" + "amp;" * 250_000, "photo of " * 100_000, " | shutterstock" * 60_000, "Ã©" * 500_000]
    begin = time.perf_counter()
    assert clean(*captions) == ["&" * 200_000, "&", "", "", "é" * 500_000]
    assert time.perf_counter() - begin < 20
