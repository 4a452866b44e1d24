"""How the report writes numbers, and the texts of strangers: one line, of a length, with nothing in it that moves the page."""

import math
import re
import unicodedata

_SPACES = re.compile(r"\s+")
_MARKS = 3
"""Combining marks that stay on one letter (our choice); more of them paint over the lines above."""


def count(number: int) -> str:
    """1234567 → 1,234,567."""
    return f"{number:,}"


def brief(number: int) -> str:
    """At most five characters: 12,345 → 12.3k."""
    if abs(number) < 10_000:
        return f"{number:,}"
    power = next((p for p in (3, 6, 9) if abs(number) < 999.5 * 10**p), 12)
    value = number / 10**power
    return (f"{value:.0f}" if abs(value) >= 99.95 else f"{value:.1f}".removesuffix(".0")) + _suffix(power)


def figure(value: float) -> str:
    """Four significant digits, all those of a whole number: 0.31234 → 0.3123, 1234567.8 → 1,234,568."""
    if not math.isfinite(value):
        return str(value)
    if value == int(value) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def share(part: int, whole: int) -> str:
    """Percent of the whole with one digit; the dash where there is no whole."""
    return f"{part / whole:.1%}" if whole else "–"


def shown(text: object, length: int = 160) -> str:
    """A stranger's text on one line: spaces joined, control and direction characters replaced, cut at `length` characters."""
    kept, marks = [], 0
    for letter in _SPACES.sub(" ", str(text)).strip()[: 4 * length]:
        kind = unicodedata.category(letter)
        marks = marks + 1 if kind in ("Mn", "Me") else 0
        if marks <= _MARKS:
            kept.append("\N{REPLACEMENT CHARACTER}" if kind in ("Cc", "Cf", "Cs", "Co", "Cn") and letter != "\u200d" else letter)
    return "".join(kept) if len(kept) <= length else "".join(kept[: length - 1]) + "…"


def _suffix(power: int) -> str:
    return {3: "k", 6: "M", 9: "G", 12: "T"}[power]
