"""Where a request may go: http and https, public addresses, and only to an address that was checked.

Every host is resolved here and every address judged before aiohttp connects to it, so a name that changes its mind between the
check and the connection (rebinding) gains nothing. Hosts that are addresses in disguise are refused.
"""

import asyncio
import ipaddress
import re
import socket
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

MAX_URL = 8192
RETRIED = frozenset({"connect", "timeout", "http_429", "http_5xx"})
"""Failures worth another attempt at once, and `dns` where the resolver calls it temporary. Others never are."""
PASSING = RETRIED | {"dns", "tls", "slow", "bad_http", "host_down", "host_refuses"}
"""Failures that may pass within hours or days, so that `curate heal` asks again (our choice): resolvers, networks and servers in
trouble, and urls not asked for because of others of their host. What a server means for good (404, 410, other 4xx), what it
forbids and what was no picture is not asked for again."""

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
# Not public, whatever `is_global` says: carrier NAT, IETF, 6to4 (relay and tunnels, which carry any IPv4), NAT64, site-local.
_CLOSED = tuple(ipaddress.ip_network(n) for n in ("100.64.0.0/10", "192.0.0.0/24", "192.88.99.0/24", "2002::/16", "64:ff9b::/96",
                                                  "64:ff9b:1::/48", "2001::/23", "fec0::/10", "3fff::/20", "5f00::/16"))
_SENT_AS_IT_IS = re.compile(r"[!#-;=?-Z\[\]_a-z~]+")


class Failure(Exception):
    """An attempt came to nothing. `again`: another may not; `retry_after`: seconds the server asked for."""

    def __init__(self, status: str, error: str, *, http_status: int | None = None, again: bool | None = None,
                 retry_after: float | None = None) -> None:
        super().__init__(f"{status}: {error}")
        self.status, self.error, self.http_status, self.retry_after = status, one_line(error), http_status, retry_after
        self.again = status in RETRIED if again is None else again


def parse_url(text: str, base: URL | None = None) -> URL:
    """A url we may ask for, as far as it can be told before resolving its host; relative to `base`. Raises Failure.

    Plain ASCII is sent as it stands, for signed urls; spaces, other scripts and host names of other scripts are encoded.
    """
    text = text.strip()
    if len(text) > MAX_URL or any(ord(c) < 32 for c in text):
        raise Failure("bad_url", text)
    try:
        url = URL(text, encoded=_SENT_AS_IT_IS.fullmatch(text) is not None)
        url = base.join(url) if base is not None else url
        host, port = url.raw_host, url.port
    except ValueError as error:
        raise Failure("bad_url", str(error)) from None
    if url.scheme not in ("http", "https"):
        raise Failure("bad_scheme", text[:40])
    if not host or not port or "@" in url.raw_authority:
        raise Failure("bad_url", text)
    return url.with_fragment(None)


def check_address(text: str, allowed: Sequence[Network]) -> None:
    """Raises Failure unless the address is public, or in one of the allowed networks."""
    address = ipaddress.ip_address(text)
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    if any(address in network for network in allowed):
        return
    if not address.is_global or address.is_multicast or address.is_reserved or any(address in network for network in _CLOSED):
        raise Failure("private_address", f"{text} is not a public address")


def check_literal(host: str, allowed: Sequence[Network]) -> None:
    """Raises Failure for a host that is an address, if it may not be asked or is not written the plain way."""
    literal = host.rstrip(".")
    try:
        ipaddress.ip_address(literal)
    except ValueError:
        try:
            socket.inet_aton(literal)       # 2130706433, 0177.1, 0x7f.1: what the C library would take for an address
        except (OSError, ValueError):
            return
        raise Failure("private_address", f"{host} is an address in disguise") from None
    check_address(literal, allowed)


def lookup(host: str) -> list[str]:
    """The addresses of a host, by the operating system's resolver. Raises OSError."""
    return list(dict.fromkeys(str(info[4][0]) for info in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)))


class Resolver(AbstractResolver):
    """Gives aiohttp only addresses that were checked: one lookup a host at a time, with a timeout, remembered for a while."""

    def __init__(self, allowed: Sequence[Network], ask: Callable[[str], list[str]] = lookup, *, seconds: float = 5,
                 keep_seconds: float = 300) -> None:
        self._allowed, self._ask, self._seconds, self._keep_seconds = allowed, ask, seconds, keep_seconds
        self._known: dict[str, tuple[float, list[str] | Failure]] = {}
        self._asking: dict[str, asyncio.Task[list[str] | Failure]] = {}
        self._threads = ThreadPoolExecutor(32, thread_name_prefix="resolve")

    async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC) -> list[ResolveResult]:
        """Checked addresses of `host`. Raises Failure: dns or private_address."""
        until, found = self._known.get(host, (0.0, None))
        if found is None or until < asyncio.get_running_loop().time():
            task = self._asking.get(host) or self._start(host)
            found = await asyncio.shield(task)
        if isinstance(found, Failure):
            raise Failure(found.status, found.error, again=found.again)
        return [ResolveResult(hostname=host, host=address, port=port, proto=0, flags=socket.AI_NUMERICHOST,
                              family=socket.AF_INET6 if ":" in address else socket.AF_INET) for address in found]

    async def close(self) -> None:
        """Forget lookups under way."""
        for task in self._asking.values():
            task.cancel()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _start(self, host: str) -> asyncio.Task[list[str] | Failure]:
        task = self._asking[host] = asyncio.create_task(self._look(host))
        task.add_done_callback(lambda _: self._asking.pop(host, None))
        return task

    async def _look(self, host: str) -> list[str] | Failure:
        """One lookup, its verdict kept: a temporary failure for a second only."""
        found: list[str] | Failure
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._seconds):
                found = await loop.run_in_executor(self._threads, self._ask, host)
            for address in found:
                check_address(address, self._allowed)
            found = found or Failure("dns", f"{host} has no address")
        except Failure as failure:
            found = failure
        except TimeoutError:
            found = Failure("dns", f"no answer about {host} within {self._seconds:g} s", again=True)
        except (OSError, ValueError) as error:
            found = Failure("dns", f"{host}: {getattr(error, 'strerror', None) or error}",
                            again=getattr(error, "errno", None) == socket.EAI_AGAIN)
        short = isinstance(found, Failure) and found.again
        if len(self._known) > 20_000:
            self._known.pop(next(iter(self._known)))
        self._known[host] = loop.time() + (1 if short else self._keep_seconds), found
        return found


def one_line(text: str) -> str:
    """One printable line of at most 200 characters."""
    return "".join(c if c.isprintable() else " " for c in text)[:200].strip()
