"""The step `opt_out`: evidence in a table becomes a column, without asking anybody, and without a clock."""

import json
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from curate.errors import UserError
from curate.step import load_step
from curate.steps.opt_out import OptOut
from tests.running import exits, run_here, write_pipeline, write_pool

Judged = tuple[bool | None, str | None, str | None]
FREE, UNKNOWN = (False, None, None), (None, None, None)


def judged(url: list[Any] | None = None, headers: list[Any] | None = None, tags: list[Any] | None = None,
           reserved: list[Any] | None = None, checked: list[Any] | None = None, **settings: Any) -> list[Judged]:
    rows = next(len(c) for c in (url, headers, tags, reserved, checked) if c is not None)
    found = OptOut(**settings)(pa.array(range(rows)), url, headers, tags, reserved, checked)
    return list(zip(found["opted_out"], found["opt_out_signal"], found["opt_out_value"], strict=True))


def one(**row: Any) -> Judged:
    """One row; settings are those that are no column."""
    columns = ("url", "headers", "tags", "reserved", "checked")
    return judged(**{k: [v] if k in columns else v for k, v in row.items()})[0]


def lists(folder: Path, *lines: str) -> Path:
    path = folder / "list.txt"
    path.write_text("\n".join(lines))
    return path


@pytest.mark.parametrize("headers", [
    "HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nX-Robots-Tag: nofollow\r\nX-ROBOTS-TAG: NoAI, nofollow\r\n",
    json.dumps({"x-robots-tag": "NoAI, nofollow"}), json.dumps({"x_robots_tag": ["nofollow", "NoAI, nofollow"]}),
    json.dumps([["Server", "x"], ["X-Robots-Tag", "NoAI, nofollow"]]), {"X-Robots-Tag": "NoAI, nofollow"},
    [("X-Robots-Tag", "nofollow"), ("X-Robots-Tag", "NoAI, nofollow")],
])
def test_headers_in_every_form(headers: Any) -> None:
    assert one(headers=headers) == (True, "x-robots-tag", "NoAI, nofollow")


@pytest.mark.parametrize(("row", "expected"), [
    ({"tags": "noai"}, (True, "x-robots-tag", "noai")), ({"tags": "nofollow\nnone"}, (True, "x-robots-tag", "none")),
    ({"tags": '["nofollow", "noml"]'}, (True, "x-robots-tag", "noml")),
    ({"tags": ["all", "noindex"]}, (True, "x-robots-tag", "noindex")),
    ({"tags": ""}, FREE), ({"tags": "otherbot: noai"}, FREE), ({"tags": "max-image-preview:large"}, FREE),
    ({"reserved": 1}, (True, "tdm-reservation", "1")), ({"reserved": 1.0}, (True, "tdm-reservation", "1")),
    ({"reserved": True}, (True, "tdm-reservation", "1")), ({"reserved": "1"}, (True, "tdm-reservation", "1")),
    ({"reserved": 0}, FREE),
    ({"reserved": "yes"}, FREE), ({"headers": {}}, FREE), ({"headers": "{}"}, FREE), ({"headers": "tdm-reservation: 1"},
                                                                                      (True, "tdm-reservation", "1")),
    ({"tags": None}, UNKNOWN), ({"headers": None, "tags": None, "reserved": None, "checked": None}, UNKNOWN),
    ({"tags": None, "checked": "2026-05-01"}, FREE), ({"tags": "noai\x00" + "x" * 300}, FREE),
])
def test_evidence_under_the_standard_policy(row: dict[str, Any], expected: Judged) -> None:
    assert one(**row) == expected


def test_strict_takes_the_unknown_for_a_no() -> None:
    assert one(tags=None, policy="strict") == (True, "unknown", "no header noted")
    assert one(tags="noaiplease", policy="strict") == (True, "x-robots-tag", "noaiplease")
    assert one(reserved="yes", policy="strict") == (True, "tdm-reservation", "yes")
    assert one(tags="nofollow", policy="strict") == FREE


def test_scopes_are_compared_with_who_asked() -> None:
    assert one(tags="otherbot: noai", user_agent="OtherBot/2") == (True, "x-robots-tag", "otherbot: noai")
    assert one(tags="curate: noai") == (True, "x-robots-tag", "curate: noai")


@pytest.mark.parametrize(("checked", "days"), [
    ("2026-09-01", 90), ("2026-08-31T23:59:59Z", 91), ("2026-09-01T00:30:00+02:00", 91), ("2026-12-24", -24),
    ("Tue, 01 Sep 2026 08:00:00 GMT", 90), ("Mon, 31 Aug 2026 08:00:00 GMT", 91), (datetime(2026, 8, 31, tzinfo=UTC), 91),
    (datetime(2026, 9, 1), 90),  # noqa: DTZ001  as Arrow gives a column without a zone
    (date(2026, 8, 31), 91), (1_788_134_400, 91),
    (1_788_220_800.5, 90),
])
def test_old_evidence_is_unknown(checked: Any, days: int) -> None:
    settings = {"max_age_days": 90, "as_of": "2026-11-30"}
    for tags, fresh in (("noai", (True, "x-robots-tag", "noai")), (None, FREE)):
        assert one(tags=tags, checked=checked, **settings) == (fresh if days <= 90 else UNKNOWN)
    strict = one(tags=None, checked=checked, policy="strict", **settings)
    assert strict == (FREE if days <= 90 else (True, "unknown", "checked 2026-08-31, 91 days before 2026-11-30"))


@pytest.mark.parametrize("checked", [None, "", "yesterday", "2026-99-01", float("nan"), 1e300])
def test_evidence_of_unknown_age_is_unknown(checked: Any) -> None:
    assert one(tags="noai", checked=checked, max_age_days=90, as_of="2026-11-30") == UNKNOWN
    assert one(tags="noai", checked=checked) == (True, "x-robots-tag", "noai")


def test_the_list_comes_first_and_needs_no_evidence(tmp_path: Path) -> None:
    path = lists(tmp_path, "example.com", "example.org/a")
    urls = ["http://img.example.com/1", "http://example.org/a/b", "http://example.org/b", None]
    on = [(True, "list", "example.com"), (True, "list", "example.org/a")]
    assert judged(url=urls, list=path) == [*on, FREE, FREE]
    assert judged(url=urls, list=path, policy="off", tags=["noai"] * 4) == [*on, FREE, FREE]
    assert judged(url=urls, list=path, policy="strict") == [*on, *[(True, "unknown", "no header noted")] * 2]
    assert judged(url=urls, list=path, tags=[None, "noai", "noai", None]) == [*on, (True, "x-robots-tag", "noai"), UNKNOWN]


def test_mistakes(tmp_path: Path) -> None:
    uid, path = pa.array(["a"]), lists(tmp_path, "example.com")
    for settings in ({"max_age_days": 90}, {"as_of": "2026-11-30"}):
        with pytest.raises(UserError, match="max_age_days and as_of belong together"):
            OptOut(**settings)
    with pytest.raises(UserError, match="policy: off reads nothing but a list"):
        OptOut(policy="off")
    with pytest.raises(UserError, match="finds no evidence: it reads headers, x_robots_tag"):
        OptOut()(uid, ["http://example.com/"], None, None, None, None)
    with pytest.raises(UserError, match="a list needs the column 'url'"):
        OptOut(list=path)(uid, None, None, ["noai"], None, None)
    with pytest.raises(ValueError, match="neither lines of headers nor a JSON map"):
        one(headers='{"a": ')
    with pytest.raises(ValueError, match="Invalid isoformat"):
        load_step("opt_out").settings["as_of"].check("30.11.2026")
    assert load_step("opt_out").settings["as_of"].check(date(2026, 11, 30)) == "2026-11-30"


def test_in_a_pipeline(tmp_path: Path) -> None:
    """Its columns are kept by, and evidence that cannot be read is quarantined."""
    write_pool(tmp_path, ["a"] * 6, x_robots_tag=["noai", "nofollow", None, "", None, None],
               headers=[None, None, None, None, '{"broken"', None],
               checked_at=["2026-11-01", "2026-11-01", "2026-11-01", "2025-01-01", None, None])
    (tmp_path / "list.txt").write_text("http://site/2.jpg\n")
    pipeline = write_pipeline(tmp_path, f"opt_out: {{max_age_days: 90, as_of: 2026-11-30, list: {tmp_path}/list.txt}}",
                              "keep: not opted_out")
    outcome = run_here(pipeline, tmp_path / "out")
    step, keep = outcome.funnel[1], outcome.funnel[2]
    assert (step["quarantined"], keep["dropped"], keep["unknown"], keep["kept"]) == (1, 2, 2, 1)
    assert exits(outcome) == {"not opted_out": 2}
