"""Text that others wrote, put into Markdown: captions, urls and column names are hostile, and a card must only show them.

Everything but letters, digits and a few harmless signs becomes a numeric character reference. Those never begin a construct of
Markdown (CommonMark 0.31, section 2.5), so no text can open a tag, a link, a table cell, a heading or a marker of ours.
"""

import re
import unicodedata
from typing import Any

from curate.errors import UserError

PLAIN = re.compile(r"[ ,;'()%/?.=…–]|(?<=[^\W_])[_-](?=[^\W_])|:(?= |$)")
"""Signs that mean nothing to Markdown where they stand: in one line, in a cell or behind other text."""
SECTION = re.compile(rb"<!-- human: ([a-z-]+) -->(.*?)<!-- /human -->", re.DOTALL)
MARKER = re.compile(rb"<!--[ \t]*/?[ \t]*human\b", re.IGNORECASE)


class Safe(str):
    """Text that is Markdown already: our own, or a number."""


def escaped(value: Any, limit: int = 160) -> str:
    """`value` as Markdown that shows it, in one line of at most `limit` characters; a `Safe` as it is."""
    if isinstance(value, Safe):
        return value
    text = " ".join(str(value).split())
    text = text if len(text) <= limit else text[: limit - 1] + "…"
    plain = {m.start() for m in PLAIN.finditer(text)} - {m.end() - 1 for m in re.finditer(r"(?i)www\.", text)}
    return "".join(char if i in plain else _character(char) for i, char in enumerate(text))


def _character(char: str) -> str:
    kind = unicodedata.category(char)
    if kind[0] in "LNM":
        return char
    return "\ufffd" if kind[0] == "C" else f"&#{ord(char)};"


def number(value: float | int | None) -> Safe:
    """A figure for a table: integers with thousands, others with three significant digits."""
    if value is None:
        return Safe("–")
    if float(value).is_integer() and abs(value) < 1e15:
        return Safe(f"{int(value):,}")
    return Safe(f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}")


def counted(count: int, word: str) -> str:
    """`1 file`, `2 files`."""
    return f"{count:,} {word}" + ("" if count == 1 else "s")


def share(part: int, whole: int) -> Safe:
    """`part` of `whole` in percent, one decimal."""
    return Safe(f"{part / whole:.1%}" if whole else "–")


def sections(card: bytes, where: str, names: tuple[str, ...]) -> dict[str, bytes]:
    """What a human wrote between the markers of a card, by section, byte for byte.

    Raises UserError for a marker that is damaged, unknown, missing or there twice: then nothing may be overwritten.
    """
    found = SECTION.findall(card)
    whole = [name.decode() for name, _ in found]
    if len(MARKER.findall(card)) != 2 * len(found) or any(MARKER.search(body) for _, body in found):
        raise UserError(f"{where}: a marker of a hand-written section is damaged ({_line(card, found)}); "
                        "each is '<!-- human: NAME -->' … '<!-- /human -->'")
    for name in names:
        if whole.count(name) != 1:
            raise UserError(f"{where}: the hand-written section '{name}' is there {whole.count(name)} times, not once; mend its "
                            f"markers '<!-- human: {name} -->' and '<!-- /human -->', or move the file away")
    if unknown := sorted(set(whole) - set(names)):
        raise UserError(f"{where}: no hand-written section '{unknown[0]}'; there is {', '.join(names)}")
    return {name.decode(): body for name, body in found}


def _line(card: bytes, found: list[tuple[bytes, bytes]]) -> str:
    """Where the first marker stands that belongs to no section, as `line N`."""
    spans = [m.span() for m in SECTION.finditer(card) if not MARKER.search(m[2])]
    for marker in MARKER.finditer(card):
        if not any(start == marker.start() or end == marker.start() + len(b"<!-- /human -->") for start, end in spans):
            line = card.count(b"\n", 0, marker.start()) + 1
            return f"line {line}"
    return f"{len(found)} sections"
