import asyncio
import socket
import ssl
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from aiohttp.abc import ResolveResult
from yarl import URL

from curate.errors import UserError
from curate.fetching.addresses import Failure, check_address, parse_url
from curate.fetching.fetch import Fetcher, Limits, Outcome
from curate.fetching.opt_out import DENY, OptOut, opted_out, reservation
from curate.fetching.resolver import Resolver
from tests.helpers_http import LOOPBACK, Answer, Request, listener, run, site

IMAGE = b"\xff\xd8\xff" + bytes(range(100))
PRIVATE = [
    "127.0.0.1", "127.1.2.3", "localhost", "localhost.", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1",
    "169.254.169.254", "100.64.0.1", "192.0.0.8", "192.0.2.1", "192.88.99.1", "198.18.0.1", "224.0.0.1", "240.0.0.1",
    "255.255.255.255", "[::1]", "[::]", "[fc00::1]", "[fd12::1]", "[fe80::1]", "[fec0::1]", "[ff02::1]",
    "[::ffff:127.0.0.1]", "[::ffff:10.0.0.1]", "[::127.0.0.1]", "[64:ff9b::7f00:1]", "[64:ff9b:1::1]", "[2002:7f00:1::]",
    "[2001:0:1::1]", "[2001:db8::1]", "2130706433", "0177.0.0.1", "0x7f.0.0.1", "0x7f000001", "127.1", "127.0.0.1.", "1.2.3",
    "１２７.0.0.1", "①②⑦.⓪.⓪.①", "127。0。0。1",
]


@asynccontextmanager
async def client(limits: Limits | None = None, **how: Any) -> AsyncIterator[Fetcher]:
    async with Fetcher(limits or quick(), **how) as fetcher:
        yield fetcher


def quick(**how: Any) -> Limits:
    """Limits for loopback and for tests that end within a second."""
    return Limits(**{"allow_private": LOOPBACK, "backoff_seconds": 0.01, "timeout_seconds": 2, "deadline_seconds": 4,
                     "robots": False, **how})


async def get(url: str, limits: Limits | None = None, **how: Any) -> Outcome:
    async with client(limits, **how) as fetcher:
        return await fetcher.get(url)


def raw(*pieces: bytes, every: float = 0.0) -> Callable[[Request], Awaitable[None]]:
    """Bytes as they are, `every` so many seconds; then the connection is closed."""
    async def answer(request: Request) -> None:
        for piece in pieces:
            request.writer.write(piece)
            await request.writer.drain()
            await asyncio.sleep(every)
        request.writer.close()
    return answer


def after(times: int, first: bytes) -> Callable[[Request], Awaitable[None]]:
    """`first` so many times, then one byte and all is well."""
    async def answer(request: Request) -> None:
        request.writer.write(b"HTTP/1.1 " + (first if request.nth <= times else b"200 X\r\nContent-Length: 1\r\n\r\nx"))
    return answer


def redirect(to: str, status: int = 302) -> Answer:
    return Answer(b"moved", status, {"Location": to})


def names(**hosts: list[str]) -> Callable[[str], list[str]]:
    """A resolver that knows only these."""
    def ask(host: str) -> list[str]:
        if host not in hosts:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return hosts[host]
    return ask


SELF_SIGNED = """\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgQlJg5WLPPFsz0sRT
uDljpssI6czh8pVnj6Cg6XAzTp2hRANCAARguDX5De2E6LMwSjSj7ll0MaHMfVMO
PEQ3Fy44UmOcZ/2Tz7x3Ojrbraz6uuvBz60KRpT73ATKzpnTXnMpxFax
-----END PRIVATE KEY-----
-----BEGIN CERTIFICATE-----
MIIBgDCCASWgAwIBAgIUPZc/WKfWuJr/Xvaqwn+tJ80CnoUwCgYIKoZIzj0EAwIw
FDESMBAGA1UEAwwJbG9jYWxob3N0MCAXDTI2MTEyMTEwMjkzOFoYDzIxMjYxMDI4
MTAyOTM4WjAUMRIwEAYDVQQDDAlsb2NhbGhvc3QwWTATBgcqhkjOPQIBBggqhkjO
PQMBBwNCAARguDX5De2E6LMwSjSj7ll0MaHMfVMOPEQ3Fy44UmOcZ/2Tz7x3Ojrb
raz6uuvBz60KRpT73ATKzpnTXnMpxFaxo1MwUTAdBgNVHQ4EFgQUszFWimD4bdWB
semI/b4dTm2PcQMwHwYDVR0jBBgwFoAUszFWimD4bdWBsemI/b4dTm2PcQMwDwYD
VR0TAQH/BAUwAwEB/zAKBggqhkjOPQQDAgNJADBGAiEAhSGJwGkJvigtaZXwQGWF
qSjVSgxLS92nT5eSsSorgfACIQDAWymE66x6OIxB+mezhACXMChtlbsTH06CT50p
k9gjAw==
-----END CERTIFICATE-----
"""
"""A key and a certificate for localhost that nobody vouches for."""


# ---------------------------------------------------------------- where it may go

@pytest.mark.parametrize(("url", "status"), [
    ("file:///etc/hostname", "bad_scheme"), ("data:image/png;base64,AAAA", "bad_scheme"),
    ("ftp://example.com/a.jpg", "bad_scheme"), ("gopher://example.com/", "bad_scheme"),
    ("jar:http://example.com!/", "bad_scheme"), ("//example.com/a.jpg", "bad_scheme"), ("/a.jpg", "bad_scheme"),
    ("", "bad_scheme"), ("javascript:alert(1)", "bad_scheme"), ("http:///a.jpg", "bad_url"),
    ("http://user:password@example.com/", "bad_url"), ("http://good.example@127.0.0.1/", "bad_url"),
    ("http://@127.0.0.1/", "bad_url"), ("http://good.example\\@127.0.0.1/", "bad_url"),
    ("http://example.com:99999/", "bad_url"), ("http://example.com:0/", "bad_url"), ("http://[::1/", "bad_url"),
    ("http://exam\nple.com/", "bad_url"), ("http://example.com/" + "a" * 9000, "bad_url"),
    ("http://" + "a" * 70 + ".example/", "dns"), ("http://a..example/", "dns"),
])
@run
async def test_urls_that_are_not_asked_for(url: str, status: str) -> None:
    assert (await get(url, Limits(), ask=names())).status == status


@run
async def test_private_addresses_in_every_spelling() -> None:
    async with client(Limits(), ask=names(**{"localhost": ["127.0.0.1"], "localhost.": ["127.0.0.1"]})) as fetcher:
        found = {host: await fetcher.get(f"http://{host}:1/a.jpg") for host in PRIVATE}
    assert {host: (f.status, f.attempts) for host, f in found.items()} == dict.fromkeys(PRIVATE, ("private_address", 1))


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "2606:4700:4700::1111", "::ffff:8.8.8.8"])
def test_public_addresses_may_be_asked(address: str) -> None:
    check_address(address, ())


def test_allowed_networks_are_no_more_than_they_say() -> None:
    allowed = Limits(allow_private=["127.0.0.0/8", "fd00::/8"]).networks
    check_address("127.9.9.9", allowed)
    check_address("fd00::1", allowed)
    for address in ("10.0.0.1", "::1", "fe80::1"):
        with pytest.raises(Failure, match="is not a public address"):
            check_address(address, allowed)
    with pytest.raises(UserError, match=r"^allow_private: .*; write a network such as 127.0.0.0/8$"):
        Limits(allow_private=["loopback"])


@run
async def test_one_private_address_among_public_ones_is_enough() -> None:
    found = await get("http://mixed.example/", Limits(), ask=names(**{"mixed.example": ["8.8.8.8", "10.0.0.1"]}))
    assert (found.status, found.error) == ("private_address", "10.0.0.1 is not a public address")


@run
async def test_a_name_that_changes_its_mind_is_not_followed() -> None:
    answers = [["127.0.0.1"], ["127.0.0.2"]]
    asked: list[str] = []

    def ask(host: str) -> list[str]:
        asked.append(host)
        return answers[len(asked) - 1]

    async with site({"/": Answer(IMAGE, headers={"Connection": "close"})}) as good:
        url = f"http://rebind.example:{URL(good.base).port}/"
        async with client(quick(allow_private=["127.0.0.1/32"], dns_keep_seconds=0.2), ask=ask) as fetcher:
            assert [(await fetcher.get(url)).status for _ in range(2)] == ["ok", "ok"]
            assert asked == ["rebind.example"]          # pinned: the answer that was checked is the one that is used
            await asyncio.sleep(0.25)
            assert (await fetcher.get(url)).status == "private_address"
    assert len(asked) == 2
    assert good.asked == {"/": 2}


@run
async def test_resolver_remembers_asks_once_and_gives_up() -> None:
    asked: Counter[str] = Counter()

    def ask(host: str) -> list[str]:
        asked[host] += 1
        if host == "slow.example":
            time.sleep(0.3)
        if host == "again.example":
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        if host == "gone.example":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return ["8.8.8.8", "2606:4700:4700::1111"]

    resolver = Resolver((), ask, seconds=0.1)
    found: list[list[ResolveResult]] = await asyncio.gather(*[resolver.resolve("fine.example", 80) for _ in range(5)])
    assert {r["host"] for r in found[0]} == {"8.8.8.8", "2606:4700:4700::1111"}
    assert [r["family"] for r in found[0]] == [socket.AF_INET, socket.AF_INET6]
    for host, again in (("slow.example", True), ("again.example", True), ("gone.example", False)):
        for _ in range(2):
            with pytest.raises(Failure) as failed:
                await resolver.resolve(host, 80)
            assert (failed.value.status, failed.value.again) == ("dns", again)
    assert asked == {"fine.example": 1, "slow.example": 1, "again.example": 1, "gone.example": 1}
    await resolver.close()


def test_urls_are_sent_as_they_stand() -> None:
    assert str(parse_url("http://example.com/%7Ea%2fb?sig=x%2By#top")) == "http://example.com/%7Ea%2fb?sig=x%2By"
    assert str(parse_url(" http://bücher.example/ein bild.jpg ")) == "http://xn--bcher-kva.example/ein%20bild.jpg"


# ---------------------------------------------------------------- redirects

@run
async def test_redirects() -> None:
    async with site({"/ok": Answer(IMAGE)}, "127.0.0.2") as other, site({}) as here:
        hops = {f"/{n}": redirect(f"/{n + 1}", (301, 302, 303, 307, 308)[n % 5]) for n in range(7)}
        here.routes |= {**hops, "/7": Answer(IMAGE), "/away": redirect(other.url("/ok")), "/loop": redirect("/loop"),
                        "/file": redirect("file:///etc/passwd"), "/meta": redirect("http://169.254.169.254/latest/meta-data/"),
                        "/decimal": redirect("http://2130706433/"), "/user": redirect("http://a:b@127.0.0.2/"),
                        "/nowhere": Answer(b"", 302), "/broken": redirect("http://[::1/"), "/same": Answer(b"", 304),
                        "/noai": Answer(b"", 302, {"Location": "/7", "X-Robots-Tag": "noai"})}
        wanted = {"/2": "ok", "/1": "too_many_redirects", "/away": "ok", "/loop": "too_many_redirects", "/file": "bad_scheme",
                  "/meta": "private_address", "/decimal": "private_address", "/user": "bad_url", "/nowhere": "bad_redirect",
                  "/broken": "bad_url", "/same": "http_other", "/noai": "opt_out"}
        async with client() as fetcher:
            found = {path: await fetcher.get(here.url(path)) for path in wanted}
        assert {path: outcome.status for path, outcome in found.items()} == wanted
        assert found["/away"].final_url == other.url("/ok")
        assert here.asked["/loop"] == here.asked["/meta"] == 1
        only_here = quick(allow_private=["127.0.0.1/32"])
        assert (await get(here.url("/away"), only_here)).status == "private_address"
        assert here.asked["/away"] == 2
        assert other.asked == {"/ok": 1}


@run
async def test_no_cookies_no_credentials_no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    async with site({}) as here:
        here.routes["/a"] = Answer(b"", 302, {"Location": "/b", "Set-Cookie": "session=1; Path=/"})
        here.routes["/b"] = Answer(IMAGE, headers={"Set-Cookie": "session=2"})
        async with client(quick(contact="https://my.lab/crawl")) as fetcher:
            assert (await fetcher.get(here.url("/a"))).status == "ok"
            assert (await fetcher.get(here.url("/b"))).status == "ok"
        for request in here.requests:
            assert request.headers.keys() == {"host", "user-agent", "accept", "accept-encoding"}
            assert request.headers["user-agent"] == "curate/0.1 (+https://my.lab/crawl)"
            assert request.headers["accept-encoding"] == "identity"


# ---------------------------------------------------------------- deadlines and sizes

@run
async def test_drips_and_stalls_end_in_time() -> None:
    head = b"HTTP/1.1 200 X\r\nContent-Length: 5000000\r\n\r\n"
    routes = {"/body": raw(head, *[b"\xff"] * 600, every=0.05), "/stall": raw(head + IMAGE, b"", every=30),
              "/headers": raw(b"HTTP/1.1 200 X\r\n", *[b"X"] * 600, every=0.05), "/silent": raw(b"", every=30),
              "/crawl": raw(head, *[b"\xff" * 40] * 600, every=0.05)}
    async with site(routes) as here:
        limits = quick(timeout_seconds=0.5, deadline_seconds=0.8, grace_seconds=0.2, retries=1)
        async with client(limits) as fetcher:
            begin = time.perf_counter()
            found = await asyncio.gather(*[fetcher.get(here.url(path)) for path in routes if path != "/crawl"])
            assert time.perf_counter() - begin < 1.2
            assert [f.status for f in found] == ["slow", "slow", "timeout", "timeout"]
            assert [f.attempts for f in found] == [1, 1, 2, 2]
            assert all(f.seconds <= 0.9 for f in found)
            crawl = await fetcher.get(here.url("/crawl"))
            assert (crawl.status, crawl.error) == ("slow", "less than 1000 bytes a second")
            assert crawl.seconds < 0.4


@run
async def test_a_tls_stall_and_a_server_without_tls() -> None:
    async with listener() as port:
        assert (await get(f"https://127.0.0.1:{port}/", quick(timeout_seconds=0.3, retries=0))).status == "timeout"
    async with listener(b"HTTP/1.1 400 no TLS here\r\n\r\n") as port:
        found = await get(f"https://127.0.0.1:{port}/", quick())
        assert (found.status, found.attempts) == ("tls", 1)


@run
async def test_certificates_are_verified(tmp_path: Path) -> None:
    (tmp_path / "pem").write_text(SELF_SIGNED)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tmp_path / "pem")
    async with listener(tls=context) as port:
        found = await get(f"https://127.0.0.1:{port}/", quick())
    assert (found.status, found.attempts) == ("tls", 1)


@run
async def test_sizes_that_lie_and_bodies_without_end() -> None:
    megabyte = b"\0" * 2**20
    first = b"\xff\xd8\xff" + megabyte
    routes = {
        "/huge": raw(b"HTTP/1.1 200 X\r\nContent-Length: 10000000000\r\n\r\n", first),
        "/endless": raw(b"HTTP/1.1 200 X\r\n\r\n", first, *[megabyte] * 50),
        "/chunks": raw(b"HTTP/1.1 200 X\r\nTransfer-Encoding: chunked\r\n\r\n", *[b"100000\r\n" + megabyte + b"\r\n"] * 50),
        "/short": raw(b"HTTP/1.1 200 X\r\nContent-Length: 3000\r\n\r\n" + IMAGE),
        "/long": raw(b"HTTP/1.1 200 X\r\nContent-Length: 50\r\n\r\n" + IMAGE),
        "/exact": Answer(b"\xff" * 3_000_000), "/over": Answer(b"\xff" * 3_000_001), "/empty": Answer(b""),
        "/none": Answer(b"", 204),
        "/headers": raw(b"HTTP/1.1 200 X\r\n", *[b"X-%d: %s\r\n" % (n, b"a" * 4000) for n in range(500)]),
        "/line": raw(b"HTTP/1.1 200 X\r\nX: " + b"a" * 100_000), "/noise": raw(b"\x00\x01\x02 hello"), "/hangup": raw(b""),
        "/length": raw(b"HTTP/1.1 200 X\r\nContent-Length: many\r\n\r\n" + IMAGE),
        "/both": raw(b"HTTP/1.1 200 X\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!"),
    }
    async with site(routes) as here, client(quick(max_bytes=3_000_000)) as fetcher:
        found = {path: await fetcher.get(here.url(path)) for path in routes}
    assert {path: f.status for path, f in found.items()} == {
        "/huge": "too_large", "/endless": "too_large", "/chunks": "too_large", "/short": "connect", "/long": "bad_http",
        "/exact": "ok", "/over": "too_large", "/empty": "empty", "/none": "empty", "/headers": "bad_http", "/line": "bad_http",
        "/noise": "bad_http", "/hangup": "connect", "/length": "bad_http", "/both": "bad_http"}
    assert found["/short"].attempts == found["/hangup"].attempts == 3


@run
async def test_compressed_answers_are_refused() -> None:
    async with site({"/gzip": Answer(b"\x1f\x8b", headers={"Content-Encoding": "gzip"}),
                     "/identity": Answer(IMAGE, headers={"Content-Encoding": "identity"})}) as here:
        assert (await get(here.url("/gzip"))).status == "compressed"
        assert (await get(here.url("/identity"))).status == "ok"


@run
async def test_a_web_page_is_not_read_to_its_end() -> None:
    page = [b"<html>" + b" " * 1000] * 40
    routes = {"/page": raw(b"HTTP/1.1 200 X\r\nContent-Type: text/html\r\n\r\n", *page, every=0.05), "/tiny": Answer(b"GIF")}
    async with site(routes) as here, client(accept=lambda head: head.startswith(b"\xff\xd8\xff")) as fetcher:
        begin = time.perf_counter()
        found = await fetcher.get(here.url("/page"))
        assert (found.status, found.error) == ("wrong_type", "not a picture; Content-Type: text/html")
        assert time.perf_counter() - begin < 0.5
        assert (await fetcher.get(here.url("/tiny"))).status == "wrong_type"


# ---------------------------------------------------------------- retries

@run
async def test_what_is_asked_again_and_what_is_not() -> None:
    statuses = {404: ("http_404", 1), 410: ("http_410", 1), 401: ("http_4xx", 1), 403: ("http_4xx", 1), 451: ("http_4xx", 1),
                408: ("http_4xx", 3), 429: ("http_429", 3), 500: ("http_5xx", 3), 503: ("http_5xx", 3), 206: ("http_other", 1)}
    async with site({f"/{s}": Answer(b"no", s) for s in statuses}) as here, client() as fetcher:
        for status, (name, attempts) in statuses.items():
            found = await fetcher.get(here.url(f"/{status}"))
            assert (found.status, found.attempts, found.http_status) == (name, attempts, status)
            assert here.asked[f"/{status}"] == attempts
        here.routes["/flaky"] = after(2, b"500 X\r\nContent-Length: 0\r\n\r\n")
        found = await fetcher.get(here.url("/flaky"))
        assert (found.status, found.attempts, found.body) == ("ok", 3, b"x")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        refused = await get(f"http://127.0.0.1:{free.getsockname()[1]}/")
        assert (refused.status, refused.attempts) == ("connect", 3)


@run
async def test_retry_after_is_waited_for() -> None:
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True)
    waits = {"/seconds": "1", "/date": soon, "/past": "Wed, 21 Oct 2015 07:28:00 GMT", "/odd": "soon", "/late": "3600"}
    busy = {path: after(1, f"429 X\r\nContent-Length: 0\r\nRetry-After: {wait}\r\n\r\n".encode()) for path, wait in waits.items()}
    async with site(busy) as here, client(quick(per_host=1)) as fetcher:
        quickly = [await fetcher.get(here.url(path)) for path in ("/past", "/odd", "/late")]
        assert [(f.status, f.seconds < 0.5) for f in quickly] == [("ok", True), ("ok", True), ("http_429", True)]
        assert here.asked["/late"] == 1
        begin = time.perf_counter()
        first = asyncio.create_task(fetcher.get(here.url("/seconds")))
        await asyncio.sleep(0.2)
        other = await fetcher.get(here.url("/date"))         # the place that got Retry-After stays empty so long
        assert (await first).status == other.status == "ok"
        assert time.perf_counter() - begin >= 1
        assert here.requests[-1].path == "/date"
        assert (await first).seconds >= 1


def test_backoff_is_the_same_in_every_run() -> None:
    fetcher = Fetcher(Limits(backoff_seconds=1))
    waits = [[fetcher._backoff(url, n) for n in (1, 2, 3)] for url in ("http://a/", "http://b/")]
    assert waits == [[fetcher._backoff(url, n) for n in (1, 2, 3)] for url in ("http://a/", "http://b/")]
    assert waits[0] != waits[1]
    assert all(0.5 * 2**n <= wait <= 1.5 * 2**n for row in waits for n, wait in enumerate(row))


# ---------------------------------------------------------------- politeness

@run
async def test_a_host_never_sees_more_than_its_share() -> None:
    async with site({"/": Answer(IMAGE, delay=0.02)}) as one, site({"/": Answer(IMAGE, delay=0.02)}, "127.0.0.2") as two:
        async with client(quick(per_host=2, concurrency=3)) as fetcher:
            await asyncio.gather(*[fetcher.get(s.url("/")) for s in (one, two) for _ in range(12)])
        assert (one.most, two.most) == (2, 2)


@run
async def test_a_slow_host_does_not_starve_the_others() -> None:
    async with (site({"/": Answer(IMAGE, delay=0.3)}) as slow, site({"/": Answer(IMAGE)}, "127.0.0.2") as fine,
                client(quick(per_host=2, concurrency=4)) as fetcher):
        waiting = [asyncio.create_task(fetcher.get(slow.url("/"))) for _ in range(20)]
        await asyncio.sleep(0.01)
        begin = time.perf_counter()
        found = await asyncio.gather(*[fetcher.get(fine.url("/")) for _ in range(100)])
        assert {f.status for f in found} == {"ok"}
        assert time.perf_counter() - begin < 1
        assert not all(task.done() for task in waiting)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


@run
async def test_backing_off_holds_no_place() -> None:
    limits = quick(per_host=1, concurrency=1, backoff_seconds=0.5)
    async with site({"/busy": Answer(b"", 500), "/": Answer(IMAGE)}) as here, client(limits) as fetcher:
        busy = asyncio.create_task(fetcher.get(here.url("/busy")))
        await asyncio.sleep(0.1)
        found = await fetcher.get(here.url("/"))
        assert (found.status, busy.done()) == ("ok", False)
        busy.cancel()
        await asyncio.gather(busy, return_exceptions=True)


@run
async def test_a_body_waits_for_room() -> None:
    room = asyncio.Semaphore(1)
    async with site({"/": Answer(IMAGE)}) as here, client(room=room) as fetcher:
        first = await fetcher.get(here.url("/"))
        second = asyncio.create_task(fetcher.get(here.url("/")))
        await asyncio.sleep(0.05)
        assert (first.status, second.done()) == ("ok", False)
        room.release()
        assert (await second).status == "ok"


def test_the_user_agent_says_who_asks() -> None:
    assert Limits().agent == "curate/0.1 (no contact given)"
    assert Limits(contact="me@lab.example").agent == "curate/0.1 (+me@lab.example)"
    assert Limits(user_agent="LabBot/2").agent == "LabBot/2"
    agents = ("", "LabBot/2 (x)", "Mozilla/5.0 (compatible; LabBot/2; x)")
    assert [Limits(user_agent=agent).token for agent in agents] == ["curate", "labbot", "labbot"]
    with pytest.raises(UserError, match="^user_agent: 'a\\\\r\\\\nCookie: b' is not plain text$"):
        Limits(user_agent="a\r\nCookie: b")


# ---------------------------------------------------------------- opt-outs

@pytest.mark.parametrize(("values", "directive"), [
    (["noai"], "noai"), (["NoAI"], "noai"), (["noimageai"], "noimageai"), (["noindex"], "noindex"),
    (["noimageindex"], "noimageindex"), (["noindex, max-image-preview:large"], "noindex"),
    (["max-image-preview:large, noai"], "noai"), (["noai, unavailable_after: 25 Jun 2030 15:00:00 PST"], "noai"),
    (["unavailable_after: 25 Jun 2030 15:00:00 PST, noai"], "noai"),
    (["unavailable_after: Sunday, 25-Jun-30 15:00:00 UTC, noai"], "noai"),
    (["unavailable_after: 2030-06-25T15:00:00Z, noai"], "noai"), (["noai, otherbot: noindex"], "noai"), (["none"], "none"),
    (["noml"], "noml"), (["MYBOT: noai"], "noai"), (["mybot: noai"], "noai"), (["mybot:noindex,nofollow"], "noindex"),
    (["mybot/1.0: noai"], "noai"), (["*: noai"], "noai"), (["noai;"], "noai"), (["nofollow; noai"], "noai"),
    (["noai noimageai"], "noai"), (["nofollow", "noai"], "noai"), (["otherbot: nofollow", "noai"], "noai"),
    (["otherbot: noindex, mybot: noai"], "noai"), (["mybot: nofollow, noai"], "noai"),
    (["max-audio-preview: 3, noai"], "noai"), (["something: else, noai"], "noai"), (["  noai  ,"], "noai"),
    (["mybot: max-snippet: 5, noai"], "noai"), (["otherbot: nofollow, noai"], None), (["otherbot: noai"], None),
    (["otherbot: none, noml"], None), (["nofollow"], None), ([""], None), (["all"], None), (["max-image-preview:large"], None),
    (["unavailable_after: 25 Jun 2030 15:00:00 PST"], None), ([], None), (["otherbot: max-snippet: 5, noai"], None),
    (["360spider: noai"], None), (["noarchive, nosnippet"], None), (["noaiplease"], None),
])
def test_opt_outs_are_read_right(values: list[str], directive: str | None) -> None:
    assert opted_out(values, "MyBot") == directive
    assert opted_out([v.upper() for v in values], "mybot", DENY) == directive


def test_strict_refuses_what_it_does_not_know() -> None:
    assert opted_out(["noaiplease"], "mybot", strict=True) == "unknown directive noaiplease"
    assert opted_out(["otherbot: nofollow, noaiplease"], "mybot", strict=True) is None
    assert opted_out(["something: else"], "mybot", strict=True) == "unknown directive something"
    for known in ("all, nofollow", "max-image-preview:large", "unavailable_after: Sunday, 25-Jun-30 15:00:00 UTC", ""):
        assert opted_out([known], "mybot", strict=True) is None


@pytest.mark.parametrize(("values", "reserved", "strictly"), [
    (["1"], "1", "1"), ([" 1 "], "1", "1"), (["0", "1"], "1", "1"), (["0"], None, None), ([], None, None), (["yes"], None, "yes"),
    (["01"], None, "01"),
])
def test_reservations_are_read_right(values: list[str], reserved: str | None, strictly: str | None) -> None:
    assert (reservation(values), reservation(values, strict=True)) == (reserved, strictly)


@run
async def test_a_reservation_is_an_opt_out() -> None:
    routes = {"/a": Answer(IMAGE, headers={"tdm-reservation": "1"}), "/b": Answer(IMAGE, headers={"TDM-Reservation": "0"})}
    async with site(routes) as here:
        one, other = await get(here.url("/a")), await get(here.url("/b"))
    assert (one.status, one.error, one.body) == ("opt_out", "tdm-reservation: 1", None)
    assert one.said == OptOut("tdm-reservation", "1", "tdm-reservation: 1")
    assert other.status == "ok"


@run
async def test_an_opt_out_is_decided_before_the_body() -> None:
    sent: list[bytes] = []

    async def forbidden(request: Request) -> None:
        request.writer.write(b"HTTP/1.1 200 X\r\nContent-Length: 100000000\r\n"
                             b"X-Robots-Tag: nofollow\r\nx-robots-tag: Curate: NoAI\r\n\r\n")
        try:
            for _ in range(100):
                request.writer.write(b"\0" * 2**20)
                sent.append(b"")
                await request.writer.drain()
        except ConnectionError:
            pass

    async with site({"/": forbidden}) as here:
        found = await get(here.url("/"))
        assert (found.status, found.error, found.attempts) == ("opt_out", "X-Robots-Tag: noai", 1)
        assert found.said == OptOut("x-robots-tag", "Curate: NoAI", "X-Robots-Tag: noai")
        await asyncio.sleep(0.05)
        assert len(sent) < 20
        here.routes["/small"] = Answer(IMAGE, headers={"X-Robots-Tag": "noai"})
        assert (await get(here.url("/small"), quick(deny=frozenset()))).status == "ok"
        here.routes["/odd"] = Answer(IMAGE, headers={"X-Robots-Tag": "noaiplease"})
        assert (await get(here.url("/odd"), quick(strict=True))).status == "opt_out"


@run
async def test_the_evidence_is_one_printable_line() -> None:
    long = Answer(IMAGE, headers={"X-Robots-Tag": "noai, \x1b[31m\xff\t" + "x" * 500})
    async with site({"/": long}) as here:
        found = await get(here.url("/"))
    assert found.said is not None
    assert found.said.value.startswith("noai,  [31m")
    assert found.said.value.isprintable() and len(found.said.value) == 200


@run
async def test_an_opt_out_on_a_redirect_counts() -> None:
    async with site({"/": Answer(b"", 302, {"Location": "/there", "X-Robots-Tag": "noai"}), "/there": Answer(IMAGE)}) as here:
        found = await get(here.url("/"))
        assert (found.status, found.said) == ("opt_out", OptOut("x-robots-tag", "noai", "X-Robots-Tag: noai"))
        assert here.asked == {"/": 1}
