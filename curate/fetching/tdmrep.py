"""/.well-known/tdmrep.json: which paths of a site are reserved (TDM Reservation Protocol, W3C CG report of 10 May 2024).

    [{"location": "/pictures/*.jpg", "tdm-reservation": 1, "tdm-policy": "https://example.org/policy.json"}]

Patterns are those of robots.txt; of the rules that match the first one decides (section "TDM File on the Origin Server"). A
policy says where a licence can be had: we have none, so a reservation forbids with or without one.
"""

import json
from typing import NamedTuple

from curate.fetching.robots import MOST_STEPS, Pattern, canonical, pattern


class Reservation(NamedTuple):
    """One rule of the file, as it stands there."""

    text: str
    reserves: bool
    pattern: Pattern


TOO_MANY = Reservation("more patterns than are tried on a url as long as this one", True, Pattern(("",), False, 0))


class Reservations:
    """The rules of a site, in their order. `num_bytes`: about what they take in memory."""

    def __init__(self, rules: tuple[Reservation, ...] = ()) -> None:
        self._rules = rules
        self._num_pieces = sum(len(r.pattern.pieces) for r in rules)
        self.num_bytes = 300 + sum(300 + 2 * len(r.text) + 60 * len(r.pattern.pieces) + r.pattern.octets for r in rules)

    def reserves(self, path: str) -> Reservation | None:
        """The rule that reserves a path with its query, or None."""
        path = canonical(path)
        if len(path) * self._num_pieces > MOST_STEPS:
            return TOO_MANY
        rule = next((r for r in self._rules if r.pattern.matches(path)), None)
        return rule if rule is not None and rule.reserves else None


def parse(body: bytes, strict: bool = False) -> Reservations:
    """The rules in a file. Raises ValueError for what is no list of objects.

    A rule without a location, or reserved neither 0 nor 1, is an error of the protocol and says nothing; with `strict` the first
    reserves the whole site, the second its location.
    """
    try:
        found = json.loads(body.decode("utf-8-sig"))
    except RecursionError:
        raise ValueError("nested too deep") from None
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        raise ValueError("no list of objects")
    rules = []
    for entry in found:
        location, reserved = entry.get("location"), entry.get("tdm-reservation")
        is_one, is_zero = (type(reserved) in (int, str) and str(reserved).strip() == digit for digit in "10")
        if not isinstance(location, str):
            location = "/" if strict else ""
        if location and (is_one or is_zero or strict):
            text = json.dumps(entry, ensure_ascii=False)[:200]
            rules.append(Reservation(text, not is_zero, pattern(location)))
    return Reservations(tuple(rules))
