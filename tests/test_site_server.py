"""The faulty site as it is served: every kind of route behaves as badly as planned, and the log tells."""

import http.client
import io
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.site import scenes
from tests.site.faults import BOMB_SIDE, NOINDEX, NOT_OPT_OUT, OPT_OUT
from tests.site.loopback import HOSTS
from tests.site.make import make
from tests.site.routes import load, truth
from tests.site.server import Site, serve

ROWS = 250


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


def test_urls_follow_the_port(folder: Path) -> None:
    with serve(folder) as one, serve(folder) as two:
        assert one.port != two.port
        assert two.pool == folder / "pool.parquet"
        table = pq.read_table(two.pool)
        assert {urlsplit(url).port for url in table["url"].to_pylist()} == {two.port}
        assert {urlsplit(row["twin_of"]).port for row in truth(folder) if row["twin_of"]} == {two.port}
        assert load(folder).port == two.port
        assert len({urlsplit(url).hostname for url in table["url"].to_pylist()}) > .7 * HOSTS


def test_good_urls_give_pictures(site: Site) -> None:
    for kind in ("clean", "mismatched", "near_dup", "exact_dup", "shared_url", "not_opt_out", "stretched", "tiny"):
        for row in truth(site.folder, kind)[:8]:
            answer = get(row["url"])
            assert (answer.status, answer.headers["Content-Type"]) == (200, "image/jpeg")
            picture = Image.open(io.BytesIO(answer.body))
            picture.load()
            shown = scenes.scene(0, row["scene"])
            expected = {"tiny": (24, 24), "stretched": (600, 60)}.get(kind, (shown.width_px, shown.height_px))
            assert picture.size == expected or kind == "near_dup"


def test_an_exact_twin_has_the_same_bytes_and_a_near_one_has_not(site: Site) -> None:
    for kind, same in (("exact_dup", True), ("near_dup", False)):
        for row in truth(site.folder, kind):
            assert (get(row["url"]).body == get(row["twin_of"]).body) is same


def test_dead_urls(site: Site) -> None:
    assert {get(row["url"]).status for row in truth(site.folder, "dead_404")} == {404}
    assert {get(row["url"]).status for row in truth(site.folder, "gone_410")} == {410}
    assert get(f"{site.url_base}/nowhere.jpg").status == 404
    assert get(f"{site.url_base}/robots.txt").status == 404
    assert get(f"{site.url_base}{urlsplit(truth(site.folder, 'clean')[0]['url']).path}", "DELETE").status == 405


def test_the_first_failure_and_then_a_picture(site: Site) -> None:
    flaky, busy = truth(site.folder, "flaky_500")[0]["url"], truth(site.folder, "busy_429")[0]["url"]
    assert [get(flaky).status for _ in range(3)] == [500, 200, 200]
    first = get(busy)
    assert (first.status, first.headers["Retry-After"]) == (429, "1")
    assert get(busy).status == 200
    site.reset()
    assert get(flaky).status == 500


def test_headers_that_opt_out_and_headers_that_do_not(site: Site) -> None:
    said = {kind: {get(row["url"]).headers["X-Robots-Tag"] for row in truth(site.folder, kind)}
            for kind in ("opt_out", "noindex", "not_opt_out", "clean")}
    assert said["opt_out"] <= set(OPT_OUT) and said["noindex"] <= set(NOINDEX) and said["not_opt_out"] <= set(NOT_OPT_OUT)
    assert said["clean"] == {None}
    assert all(row["detail"] == get(row["url"]).headers["X-Robots-Tag"] for row in truth(site.folder, "opt_out"))


def test_what_is_no_picture(site: Site) -> None:
    assert all(get(row["url"]).body.startswith(b"<!doctype html>") for row in truth(site.folder, "html"))
    for row in truth(site.folder, "truncated"):
        with pytest.raises(OSError, match="truncated"):
            Image.open(io.BytesIO(get(row["url"]).body)).load()
    bomb = get(truth(site.folder, "bomb")[0]["url"])
    assert bomb.headers["Content-Type"] == "image/png"
    assert len(bomb.body) < 100_000
    with pytest.raises(Image.DecompressionBombError, match=str(BOMB_SIDE**2)):
        Image.open(io.BytesIO(bomb.body))


def test_redirects(site: Site) -> None:
    seen = []
    for row in truth(site.folder, "redirect"):
        first = get(row["url"])
        target = first.headers["Location"]
        seen.append(f"{first.status} {'absolute' if target.startswith('http') else 'relative'}")
        assert get(target if target.startswith("http") else site.url_base + target).status == 200
    assert seen == [row["detail"] for row in truth(site.folder, "redirect")]
    loop = truth(site.folder, "redirect_loop")[0]["url"]
    there = get(loop).headers["Location"]
    assert get(site.url_base + there).headers["Location"] == urlsplit(loop).path
    assert get(truth(site.folder, "redirect_private")[0]["url"]).headers["Location"].startswith("http://169.254.169.254/")
    assert get(truth(site.folder, "redirect_file")[0]["url"]).headers["Location"] == "file:///etc/passwd"


@pytest.mark.parametrize(("kind", "most"), [("drip", 30), ("endless", 20_000_000)])
def test_what_never_ends_stops_when_the_client_goes(site: Site, kind: str, most: int) -> None:
    parts = urlsplit(truth(site.folder, kind)[0]["url"])
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


def until(true: Callable[[], bool], seconds: float = 5) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "did not come true in time"
        time.sleep(.01)


def test_one_connection_carries_many_requests(site: Site) -> None:
    rows = truth(site.folder, "clean")[:20]
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
        url = truth(folder, "clean")[0]["url"]
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
