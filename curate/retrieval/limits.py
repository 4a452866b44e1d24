"""What one client, and all together, may ask of a server: tokens by client, slots by work, names it answers to."""

import asyncio
import ipaddress
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")
MAX_CLIENTS = 10_000
"""Clients whose tokens are remembered; of more, the one longest silent is forgotten (our choice: about 2 MB)."""
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


class Busy(Exception):
    """No slot is free and the line before them is full."""


class Tokens:
    """A token bucket a client: `rate` tokens flow in a second, at most `burst` are saved up. For one thread."""

    def __init__(self, rate: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.rate, self.burst, self._clock = rate, burst, clock
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()   # client → tokens, when that was

    def take(self, client: str, cost: float) -> float:
        """0 where the client had `cost` tokens, which are gone now; else the seconds until it has them."""
        now = self._clock()
        tokens, then = self._left.pop(client, (self.burst, now))
        tokens = min(self.burst, tokens + (now - then) * self.rate)
        wait = max(0.0, (cost - tokens) / self.rate)
        self._left[client] = (tokens if wait else tokens - cost, now)
        if len(self._left) > MAX_CLIENTS:
            self._left.popitem(last=False)
        return wait


class Slots:
    """Threads for work that must not run in the event loop, and a line of bounded length before them."""

    def __init__(self, name: str, threads: int, waiting: int) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._most, self._now, self._lock = threads + waiting, 0, threading.Lock()

    @property
    def now(self) -> int:
        """How many are working or waiting."""
        return self._now

    def submit(self, work: Callable[[], T]) -> "asyncio.Future[T]":
        """What `work` will give, or raise. Raises Busy where the line is full.

        A slot is free again when the work ends, not when whoever asked for it goes away.
        """
        with self._lock:
            if self._now >= self._most:
                raise Busy
            self._now += 1
        future = self._pool.submit(work)
        future.add_done_callback(self._free)
        return asyncio.wrap_future(future)

    def close(self) -> None:
        """Forget what waits, let what works end."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _free(self, _: Future[Any]) -> None:
        with self._lock:
            self._now -= 1


class Hosts:
    """The names a server answers to, so that a page elsewhere cannot reach it through a name of its own (DNS rebinding).

    Bound to this machine only: its loopback names. Bound to an address: that one. Bound to all: every address, as an address in
    a request is none that somebody else's name server gave. `names` come on top, and localhost always goes.
    """

    def __init__(self, bound: str, names: Iterable[str] = ()) -> None:
        self._names = LOOPBACK_NAMES | {bound.lower(), *(name.lower() for name in names)}
        self._any_address = bound in ("0.0.0.0", "::")

    def __contains__(self, header: str) -> bool:
        name = _without_port(header.strip().lower())
        return name in self._names or (self._any_address and _is_address(name))


def retry_after(seconds: float) -> str:
    """The value of a Retry-After header: whole seconds, at least one."""
    return str(max(1, math.ceil(seconds)))


def _without_port(host: str) -> str:
    if host.startswith("["):
        name, bracket, rest = host[1:].partition("]")
        return name if bracket and _is_port(rest) else ""
    name, colon, port = host.partition(":")
    return name if _is_port(colon + port) else ""


def _is_port(text: str) -> bool:
    return not text or (text[0] == ":" and text[1:].isascii() and text[1:].isdigit())


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
