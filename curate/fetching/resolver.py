"""Hosts → addresses that were checked, for aiohttp; apart from `addresses`, because aiohttp takes a fifth of a second to load."""

import asyncio
import socket
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from aiohttp.abc import AbstractResolver, ResolveResult

from curate.fetching.addresses import Failure, Network, check_address, lookup


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
