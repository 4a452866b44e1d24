"""Whether somebody said no, from evidence that is in the table already: for tars and tables that others downloaded."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from email.utils import parsedate_to_datetime
from typing import Annotated, Any

import pyarrow as pa
from pydantic import BeforeValidator, Field

from curate.errors import UserError
from curate.fetching.fetch import Limits
from curate.fetching.opt_out import DENY, Policy, said_in_headers
from curate.fetching.opt_out import OptOut as Said
from curate.fetching.opt_out_list import OptOutList
from curate.step import File, bool_, step, string

TAGS, RESERVATION = "x-robots-tag", "tdm-reservation"
Day = Annotated[str, BeforeValidator(lambda given: date.fromisoformat(str(given)).isoformat())]
"""A date like 2026-11-30, with quotes in YAML or without."""


@dataclass
class Evidence:
    """What a row knows of one answer of its server; `is_known` is false where nobody noted anything."""

    tags: list[str] = field(default_factory=list)
    reservations: list[str] = field(default_factory=list)
    is_known: bool = False


@step(adds={"opted_out": bool_, "opt_out_signal": string, "opt_out_value": string}, batch=10_000, version=1)
class OptOut:
    """Whether the owner said no by the headers that came with the picture, or stands on your list; null where nobody knows.

    Reads what there is of `headers` (a header block, or JSON: a map, or a list of pairs), `x_robots_tag`, `tdm_reservation`,
    `checked_at` (when the server said so: ISO 8601, an HTTP date, or seconds since 1970) and `url`; asks nobody anything. A row
    with none of the four, or with evidence more than `max_age_days` older than `as_of`, is unknown: null, which no keep lets
    pass, and under `strict` opted out with the signal `unknown`; a table with none of the four columns is judged by the list.
    `as_of` is a date like 2026-11-30 and has to be given with `max_age_days`, because today's would give another column
    tomorrow. `off` reads the list alone. Directives are those of `download`; `user_agent` is who asked, for those addressed to
    one robot. The rules are our choice.
    """

    def __init__(self, *, policy: Policy = "standard", list: File | None = None, user_agent: str = "",
                 max_age_days: Annotated[int, Field(ge=0)] | None = None, as_of: Day | None = None) -> None:
        if (max_age_days is None) != (as_of is None):
            raise UserError("step 'opt_out': max_age_days and as_of belong together, like {max_age_days: 90, as_of: 2026-11-30}")
        if policy == "off" and list is None:
            raise UserError("step 'opt_out': policy: off reads nothing but a list; give it list: FILE")
        self._policy, self._listed = policy, OptOutList(list) if list else None
        self._token = Limits(user_agent=user_agent).token
        self._max_age_days, self._as_of = max_age_days, date.fromisoformat(as_of) if as_of else None

    def __call__(self, uid: pa.Array, url: list[str | None] | None, headers: list[Any] | None, x_robots_tag: list[Any] | None,
                 tdm_reservation: list[Any] | None, checked_at: list[Any] | None) -> dict[str, list[Any]]:
        if self._listed is not None and url is None:
            raise UserError("step 'opt_out': a list needs the column 'url'; name it with reads: {url: …}")
        noted = [headers, x_robots_tag, tdm_reservation]
        if self._listed is None and noted == [None] * 3 and checked_at is None:
            raise UserError("step 'opt_out' finds no evidence: it reads headers, x_robots_tag, tdm_reservation, checked_at, or a "
                            "list: FILE; name columns with reads: {x_robots_tag: …}")
        has_evidence = noted != [None] * 3 or checked_at is not None
        nothing = [None] * len(uid)
        columns = (c if c is not None else nothing for c in (url, headers, x_robots_tag, tdm_reservation, checked_at))
        found = [self._judge(row, has_evidence) for row in zip(*columns, strict=True)]
        return {"opted_out": [no for no, _, _ in found], "opt_out_signal": [signal for _, signal, _ in found],
                "opt_out_value": [value for _, _, value in found]}

    def _judge(self, row: tuple[Any, ...], has_evidence: bool) -> tuple[bool | None, str | None, str | None]:
        """(opted out or unknown, signal, value) of one row: url, headers, x_robots_tag, tdm_reservation, checked_at."""
        url, headers, tags, reserved, checked = row
        if self._listed is not None and url and (entry := self._listed.match_text(url)):
            return True, "list", Said("list", entry, "").value
        if self._policy == "off" or (not has_evidence and self._policy == "standard"):
            return False, None, None
        evidence = _evidence(headers, tags, reserved)
        unknown = self._why_unknown(evidence.is_known, checked)
        if unknown:
            return (True, "unknown", unknown) if self._policy == "strict" else (None, None, None)
        said = said_in_headers(evidence.tags, evidence.reservations, self._token, DENY, self._policy == "strict")
        return (True, said.signal, said.value) if said else (False, None, None)

    def _why_unknown(self, is_known: bool, checked: Any) -> str:
        """Why the row's evidence does not count; empty where it does. A time of checking says that there was no other header."""
        if not is_known and checked is None:
            return "no header noted"
        if self._max_age_days is None or self._as_of is None:
            return ""
        when = _day(checked)
        if when is None:
            return "no time of checking that can be read"
        days = (self._as_of - when).days
        return f"checked {when}, {days} days before {self._as_of}" if days > self._max_age_days else ""


def _evidence(headers: Any, tags: Any, reserved: Any) -> Evidence:
    found = Evidence(_lines(tags), _lines(reserved), any(v is not None for v in (headers, tags, reserved)))
    for name, value in _pairs(headers):
        name = str(name).strip().lower().replace("_", "-")
        if name in (TAGS, RESERVATION):
            (found.tags if name == TAGS else found.reservations).extend(_lines(value))
    return found


def _lines(value: Any) -> list[str]:
    """The header lines in a cell: text (also a JSON list), a list, a number (1.0 is what a table makes of 1), a truth value."""
    if value is None:
        return []
    if isinstance(value, list | tuple):
        return [line for v in value for line in _lines(v)]
    if isinstance(value, bool | float) and value == int(value):
        value = int(value)
    text = str(value)
    if text.lstrip().startswith("["):
        found = _json(text)
        if isinstance(found, list):
            return _lines(found)
    return text.splitlines()


def _pairs(headers: Any) -> Iterable[tuple[Any, Any]]:
    """Names and values of a cell with all headers. Raises ValueError for what holds none."""
    if isinstance(headers, str):
        headers = _json(headers) if headers.lstrip()[:1] in ("{", "[") else [_split(line) for line in headers.splitlines()]
    if isinstance(headers, Mapping):
        return headers.items()
    pairs = headers if headers is not None else []
    if not isinstance(pairs, list) or not all(isinstance(p, list | tuple) and len(p) == 2 for p in pairs):
        raise ValueError("headers: neither lines of headers nor a JSON map or list of pairs")
    return pairs


def _split(line: str) -> tuple[str, str]:
    name, _, value = line.partition(":")
    return name, value.strip()


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _day(checked: Any) -> date | None:
    """The day of a time in any of the forms, by UTC; None where it is none."""
    if isinstance(checked, datetime):
        return (checked if checked.tzinfo is None else checked.astimezone(UTC)).date()
    if isinstance(checked, date) or checked is None:
        return checked
    try:
        if isinstance(checked, int | float):
            return datetime.fromtimestamp(checked, UTC).date()
        text = str(checked).strip()
        return _day(datetime.fromisoformat(text) if text[:1].isdigit() else parsedate_to_datetime(text))
    except (ValueError, OverflowError, OSError):
        return None
