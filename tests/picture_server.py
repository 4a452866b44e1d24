"""A web on loopback that has pictures at /N.png and nothing else, well or ill as a test says."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any


@dataclass
class Answer:
    """What is sent; `more` follows `body` until it ends or the client has gone."""

    body: bytes
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    more: Iterable[bytes] = ()


class Pictures:
    """Answers /N.png with `file_of(N)`, or with the status that `ill` has for N; counts who asked for what."""

    def __init__(self, file_of: Callable[[int], bytes | Answer], ill: Mapping[int, int] | None = None) -> None:
        self.file_of, self.ill = file_of, dict(ill or {})
        self.asked: list[int] = []
        self.agents: set[str] = set()
        self.port = 0

    def url(self, number: int) -> str:
        return f"http://127.0.0.1:{self.port}/{number}.png"

    def answer(self, path: str, agent: str) -> Answer:
        """To a path, robots.txt among them."""
        name = path.removeprefix("/").removesuffix(".png")
        if not name.isdigit():
            return Answer(b"", 404)
        number = int(name)
        self.asked.append(number)
        self.agents.add(agent)
        if number in self.ill:
            return Answer(b"no", self.ill[number])
        found = self.file_of(number)
        return found if isinstance(found, Answer) else Answer(found)


@contextmanager
def served(pictures: Pictures) -> Iterator[Pictures]:
    """The pictures, at a port of their own until the end."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = pictures.answer(self.path, self.headers["User-Agent"])
            self.send_response(found.status)
            for name, value in {"Content-Length": str(len(found.body)), **found.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            try:
                self.wfile.write(found.body)
                for data in found.more:
                    self.wfile.write(data)
            except OSError:
                self.close_connection = True

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    pictures.port = server.server_port
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield pictures
    finally:
        server.shutdown()
        server.server_close()
