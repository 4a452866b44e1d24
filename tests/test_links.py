"""`curate verify RUN --links`: planted deaths on loopback, counted exactly; asked politely, and nothing stored."""

import io
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from curate import links
from curate.cli import main
from curate.errors import UserError
from curate.folder import Folder
from curate.links import Found, ask_again
from curate.units import wilson
from tests.picture_server import Answer, Pictures, served
from tests.running import run_here, tree, write_pipeline

ROWS = 40
SOURCE = "source: {pairs: pool.parquet, url: url, caption: caption, shard_rows: 7}\n"
DOWNLOAD = "download: {image_size: 32, allow_private: [127.0.0.0/8], retries: 0, contact: 'https://lab.example/crawl'}"
HUGE = 64 * 2**20
ROT = {404: [1, 5, 9], 410: [12], 403: [13], 503: [2, 3], 200: [20, 21]}
"""Answer → the pictures that end so after the run; 200 are web pages."""
STATUSES = {"ok": 29, "http_404": 3, "http_410": 1, "http_4xx": 1, "http_5xx": 2, "wrong_type": 2, "opt_out": 1}


def picture(number: int) -> bytes:
    """The file of picture `number`, in a colour of its own."""
    out = io.BytesIO()
    Image.new("RGB", (40, 40), (number % 256, number // 256, 90)).save(out, "PNG")
    return out.getvalue()


class Web(Pictures):
    """Picture N at /N.png; after the run (`rotten`) some are dead, one says no, two are other pictures, one is huge."""

    def __init__(self) -> None:
        super().__init__(self.shown)
        self.rotten, self.sent = False, 0

    def shown(self, number: int) -> Answer:
        if not self.rotten:
            return Answer(picture(number))
        dead = next((status for status, ones in ROT.items() if number in ones), None)
        if dead:
            return Answer(b"<html>gone</html>", dead)
        body = picture(number + 500 * (number in (30, 31)))
        if number == 33:
            return Answer(body, headers={"Content-Length": str(HUGE)}, more=self.endless(HUGE - len(body)))
        return Answer(body, headers={"X-Robots-Tag": "noai"} if number == 25 else {})

    def endless(self, rest: int) -> Iterator[bytes]:
        while self.sent < rest:
            yield bytes(2**20)
            self.sent += 2**20


@pytest.fixture(scope="module")
def web() -> Iterator[Web]:
    """The web, closed at the end."""
    with served(found := Web()):
        yield found


@pytest.fixture(scope="module")
def run(web: Web, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 40 rows, of which the keep leaves all but row 0; then the web rots. Rows 38 and 39 share a url."""
    here = tmp_path_factory.mktemp("links")
    urls = [web.url(min(i, 38)) for i in range(ROWS)]
    captions = ["no", *(f"scene number {i}" for i in range(1, ROWS))]
    pq.write_table(pa.table({"url": urls, "caption": captions}), here / "pool.parquet")
    pipeline = write_pipeline(here, "caption_length", "keep: num_chars >= 5", DOWNLOAD, "keep: status = 'ok'", source=SOURCE)
    assert run_here(pipeline, here / "run").funnel[-1]["kept"] == 39
    web.rotten = True
    return here / "run"


@pytest.fixture(autouse=True)
def forgotten(web: Web, run: Path) -> None:
    """Each test counts for itself."""
    web.asked.clear()
    web.agents.clear()
    web.sent = 0


def test_all_rows_are_counted_by_what_became_of_their_urls(web: Web, run: Path) -> None:
    found = ask_again(run, rows=1000, seed=0, whole=False)
    assert (found.rows, found.sampled, found.urls) == (39, 39, 38)
    assert found.statuses == STATUSES
    assert (found.gone, found.unknown) == (8, 2)
    assert found.rot == (8 / 37, *wilson(8, 37))
    assert Counter(web.asked) == Counter(range(1, 39)), "each url once, whoever shares it, and none of a row that was dropped"
    assert web.agents == {"curate/0.1 (+https://lab.example/crawl)"}, "it asks as the run did"
    assert web.sent < HUGE / 2, "of a picture only its beginning is read"


def test_bytes_are_compared_with_the_runs_own(web: Web, run: Path) -> None:
    found = ask_again(run, rows=1000, seed=0, whole=True)
    assert found.statuses == {**STATUSES, "ok": 26, "changed": 2, "too_large": 1}, "the limits are the run's own"
    assert (found.gone, found.record()["changed"]) == (9, 2)


def test_nothing_is_written(run: Path) -> None:
    before = tree(run, "")
    ask_again(run, rows=10, seed=0, whole=True)
    assert tree(run, "") == before


def test_a_sample_is_drawn_by_uid_and_seed(run: Path) -> None:
    folder = Folder.open(run)
    total, few = links.sample(folder, 10, seed=0)
    assert total == 39
    assert len({link.uid for link in few}) == 10
    assert links.sample(folder, 10, seed=0) == (39, few)
    assert links.sample(folder, 20, seed=0)[1][:10] == few, "a larger sample holds the smaller one"
    assert links.sample(folder, 10, seed=1)[1] != few


def test_wilsons_interval() -> None:
    """10 of 100: 5.5 % to 17.4 % (Newcombe 1998, Statistics in Medicine 17, method 3: 81 of 263 gives 0.2553 to 0.3662)."""
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    found = Found(5000, 263, 263, 0, False, Counter({"ok": 182, "http_404": 81}))
    assert found.rot == pytest.approx((81 / 263, 0.2553, 0.3662), abs=5e-5)


def test_what_is_said(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["verify", str(run), "--links"])
    assert end.value.code == 0
    low, high = wilson(8, 37)
    assert capsys.readouterr().out.splitlines() == [
        "39 of the 39 rows kept that have a url, drawn by uid (seed 0); 38 urls asked",
        "alive                  29",
        "gone                    8",
        "could not tell          2  failures that may pass; ask again another day",
        f"link rot: 21.6% of the 37 that could be told, 95 % interval {low:.1%} to {high:.1%}",
        "  ok                         29",
        "  http_404                    3",
        "  http_5xx                    2",
        "  wrong_type                  2",
        "  http_410                    1",
        "  http_4xx                    1",
        "  opt_out                     1"]


def test_as_json(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["verify", str(run), "--links", "--rows", "5", "--seed", "3", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found == ask_again(run, rows=5, seed=3, whole=False).record()
    assert (found["rows_sampled"], found["seed"], sum(found["statuses"].values())) == (5, 3, 5)


@pytest.mark.parametrize(("words", "message"), [
    (["--rows", "5"], "--rows, --seed, --bytes and --json belong to --links"),
    (["--bytes"], "--rows, --seed, --bytes and --json belong to --links")])
def test_options_without_links(run: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    with pytest.raises(SystemExit) as end:
        main(["verify", str(run), *words])
    assert (end.value.code, capsys.readouterr().err) == (2, f"{message}\n")


def test_a_run_without_download_is_asked_for_with_its_defaults(tmp_path: Path) -> None:
    rows = {"url": ["http://127.0.0.1:9/1.jpg", None], "caption": ["a cat", "a dog"]}
    pq.write_table(pa.table(rows), tmp_path / "pool.parquet")
    run_here(write_pipeline(tmp_path, "caption_length", "keep: num_chars >= 5", source=SOURCE), tmp_path / "run")
    found = ask_again(tmp_path / "run", rows=5, seed=0, whole=False)
    assert (found.rows, found.statuses) == (1, {"private_address": 1}), "which no setting of the run allows"
    with pytest.raises(UserError, match="^--bytes: .*run does not know the sha256 of its files"):
        ask_again(tmp_path / "run", rows=5, seed=0, whole=True)


def test_a_run_that_kept_nothing(tmp_path: Path) -> None:
    pq.write_table(pa.table({"url": ["http://a.example/1.jpg"], "caption": ["no"]}), tmp_path / "pool.parquet")
    run_here(write_pipeline(tmp_path, "caption_length", "keep: num_chars >= 5", source=SOURCE), tmp_path / "run")
    with pytest.raises(UserError, match="run kept no row with a url$"):
        ask_again(tmp_path / "run", rows=5, seed=0, whole=False)
