"""Asks strangers' servers for one url at a time: within limits, politely, and never where it must not go.

    async with Fetcher(Limits(contact="https://my.lab/crawl")) as fetcher:
        outcome = await fetcher.get(url)         # never raises for what a url or a server does: `outcome.status` says

- Only to addresses that were checked (`addresses`); redirects are followed by hand and each hop is checked again.
- One deadline for all a url costs, one for an attempt; a limit on bytes; a least speed. Waiting in our own queues does not count.
- A place at the host is taken before a place among all (`places`), and only the host's own is held for Retry-After: it costs only
  itself. A host that gives nothing but failures or refusals for long is left alone (`breaker`).
- Whether a url may be asked for (`gate`) is asked before each hop, opt-outs in headers (`opt_out`) are read before the body.
- No cookies, credentials, proxies of the environment or compression.

`status` is ok or one of: bad_url bad_scheme private_address dns connect tls timeout slow too_many_redirects bad_redirect http_404
http_410 http_429 http_4xx http_5xx http_other bad_http opt_out too_large compressed wrong_type empty host_down host_refuses.
"""

import asyncio
import copy
import errno
import hashlib
import ipaddress
import math
import re
import resource
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Self

import aiohttp
from yarl import URL

from curate.errors import UserError
from curate.fetching.addresses import Failure, Network, check_literal, lookup, parse_url
from curate.fetching.breaker import Breaker
from curate.fetching.gate import Gate
from curate.fetching.opt_out import DENY, OptedOut, OptOut, said_in_headers
from curate.fetching.opt_out_list import OptOutList
from curate.fetching.places import Place, Places
from curate.fetching.resolver import Resolver
from curate.fetching.robots import LIMIT_BYTES

TOKEN = "curate"
"""The name that a site's opt-out can address."""
ACCEPT = "image/jpeg,image/png,image/webp,image/gif;q=0.9,*/*;q=0.1"
MAX_REDIRECTS = 5
SMALL_BYTES = 65_536
"""A body that stalls after so few bytes does not keep its place among all (our choice; so memory stays bounded)."""

_OUT_OF_HANDLES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


@dataclass(frozen=True)
class Limits:
    """What a url may cost and how we behave. Raises UserError on a network or user agent that is none."""

    timeout_seconds: float = 10
    deadline_seconds: float = 20
    retries: int = 2
    backoff_seconds: float = 0.5
    concurrency: int = 64
    per_host: int = 4
    per_host_rate: float = 0.0
    give_up_host_after: int = 200
    max_bytes: int = 16 * 2**20
    slowest_bytes_per_second: int = 1000
    grace_seconds: float = 4
    dns_seconds: float = 5
    dns_keep_seconds: float = 300
    allow_private: Sequence[str] = ()
    deny: frozenset[str] = DENY
    strict: bool = False
    robots: bool = True
    tdmrep: bool = False
    listed: OptOutList | None = None
    user_agent: str = ""
    contact: str = ""
    networks: tuple[Network, ...] = field(init=False, default=())

    def __post_init__(self) -> None:
        if not self.agent.isascii() or not self.agent.isprintable():
            raise UserError(f"user_agent: {self.agent!r} is not plain text")
        try:
            object.__setattr__(self, "networks", tuple(ipaddress.ip_network(n) for n in self.allow_private))
        except ValueError as error:
            raise UserError(f"allow_private: {error}; write a network such as 127.0.0.0/8") from None

    @property
    def agent(self) -> str:
        """The User-Agent header: who asks, and where to complain."""
        name = self.user_agent or f"{TOKEN}/0.1"
        return f"{name} (+{self.contact})" if self.contact else name if self.user_agent else f"{name} (no contact given)"

    @property
    def token(self) -> str:
        """What scoped opt-outs are compared with: the product in the User-Agent, or what it calls itself compatible with."""
        return re.sub(r".*compatible; *", "", self.agent.lower()).strip().partition("/")[0].split(";")[0].split()[0]


@dataclass(frozen=True)
class Outcome:
    """What became of a url. `seconds` without our own queues and without waiting for a site's robots.txt.

    `body` only where the status is ok, `said` only where it is opt_out."""

    status: str
    error: str = ""
    http_status: int | None = None
    body: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    final_url: str = ""
    attempts: int = 0
    seconds: float = 0.0
    said: OptOut | None = None


@dataclass
class _Spent:           # what a url has cost so far, and the hop it is at
    url: str
    seconds: float = 0.0
    asked: str = ""     # the host that the hop went to; none while it is only thought about


class Fetcher:
    """One long-lived client for many urls at once.

    `accept` judges the first bytes of a body (16 or more, if there are), so that a web page is not read to its end. `room`, if
    given, is taken for a body before its place is given back: whoever uses the body releases it, and so bounds memory. With
    `whole=False` a body's first `max_bytes` are enough, and the rest of it is not read.
    """

    def __init__(self, limits: Limits, *, accept: Callable[[bytes], bool] = bool, room: asyncio.Semaphore | None = None,
                 ask: Callable[[str], list[str]] = lookup, whole: bool = True) -> None:
        self.limits = limits
        self._accept, self._room, self._ask = accept, room, ask
        self._breaker = Breaker(limits.give_up_host_after)
        self._places = Places(limits.concurrency, limits.per_host, limits.per_host_rate, self._breaker)
        self._gate: Gate | None = None
        self._whole = whole
        self._session: aiohttp.ClientSession | None = None
        self._resolver: Resolver | None = None

    async def start(self) -> None:
        """Open the session, in the event loop that will use it."""
        _raise_handle_limit()
        limits = self.limits
        self._resolver = Resolver(limits.networks, self._ask, seconds=limits.dns_seconds, keep_seconds=limits.dns_keep_seconds)
        connector = aiohttp.TCPConnector(limit=0, use_dns_cache=False, keepalive_timeout=5, resolver=self._resolver)
        headers = {"User-Agent": limits.agent, "Accept": ACCEPT, "Accept-Encoding": "identity"}
        self._session = aiohttp.ClientSession(connector=connector, headers=headers, cookie_jar=aiohttp.DummyCookieJar(),
                                              trust_env=False, auto_decompress=False, timeout=aiohttp.ClientTimeout(total=None))
        self._gate = Gate(self._for_rules().get, limits.token, strict=limits.strict, use_robots=limits.robots,
                          use_tdmrep=limits.tdmrep, listed=limits.listed)

    def _for_rules(self) -> "Fetcher":
        """This fetcher, its connections and places, for the files in which sites say what may be asked: their beginnings do."""
        other = copy.copy(self)
        other.limits = replace(self.limits, deny=frozenset(), max_bytes=LIMIT_BYTES)
        other._accept, other._room, other._gate, other._whole = lambda _: True, None, None, False
        return other

    async def close(self) -> None:
        """Close every connection."""
        if self._gate is not None:
            self._gate.close()
        if self._session is not None and self._resolver is not None:
            await self._session.close()
            await self._resolver.close()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def get(self, url: str) -> Outcome:
        """What the server gave for `url` in the end, after the attempts its failures are worth."""
        spent, attempt = _Spent(url), 0
        while True:
            attempt += 1
            try:
                response, body = await self._attempt(url, spent)
                self._breaker.heard(spent.asked, "ok", response.status)
                return Outcome("ok", "", response.status, body, response.headers, spent.url, attempt, spent.seconds)
            except Failure as failure:
                if not await self._may_retry(failure, url, attempt, spent):
                    self._breaker.heard(spent.asked, failure.status, failure.http_status)
                    return Outcome(failure.status, failure.error, failure.http_status, final_url=spent.url, attempts=attempt,
                                   seconds=spent.seconds, said=failure.said if isinstance(failure, OptedOut) else None)

    async def _may_retry(self, failure: Failure, url: str, attempt: int, spent: _Spent) -> bool:
        """Whether another attempt is due; then its back-off is over."""
        if not failure.again or attempt > self.limits.retries:
            return False
        wait = max(self._backoff(url, attempt), failure.retry_after or 0.0)
        if spent.seconds + wait >= self.limits.deadline_seconds:
            return False
        if failure.retry_after:
            await self._places.rest(host_of(URL(spent.url)), wait)
        else:
            await asyncio.sleep(wait)
        spent.seconds += wait
        return True

    def _backoff(self, url: str, attempt: int) -> float:
        """Seconds before the next attempt: doubling, times 0.5 to 1.5 by the hash of the url, so that runs are alike."""
        seed = hashlib.blake2b(f"{attempt} {url}".encode("utf-8", "replace"), digest_size=4).digest()
        return self.limits.backoff_seconds * 2.0 ** (attempt - 1) * (0.5 + int.from_bytes(seed) / 2**32)

    async def _attempt(self, text: str, spent: _Spent) -> tuple[aiohttp.ClientResponse, bytes]:
        """Follow the url to a body. Raises Failure."""
        left = min(self.limits.timeout_seconds, self.limits.deadline_seconds - spent.seconds)
        url, seen = parse_url(text), set[URL]()
        while True:
            check_literal(url.raw_host or "", self.limits.networks)
            if url in seen or len(seen) > MAX_REDIRECTS:
                raise Failure("too_many_redirects", "a loop" if url in seen else f"more than {MAX_REDIRECTS}")
            seen.add(url)
            spent.url, spent.asked = str(url), ""
            if self._gate is not None:
                await self._gate.check(url)
            async with self._places.at(host_of(url), doubtful=spent.seconds >= self.limits.timeout_seconds) as place:
                spent.asked, begin = host_of(url), asyncio.get_running_loop().time()
                try:
                    answer = await self._exchange(url, begin + left, place)
                finally:
                    took = asyncio.get_running_loop().time() - begin - place.waited
                    place.keep()
                    left, spent.seconds = left - took, spent.seconds + took
                if not isinstance(answer, URL) and self._room is not None:
                    await self._room.acquire()
            if not isinstance(answer, URL):
                return answer
            self._breaker.heard(spent.asked, "redirect", 302)
            url = answer

    async def _exchange(self, url: URL, end: float, place: Place) -> tuple[aiohttp.ClientResponse, bytes] | URL:
        """One request: the body, or where it redirects to. `end` is in the loop's time. Raises Failure."""
        try:
            response = await self._open(url, end)
            end += await place.resume()
            try:
                if response.status in (301, 302, 303, 307, 308):
                    self._check_opt_out(response)
                    return _target(response)
                self._check_answer(response)
                return response, await self._body(response, end, place)
            finally:
                response.release()
        except aiohttp.ClientSSLError as error:
            raise Failure("tls", str(error)) from None
        except aiohttp.InvalidURL as error:
            raise Failure("bad_url", str(error)) from None
        except aiohttp.ClientResponseError as error:
            raise Failure("bad_http", error.message) from None
        except (aiohttp.ClientError, OSError) as error:
            if getattr(error, "errno", None) in _OUT_OF_HANDLES:
                raise
            raise Failure("connect", str(error) or type(error).__name__) from None
        except ValueError as error:
            raise Failure("bad_http", str(error)) from None

    async def _open(self, url: URL, end: float) -> aiohttp.ClientResponse:
        assert self._session is not None, "start() comes first"
        try:
            async with asyncio.timeout_at(end):
                return await self._session.get(url, allow_redirects=False)
        except TimeoutError:
            raise Failure("timeout", "no answer in time") from None

    def _check_answer(self, response: aiohttp.ClientResponse) -> None:
        """Raises Failure where the headers say enough to leave the body alone."""
        status = response.status
        if status not in (200, 203, 204, 205):
            raise Failure(class_of(status), response.reason or "", http_status=status, retry_after=_retry_after(response.headers),
                          again=True if status in (408, 425) else None)
        self._check_opt_out(response)
        if not self._whole:
            return
        if response.headers.get("Content-Encoding", "identity").strip().lower() not in ("", "identity"):
            raise Failure("compressed", f"Content-Encoding: {response.headers['Content-Encoding']}", http_status=status)
        if (response.content_length or 0) > self.limits.max_bytes:
            raise Failure("too_large", f"{response.content_length} bytes", http_status=status)

    def _check_opt_out(self, response: aiohttp.ClientResponse) -> None:
        if not self.limits.deny:
            return
        if said := said_in_headers(response.headers.getall("X-Robots-Tag", []), response.headers.getall("tdm-reservation", []),
                                   self.limits.token, self.limits.deny, self.limits.strict):
            raise OptedOut(said, response.status)

    async def _body(self, response: aiohttp.ClientResponse, end: float, place: Place) -> bytes:
        """The whole body. Raises Failure as soon as it is too large, too slow or not what is wanted."""
        chunks: list[bytes] = []
        size, begin, judged = 0, asyncio.get_running_loop().time(), False
        while chunk := await self._chunk(response, begin, size, end):
            waited = await place.resume()
            begin, end = begin + waited, end + waited
            chunks.append(chunk)
            size += len(chunk)
            if size > self.limits.max_bytes and not self._whole:
                break
            if size > self.limits.max_bytes:
                raise Failure("too_large", f"more than {self.limits.max_bytes} bytes", http_status=response.status)
            if not judged and size >= 16:
                self._judge(b"".join(chunks), response)
                judged = True
            if size > SMALL_BYTES:
                place.keep()
        body = b"".join(chunks)
        if not body:
            raise Failure("empty", "no bytes", http_status=response.status)
        if not judged:
            self._judge(body, response)
        return body

    async def _chunk(self, response: aiohttp.ClientResponse, begin: float, size: int, end: float) -> bytes:
        """What comes next of a body that began at `begin` and has brought `size` bytes; none at its end. Raises Failure: slow."""
        slowest = self.limits.slowest_bytes_per_second
        too_slow = begin + max(self.limits.grace_seconds, (size + 1) / slowest)
        try:
            async with asyncio.timeout_at(min(end, too_slow)):
                return await response.content.readany()
        except TimeoutError:
            why = "the body did not come in time" if end <= too_slow else f"less than {slowest} bytes a second"
            raise Failure("slow", why, http_status=response.status) from None

    def _judge(self, head: bytes, response: aiohttp.ClientResponse) -> None:
        if not self._accept(head):
            raise Failure("wrong_type", f"not a picture; Content-Type: {response.headers.get('Content-Type', 'none')}",
                          http_status=response.status)


def host_of(url: URL) -> str:
    """How hosts are compared: lower case, no dot at the end."""
    return (url.raw_host or "").lower().rstrip(".")


def _target(response: aiohttp.ClientResponse) -> URL:
    """Where an answer redirects to. Raises Failure; from https to http is refused."""
    location = response.headers.get("Location", "")
    if not location:
        raise Failure("bad_redirect", "no Location", http_status=response.status)
    target = parse_url(location, response.url)
    if response.url.scheme == "https" and target.scheme == "http":
        raise Failure("bad_redirect", "from https to http", http_status=response.status)
    return target


def class_of(status: int) -> str:
    """The status of an HTTP status that is no success."""
    kind = str(status) if status in (404, 410, 429) else f"{status // 100}xx" if 400 <= status < 600 else "other"
    return f"http_{kind}"


def _retry_after(headers: Mapping[str, Any]) -> float | None:
    """Seconds to wait by a Retry-After header, which holds seconds or a date; None where there is none that can be read."""
    value = str(headers.get("Retry-After", "")).strip()
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        when = parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, math.ceil((when.replace(tzinfo=when.tzinfo or UTC) - datetime.now(UTC)).total_seconds()))


def _raise_handle_limit() -> None:
    """Many hosts mean many open connections: use what the system allows instead of the usual 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65_536 if hard == resource.RLIM_INFINITY else min(hard, 65_536)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
