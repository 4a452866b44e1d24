"""tdmrep.json: which rule of the file decides, what an error in it means, and that it is asked for only where that was wished."""

import asyncio
import json
from typing import Any

import pytest

from curate.fetching.fetch import Fetcher, Limits, Outcome
from curate.fetching.opt_out import OptOut
from curate.fetching.tdmrep import parse
from tests.helpers_http import LOOPBACK, Answer, run, site

IMAGE = Answer(b"\xff\xd8\xff" + bytes(100))
FILE = "/.well-known/tdmrep.json"
REPORT = [{"location": "/directory-a/", "tdm-reservation": 1},
          {"location": "/directory-b/html/", "tdm-reservation": 1, "tdm-policy": "https://provider.com/policies/policy.json"},
          {"location": "/directory-b/images/*.jpg", "tdm-reservation": 0}]
"""The example of the report."""


def reserves(rules: Any, path: str, strict: bool = False) -> str | None:
    found = parse(json.dumps(rules).encode(), strict).reserves(path)
    return found.text if found else None


def test_the_example_of_the_report() -> None:
    assert reserves(REPORT, "/directory-a/x.pdf") == '{"location": "/directory-a/", "tdm-reservation": 1}'
    assert reserves(REPORT, "/directory-b/html/index.html") == json.dumps(REPORT[1])
    for free in ("/directory-b/images/a.jpg", "/directory-b/images/a.png", "/directory-a", "/"):
        assert reserves(REPORT, free) is None


def test_of_the_rules_that_match_the_first_decides() -> None:
    free, all_ = {"location": "/free/", "tdm-reservation": 0}, {"location": "/", "tdm-reservation": 1}
    assert reserves([free, all_], "/free/a") is None
    assert reserves([all_, free], "/free/a") == json.dumps(all_)
    assert reserves([{"location": "/a$", "tdm-reservation": 1}], "/ab") is None
    assert reserves([{"location": "/%7Ea", "tdm-reservation": 1}], "/~a/b") is not None


@pytest.mark.parametrize(("rule", "standard", "strict"), [
    ({"location": "/", "tdm-reservation": "1"}, True, True), ({"location": "/", "tdm-reservation": "0"}, False, False),
    ({"location": "/", "tdm-reservation": 2}, False, True), ({"location": "/", "tdm-reservation": True}, False, True),
    ({"location": "/"}, False, True), ({"tdm-reservation": 1}, False, True), ({"location": 7, "tdm-reservation": 1}, False, True),
    ({"location": "/", "tdm-reservation": None}, False, True), ({"location": "", "tdm-reservation": 1}, False, False),
])
def test_an_error_says_nothing_but_if_strict(rule: Any, standard: bool, strict: bool) -> None:
    assert (reserves([rule], "/a") is not None, reserves([rule], "/a", strict=True) is not None) == (standard, strict)


@pytest.mark.parametrize("body", [b"", b"{}", b"[1]", b"null", b"<html>", b"[" * 100_000, b"\xff", b'[{"location": "/"'])
def test_what_is_no_list_of_rules_is_an_error(body: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  json's own words
        parse(body)


async def get(url: str, **how: Any) -> Outcome:
    async with Fetcher(Limits(allow_private=LOOPBACK, retries=0, timeout_seconds=1, deadline_seconds=2, **how)) as fetcher:
        first, _ = await asyncio.gather(fetcher.get(url), fetcher.get(url))
        return first


@run
async def test_it_is_asked_for_once_and_only_where_wished() -> None:
    rules = [{"location": "/*.jpg", "tdm-reservation": 1}]
    async with site({FILE: Answer(json.dumps(rules).encode()), "/a.jpg": IMAGE, "/b.png": IMAGE}) as here:
        assert (await get(here.url("/a.jpg"))).status == "ok"
        assert here.asked[FILE] == 0
        found = await get(here.url("/a.jpg"), tdmrep=True)
        assert found.said == OptOut("tdmrep.json", json.dumps(rules[0]), f"tdmrep.json: {json.dumps(rules[0])}")
        assert (found.status, found.error, here.asked[FILE]) == ("opt_out", f"tdmrep.json: {json.dumps(rules[0])}", 1)
        assert (await get(here.url("/b.png"), tdmrep=True)).status == "ok"


@pytest.mark.parametrize(("answer", "standard", "strict"), [
    (Answer(b"", 404), "ok", "ok"), (Answer(b"", 503), "ok", "http_5xx"), (Answer(b"oh"), "ok", "opt_out"),
    (Answer(b""), "ok", "opt_out"),
    (Answer(b"[]"), "ok", "ok"),
])
@run
async def test_a_site_that_does_not_say_reserves_nothing_but_if_strict(answer: Answer, standard: str, strict: str) -> None:
    async with site({FILE: answer, "/a.jpg": IMAGE}) as here:
        assert (await get(here.url("/a.jpg"), tdmrep=True)).status == standard
        found = await get(here.url("/a.jpg"), tdmrep=True, strict=True)
        assert found.status == strict
        assert strict == "ok" or found.error.startswith("tdmrep.json: ")
