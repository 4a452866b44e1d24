"""Answers the urls of a made site on loopback, on 127.0.0.1 and as many further addresses as the site has hosts.

    python -m tests.site serve runs/site [--port 0]

    with serve(folder) as site:             # in a thread of this process, on a free port
        ...; site.log(), site.peak()

GET /__log answers {"asked": {path: times}, "peak": {host: most requests at once}, "agents": {User-Agent: requests}}. /__reset, by
GET or POST, clears all of it, and paths that fail the first time will fail again. Neither counts.
"""

import asyncio
import json
import signal
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

from tests.site.loopback import BACKLOG, listen
from tests.site.routes import Route, load, pool_for

DELAY_SECONDS = .002
"""How long an answer takes, so that requests overlap as they do elsewhere."""
CHUNK = bytes(1 << 20)
PAUSE_SECONDS = .005
ENDLESS_BYTES = 1 << 31
"""Even the endless answer ends here, far over what anybody takes."""
MAX_HEAD = 1 << 16


@dataclass(frozen=True)
class Request:
    """What a client asked: host is the address it came to, path is without a query."""

    method: str
    host: str
    path: str
    agent: str
    keep_alive: bool


class Server:
    """One site on its hosts: listens as soon as it is there, answers while `run` does. Its counters may be read by other threads.

    Port 0 means a free one, which `port` tells. Raises OSError where the port is taken.
    """

    def __init__(self, folder: Path, port: int, delay_seconds: float = DELAY_SECONDS) -> None:
        plan = load(folder)
        self._sockets = listen(plan.hosts, port)
        self.port, self.hosts = self._sockets[0].getsockname()[1], plan.hosts
        self._folder, self._routes, self._delay = folder, plan.routes, delay_seconds
        self._clients: set[asyncio.Task[None]] = set()
        self._now: Counter[str] = Counter()
        self.reset()

    def reset(self) -> None:
        """Forget what was asked."""
        self.asked: Counter[str] = Counter()
        self.agents: Counter[str] = Counter()
        self.peak: dict[str, int] = {}

    def busy(self) -> bool:
        """Whether a request is being answered."""
        return self._now.total() > 0

    async def run(self, stop: asyncio.Event) -> None:
        """Answer until `stop` is set, then hang up on everybody."""
        servers = [await asyncio.start_server(self._connected, sock=s, limit=MAX_HEAD, backlog=BACKLOG) for s in self._sockets]
        await stop.wait()
        for server in servers:
            server.close()
        for task in self._clients:
            task.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._client(reader, writer))
        self._clients.add(task)
        task.add_done_callback(self._clients.discard)

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, request after request."""
        try:
            while (request := await _request(reader, writer)) is not None:
                again = await self._counted(request, reader, writer)
                if not (again and request.keep_alive):
                    break
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError):
            pass            # the client went away, or does not talk HTTP
        finally:
            writer.close()

    async def _counted(self, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer and take note; whether the connection can go on."""
        if request.path in ("/__log", "/__reset"):
            return await self._own_page(request, writer)
        self.asked[request.path] += 1
        self.agents[request.agent] += 1
        self._now[request.host] += 1
        self.peak[request.host] = max(self.peak.get(request.host, 0), self._now[request.host])
        try:
            await asyncio.sleep(self._delay)
            return await self._answer(request, reader, writer)
        finally:
            self._now[request.host] -= 1

    async def _own_page(self, request: Request, writer: asyncio.StreamWriter) -> bool:
        if request.path == "/__reset":
            self.reset()
        said = {"asked": self.asked, "peak": self.peak, "agents": self.agents}
        return await _reply(writer, request, 200, json.dumps(said).encode(), {"Content-Type": "application/json"})

    async def _answer(self, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        route = self._routes.get(request.path)
        if route is None:
            return await _reply(writer, request, 404, b"no such page")
        if request.method not in ("GET", "HEAD"):
            return await _reply(writer, request, 405, b"only GET and HEAD")
        first = self.asked[request.path] == 1
        if first and route.mode == "flaky":
            return await _reply(writer, request, 500, b"try again")
        if first and route.mode == "busy":
            return await _reply(writer, request, 429, b"slow down", {"Retry-After": "1"})
        body = (self._folder / "site" / route.file).read_bytes() if route.file else b""
        if route.mode in ("drip", "endless"):
            await _trickle(reader, writer, route, body)
            return False
        headers = {name: value.replace("{port}", str(self.port)) for name, value in route.headers.items()}
        return await _reply(writer, request, route.status, body, {"Content-Type": route.type, **headers})


async def _request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Request | None:
    """The next request, its body thrown away; None where there is no more. Raises IncompleteReadError in the middle of one."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as error:
        if not error.partial:
            return None
        raise
    first, *lines = head.decode("latin-1").rstrip().split("\r\n")
    method, _, rest = first.partition(" ")
    target, _, version = rest.partition(" ")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    await reader.readexactly(int(headers.get("content-length", 0)))
    keep_alive = version == "HTTP/1.1" and headers.get("connection", "").lower() != "close"
    host = writer.get_extra_info("sockname")[0]
    return Request(method, host, target.partition("?")[0], headers.get("user-agent", ""), keep_alive)


async def _reply(writer: asyncio.StreamWriter, request: Request, status: int, body: bytes,
                 headers: Mapping[str, str] | None = None) -> bool:
    """A whole answer; True, because the connection can go on."""
    connection = "keep-alive" if request.keep_alive else "close"
    _head(writer, status, {"Content-Length": str(len(body)), **(headers or {}), "Connection": connection})
    if request.method != "HEAD":
        writer.write(body)
    await writer.drain()
    return True


async def _trickle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, route: Route, body: bytes) -> None:
    """A byte a second, or bytes without end, until the client goes away."""
    headers = {"Content-Type": route.type, "Connection": "close"}
    if route.mode == "drip":
        _head(writer, 200, {**headers, "Content-Length": str(len(body))})
        for i in range(len(body)):
            writer.write(body[i:i + 1])
            await writer.drain()
            if await _gone(reader, 1):
                return
    else:
        _head(writer, 200, headers)
        writer.write(body)
        for _ in range(ENDLESS_BYTES // len(CHUNK)):
            writer.write(CHUNK)
            await writer.drain()
            if await _gone(reader, PAUSE_SECONDS):
                return


async def _gone(reader: asyncio.StreamReader, seconds: float) -> bool:
    """Whether the client hangs up, or says anything more, within that time."""
    try:
        await asyncio.wait_for(reader.read(1), seconds)
    except TimeoutError:
        return False
    return True


def _head(writer: asyncio.StreamWriter, status: int, headers: Mapping[str, str]) -> None:
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", *(f"{name}: {value}" for name, value in headers.items())]
    writer.write("\r\n".join([*lines, "", ""]).encode("latin-1"))


@dataclass(frozen=True)
class Site:
    """A site that answers. `pool` names the urls with this port."""

    folder: Path
    port: int
    pool: Path
    _server: Server

    @property
    def url_base(self) -> str:
        """`http://127.0.0.1:PORT`, without a slash at the end."""
        return f"http://127.0.0.1:{self.port}"

    def log(self) -> dict[str, int]:
        """How often each path was asked for."""
        return dict(self._server.asked)

    def peak(self) -> dict[str, int]:
        """The most requests at once, by host."""
        return dict(self._server.peak)

    def agents(self) -> dict[str, int]:
        """Requests by User-Agent."""
        return dict(self._server.agents)

    def busy(self) -> bool:
        """Whether a request is being answered."""
        return self._server.busy()

    def reset(self) -> None:
        """Forget all of it, and that flaky paths failed already."""
        self._server.reset()


@contextmanager
def serve(folder: Path, port: int = 0, delay_seconds: float = DELAY_SECONDS) -> Iterator[Site]:
    """The site on a free port (or on that one) in a thread of its own; pool.parquet and truth.parquet are made to name the port.

    Raises FileNotFoundError where no site was made, OSError where the port is taken.
    """
    server = Server(folder, port, delay_seconds)
    ready: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()

    async def main() -> None:
        stop = asyncio.Event()
        ready.set_result((asyncio.get_running_loop(), stop))
        await server.run(stop)

    thread = threading.Thread(target=lambda: asyncio.run(main()), name="site")
    thread.start()
    loop, stop = ready.result()
    try:
        yield Site(folder, server.port, pool_for(folder, server.port), server)
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()


async def serve_until_told(folder: Path, port: int | None) -> None:
    """The site in this process until SIGINT or SIGTERM, on the port that its urls name where none is given."""
    server = Server(folder, load(folder).port if port is None else port)
    pool_for(folder, server.port)
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    print(f"serving {folder} on http://127.0.0.1:{server.port}, {server.hosts} hosts", flush=True)
    await server.run(stop)
