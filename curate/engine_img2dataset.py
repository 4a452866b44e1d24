"""`download: {engine: img2dataset}`: img2dataset's own functions ask for a url and resize its picture, driven as ours are.

For who wants exactly its pixels (OpenCV's `area`), or wants to compare. Attempts without a pause between them, redirects and how
a picture is read (not turned upright, say) stay theirs. What would harm somebody else or us is not left to them: every connection
goes to an address that was checked, by http and https only and by no proxy of the environment; `max_bytes` and the deadline hold;
opt-outs are read as ever, but robots.txt and the operator's list for the first hop only; decoder processes resize.
"""

import asyncio
import http.client
import io
import os
import re
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from curate.decoding.convert import Recipe
from curate.decoding.images import LARGE_PIXELS, BadImage, Fit, probe
from curate.fetching.addresses import Failure, Network, check_address, check_literal, lookup, one_line, parse_url
from curate.fetching.fetch import Fetcher, Limits, Outcome, class_of, host_of
from curate.fetching.opt_out import OptedOut, OptOut, Signal, said_in_headers

WORK = "curate.engine_img2dataset:resizer"
"""What `curate.decoding.decode.Decoders` is told."""
_CHUNK = 2**16
_HTTP = re.compile(r"HTTP Error (\d{3}): (.*)", re.DOTALL)
_OWN = re.compile(r"(bad_scheme|bad_url|private_address|dns|too_large|slow|opt_out): (.*)", re.DOTALL)
_MEANT = (("infinite loop", "too_many_redirects"), ("Redirection to url", "bad_scheme"), ("unknown url type", "bad_scheme"),
          ("timed out", "timeout"), ("SSL", "tls"), ("Errno", "connect"), ("Remote end closed", "connect"))
"""What its error texts contain → our status; the first that fits."""


class Img2DatasetFetcher(Fetcher):
    """Asks as `Fetcher` does, through img2dataset's `download_image`."""

    async def start(self) -> None:
        """Open what `Fetcher` opens, and make its library ask through checked connections, in this whole process."""
        await super().start()
        from img2dataset.downloader import download_image

        self._download_image: Callable[..., tuple[Any, io.BytesIO | None, str | None]] = download_image
        self._threads = ThreadPoolExecutor(self.limits.concurrency, thread_name_prefix="img2dataset")
        urllib.request.install_opener(_opener(self.limits))

    async def close(self) -> None:
        """Close them."""
        await super().close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def get(self, url: str) -> Outcome:
        """What its functions made of `url`; a site's rules are asked for as ever."""
        if self._gate is None:
            return await super().get(url)
        begin, attempts = time.monotonic(), [0]
        try:
            body = await self._through_library(url, attempts)
            return Outcome("ok", "", None, body, final_url=url, attempts=attempts[0], seconds=time.monotonic() - begin)
        except Failure as failure:
            return Outcome(failure.status, failure.error, failure.http_status, final_url=url, attempts=attempts[0],
                           seconds=time.monotonic() - begin, said=failure.said if isinstance(failure, OptedOut) else None)

    async def _through_library(self, text: str, attempts: list[int]) -> bytes:
        url = parse_url(text)
        check_literal(url.raw_host or "", self.limits.networks)
        if self._gate is not None:
            await self._gate.check(url)
        async with self._places.at(host_of(url)) as place:
            body = await asyncio.get_running_loop().run_in_executor(self._threads, self._asked, str(url), attempts)
            if isinstance(body, Failure):
                self._breaker.heard(host_of(url), body.status, body.http_status)
                raise body
            self._breaker.heard(host_of(url), "ok", 200)
            place.keep()
            if not body:
                raise Failure("empty", "no bytes")
            if not self._accept(body):
                raise Failure("wrong_type", "not a picture")
            if self._room is not None:
                await self._room.acquire()
        return body

    def _asked(self, url: str, attempts: list[int]) -> bytes | Failure:
        """All attempts without a pause, as its own retries are; `attempts` counts them. `_opener` reads opt-outs in headers."""
        error: str | None = None
        for attempts[0] in range(1, self.limits.retries + 2):
            _, stream, error = self._download_image((0, url), self.limits.timeout_seconds, None, None)
            if stream is not None:
                return bytes(stream.getvalue())
        return failure_of(error or "")


def failure_of(error: str) -> Failure:
    """Our status for an error text of img2dataset's. What it says of nothing we know is bad_http."""
    if found := _OWN.fullmatch(error):
        status, text = found.groups()
        signal: Signal = "tdm-reservation" if text.startswith("tdm") else "x-robots-tag"
        return OptedOut(OptOut(signal, text, text)) if status == "opt_out" else Failure(status, text)
    meant = next((status for part, status in _MEANT if part in error), None)
    if meant is None and (found := _HTTP.match(error)):
        return Failure(class_of(int(found[1])), found[2], http_status=int(found[1]))
    return Failure(meant or "bad_http", error)


def resizer(settings: Mapping[str, Any], alone: AbstractContextManager[None]) -> Any:
    """A function (file, {"boxes": [...]}) → (columns, file to store or None), by img2dataset's Resizer. As `decoding.convert`."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    from img2dataset.blurrer import BoundingBoxBlurrer
    from img2dataset.resizer import Resizer

    recipe = Recipe(**{**settings, "fit": Fit(**settings["fit"])})
    resize = Resizer(recipe.fit.size, recipe.fit.mode, recipe.fit.only_if_bigger, encode_format=recipe.encode_format,
                     encode_quality=recipe.quality, skip_reencode=recipe.skip_reencode, blurrer=BoundingBoxBlurrer())

    def convert(body: bytes, ask: Mapping[str, Any]) -> tuple[dict[str, Any], bytes | None]:
        try:
            kind, width, height = probe(body, recipe.max_pixels)
        except BadImage as error:
            return {"status": error.status, "error": str(error)}, None
        with alone if width * height > LARGE_PIXELS else nullcontext():
            stored, _, _, width, height, problem = resize(io.BytesIO(body), ask["boxes"] or None)
        if problem is not None:
            return {"status": "decode_error", "error": one_line(problem)}, None
        return {"original_format": kind, "original_width_px": width, "original_height_px": height}, bytes(stored)

    return convert


def _opener(limits: Limits) -> urllib.request.OpenerDirector:
    """urllib's way to ask, within `limits`: through connections to checked addresses only, and opt-outs read as we read them."""

    class Answer(http.client.HTTPResponse):
        def read(self, amt: int | None = None) -> bytes:
            return super().read(amt) if amt is not None else _whole_body(super().read1, limits)

    class Plain(http.client.HTTPConnection):
        response_class = Answer

        def connect(self) -> None:
            self.sock = _connected(self.host, self.port, self.timeout, limits.networks)

    class Secure(Plain):
        default_port = 443

        def connect(self) -> None:
            super().connect()
            self.sock = context.wrap_socket(self.sock, server_hostname=self.host)

    class Handler(urllib.request.AbstractHTTPHandler):
        handler_order = 100             # before any other looks at an answer

        def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
            return self.do_open(Plain, request)

        def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
            return self.do_open(Secure, request)

        def http_response(self, request: urllib.request.Request, answer: http.client.HTTPResponse) -> http.client.HTTPResponse:
            tags, reserved = (answer.headers.get_all(name, []) for name in ("X-Robots-Tag", "tdm-reservation"))
            if limits.deny and (said := said_in_headers(tags, reserved, limits.token, limits.deny, limits.strict)):
                raise OptedOut(said, answer.status)
            return answer

        http_request = https_request = urllib.request.AbstractHTTPHandler.do_request_
        https_response = http_response

    context, opener = ssl.create_default_context(), urllib.request.OpenerDirector()
    for handler in (Handler(), urllib.request.HTTPDefaultErrorHandler(), urllib.request.HTTPRedirectHandler(),
                    urllib.request.HTTPErrorProcessor(), urllib.request.UnknownHandler()):
        opener.add_handler(handler)
    return opener


def _whole_body(read1: Callable[[int], bytes], limits: Limits) -> bytes:
    """All of a body. Raises Failure: too_large, slow."""
    parts: list[bytes] = []
    size, end = 0, time.monotonic() + limits.deadline_seconds
    while part := read1(_CHUNK):
        parts.append(part)
        size += len(part)
        if size > limits.max_bytes:
            raise Failure("too_large", f"more than {limits.max_bytes} bytes")
        if time.monotonic() > end:
            raise Failure("slow", "the body did not come in time")
    return b"".join(parts)


def _connected(host: str, port: int, timeout: Any, networks: Sequence[Network]) -> socket.socket:
    """A connection to an address of `host` that was checked. Raises Failure, OSError."""
    check_literal(host, networks)
    try:
        found = lookup(host)
    except OSError as error:
        raise Failure("dns", f"{host}: {error.strerror}") from None
    for address in found:
        check_address(address, networks)
    return socket.create_connection((found[0], port), timeout)
