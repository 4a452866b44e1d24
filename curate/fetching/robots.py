"""robots.txt as RFC 9309 reads it: the line that forbids a path to a robot, if there is one. Pure: asks nobody for anything.

    rules = parse(b"User-agent: *\\nDisallow: /private/", "curate")
    rules.forbids("/private/a.jpg")           # the Disallow line; None for what is allowed

Groups of the robot's own name count, all of them together, else those of `*`; of the rules that match the longest one decides,
and an Allow as long as a Disallow wins. What the RFC does not have (Crawl-delay, misspelt names of lines) says nothing. A path
costs a bounded time, whatever patterns are in the file: no regular expression is made of them.
"""

import re
from collections.abc import Iterable
from typing import NamedTuple

LIMIT_BYTES = 500 * 1024
"""What is read of a file: the least that RFC 9309 section 2.5 demands. A line that the limit cuts says nothing."""
OWN_PATH = "/robots.txt"
"""Always allowed (section 2.2.2)."""
MOST_STEPS = 4_000_000
"""Characters of a path times pieces of patterns with `*`: about 30 ms. A file that takes more forbids the path (our choice)."""

_PLAIN = re.compile(r"[A-Za-z0-9/._~-]*")
_ODD = re.compile(rb"%[0-9A-Fa-f]{2}|[^\x21-\x7e]")
_UNRESERVED = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_NAME = re.compile(r"[a-z_-]*")


class Pattern(NamedTuple):
    """The path of a rule: what stands between its stars, whether it ends in `$`, and its length, which is how specific it is."""

    pieces: tuple[str, ...]
    to_the_end: bool
    octets: int

    def matches(self, path: str) -> bool:
        """Whether a canonical path begins with it; with `$`, whether it is all of it. Linear: each piece is searched once."""
        first, *others = self.pieces
        if not path.startswith(first):
            return False
        if not others:
            return not self.to_the_end or len(path) == len(first)
        last = others.pop() if self.to_the_end else ""
        at = len(first)
        for piece in others:
            found = path.find(piece, at)
            if found < 0:
                return False
            at = found + len(piece)
        return not self.to_the_end or (path.endswith(last) and len(path) - len(last) >= at)


class Rule(NamedTuple):
    """A line of a file that says something of paths: where it stands (from 1), and as it stands there."""

    number: int
    text: str
    allows: bool
    pattern: Pattern


TOO_MANY = Rule(0, "more patterns than are tried on a url as long as this one", False, Pattern(("",), False, 0))


class Rules:
    """What a file says to one robot. `num_bytes`: about what it takes in memory."""

    def __init__(self, rules: Iterable[Rule] = ()) -> None:
        self._prefixes: dict[str, Rule] = {}
        self._patterns: list[Rule] = []
        for rule in rules:
            first, *others = rule.pattern.pieces
            if others or rule.pattern.to_the_end:
                self._patterns.append(rule)
            elif first not in self._prefixes or rule.allows:
                self._prefixes[first] = rule
        self._lengths = sorted({len(p) for p in self._prefixes}, reverse=True)
        self._patterns.sort(key=_rank, reverse=True)
        self._num_pieces = sum(len(r.pattern.pieces) for r in self._patterns)
        self.num_bytes = 500 + sum(400 + 2 * len(r.text) + 60 * len(r.pattern.pieces) + r.pattern.octets
                                   for r in (*self._prefixes.values(), *self._patterns))

    def forbids(self, path: str) -> Rule | None:
        """The line that forbids a path with its query, or None."""
        path = canonical(path)
        if path == OWN_PATH:
            return None
        if len(path) * self._num_pieces > MOST_STEPS:
            return TOO_MANY
        rule = next((self._prefixes[path[:n]] for n in self._lengths if n <= len(path) and path[:n] in self._prefixes), None)
        for other in self._patterns:
            if rule is not None and _rank(other) <= _rank(rule):
                break
            if other.pattern.matches(path):
                rule = other
                break
        return None if rule is None or rule.allows else rule


def _rank(rule: Rule) -> tuple[int, bool]:
    return rule.pattern.octets, rule.allows


def parse(body: bytes, token: str) -> Rules:
    """What a file says to the robot called `token`, in any case. Every file is one: what cannot be read says nothing."""
    if len(body) > LIMIT_BYTES:
        body = body[: max(body.rfind(b"\n", 0, LIMIT_BYTES), body.rfind(b"\r", 0, LIMIT_BYTES), 0)]
    ours: list[Rule] = []
    everybodys: list[Rule] = []
    is_ours = is_everybodys = was_named = among_names = False
    text = body.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")
    for number, line in enumerate(re.split(r"\r\n|\r|\n", text), 1):
        key, _, value = line.partition("#")[0].partition(":")
        key, value = key.strip().lower(), value.strip()
        if key == "user-agent":
            if not among_names:
                is_ours = is_everybodys = False
            among_names = True
            is_ours = is_ours or _is_named(value, token)
            is_everybodys = is_everybodys or value.split()[:1] == ["*"]
            was_named = was_named or is_ours
        elif key in ("allow", "disallow"):
            among_names = False
            if value and (is_ours or is_everybodys):
                rule = Rule(number, line.strip()[:200], key == "allow", pattern(value))
                for group, wanted in ((ours, is_ours), (everybodys, is_everybodys)):
                    group += [rule] * wanted
    return Rules(ours if was_named else everybodys)


def _is_named(value: str, token: str) -> bool:
    """Whether a User-agent line means this robot: its product token, with or without a version behind it."""
    value, token = value.lower(), token.lower()
    word = (value.split() or [""])[0].partition("/")[0]
    name = _NAME.match(value)
    return token in (word, name.group() if name else "")


def pattern(text: str) -> Pattern:
    """The pattern of a rule's path, in which `*` is anything and `$` at its end the end."""
    to_the_end = text.endswith("$")
    stem = text.removesuffix("$")
    pieces = [_escaped(piece) for piece in stem.split("*")]
    if "?" in stem:                                  # what is the query begins with the first `?`, whichever piece that is in
        asked = next(i for i, piece in enumerate(pieces) if "?" in piece)
        pieces[asked:] = [_in_query(pieces[asked]), *(_as_query(p) for p in pieces[asked + 1 :])]
    octets = sum(map(len, pieces)) + len(pieces) - 1 + to_the_end
    inner = [piece for piece in pieces[1:-1] if piece]
    return Pattern((pieces[0], *inner, *pieces[1:][-1:]), to_the_end, octets)


def canonical(path: str) -> str:
    """A path and query as section 2.2.2 compares them: what needs no percent sign has none, everything else has one."""
    return path if _PLAIN.fullmatch(path) else _in_query(_escaped(path).replace("*", "%2A"))


def _escaped(text: str) -> str:
    if _PLAIN.fullmatch(text):
        return text
    return _ODD.sub(_octet, text.encode("utf-8", "surrogateescape")).decode("ascii").replace("$", "%24")


def _octet(found: re.Match[bytes]) -> bytes:
    said = found.group()
    octet = int(said[1:], 16) if len(said) == 3 else said[0]
    return bytes([octet]) if len(said) == 3 and octet in _UNRESERVED else b"%%%02X" % octet


def _in_query(text: str) -> str:
    head, mark, query = text.partition("?")
    return head + mark + _as_query(query)


def _as_query(text: str) -> str:
    """`:` and `/` with a percent sign, as in the table of section 2.2.2."""
    return text.replace(":", "%3A").replace("/", "%2F")
