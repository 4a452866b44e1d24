"""Where a request may go: http and https, public addresses, and only to an address that was checked.

Every host is resolved by us (`resolver`) and every address judged here before aiohttp connects to it, so a name that changes its
mind between the check and the connection (rebinding) gains nothing. Hosts that are addresses in disguise are refused.
"""

import ipaddress
import re
import socket
from collections.abc import Sequence

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


def one_line(text: str) -> str:
    """One printable line of at most 200 characters."""
    return "".join(c if c.isprintable() else " " for c in text)[:200].strip()
