"""Which column of a user's table is the url, which the caption, which the uid: by their names and by what is in them.

Values decide whether a column can be it at all, names which of several it is. Two that are equally good are a question for the
user, never a coin. The names and limits are our choice.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from curate import columns
from curate.errors import UserError, did_you_mean
from curate.sources.locations import PICTURES

NAMES: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "url": (("imageurl", "imgurl", "imagelink", "photourl", "pictureurl"), ("url", "uri", "link", "href", "src", "image", "img")),
    "caption": (("caption", "captions", "text", "alt", "alttext"),
                ("title", "description", "desc", "sentence", "prompt", "label")),
    "uid": (("uid", "uuid", "guid"), ("id", "key", "sampleid", "imageid")),
}
"""What columns with a meaning are called, best first, in small letters and digits only."""
HEX = r"^[0-9a-f]{32}$"
HTTP = r"(?i)^\s*https?://[^\s/]+"
PICTURE = r"(?i)\.(" + "|".join(sorted(s[1:] for s in PICTURES)) + r")(\?|$)"
MOSTLY = 0.5
"""A column of urls is one of whose values more than half are urls; with a text, more than half hold letters and no url."""
MUCH_BETTER = 0.3
"""So much larger must the share of urls that end like a picture be to decide between two columns of urls."""


@dataclass(frozen=True)
class Look:
    """What a sample shows of a column. Shares are of the values that are there, 0 to 1."""

    name: str
    rows: int
    values: int
    http: float
    pictures: float
    """urls or paths that end like a picture"""
    texts: float
    """values with a letter that are no url, no picture's path and no hash"""
    words: float
    """mean, separated by white space"""
    chars: float
    """mean"""
    distinct: int
    hexadecimal: float

    @property
    def is_unique(self) -> bool:
        """Every row has a value, and no two the same."""
        return self.rows > 0 and self.rows == self.values == self.distinct


@dataclass(frozen=True)
class Found:
    """A column, and why it is this one."""

    name: str
    why: str


def look(name: str, column: pa.Array) -> Look:
    """What a column of a sample shows; one that holds lists or maps shows nothing."""
    try:
        texts = columns.as_strings(column)[0]
    except TypeError:
        texts = pa.nulls(len(column), pa.string())
    there = texts.filter(pc.greater(pc.binary_length(pc.utf8_trim_whitespace(texts)), 0).fill_null(False))

    def share(pattern: str) -> float:
        return pc.sum(pc.match_substring_regex(there, pattern)).as_py() / len(there) if len(there) else 0.0

    def mean(numbers: pa.Array) -> float:
        return pc.mean(numbers).as_py() or 0.0

    no_text = pc.or_(pc.match_substring_regex(there, rf"{HTTP}|{HEX}"), pc.match_substring_regex(there, PICTURE))
    is_text = pc.and_not(pc.match_substring_regex(there, r"\p{L}"), no_text)
    return Look(name, len(column), len(there), share(HTTP), share(PICTURE), mean(is_text.cast(pa.float64())),
                mean(pc.list_value_length(pc.utf8_split_whitespace(pc.utf8_trim_whitespace(there)))),
                mean(pc.utf8_length(there)), pc.count_distinct(there).as_py(), share(HEX))


def url(looks: Sequence[Look]) -> Found:
    """The column of picture urls. Raises UserError where there is none, or more than one that it may be."""
    candidates = [x for x in looks if x.http > MOSTLY]
    if not candidates:
        raise UserError(f"no column holds http urls (it has {_listed(looks)}); name it with --url NAME")
    best = _best(candidates, "url")
    top = max(x.pictures for x in candidates)
    pictures = [x for x in candidates if x.pictures > MOSTLY and x.pictures >= top - MUCH_BETTER]
    if len(pictures) == 1 and top - max((x.pictures for x in candidates if x is not pictures[0]), default=0) > MUCH_BETTER:
        best = pictures
    one = _one(best, "url")
    named = "by its name and values" if _rank(one, "url") < 2 else "by its values"
    return Found(one.name, f"{named}: {one.http:.0%} are http urls, {one.pictures:.0%} end like a picture")


def caption(looks: Sequence[Look], taken: str | None = None) -> Found:
    """The column of captions, which is not the one `taken`. Raises UserError as `url` does."""
    candidates = [x for x in looks if x.texts > MOSTLY and x.name != taken]
    if not any(_rank(x, "caption") < 2 for x in candidates):
        candidates = [x for x in candidates if x.words >= 2]
    if not candidates:
        raise UserError(f"no column holds captions (it has {_listed(looks)}); name it with --caption NAME")
    one = _one(_best(candidates, "caption"), "caption")
    named = "by its name and values" if _rank(one, "caption") < 2 else "the only one of several words"
    return Found(one.name, f"{named}: {one.words:.1f} words and {one.chars:.0f} characters on average")


def uid(looks: Sequence[Look], taken: Sequence[str | None] = ()) -> Found | None:
    """The column of uids, if there is one: well named, and without a gap or repetition. None: a row is its url and caption."""
    named = [x for x in looks if x.name not in taken and _rank(x, "uid") < 2 and x.is_unique and x.rows > 1]
    if not named:
        return None
    one = min(named, key=lambda x: (x.hexadecimal < 1, _rank(x, "uid")))
    return Found(one.name, "by its name: " + ("32 hex digits in every row" if one.hexadecimal == 1 else "no value comes twice"))


def named(name: str, looks: Sequence[Look]) -> Found:
    """A column that the user names. Raises UserError where there is no such column."""
    if name not in [x.name for x in looks]:
        raise UserError(f"no column '{name}'{did_you_mean(name, [x.name for x in looks])}")
    return Found(name, "as told")


def is_url(text: str) -> bool:
    """Whether a text is an http url: as the name of a column it is a row, and the file has no header line."""
    return re.match(HTTP, text) is not None


def is_named(one: Look, meaning: str) -> bool:
    """Whether a column is called as one of that meaning is."""
    return _rank(one, meaning) < 2


def shown(text: str) -> str:
    """A name as part of one line, whatever is in it."""
    return "".join(c if c.isprintable() else "?" for c in text)


def _rank(one: Look, meaning: str) -> int:
    """0 and 1 for a name that is known, 2 for one that is not."""
    plain = re.sub(r"[^a-z0-9]", "", one.name.lower())
    return next((rank for rank, names in enumerate(NAMES[meaning]) if plain in names), 2)


def _best(candidates: Sequence[Look], meaning: str) -> list[Look]:
    best = min(_rank(x, meaning) for x in candidates)
    return [x for x in candidates if _rank(x, meaning) == best]


def _one(best: Sequence[Look], meaning: str) -> Look:
    if len(best) > 1:
        names = " and ".join(f"'{shown(x.name)}'" for x in best[:4])
        raise UserError(f"{names} look equally like the {meaning} column; say which with --{meaning} NAME")
    return best[0]


def _listed(looks: Sequence[Look]) -> str:
    return ", ".join(f"'{shown(x.name)}'" for x in looks[:8]) + (", …" if len(looks) > 8 else "") or "no columns"
