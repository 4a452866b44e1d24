"""A download of which hardly anything comes is stopped, with the commonest cause and what to do."""

from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curate.errors import RunStopped
from curate.verdict import ADVICE, ENOUGH, SECONDS, Verdict, judge
from tests.picture_server import Pictures
from tests.running import run_here, write_pipeline
from tests.test_heal import SOURCE, web

__all__ = ["web"]

WORDS = [
    ({"dns": 100}, "only 0 of 100 downloads are ok, and 100 are dns: check the network and /etc/resolv.conf"),
    ({"ok": 4, "http_4xx": 90, "http_404": 6},
     ("only 4 of 100 downloads are ok, and 90 are http_4xx: the servers refuse; say who asks with user_agent and contact, "
      "and check the urls")),
    ({"bad_scheme": 1234, "ok": 1}, "only 1 of 1,235 downloads are ok, and 1,234 are bad_scheme: see curate status"),
]
AFTER = "; then `curate heal` the run, or go on as it is with --set download.min_success=0"


@pytest.mark.parametrize(("statuses", "words"), WORDS)
def test_what_it_says(statuses: dict[str, int], words: str) -> None:
    with pytest.raises(RunStopped) as error:
        judge(statuses, 0.05)
    assert str(error.value) == words + AFTER
    assert error.value.exit_code == 3


@pytest.mark.parametrize(("statuses", "least"), [
    ({"ok": 5, "dns": 95}, 0.05), ({"dns": ENOUGH - 1}, 0.05), ({"dns": 100}, 0), ({}, 1), ({"ok": 100}, 1),
])
def test_what_it_lets_pass(statuses: dict[str, int], least: float) -> None:
    judge(statuses, least)


def test_half_a_minute_from_the_first_answer() -> None:
    now = [0.0]
    verdict = Verdict(0.05, lambda: now[0])
    now[0] = 100                                            # captions were measured all the while
    verdict.told({"dns": 400})
    now[0] += SECONDS - 0.1
    verdict.told({"dns": 400})
    now[0] += 0.1
    with pytest.raises(RunStopped, match="only 0 of 1,200 downloads are ok"):
        verdict.told({"dns": 400})


def test_advice_is_for_statuses_that_there_are() -> None:
    described = (Path(__file__).parents[1] / "docs/download.md").read_text()
    assert all(f"\n| `{status}` |" in described for status in ADVICE)


def test_a_run_stops_keeps_what_came_and_is_healed(web: Pictures, tmp_path: Path) -> None:
    """Servers that are down fail nearly all; the same command says so again; when they are up, heal completes the run."""
    rows = 120
    table = pa.table({"url": [web.url(n) for n in range(rows)], "caption": [f"picture {n}" for n in range(rows)]})
    pq.write_table(table, tmp_path / "pool.parquet")
    download = "download: {image_size: 32, allow_private: [127.0.0.0/8], retries: 0}"
    file = write_pipeline(tmp_path, download, "keep: status = 'ok'", source=SOURCE.replace("6", "50"))
    web.ill = dict.fromkeys(range(3, rows), 503)
    for _ in range(2):
        with pytest.raises(RunStopped, match="^only 3 of 120 downloads are ok, and 117 are http_5xx: wait, and lower per_host;"):
            run_here(file, tmp_path / "out")
    assert Counter(web.asked) == Counter(range(rows)), "nothing was asked twice"
    assert run_here(file, tmp_path / "out", sets=["download.min_success=0"]).funnel[-1]["kept"] == 3
    web.ill = {}
    assert run_here(file, tmp_path / "out", heal=True).funnel[-1]["kept"] == rows
