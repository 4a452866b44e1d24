"""What a host sees of us: so many requests at once, so often, none while it rests, and no more once it has said no for long."""

import asyncio
import time
from collections import Counter

import pytest

from curate.fetching import places as module
from curate.fetching.addresses import Failure
from curate.fetching.breaker import Breaker
from curate.fetching.places import Places
from tests.helpers_http import Answer, Request, run, site
from tests.test_fetch import IMAGE, client, quick

# ---------------------------------------------------------------- places


@run
async def test_hosts_are_forgotten() -> None:
    places = Places(8, 4, 1000.0)
    for n in range(100):
        async with places.at(f"host{n}"):
            pass
    assert not places._hosts


@run
async def test_a_silent_request_lends_its_place_and_the_host_keeps_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one place in all, urls that never finish hold up nobody; their own host still sees `per_host` at once."""
    monkeypatch.setattr(module, "SILENT_SECONDS", 0.02)
    over = asyncio.Event()

    async def never(request: Request) -> None:
        await over.wait()
        request.writer.close()

    limits = quick(concurrency=1, per_host=2, retries=0)
    async with site({"/": never}) as hung, site({"/": Answer(IMAGE)}, "127.0.0.2") as fine, client(limits) as fetcher:
        waiting = [asyncio.create_task(fetcher.get(hung.url("/"))) for _ in range(5)]
        found = [await fetcher.get(fine.url("/")) for _ in range(20)]
        assert {f.status for f in found} == {"ok"}
        assert hung.most == hung.asked["/"] == 2
        over.set()
        assert {f.status for f in await asyncio.gather(*waiting)} == {"connect"}
        assert (fetcher._places.lent, fetcher._places.all.locked()) == (0, False)


@run
async def test_only_so_many_places_are_lent_and_one_is_taken_back_when_something_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SILENT_SECONDS", 0.01)
    places, inside, over = Places(1, 1), list[str](), asyncio.Event()

    async def silent(host: str) -> float:
        async with places.at(host) as place:
            inside.append(host)
            await over.wait()
            return await place.resume()

    tasks = [asyncio.create_task(silent(f"h{n}")) for n in range(7)]
    await asyncio.sleep(0.3)
    assert inside == ["h0", "h1", "h2", "h3"], "one that counts and three that are lent"
    over.set()
    assert len(await asyncio.gather(*tasks)) == 7
    assert (places.lent, places.all.locked()) == (0, False)


@run
async def test_a_url_that_timed_out_lends_its_place_at_once() -> None:
    """Its second attempt holds up nobody for half a second again."""
    places = Places(1, 1)
    async with places.at("a", doubtful=True):
        await asyncio.sleep(0.01)
        assert (places.lent, places.all.locked()) == (1, False)
    async with places.at("a"):
        await asyncio.sleep(0.01)
        assert (places.lent, places.all.locked()) == (0, True)


@run
async def test_a_place_with_a_body_is_not_lent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SILENT_SECONDS", 0.01)
    places = Places(1, 1)
    async with places.at("a") as place:
        place.keep()
        await asyncio.sleep(0.05)
        assert places.all.locked()


# ---------------------------------------------------------------- rate, Retry-After

@run
async def test_a_host_is_asked_no_oftener_than_its_rate() -> None:
    """A burst of per_host, then one every 50 ms; another host has a rate of its own."""
    seen: list[float] = []

    async def answer(request: Request) -> None:
        seen.append(time.perf_counter())
        request.writer.write(b"HTTP/1.1 200 X\r\nContent-Length: 1\r\n\r\nx")

    async with (site({"/": answer}) as one, site({"/": Answer(IMAGE)}, "127.0.0.2") as two,
                client(quick(per_host=2, per_host_rate=20.0)) as fetcher):
        asked = [asyncio.create_task(fetcher.get(one.url("/"))) for _ in range(8)]
        assert [(await fetcher.get(two.url("/"))).status for _ in range(2)] == ["ok", "ok"]
        assert not all(task.done() for task in asked)
        found = await asyncio.gather(*asked)
    assert {f.status for f in found} == {"ok"}
    assert seen[-1] - seen[0] >= 6 * 0.05 - 0.02
    assert all(later - sooner >= 2 * 0.05 - 0.03 for sooner, later in zip(seen[2:], seen[4:], strict=False))
    assert all(f.seconds < 0.2 for f in found), "waiting for a turn does not count"


@pytest.mark.parametrize("status", [429, 503])
@run
async def test_retry_after_with_many_urls_of_one_host(status: int) -> None:
    """Each url is refused once: the host sees at most per_host at once, and no url again before the second is over."""
    at: dict[str, list[float]] = {}

    async def busy(request: Request) -> None:
        times = at.setdefault(request.path, [])
        times.append(time.perf_counter())
        await asyncio.sleep(0.01)
        head = b"200 X" if len(times) > 1 else b"%d X\r\nRetry-After: 1" % status
        request.writer.write(b"HTTP/1.1 " + head + b"\r\nContent-Length: 1\r\n\r\nx")

    paths = [f"/{n}" for n in range(3)]
    async with site(dict.fromkeys(paths, busy)) as here, site({"/": Answer(IMAGE)}, "127.0.0.2") as other:
        async with client(quick(per_host=3)) as fetcher:
            asked = [asyncio.create_task(fetcher.get(here.url(path))) for path in paths]
            await asyncio.sleep(0.2)
            assert (await fetcher.get(other.url("/"))).status == "ok"
            assert not any(task.done() for task in asked), "only the host waits"
            found = await asyncio.gather(*asked)
        assert here.most <= 3
    assert [(f.status, f.attempts) for f in found] == [("ok", 2)] * 3
    assert all(second - first >= 1 for first, second in at.values())


# ---------------------------------------------------------------- the breaker

def ended(breaker: Breaker, *ends: tuple[str, int | None]) -> str:
    """What a host of which all this was heard says to the next url: nothing, or a status."""
    for status, http_status in ends:
        breaker.heard("a", status, http_status)
    try:
        breaker.check("a")
    except Failure as failure:
        return failure.status
    return ""


@pytest.mark.parametrize(("ends", "status"), [
    ([("timeout", None)] * 4, ""), ([("timeout", None)] * 5, "host_down"),
    ([("dns", None), ("connect", None), ("tls", None), ("timeout", None), ("dns", None)], "host_down"),
    ([("http_4xx", 403)] * 5, "host_refuses"), ([("http_429", 429)] * 5, "host_refuses"),
    ([("opt_out", 200)] * 5, "host_refuses"),
    ([("opt_out", 200)] * 3 + [("http_4xx", 403)] * 2, "host_refuses"),
    ([("http_4xx", 403)] * 4 + [("timeout", None)] * 4, ""),
    ([("timeout", None)] * 4 + [("ok", 200)] + [("timeout", None)] * 4, ""),
    ([("timeout", None)] * 4 + [("http_404", 404)] + [("timeout", None)] * 4, ""),
    ([("timeout", None)] * 4 + [("http_5xx", 503)] + [("timeout", None)] * 4, ""),
    ([("timeout", None)] * 4 + [("redirect", 302)] + [("timeout", None)] * 4, ""),
    ([("timeout", None)] * 4 + [("bad_url", None), ("host_down", None)] + [("timeout", None)], "host_down"),
    ([("http_404", 404)] * 50, ""), ([("http_5xx", 500)] * 50, ""), ([("http_4xx", 401)] * 50, ""), ([("slow", 200)] * 50, ""),
])
@run
async def test_what_makes_a_host_rest(ends: list[tuple[str, int | None]], status: str) -> None:
    assert ended(Breaker(5), *ends) == status
    assert ended(Breaker(0), *ends) == "", "0: never"


@run
async def test_after_the_rest_one_url_decides() -> None:
    breaker = Breaker(3, rest_seconds=0.1)
    assert ended(breaker, *[("timeout", None)] * 3) == "host_down"
    await asyncio.sleep(0.11)
    assert [ended(breaker), ended(breaker)] == ["", "host_down"], "one goes, the others still rest"
    assert ended(breaker, ("timeout", None)) == "host_down"
    await asyncio.sleep(0.11)
    assert [ended(breaker), ended(breaker)] == ["", "host_down"]
    assert ended(breaker, ("http_404", 404)) == "", "it answers again"
    assert ended(breaker, *[("timeout", None)] * 2) == "", "and counts from the start"


@run
async def test_hosts_that_fail_are_not_remembered_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("curate.fetching.breaker.MOST_HOSTS", 10)
    breaker = Breaker(2)
    for n in range(100):
        breaker.heard("busy", "dns")
        breaker.heard(f"host{n}", "dns")
    assert len(breaker._rows) == 10
    assert ended(breaker) == ""
    with pytest.raises(Failure):
        breaker.check("busy")


@run
async def test_a_site_that_refuses_is_left_alone_and_the_others_are_not() -> None:
    routes = {f"/{n}": Answer(b"no", 403) for n in range(60)}
    async with (site(routes) as no, site({"/": Answer(IMAGE)}, "127.0.0.2") as yes,
                client(quick(give_up_host_after=10, per_host=2)) as fetcher):
        found = await asyncio.gather(*[fetcher.get(no.url(path)) for path in routes])
        fine = [await fetcher.get(yes.url("/")) for _ in range(5)]
    counts = Counter(f.status for f in found)
    assert counts == {"http_4xx": no.asked.total(), "host_refuses": 60 - no.asked.total()}
    assert 10 <= no.asked.total() <= 11, "two were under way at once"
    said = next(f for f in found if f.status == "host_refuses")
    assert said.error.startswith("not asked: 10 urls of 127.0.0.1 in a row came to nothing, the last by http_403")
    assert (said.attempts, said.http_status, said.body) == (1, None, None)
    assert {f.status for f in fine} == {"ok"}


@run
async def test_a_host_that_gives_one_picture_in_ten_never_rests() -> None:
    """The default takes 200 in a row; here 20 at a tenth of the urls, as regular as they come."""
    async with site({"/ok": Answer(IMAGE), "/no": Answer(b"", 403)}) as here, client(quick(give_up_host_after=20)) as fetcher:
        found = [await fetcher.get(here.url("/ok" if n % 10 == 9 else "/no")) for n in range(100)]
    assert Counter(f.status for f in found) == {"http_4xx": 90, "ok": 10}
