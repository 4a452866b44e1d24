"""Who may talk to whom now: so many at a host and so often, so many in all, and nobody where a host rests.

A place at the host comes first, then its turn by `per_host_rate`, then a place among all, first come first served at each. So
whatever waits for a slow host waits there and takes nothing from the others. A place among all is for a request that is being
answered: where no byte came for a while it is lent on, or a few urls that never finish would hold up all the others.
"""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from curate.fetching.breaker import Breaker

SILENT_SECONDS = 0.5
"""Without a byte for so long, a request gives its place among all to another one (our choice: most servers answer sooner)."""
LENT = 3
"""Times `concurrency`: so many places may be lent at once, which bounds open connections to four times `concurrency`."""
MOST_HOSTS = 20_000


@dataclass
class _Host:
    places: asyncio.Semaphore
    users: int = 0


class Place:
    """One place among all, held until it is given back, and lent on while nothing comes. `waited`: seconds to get it back."""

    def __init__(self, places: "Places", silent_seconds: float) -> None:
        self._places, self._loop, self._silent_seconds = places, asyncio.get_running_loop(), silent_seconds
        self._heard, self._lent, self.waited = self._loop.time(), False, 0.0
        self._timer = self._loop.call_later(silent_seconds, self._look)

    async def resume(self) -> float:
        """Something came: take the place back if it was lent. Seconds that took."""
        begin = self._loop.time()
        if self._lent:
            await self._places.all.acquire()
            self._lent = False
            self._places.lent -= 1
        self._heard = self._loop.time()
        self.waited += self._heard - begin
        return self._heard - begin

    def keep(self) -> None:
        """Do not lend it any more: there is a body in memory."""
        self._timer.cancel()

    def give_back(self) -> None:
        """It is over."""
        self._timer.cancel()
        if self._lent:
            self._places.lent -= 1
        else:
            self._places.all.release()

    def _look(self) -> None:
        left = self._heard + self._silent_seconds - self._loop.time()
        if not self._lent and left <= 0 and self._places.lent < self._places.most_lent:
            self._lent = True
            self._places.lent += 1
            self._places.all.release()
        self._timer = self._loop.call_later(left if left > 0 else SILENT_SECONDS, self._look)


class Places:
    """`per_host` requests at a host at once, `per_host_rate` a second (0: no limit) after a burst of `per_host`; `concurrency`
    in all. Hosts are compared as they are given: lower case, no dot at the end."""

    def __init__(self, concurrency: int, per_host: int, per_host_rate: float = 0.0, breaker: Breaker | None = None) -> None:
        self.all = asyncio.Semaphore(concurrency)
        self.lent, self.most_lent = 0, LENT * concurrency
        self._burst, self._rate = per_host, per_host_rate
        self._breaker = breaker or Breaker(0)
        self._hosts: dict[str, _Host] = defaultdict(lambda: _Host(asyncio.Semaphore(per_host)))
        self._due: dict[str, float] = {}

    @asynccontextmanager
    async def at(self, host: str, doubtful: bool = False) -> AsyncIterator[Place]:
        """A place at the host, and then one among all; the `doubtful` lend it at once. Raises Failure where the host rests."""
        async with self._place(host):
            self._breaker.check(host)
            await self._turn(host)
            await self.all.acquire()
            place = Place(self, 0.0 if doubtful else SILENT_SECONDS)
            try:
                yield place
            finally:
                place.give_back()

    async def rest(self, host: str, seconds: float) -> None:
        """Take a place at the host and leave it unused: a host that answers all with Retry-After is asked that seldom."""
        async with self._place(host):
            await asyncio.sleep(seconds)

    async def _turn(self, host: str) -> None:
        """Wait until the host may be asked again by its rate. `_due` holds when the next request of an idle bucket was due."""
        if not self._rate:
            return
        now = asyncio.get_running_loop().time()
        due = max(self._due.get(host, 0.0), now - (self._burst - 1) / self._rate)
        self._due[host] = due + 1 / self._rate
        if len(self._due) > MOST_HOSTS:         # a bucket that is full again is as good as none
            self._due = {h: t for h, t in self._due.items() if t > now - (self._burst - 1) / self._rate}
        if due > now:
            await asyncio.sleep(due - now)

    @asynccontextmanager
    async def _place(self, host: str) -> AsyncIterator[None]:
        entry = self._hosts[host]
        entry.users += 1
        try:
            async with entry.places:
                yield
        finally:
            entry.users -= 1
            if not entry.users:
                del self._hosts[host]
