"""Texts as they were meant: entities, mojibake, characters that nobody sees, white space. All but a few texts cost one look."""

import html
import re
from collections.abc import Callable, Iterator

import pyarrow as pa
import pyarrow.compute as pc

from curate.columns import nfc

PLAIN = r"^[!-%'-~]*(?: [!-%'-~]+)*$"
"""ASCII with single spaces and no `&`: nothing to mend."""
ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")
CONTROL = r"[\x00-\x08\x0e-\x1b\x7f-\x{84}\x{86}-\x{9f}]+"
UNSEEN = r"[\x{ad}\x{200b}\x{200e}\x{200f}\x{202a}-\x{202e}\x{2060}\x{2066}-\x{2069}\x{feff}\x{fffc}\x{e000}-\x{f8ff}]+"
"""Soft hyphens, marks and overrides of direction, zero width (but joiners, which emoji and scripts need), private use."""
CODINGS = ("latin-1", "cp1252", "cp1251", "cp1250", "cp1253", "cp1254", "cp1257", "iso8859-2", "mac-roman", "cp437")
"""The encodings that ftfy knows UTF-8 to be mistaken for."""


def mended(texts: pa.Array) -> pa.Array:
    """Entities as characters, what ftfy mends, in NFC, without what nobody sees, white space as single spaces; one round."""
    return _where(pc.invert(pc.match_substring_regex(texts, PLAIN)), texts, _mended)


def _mended(texts: pa.Array) -> pa.Array:
    composed = nfc(_where(pc.match_substring(texts, "&"), texts, _unescaped))
    texts = _where(pc.match_substring_regex(composed, MENDABLE), composed, _by_ftfy)
    seen = pc.replace_substring_regex(pc.replace_substring_regex(texts, CONTROL, ""), UNSEEN, "")
    return pc.binary_join(pc.utf8_split_whitespace(pc.utf8_trim_whitespace(seen)), " ")


def _mendable() -> Iterator[str]:
    """Regular expressions one of which every composed text matches that ftfy would change."""
    def chars(first: int, last: int) -> str:
        found = {bytes([b]).decode(coding, "ignore") for b in range(first, last + 1) for coding in CODINGS} - {""}
        return "".join(rf"\x{{{ord(c):x}}}" for c in sorted(found))
    yield rf"[{chars(0xC2, 0xF4)}][{chars(0x80, 0xBF)} ?\x{{fffd}}]"  # first and second byte of UTF-8, read as something else
    yield r"[\x{132}\x{133}\x{149}\x{1c4}-\x{1cc}\x{1f1}-\x{1f3}\x{fb00}-\x{fb06}]"  # ligatures
    yield r"[\x{2bc}\x{2018}-\x{201f}\x{3000}\x{ff00}-\x{ffff}]"  # quotes, full and half width
    yield r"[\x00-\x08\x0b-\x1f\x7f-\x{9f}\x{2028}\x{2029}\x{206a}-\x{206f}]"  # controls and line breaks


MENDABLE = "|".join(_mendable())


def _unescaped(texts: pa.Array) -> pa.Array:
    """Entities with their semicolon as the characters they stand for; `&amp;amp;amp;`, however long, at once."""
    flat = pc.replace_substring_regex(texts, "&(?:amp;)+", "&").to_pylist()
    return pa.array([ENTITY.sub(lambda m: html.unescape(m[0]), text) for text in flat], pa.string())


def _by_ftfy(texts: pa.Array) -> pa.Array:
    import ftfy

    settings = ftfy.TextFixerConfig(unescape_html=False)
    return pa.array([ftfy.fix_text(text, settings) for text in texts.to_pylist()], pa.string())


def _where(mask: pa.Array, texts: pa.Array, change: Callable[[pa.Array], pa.Array]) -> pa.Array:
    """The texts, those under the mask changed."""
    return pc.replace_with_mask(texts, mask, change(texts.filter(mask))) if pc.any(mask).as_py() else texts
