"""That somebody said no, and what a server says in its headers against taking a picture for training: X-Robots-Tag, TDMRep."""

import re
from collections.abc import Iterable, Set
from dataclasses import dataclass
from typing import Literal

from curate.fetching.addresses import Failure, one_line

Policy = Literal["standard", "strict", "off"]
Signal = Literal["x-robots-tag", "tdm-reservation", "robots.txt", "tdmrep.json", "list"]
"""Where it was said; `list` is the operator's own."""
DENY = frozenset({"noai", "noimageai", "noindex", "noimageindex", "noml", "none"})
"""X-Robots-Tag directives that forbid us to take a picture; `none` means noindex, nofollow."""
_HARMLESS = frozenset({"all", "index", "follow", "nofollow", "noarchive", "nocache", "nosnippet", "noodp", "noydir",
                       "notranslate", "nositelinkssearchbox", "nopagereadaloud", "indexifembedded"})
_VALUED = frozenset({"max-snippet", "max-image-preview", "max-video-preview", "unavailable_after"})
_KNOWN = DENY | _HARMLESS | _VALUED


@dataclass(frozen=True)
class OptOut:
    """The evidence: which signal, its line as it was said (printable, at most 200 characters), and the reason for people."""

    signal: Signal
    value: str
    reason: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "value", one_line(self.value))


class OptedOut(Failure):
    """A url may not be asked for, or its answer not be taken."""

    def __init__(self, said: OptOut, http_status: int | None = None) -> None:
        super().__init__("opt_out", said.reason, http_status=http_status)
        self.said = said


def said_in_headers(tags: Iterable[str], reservations: Iterable[str], token: str, deny: Set[str] = DENY,
                    strict: bool = False) -> OptOut | None:
    """What X-Robots-Tag and tdm-reservation header lines forbid the robot called `token`, or None."""
    for line in tags:
        if directive := opted_out([line], token, deny, strict):
            return OptOut("x-robots-tag", line, f"X-Robots-Tag: {directive}")
    if reserved := reservation(reservations, strict):
        return OptOut("tdm-reservation", reserved, f"tdm-reservation: {reserved}")
    return None


def opted_out(values: Iterable[str], user_agent_token: str, deny: Set[str] = DENY, strict: bool = False) -> str | None:
    """The directive by which X-Robots-Tag header lines forbid us the picture, or None.

    Directives are separated by commas; `name: directive` addresses those from there to the next name, or the end of the line, to
    one robot only, unless the name takes a value itself (`max-image-preview: large`). Case does not matter. With `strict` an
    unknown directive forbids too.
    """
    for value in values:
        ours = True
        for part in re.split("[,;]", value.lower()):
            scope, words = _directives(part.strip())
            if scope is not None:
                ours = scope.partition("/")[0] in (user_agent_token.lower(), "*")
            for word in words if ours else ():
                if word in deny:
                    return word
                if strict and word not in _KNOWN:
                    return f"unknown directive {word}"
    return None


def _directives(part: str) -> tuple[str | None, list[str]]:
    """(robot addressed from here on or None, directives without value) of one part between commas."""
    name, colon, rest = (piece.strip() for piece in part.partition(":"))
    if re.match(r"\d+[ -]", part):                          # the second half of a date with a comma
        return None, []
    if not colon:
        return None, part.split()
    if name in _VALUED or name.startswith("max-"):
        return None, []
    first = re.split(r"[:\s]", rest, maxsplit=1)[0]
    if " " in name or (first and first not in _KNOWN):
        return None, [name]                                 # an unknown directive with a value, not a robot's name
    return name, [] if first in _VALUED else rest.split()


def reservation(values: Iterable[str], strict: bool = False) -> str | None:
    """The value by which tdm-reservation header lines reserve the right to text and data mining, or None.

    1 reserves and 0 does not (TDM Reservation Protocol, W3C community group report of 10 May 2024). Anything else says nothing;
    with `strict` it reserves too.
    """
    said = [value.strip() for value in values]
    return next((value for value in said if value == "1" or (strict and value != "0")), None)
