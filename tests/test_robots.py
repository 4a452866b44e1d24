"""robots.txt: read as RFC 9309 says, asked for once a site, and what a url of a site ends with whose robots.txt makes trouble."""

import asyncio
import gzip
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from yarl import URL

from curate.fetching.addresses import PASSING
from curate.fetching.fetch import Fetcher, Limits, Outcome
from curate.fetching.gate import KEEP_SECONDS, TROUBLE_SECONDS, SiteFile
from curate.fetching.opt_out import OptOut
from curate.fetching.robots import LIMIT_BYTES, MOST_STEPS, TOO_MANY, Rules, canonical, parse
from tests.helpers_http import LOOPBACK, Answer, Request, run, site

IMAGE = Answer(b"\xff\xd8\xff" + bytes(100))


def line(text: str, path: str, token: str = "curate") -> int | None:
    """The number of the line that forbids a path."""
    rule = parse(text.encode(), token).forbids(path)
    return rule.number if rule else None


# ---------------------------------------------------------------- the file

SIMPLE = """\
User-Agent: *
Disallow: *.gif$
Disallow: /example/
Allow: /publications/

User-Agent: foobot
Disallow:/
Allow:/example/page.html
Allow:/example/allowed.gif

User-Agent: barbot
User-Agent: bazbot
Disallow: /example/page.html

User-Agent: quxbot
"""
"""RFC 9309, section 5.1."""


@pytest.mark.parametrize(("token", "path", "number"), [
    ("curate", "/a.gif", 2), ("curate", "/a.gif?x", None), ("curate", "/example/a", 3), ("curate", "/publications/a", None),
    ("curate", "/", None), ("foobot", "/anything", 7), ("foobot", "/example/page.html", None),
    ("FooBot", "/example/allowed.gif", None),
    ("foobot", "/example/page.htm", 7), ("barbot", "/example/page.html", 13), ("bazbot", "/example/page.html", 13),
    ("barbot", "/a.gif", None), ("quxbot", "/example/a", None),
])
def test_the_simple_example_of_the_rfc(token: str, path: str, number: int | None) -> None:
    assert line(SIMPLE, path, token) == number


def test_the_longest_match_decides() -> None:
    text = "User-Agent: foobot\nAllow: /example/page/\nDisallow: /example/page/disallowed.gif\n"       # section 5.2
    assert line(text, "/example/page/disallowed.gif", "foobot") == 3
    assert line(text, "/example/page/", "foobot") is None
    assert line("User-agent: *\nDisallow: /a\nAllow: /a\n", "/a") is None, "of two as long the Allow wins"
    assert line("User-agent: *\nAllow: /a*\nDisallow: /ab\n", "/abc") is None, "a star counts as an octet"
    assert line("User-agent: *\nAllow: /a*\nDisallow: /abc\n", "/abcd") == 3
    assert line("User-agent: *\nDisallow: /*.jpg$\nAllow: /pub\n", "/public/a.jpg") == 2


@pytest.mark.parametrize(("pattern", "path", "matches"), [
    ("/", "/", True), ("/", "/a?b", True), ("/fish", "/fish.html", True), ("/fish", "/fishheads/yummy", True),
    ("/fish", "/Fish.asp", False), ("/fish", "/catfish", False), ("/fish*", "/fish?id=anything", True),
    ("/fish/", "/fish", False),
    ("/fish/", "/fish/salmon.htm", True), ("/*.php", "/index.php?x=1", True), ("/*.php", "/windows.PHP", False),
    ("/*.php$", "/filename.php", True), ("/*.php$", "/filename.php?p", False), ("/*.php$", "/filename.php5", False),
    ("/fish*.php", "/fishheads/catfish.php?p", True), ("/fish*.php", "/Fish.PHP", False), ("fish", "/fish", False),
    ("*/x", "/a/b/x", True), ("*", "/a", True), ("/a$", "/a", True), ("/a$", "/ab", False), ("/a$b", "/a$bc", True),
    ("/$", "/", True),
    ("/$", "/a", False), ("/a*b*c$", "/abcbc", True), ("/a*a$", "/a", False), ("/**a", "/xa", True), ("/a*", "/a", True),
    ("/a%2Ab", "/a*b", True), ("/a*b", "/a%2ab", True), ("/a%24", "/a$", True), ("/*$", "/all", True), ("/a*$", "/abc", True),
])
def test_patterns(pattern: str, path: str, matches: bool) -> None:
    assert (line(f"User-agent: *\nDisallow: {pattern}\n", path) == 2) is matches


@pytest.mark.parametrize(("path", "compared"), [
    ("/foo/bar?baz=quz", "/foo/bar?baz=quz"), ("/foo/bar?baz=https://foo.bar", "/foo/bar?baz=https%3A%2F%2Ffoo.bar"),
    ("/foo/bar?baz=https%3A%2F%2Ffoo.bar", "/foo/bar?baz=https%3A%2F%2Ffoo.bar"), ("/foo/bar/ツ", "/foo/bar/%E3%83%84"),
    ("/foo/bar/%E3%83%84", "/foo/bar/%E3%83%84"), ("/foo/bar/%e3%83%84", "/foo/bar/%E3%83%84"),
    ("/foo/bar/%62%61%7A", "/foo/bar/baz"),
    ("/a%2fb", "/a%2Fb"), ("/a b", "/a%20b"), ("/50%", "/50%"), ("/a%2ab*", "/a%2Ab%2A"),
])
def test_what_is_compared_is_the_table_of_the_rfc(path: str, compared: str) -> None:
    assert canonical(path) == compared                                                                  # section 2.2.2
    if "*" not in path:
        assert line(f"User-agent: *\nDisallow: {path}$", compared) == 2


@pytest.mark.parametrize(("text", "number"), [
    ("user-AGENT :  CuRaTe \n DISALLOW\t:\t/a # why\n", 2), ("User-agent: curate/2.0 (x)\nDisallow: /a", 2),
    ("\ufeffUser-agent: *\nDisallow: /a", 2), ("User-agent: *\r\nDisallow: /a\r\n", 2), ("User-agent: *\rDisallow: /a\r", 2),
    ("User-agent: *\n\n\n\nDisallow: /a", 5), ("User-agent: *\nSitemap: /s\nCrawl-delay: 3\nDisallow: /a", 4),
    ("User-agent: *\nDisallow: /b\nSitemap: /s\nDisallow: /a", 4), ("User-agent: * # all\nDisallow: /a", 2),
    ("User-agent: x\nUser-agent: curate\nUser-agent: y\nDisallow: /a", 4), ("Disallow: /a", None),
    ("User-agent: *\nDisallow:", None),
    ("User-agent: curat\nDisallow: /a", None), ("User-agent: curatebot\nDisallow: /a", None),
    ("User-agent: *\nNoindex: /a", None),
    ("User-agent: *\nDisallow: /a\nUser-agent: curate\nDisallow: /b", None),
    ("User-agent: *\nDisallow: /a\nUser-agent: curate", None),
    ("User-agent: curate\nDisallow: /b\nUser-agent: *\nDisallow: /c\nUser-agent: Curate\nDisallow: /a", 6),
    ("User-agent: curate\nUser-agent: *\nDisallow: /a", 3), ("<html>Disallow: /a</html>", None), ("", None),
    ("\0\n:\n::\n#", None),
    ("User-agent: curate*\nDisallow: /a", 2), ("User-agent:\nDisallow: /a", None),
])
def test_groups_and_lines(text: str, number: int | None) -> None:
    assert line(text, "/a") == number


def test_a_name_with_digits_is_one() -> None:
    assert line("User-agent: img2dataset\nDisallow: /", "/a", "img2dataset") == 2
    assert line("User-agent: img2dataset/1.4\nDisallow: /", "/a", "img2dataset") == 2


def test_the_file_itself_is_always_allowed() -> None:
    assert line("User-agent: *\nDisallow: /", "/robots.txt") is None


def test_500_kib_are_read_and_a_line_that_is_cut_says_nothing() -> None:
    head = b"User-agent: *\nDisallow: /a\n"
    rest = b"# " + b"x" * 70 + b"\n"
    filler = head + rest * ((LIMIT_BYTES - len(head)) // len(rest))
    fits = filler + b"#" * (LIMIT_BYTES - len(filler) - 13) + b"\nAllow: /a/b\n"
    assert len(fits) == LIMIT_BYTES
    assert parse(fits, "curate").forbids("/a/b") is None
    cut = parse(fits[:-5] + b"a/bcd\n" + b"User-agent: curate\nDisallow: /\n", "curate")
    assert cut.forbids("/a/b") is not None, "Allow: /a is half of a line"
    assert cut.forbids("/c") is None, "what stands behind the limit is not read"


def test_the_evidence_is_the_line() -> None:
    body = b"User-agent: *\n  Disallow: /a\x00\xff\x1b[1m" + b"b" * 300 + b"# why\n"
    rule = parse(body, "x").forbids("/a%00%FF%1B[1m" + "b" * 300)
    assert rule is not None
    said = OptOut("robots.txt", rule.text, "")
    assert said.value.startswith("Disallow: /a   [1mbbb")
    assert said.value.isprintable() and len(said.value) <= 200


def test_no_file_costs_more_than_a_moment() -> None:
    hostile = b"User-agent: *\n" + b"".join(b"Disallow: /*ab%d\n" % i for i in range(25_000))
    rules, path = parse(hostile, "curate"), "/" + "a" * 8000
    assert len(path) * 25_000 > MOST_STEPS
    begin = time.process_time()
    assert rules.forbids(path) is TOO_MANY
    assert rules.forbids("/a") is None
    assert time.process_time() - begin < 1


def test_a_match_costs_microseconds() -> None:
    """Of a file with 500 rules; without the dictionary of prefixes it would be 500 comparisons."""
    rules = parse(b"User-agent: *\n" + b"".join(b"Disallow: /path%d/\n" % i for i in range(500)), "curate")
    begin = time.process_time()
    for _ in range(1000):
        rules.forbids("/images/2026/11/a-picture.jpg")
    assert time.process_time() - begin < 0.1


# ---------------------------------------------------------------- asked for by the fetcher

def limits(**how: Any) -> Limits:
    return Limits(**{"allow_private": LOOPBACK, "backoff_seconds": 0.01, "timeout_seconds": 1, "deadline_seconds": 2,
                     "contact": "x@y.example", **how})


async def get(*urls: str, **how: Any) -> list[Outcome]:
    async with Fetcher(limits(**how)) as fetcher:
        return await asyncio.gather(*(fetcher.get(url) for url in urls))


def raw(answer: bytes) -> Callable[[Request], Awaitable[None]]:
    async def write(request: Request) -> None:
        request.writer.write(answer)
        await request.writer.drain()
        request.writer.close()
    return write


@run
async def test_a_site_is_asked_once_for_many_urls() -> None:
    paths = [*(f"/{i}.jpg" for i in range(40)), "/private/x"]
    robots = Answer(b"User-agent: Curate\nDisallow: /7\nDisallow: /private/\n", delay=0.05)
    async with site({"/robots.txt": robots, **dict.fromkeys(paths, IMAGE)}) as here:
        found = await get(*(here.url(p) for p in paths), per_host=8)
        assert here.asked["/robots.txt"] == 1
        assert {p for p, f in zip(paths, found, strict=True) if f.status == "opt_out"} == {"/7.jpg", "/private/x"}
        assert {f.status for f in found} == {"ok", "opt_out"}
        assert here.asked["/private/x"] == here.asked["/7.jpg"] == 0
        no = found[7]
        assert (no.error, no.said) == ("robots.txt line 2: Disallow: /7", OptOut("robots.txt", "Disallow: /7", no.error))
        assert here.requests[0].headers["user-agent"] == "curate/0.1 (+x@y.example)"


@run
async def test_one_place_at_the_host_is_enough_and_is_kept_to() -> None:
    routes = {"/robots.txt": Answer(b"", delay=0.02), "/a": IMAGE, "/b": IMAGE}
    async with site(routes) as here:
        assert [f.status for f in await get(here.url("/a"), here.url("/b"), per_host=1, concurrency=1)] == ["ok", "ok"]
        assert here.most == 1


@run
async def test_ports_and_schemes_are_sites_of_their_own() -> None:
    forbidding = {"/robots.txt": Answer(b"User-agent: *\nDisallow: /"), "/a": IMAGE}
    async with site({"/a": IMAGE}) as one, site(forbidding) as other:
        assert [f.status for f in await get(one.url("/a"), other.url("/a"))] == ["ok", "opt_out"]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 451, 200])
@run
async def test_where_there_is_no_file_or_an_empty_one_all_is_allowed(status: int) -> None:
    body = b"" if status == 200 else b"User-agent: *\nDisallow: /"
    async with site({"/robots.txt": Answer(body, status), "/a": IMAGE}) as here:
        assert [f.status for f in await get(here.url("/a"), strict=True)] == ["ok"]


@pytest.mark.parametrize(("answer", "status", "error"), [
    (Answer(b"", 500), "http_5xx", "robots.txt: 500 X"), (Answer(b"", 503), "http_5xx", "robots.txt: 503 X"),
    (Answer(b"", 429), "http_429", "robots.txt: 429 X"), (Answer(b"", delay=5), "timeout", "robots.txt: no answer in time"),
    (raw(b"HTTP/1.1 200 X\r\nContent-Length: 99\r\n\r\nUser-"), "connect", None), (raw(b"oh"), "bad_http", None),
])
@pytest.mark.parametrize("strict", [False, True])
@run
async def test_a_site_that_cannot_say_is_not_asked_and_healing_asks_it_again(answer: Any, status: str, error: str | None,
                                                                              strict: bool) -> None:
    async with site({"/robots.txt": answer, "/a": IMAGE, "/b": IMAGE}) as here:
        found = await get(here.url("/a"), here.url("/b"), retries=1, timeout_seconds=0.2, strict=strict)
        assert [f.status for f in found] == [status, status]
        assert status in PASSING
        assert found[0].error == (error or found[0].error)
        assert found[0].error.startswith("robots.txt: ") and found[0].said is None
        assert here.asked["/robots.txt"] <= 2 and here.asked["/a"] == here.asked["/b"] == 0


@run
async def test_a_failure_that_passes_is_asked_again_at_once() -> None:
    async def second_time(request: Request) -> None:
        request.writer.write(b"HTTP/1.1 %s\r\nContent-Length: 0\r\n\r\n" % (b"500 X" if request.nth == 1 else b"200 X"))
    async with site({"/robots.txt": second_time, "/a": IMAGE}) as here:
        assert [f.status for f in await get(here.url("/a"))] == ["ok"]
        assert here.asked == {"/robots.txt": 2, "/a": 1}


@run
async def test_a_host_that_is_not_there_says_so_itself() -> None:
    async with Fetcher(limits(), ask=lambda host: []) as fetcher:
        found = await fetcher.get("http://nowhere.example/a.jpg")
    assert (found.status, found.error) == ("dns", "nowhere.example has no address")
    [found] = await get("http://127.0.0.1:9/a.jpg", retries=0)
    assert found.status == "connect"


@run
async def test_five_redirects_are_followed_and_a_loop_is_no_file() -> None:
    chain = {f"/r{i}": Answer(b"", 302, {"Location": f"/r{i + 1}"}) for i in range(6)}
    rules = Answer(b"User-agent: *\nDisallow: /")
    async with site({**chain, "/a": IMAGE}) as here:
        here.routes |= {"/robots.txt": Answer(b"", 301, {"Location": "/r1"}), "/r5": rules}
        assert [f.status for f in await get(here.url("/a"))] == ["opt_out"]
        here.routes |= {"/r5": chain["/r5"], "/r6": rules}
        assert [f.status for f in await get(here.url("/a"))] == ["ok"]
        here.routes["/r2"] = Answer(b"", 302, {"Location": "/r1"})
        assert [f.status for f in await get(here.url("/a"))] == ["ok"]
        [found] = await get(here.url("/a"), strict=True)
        assert (found.status, found.error) == ("opt_out", "robots.txt: a loop")
        here.routes["/robots.txt"] = Answer(b"", 302, {"Location": "http://169.254.169.254/"})
        [found] = await get(here.url("/a"))
        assert (found.status, found.error) == ("private_address", "169.254.169.254 is not a public address")


@run
async def test_each_hop_is_asked_about_at_its_own_site() -> None:
    async with site({"/robots.txt": Answer(b"User-agent: *\nDisallow: /no"), "/no": IMAGE, "/yes": IMAGE}) as other:
        async with site({"/a": Answer(b"", 302, {"Location": other.url("/no")}), "/robots.txt": Answer(b""),
                         "/b": Answer(b"", 302, {"Location": other.url("/yes")})}) as here:
            found = await get(here.url("/a"), here.url("/b"))
        assert [f.status for f in found] == ["opt_out", "ok"]
        assert found[0].final_url == other.url("/no")
        assert other.asked == {"/robots.txt": 1, "/yes": 1}


@run
async def test_a_long_file_is_cut_and_an_endless_one_ends() -> None:
    body = b"User-agent: *\nDisallow: /a\n" + b"# filler\n" * 100_000

    async def endless(request: Request) -> None:
        request.writer.write(b"HTTP/1.1 200 X\r\n\r\nUser-agent: *\nDisallow: /a\n")
        try:
            for _ in range(1000):
                request.writer.write(b"#" * 2**16 + b"\n")
                await request.writer.drain()
        except ConnectionError:
            pass

    async with site({"/robots.txt": Answer(body), "/a": IMAGE, "/b": IMAGE}) as here:
        assert [f.status for f in await get(here.url("/a"), here.url("/b"))] == ["opt_out", "ok"]
        here.routes["/robots.txt"] = endless
        assert [f.status for f in await get(here.url("/a"), here.url("/b"))] == ["opt_out", "ok"]


@run
async def test_a_packed_file_is_unpacked_and_one_that_cannot_be_forbids() -> None:
    body = b"User-agent: *\nDisallow: /a\n"
    for packed in (gzip.compress(body), gzip.compress(body + b"#" * 20_000_000, 1)):
        robots = Answer(packed, headers={"Content-Encoding": "gzip"})
        async with site({"/robots.txt": robots, "/a": IMAGE, "/b": IMAGE}) as here:
            assert [f.status for f in await get(here.url("/a"), here.url("/b"))] == ["opt_out", "ok"]
    async with site({"/robots.txt": Answer(body, headers={"Content-Encoding": "br"}), "/a": IMAGE}) as here:
        found = [*await get(here.url("/a")), *await get(here.url("/a"), strict=True)]
    assert [(f.status, f.error) for f in found] == [
        ("compressed", "robots.txt: Content-Encoding: br"), ("opt_out", "robots.txt: unreadable: Content-Encoding: br")]


@run
async def test_an_opt_out_on_the_file_itself_does_not_matter() -> None:
    robots = Answer(b"User-agent: *\nDisallow: /a", headers={"X-Robots-Tag": "noindex, noai"})
    async with site({"/robots.txt": robots, "/a": IMAGE, "/b": IMAGE}) as here:
        assert [f.status for f in await get(here.url("/a"), here.url("/b"))] == ["opt_out", "ok"]


# ---------------------------------------------------------------- remembered

class Sites:
    """Answers for every site, and counts."""

    def __init__(self, status: str = "ok", body: bytes = b"User-agent: *\nDisallow: /\n") -> None:
        self.status, self.body, self.asked, self.now = status, body, list[str](), 0.0

    async def ask(self, url: str) -> Outcome:
        self.asked.append(url)
        await asyncio.sleep(0)
        return Outcome(self.status, body=self.body, final_url=url)

    def file(self, **how: Any) -> SiteFile[Rules]:
        return SiteFile("/robots.txt", "robots.txt", lambda body: parse(body, "curate"), Rules(), self.ask, strict=False,
                        needed=True, clock=lambda: self.now, **how)


@run
async def test_a_site_is_remembered_for_a_day_and_trouble_for_a_minute() -> None:
    sites = Sites()
    robots, url = sites.file(), URL("https://a.example/x?y#z")
    for now, times in ((0, 1), (KEEP_SECONDS - 1, 1), (KEEP_SECONDS, 2)):
        sites.now = now
        assert (await robots.of(url)).forbids("/x") is not None
        assert sites.asked == ["https://a.example/robots.txt"] * times
    sites.status, sites.now = "http_5xx", 3 * KEEP_SECONDS
    for after, times in ((0, 3), (TROUBLE_SECONDS - 1, 3), (TROUBLE_SECONDS, 4)):
        sites.now = 3 * KEEP_SECONDS + after
        with pytest.raises(Exception, match="http_5xx"):
            await robots.of(url)
        assert len(sites.asked) == times


@run
async def test_memory_is_bounded_and_the_site_longest_not_asked_about_goes_first() -> None:
    sites = Sites(body=b"")
    robots = sites.file(max_bytes=100_000)
    for i in range(500):
        await robots.of(URL(f"http://{i}.example/"))
        await robots.of(URL("http://0.example/"))
    assert robots.num_bytes <= 100_000
    assert len(robots._known) == 200
    assert sites.asked.count("http://0.example/robots.txt") == 1
    big = Sites(body=b"User-agent: *\n" + b"".join(b"Disallow: /%d\n" % i for i in range(1000)))
    robots = big.file(max_bytes=1_000_000)
    for i in range(20):
        await robots.of(URL(f"http://{i}.example/"))
    assert len(robots._known) < 5


@run
async def test_one_who_gives_up_waiting_does_not_stop_the_others() -> None:
    async with site({"/robots.txt": Answer(b"", delay=0.1), "/a": IMAGE, "/b": IMAGE}) as here, Fetcher(limits()) as fetcher:
        first, second = (asyncio.create_task(fetcher.get(here.url(p))) for p in ("/a", "/b"))
        await asyncio.sleep(0.03)
        first.cancel()
        assert (await second).status == "ok"
        assert here.asked == {"/robots.txt": 1, "/b": 1}
