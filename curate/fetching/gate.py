"""Whether a url may be asked for at all: by the operator's list, by the robots.txt of its site, by its tdmrep.json.

    await gate.check(url)                       # raises OptedOut, or the Failure that asking the site for its rules came to

A site is scheme, host and port. Its files are asked for once, however many of its urls wait for them, and remembered for a day
(RFC 9309, section 2.4) in memory that is bounded: the site longest not asked about is forgotten first.
"""

import asyncio
import time
import zlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from yarl import URL

from curate.fetching import robots, tdmrep
from curate.fetching.addresses import Failure
from curate.fetching.opt_out import OptedOut, OptOut, Signal
from curate.fetching.opt_out_list import OptOutList
from curate.fetching.robots import LIMIT_BYTES, Rules
from curate.fetching.tdmrep import Reservations

KEEP_SECONDS = 24 * 3600
TROUBLE_SECONDS = 60
"""How long a site that could not be asked for its rules is not asked again (our choice)."""
MAX_BYTES = 32 * 2**20
"""Of the rules remembered, for each of the two files; about 60,000 sites without any (our choice)."""
_IN_A_THREAD = 32 * 1024
_ABSENT = frozenset({"http_404", "http_410", "http_4xx"})
"""RFC 9309, section 2.3.1.3: unavailable, so nothing is forbidden. Not http_429, which is trouble."""
_OF_THE_HOST = frozenset({"dns", "private_address"})
"""Says nothing of the file, only of the host asked."""
_UNCLEAR = frozenset({"http_other", "too_many_redirects"})
"""Taken as absent too (section 2.3.1.2 allows it), but not if `strict`."""


class Answer(Protocol):
    """What came of asking for a file; `curate.fetching.fetch.Outcome` is one."""

    @property
    def status(self) -> str: ...
    @property
    def error(self) -> str: ...
    @property
    def http_status(self) -> int | None: ...
    @property
    def body(self) -> bytes | None: ...
    @property
    def headers(self) -> Mapping[str, str]: ...


class Content(Protocol):
    """A file understood."""

    num_bytes: int


Ask = Callable[[str], Awaitable[Answer]]
T = TypeVar("T", bound=Content)


class _Known(NamedTuple):
    until: float
    content: Any
    """what the file says, or why that is not known: (status, error, http_status)"""
    num_bytes: int


class SiteFile(Generic[T]):
    """One file of every site. `nothing` is what a site without it says; `parse` raises ValueError for what it cannot read.

    `needed`: a site that cannot be asked for it is not asked for anything else; else it has none. `strict`: what cannot be read,
    or leads nowhere, forbids.
    """

    def __init__(self, path: str, signal: Signal, parse: Callable[[bytes], T], nothing: T, ask: Ask, *, strict: bool,
                 needed: bool, clock: Callable[[], float] = time.monotonic, max_bytes: int = MAX_BYTES) -> None:
        self._path, self._signal, self._parse, self._nothing, self._ask = path, signal, parse, nothing, ask
        self._strict, self._needed, self._clock, self._max_bytes = strict, needed, clock, max_bytes
        self._known: OrderedDict[tuple[str, ...], _Known] = OrderedDict()
        self._asking: dict[tuple[str, ...], asyncio.Task[_Known]] = {}
        self.num_bytes = 0

    async def of(self, url: URL) -> T:
        """What the file of the url's site says. Raises Failure where that is not known, OptedOut where that forbids."""
        site = (url.scheme, url.raw_host or "", str(url.port))
        known = self._known.get(site)
        if known is not None and self._clock() < known.until:
            self._known.move_to_end(site)
        else:
            known = await asyncio.shield(self._asking.get(site) or self._start(site, url))
        if isinstance(known.content, tuple):
            status, error, http_status = known.content
            if status == "opt_out":
                raise OptedOut(OptOut(self._signal, error, error), http_status)
            raise Failure(status, error, http_status=http_status, again=False)
        content: T = known.content
        return content

    def close(self) -> None:
        """Forget requests under way."""
        for task in self._asking.values():
            task.cancel()

    def _start(self, site: tuple[str, ...], url: URL) -> asyncio.Task[_Known]:
        task = self._asking[site] = asyncio.create_task(self._learn(site, url))
        task.add_done_callback(lambda _: self._asking.pop(site, None))
        return task

    async def _learn(self, site: tuple[str, ...], url: URL) -> _Known:
        """Ask, understand, remember; and forget others where that makes too much."""
        content = await self._read(await self._ask(str(url.origin().with_path(self._path))))
        trouble = isinstance(content, tuple) and content[0] != "opt_out"
        num_bytes = 500 + (0 if isinstance(content, tuple) or content is self._nothing else content.num_bytes)
        known = _Known(self._clock() + (TROUBLE_SECONDS if trouble else KEEP_SECONDS), content, num_bytes)
        for old in [site] if site in self._known else []:
            self.num_bytes -= self._known.pop(old).num_bytes
        self._known[site] = known
        self.num_bytes += num_bytes
        while self.num_bytes > self._max_bytes and len(self._known) > 1:
            self.num_bytes -= self._known.popitem(last=False)[1].num_bytes
        return known

    async def _read(self, answer: Answer) -> T | tuple[str, str, int | None]:
        """What an answer says, or (status, error, http_status) of the urls of a site that does not say."""
        said = " ".join(map(str, filter(None, [f"{self._signal}:", answer.http_status, answer.error or answer.status])))
        said = answer.error if answer.status in _OF_THE_HOST else said
        if answer.status in _ABSENT or (answer.status in _UNCLEAR and not self._strict):
            return self._nothing
        if answer.status in _UNCLEAR:
            return "opt_out", said, answer.http_status
        if answer.status not in ("ok", "empty"):
            return (answer.status, said, answer.http_status) if self._needed else self._nothing
        try:
            body = _unpacked(answer.body or b"", answer.headers.get("Content-Encoding", ""))
            found = await asyncio.to_thread(self._parse, body) if len(body) > _IN_A_THREAD else self._parse(body)
            return found if found.num_bytes > self._nothing.num_bytes else self._nothing
        except ValueError as error:
            if self._strict:
                return "opt_out", f"{self._signal}: unreadable: {error}", answer.http_status
            return ("compressed", f"{self._signal}: {error}", answer.http_status) if self._needed else self._nothing


class Gate:
    """All that is asked before a url is. `token`: who asks; `use_robots`, `use_tdmrep`: which files of a site count."""

    def __init__(self, ask: Ask, token: str, *, strict: bool = False, use_robots: bool = True, use_tdmrep: bool = False,
                 listed: OptOutList | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._listed = listed
        self.robots = SiteFile("/robots.txt", "robots.txt", lambda body: robots.parse(body, token), Rules(), ask, strict=strict,
                               needed=True, clock=clock) if use_robots else None
        self.tdmrep = SiteFile("/.well-known/tdmrep.json", "tdmrep.json", lambda body: tdmrep.parse(body, strict), Reservations(),
                               ask, strict=strict, needed=strict, clock=clock) if use_tdmrep else None

    async def check(self, url: URL) -> None:
        """Raises OptedOut where the url is not to be asked for, Failure where its site could not be asked whether it is."""
        if self._listed is not None and (entry := self._listed.match(url)):
            raise OptedOut(OptOut("list", entry, f"opt_out_list: {entry}"))
        if self.robots is not None and (rule := (await self.robots.of(url)).forbids(url.raw_path_qs)):
            raise OptedOut(OptOut("robots.txt", rule.text, f"robots.txt line {rule.number}: {rule.text}"))
        if self.tdmrep is not None and (reserved := (await self.tdmrep.of(url)).reserves(url.raw_path_qs)):
            raise OptedOut(OptOut("tdmrep.json", reserved.text, f"tdmrep.json: {reserved.text}"))

    def close(self) -> None:
        """Forget requests under way."""
        for file in (self.robots, self.tdmrep):
            if file is not None:
                file.close()


def _unpacked(body: bytes, encoding: str) -> bytes:
    """A body that was packed although we asked for it as it is; at most LIMIT_BYTES and one. Raises ValueError."""
    encoding = encoding.strip().lower()
    if encoding in ("", "identity"):
        return body
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise ValueError(f"Content-Encoding: {encoding}")
    try:
        return zlib.decompressobj(zlib.MAX_WBITS | 32).decompress(body, LIMIT_BYTES + 1)
    except zlib.error as error:
        raise ValueError(str(error)) from None
