"""When a host is left alone: nothing but failures, or nothing but refusals, for so long that asking on helps nobody.

One url after another ends in a network failure, or in a refusal, and nothing else comes in between: after so many the host rests
and its urls end at once, unasked. After the rest one url is let through; what it meets decides about the others.

Which urls those are depends on the order in which answers come, so their statuses count as passing ones: `curate heal` asks
again. How many it takes is our choice: at a host that gives one picture in twenty, whatever their order, 200 failures in a row
come once in 570,000 urls, 100 once in 3,400 and 10 once in 33.
"""

import asyncio
from dataclasses import dataclass

from curate.fetching.addresses import Failure

REST_SECONDS = 60.0
"""From the last failure to the url that is let through (our choice: longer than a deadline, shorter than most outages)."""
MOST_HOSTS = 20_000
"""Hosts remembered at once; those that nothing was heard of for longest are forgotten."""
_DOWN = frozenset({"dns", "connect", "tls", "timeout"})
_REFUSES = frozenset({"opt_out", "http_429"})


@dataclass
class _Row:             # what ended one url after another, how many so far, and until when the host rests
    kind: str
    cause: str = ""
    count: int = 0
    until: float = 0.0


class Breaker:
    """Hears how urls end and says which hosts rest: those with `after` bad ends in a row; 0 means none ever."""

    def __init__(self, after: int, rest_seconds: float = REST_SECONDS) -> None:
        self._after, self._rest_seconds = after, rest_seconds
        self._rows: dict[str, _Row] = {}

    def check(self, host: str) -> None:
        """Raises Failure, host_down or host_refuses, for a host that rests; when the rest is over, for all but one url."""
        row = self._rows.get(host)
        if row is None or row.count < self._after:
            return
        now = asyncio.get_running_loop().time()
        if now < row.until:
            raise Failure(row.kind, f"not asked: {row.count} urls of {host} in a row came to nothing, the last by {row.cause}")
        row.until = now + self._rest_seconds

    def heard(self, host: str, status: str, http_status: int | None = None) -> None:
        """A url of the host ended so after all its attempts, or it redirected. Where no host was asked, nothing is learnt."""
        refused = status in _REFUSES or http_status == 403
        if status in _DOWN or refused:
            self._count(host, "host_refuses" if refused else "host_down", f"http_{http_status}" if http_status == 403 else status)
        elif http_status is not None:
            self._rows.pop(host, None)

    def _count(self, host: str, kind: str, cause: str) -> None:
        if not self._after or not host:
            return
        row = self._rows.pop(host, None)
        row = row if row is not None and row.kind == kind else _Row(kind)
        row.cause, row.count = cause, row.count + 1
        if row.count >= self._after:
            row.until = asyncio.get_running_loop().time() + self._rest_seconds
        self._rows[host] = row          # last in the dict: heard of last
        if len(self._rows) > MOST_HOSTS:
            del self._rows[next(iter(self._rows))]
