"""A small faulty web on loopback: each path answers as the test says, raw bytes if it wants to."""

import asyncio
import functools
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

LOOPBACK = ["127.0.0.0/8"]


@dataclass
class Request:
    """What was asked, with header names in lower case, and the connection to answer on."""

    path: str
    headers: dict[str, str]
    writer: asyncio.StreamWriter
    nth: int


@dataclass
class Answer:
    """A well-formed answer; `delay` in seconds before it."""

    body: bytes = b""
    status: int = 200
    headers: Mapping[str, str] | tuple[tuple[str, str], ...] = field(default_factory=dict)
    delay: float = 0.0


Route = Answer | Callable[[Request], Awaitable[None]]


@dataclass
class Site:
    """A running server: its address, how often each path was asked for, the requests, the most at once."""

    base: str
    routes: dict[str, Route]
    asked: Counter[str] = field(default_factory=Counter)
    requests: list[Request] = field(default_factory=list)
    now: int = 0
    most: int = 0

    def url(self, path: str) -> str:
        """The address of a path."""
        return self.base + path


@asynccontextmanager
async def site(routes: Mapping[str, Route], host: str = "127.0.0.1") -> AsyncIterator[Site]:
    """Serve `routes`; a path that has none is a 404."""
    here = Site("", dict(routes))
    clients: set[asyncio.Task[None]] = set()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(_client(here, reader, writer))
        clients.add(task)
        task.add_done_callback(clients.discard)

    server = await asyncio.start_server(connected, host, 0)
    here.base = f"http://{host}:{server.sockets[0].getsockname()[1]}"
    try:
        yield here
    finally:
        server.close()
        for task in clients:
            task.cancel()
        await asyncio.gather(*clients, return_exceptions=True)
        await server.wait_closed()


@asynccontextmanager
async def listener(says: bytes = b"", tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """A port that speaks no HTTP: it takes connections, says something or nothing, and keeps them open."""
    writers: list[asyncio.StreamWriter] = []

    def connected(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        writer.write(says)

    server = await asyncio.start_server(connected, "127.0.0.1", 0, ssl=tls)
    yield server.sockets[0].getsockname()[1]
    server.close()
    for writer in writers:
        writer.close()
    await server.wait_closed()


def run(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Make an async test an ordinary one."""
    @functools.wraps(test)
    def wrapped(*args: Any, **named: Any) -> None:
        asyncio.run(test(*args, **named))
    return wrapped


async def _client(here: Site, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while line := await reader.readline():
            path = line.split()[1].decode("latin-1")
            headers = {}
            while (header := (await reader.readline()).decode("latin-1").strip()):
                name, _, value = header.partition(":")
                headers[name.lower()] = value.strip()
            here.asked[path] += 1
            here.now += 1
            here.most = max(here.most, here.now)
            request = Request(path, headers, writer, here.asked[path])
            here.requests.append(request)
            try:
                await _answer(here.routes.get(path, Answer(b"no such page", 404)), request)
                await writer.drain()
            finally:
                here.now -= 1
            if writer.is_closing():
                break
    except (ConnectionError, asyncio.IncompleteReadError):
        pass
    finally:
        writer.close()


async def _answer(route: Route, request: Request) -> None:
    if not isinstance(route, Answer):
        await route(request)
        return
    if route.delay:
        await asyncio.sleep(route.delay)
    pairs = route.headers.items() if isinstance(route.headers, Mapping) else route.headers
    lines = [f"HTTP/1.1 {route.status} X", f"Content-Length: {len(route.body)}", *(f"{k}: {v}" for k, v in pairs)]
    request.writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + route.body)
