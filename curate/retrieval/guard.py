"""What stands between a socket and the application: names, rates, sizes and headers, for every request alike.

    Host not served → 421 · tokens used up → 429 · body over the limit → 413 · too many bodies at once → 503 · body too slow → 408

The body is read whole before the application sees the request, so no handler can forget to limit it.
"""

import asyncio
import json
import time
from collections.abc import Callable, Mapping, MutableMapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from curate.retrieval.limits import Hosts, Tokens, retry_after

CSP = ("default-src 'none'; img-src 'self' data:; script-src 'self'; style-src 'self'; connect-src 'self'; base-uri 'none'; "
       "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'")
HEADERS = {
    "content-security-policy": CSP,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}
"""On every answer, whoever gives it."""
COSTS = {"/v1/search": 1.0, "/v1/export": 5.0, "/v1/sample/": 0.2}
CHEAP = 0.05
"""Tokens a request costs by how its path begins; a thumbnail or a file of the page is cheap (our choice: a search with its page
of 40 thumbnails costs three tokens)."""
BODY_SECONDS = 15.0
"""How long a body may take to arrive."""
DRAIN_SECONDS, SILENCE_SECONDS = 0.8, 0.2
"""How long the body of a refused request is read and thrown away, and for how long nothing may come of it: a client that is still
sending would see a reset connection instead of the answer."""


class Refused(Exception):
    """A request that goes no further: a status, a word for programs, a line for people, perhaps the seconds to wait."""

    def __init__(self, status: int, word: str, message: str, wait: float = 0.0) -> None:
        super().__init__(message)
        self.status, self.word, self.message, self.wait = status, word, message, wait


@dataclass(frozen=True)
class Limits:
    """Bytes of one body and of all bodies in flight, and the tokens of a client: a second, and saved up."""

    body_bytes: int = 8 << 20
    all_bodies_bytes: int = 64 << 20
    rate: float = 20.0
    burst: float = 60.0


Seen = Callable[[str, int, float], None]
"""Told of every answer: the route's path with its parameters unfilled (`other` where there is none), status, seconds."""


class Guard:
    """The ASGI application `app` behind these limits."""

    def __init__(self, app: ASGIApp, hosts: Hosts, limits: Limits, seen: Seen) -> None:
        self.app, self.hosts, self.limits, self.seen = app, hosts, limits, seen
        self._tokens = Tokens(limits.rate, limits.burst)
        self._held = 0      # bytes of the bodies in flight

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008})

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        start, status, body = time.perf_counter(), 0, bytearray()

        async def guarded(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                _add_headers(message)
            await send(message)

        try:
            self._check(scope)
            if scope["method"] not in ("GET", "HEAD"):
                await self._read(scope, receive, body)
            await self.app(scope, _replay(body, receive), guarded)
        except Refused as refused:
            await _drain(scope, receive)
            await _answer(refused, guarded)
        finally:
            self._held -= len(body)
            route = scope.get("route")
            self.seen(route.path if route is not None else "other", status, time.perf_counter() - start)

    def _check(self, scope: Scope) -> None:
        headers = _headers(scope)
        if headers.get("host", "") not in self.hosts:
            raise Refused(421, "wrong_host", "this server does not answer to that name; start it with --name to add one")
        client = (scope.get("client") or ("",))[0]
        wait = self._tokens.take(client, cost(scope["path"]))
        if wait:
            raise Refused(429, "too_many_requests", f"more than {self.limits.rate:g} requests a second", wait)
        length = headers.get("content-length", "0")
        if not (length.isascii() and length.isdigit()) or len(length) > 18:
            raise Refused(400, "bad_length", "Content-Length is a number")
        if int(length) > self.limits.body_bytes:
            raise self._too_large()

    async def _read(self, scope: Scope, receive: Receive, body: bytearray) -> None:
        """The whole body into `body`."""
        try:
            async with asyncio.timeout(BODY_SECONDS):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise Refused(400, "gone", "the body ended too early")
                    self._hold(message.get("body", b""), body)
                    if not message.get("more_body"):
                        return
        except TimeoutError:
            raise Refused(408, "too_slow", f"the body took longer than {BODY_SECONDS:g} seconds") from None

    def _hold(self, chunk: bytes, body: bytearray) -> None:
        if len(body) + len(chunk) > self.limits.body_bytes:
            raise self._too_large()
        if self._held + len(chunk) > self.limits.all_bodies_bytes:
            raise Refused(503, "busy", "too many uploads at once", 1.0)
        self._held += len(chunk)
        body += chunk

    def _too_large(self) -> Refused:
        return Refused(413, "too_large", f"a body has at most {self.limits.body_bytes:,} bytes")


def cost(path: str) -> float:
    """The tokens a request costs."""
    return next((tokens for start, tokens in COSTS.items() if path.startswith(start)), CHEAP)


def problem(word: str, message: str) -> dict[str, str]:
    """The body of every answer that is no success."""
    return {"error": word, "message": message}


def _headers(scope: Scope) -> dict[str, str]:
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}


def _add_headers(message: MutableMapping[str, Any]) -> None:
    there = {name.lower() for name, _ in message.get("headers", ())}
    added = _raw({name: value for name, value in HEADERS.items() if name.encode() not in there})
    message["headers"] = [*message.get("headers", ()), *added]


def _raw(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]


def _replay(body: bytearray, receive: Receive) -> Receive:
    """Gives the body that was read, then whatever comes."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": bytes(body), "more_body": False}

    return replay


async def _drain(scope: Scope, receive: Receive) -> None:
    if scope["method"] in ("GET", "HEAD") or "expect" in _headers(scope):
        return
    end, more = time.monotonic() + DRAIN_SECONDS, True
    with suppress(TimeoutError):
        while more and time.monotonic() < end:
            async with asyncio.timeout(SILENCE_SECONDS):
                more = (await receive()).get("more_body", False)


async def _answer(refused: Refused, send: Send) -> None:
    body = json.dumps(problem(refused.word, refused.message)).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body)), "connection": "close"}
    if refused.wait:
        headers["retry-after"] = retry_after(refused.wait)
    await send({"type": "http.response.start", "status": refused.status, "headers": _raw(headers)})
    await send({"type": "http.response.body", "body": body})
