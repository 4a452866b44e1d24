"""Servers and urls that mean harm, beside those of test_fetch: across hosts, ports and schemes, bombs, names that only look."""

import asyncio
import gzip
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp.connector
import pytest

from curate.decoding.images import extension
from curate.fetching.fetch import Limits
from tests.helpers_http import Answer, listener, run, site
from tests.test_fetch import IMAGE, SELF_SIGNED, client, get, names, quick, redirect

JPEG = b"\xff\xd8\xff"


@asynccontextmanager
async def trusted(folder: Path, monkeypatch: pytest.MonkeyPatch, says: bytes) -> AsyncIterator[str]:
    """The base of an https server that says this to everybody, with a certificate that we trust here."""
    (folder / "pem").write_text(SELF_SIGNED)
    ours = ssl.create_default_context(cafile=folder / "pem")
    monkeypatch.setattr(aiohttp.connector, "_SSL_CONTEXT_VERIFIED", ours)
    theirs = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    theirs.load_cert_chain(folder / "pem")
    async with listener(says, theirs) as port:
        yield f"https://localhost:{port}/"


@pytest.mark.parametrize(("host", "status"), [
    ("lоcalhost", "dns"),                # a Cyrillic о: another name, which nobody has
    ("ⓛocalhost", "private_address"), ("LOCALHOST", "private_address"), ("localhost%2eexample", "dns"),
    ("127.0.0.1%00.example", "dns"), ("127.0.0.1.", "private_address"), ("[::ffff:7f00:1]", "private_address"),
    ("[::ffff:0:127.0.0.1]", "private_address"), ("[fe80::1%25eth0]", "private_address"), ("0", "private_address"),
    ("0x7f.1", "private_address"), ("017700000001", "private_address"), ("127.0.1", "private_address"),
])
@run
async def test_names_that_only_look_like_others(host: str, status: str) -> None:
    known = names(localhost=["127.0.0.1"], LOCALHOST=["127.0.0.1"])
    found = await get(f"http://{host}:1/a.jpg", Limits(robots=False), ask=known)
    assert (found.status, found.attempts) == (status, 1)


@run
async def test_an_address_for_every_hop(tmp_path: Path) -> None:
    """Another port of a host that may be asked is another server: fine in itself, and each address is judged again."""
    async with site({"/": Answer(IMAGE)}) as target, site({"/": redirect(target.url("/"))}) as here:
        found = await get(here.url("/"))
        assert (found.status, found.final_url) == ("ok", target.url("/"))
        here.routes["/name"] = redirect("http://inside.example:1/")
        inside = names(**{"inside.example": ["10.0.0.7"]})
        found = await get(here.url("/name"), ask=inside)
        assert (found.status, found.error) == ("private_address", "10.0.0.7 is not a public address")


@run
async def test_from_https_to_http_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with site({"/": Answer(IMAGE)}) as plain:
        says = f"HTTP/1.1 302 X\r\nLocation: {plain.url('/')}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        async with trusted(tmp_path, monkeypatch, says.encode()) as base:
            found = await get(base, ask=names(localhost=["127.0.0.1"]))
        assert (found.status, found.error) == ("bad_redirect", "from https to http")
        assert not plain.asked
        picture = b"HTTP/1.1 200 X\r\nContent-Length: %d\r\n\r\n" % len(IMAGE) + IMAGE
        async with trusted(tmp_path, monkeypatch, picture) as base:
            assert (await get(base, ask=names(localhost=["127.0.0.1"]))).body == IMAGE, "the same server, for a picture"


@run
async def test_nothing_is_carried_from_host_to_host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Not cookies, not the netrc of whoever runs us, not where we came from; and no proxy of the environment hears of it."""
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password secret\nmachine 127.0.0.2 login me password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    async with site({}) as proxy, site({"/": Answer(IMAGE)}, "127.0.0.2") as other, site({}) as here:
        for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy.base)
        here.routes["/"] = Answer(b"", 302, {"Location": other.url("/"), "Set-Cookie": "a=1; Domain=127.0.0.2; Path=/"})
        async with client() as fetcher:
            assert [(await fetcher.get(here.url("/"))).status for _ in range(2)] == ["ok", "ok"]
        asked = [*here.requests, *other.requests]
        assert len(asked) == 4
        assert all(r.headers.keys() == {"host", "user-agent", "accept", "accept-encoding"} for r in asked)
        assert not proxy.requests


@run
async def test_a_bomb_is_never_unpacked() -> None:
    """A megabyte that would become a gigabyte: refused by its header, and without the header no picture."""
    bomb = gzip.compress(bytes(2**20)) * 1000
    routes = {"/said": Answer(bomb, headers={"Content-Encoding": "gzip"}), "/unsaid": Answer(bomb),
              "/deflate": Answer(JPEG + bomb, headers={"Content-Encoding": "DEFLATE"})}
    async with site(routes) as here, client(accept=lambda head: extension(head) != "bin") as fetcher:
        assert {path: (await fetcher.get(here.url(path))).status for path in routes} == {
            "/said": "compressed", "/unsaid": "wrong_type", "/deflate": "compressed"}


@pytest.mark.parametrize("body", [
    b"<svg xmlns='http://www.w3.org/2000/svg'>", b"<?xml version='1.0'?><svg/>", b"%PDF-1.7\n" + b" " * 20,
    b"PK\x03\x04" + b" " * 20, b"<!doctype html><script>", b"GIF\x00" + b" " * 20, b"\x89PNG\r\r" + b" " * 20,
    b"BM" + b" " * 20, b"II*\x00" + b" " * 20, b"RIFF1234AVI " + b" " * 20, b"#!/bin/sh\nrm -rf /\n", b"\x00" * 40,
])
@run
async def test_what_is_called_a_picture_and_is_none(body: bytes) -> None:
    async with site({"/a.jpg": Answer(body, headers={"Content-Type": "image/jpeg"})}) as here:
        assert (await get(here.url("/a.jpg"), accept=lambda head: extension(head) != "bin")).status == "wrong_type"


@run
async def test_a_body_that_stalls_is_given_up_by_its_speed() -> None:
    """No need to wait for the deadline: from `grace_seconds` on, it must have brought enough bytes."""
    async with listener(b"HTTP/1.1 200 X\r\nContent-Length: 5000\r\n\r\n" + IMAGE) as port:
        begin = asyncio.get_running_loop().time()
        found = await get(f"http://127.0.0.1:{port}/", quick(timeout_seconds=5, deadline_seconds=9, grace_seconds=0.2))
        assert (found.status, found.error, found.attempts) == ("slow", "less than 1000 bytes a second", 1)
        assert asyncio.get_running_loop().time() - begin < 2
