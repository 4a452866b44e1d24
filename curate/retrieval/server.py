"""The retrieval demo's server: an index behind HTTP, the page that asks it, and nothing that leaves this machine.

    GET /                       the page
    POST /v1/search             hits for texts, pictures, rows and vectors, added and subtracted, with thumbnails' addresses
    POST /v1/export             the uids of what a search finds, for `curate shard --uids`
    GET /v1/info /v1/sample/{uid} /v1/image/{uid} /v1/funnel /v1/rounds /v1/card /v1/openapi.json /healthz /metrics

What a row's policy forbids is not found here, in the same words as what was never there. No address that a client names is ever
fetched. Searches run in a few threads with a bounded line before them; a search that fails for another reason than its question
is a 503 and never an unfiltered answer.
"""

import asyncio
import io
import logging
import math
import socket
import sys
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import date, datetime
from decimal import Decimal
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import numpy as np
import prometheus_client as prometheus
import pyarrow as pa
import pyarrow.parquet as pq
from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException

from curate import files, tombstones
from curate.decoding import images
from curate.decoding.images import BadImage, Fit
from curate.errors import UserError
from curate.retrieval.guard import Guard, Limits, Refused, problem
from curate.retrieval.limits import Busy, Hosts, Slots, retry_after
from curate.retrieval.messages import ExportBody, Problem, SearchAnswer, SearchBody, read
from curate.retrieval.query import BadQuery, Part
from curate.retrieval.query import Request as Asked
from curate.shards import UID_PAIR, uid_bytes

if TYPE_CHECKING:
    from curate.retrieval.search import Searcher

T = TypeVar("T")
WEB = Path(__file__).parent / "web"
TYPES = {".html": "text/html; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8",
         ".svg": "image/svg+xml"}
RECORDS = {"funnel": "funnel.json", "rounds": "rounds.json", "card": "card/croissant.json"}
"""What a run's folder may hold and is served as it is."""
Side = Annotated[int, Query(ge=16, le=1024, description="The longer side in pixels.")]
THUMB = "/v1/image/{uid}"
THUMB_QUALITY = 85
WAITING_SEARCHES, PICTURE_THREADS, WAITING_PICTURES, MAX_CONNECTIONS = 32, 2, 256, 512
PROBLEMS: dict[int | str, dict[str, Any]] = {
    400: {"model": Problem, "description": "The question is wrong; the message says what is allowed."},
    413: {"model": Problem, "description": "The body is too large."},
    429: {"model": Problem, "description": "Too many requests; Retry-After says how many seconds to wait."},
    503: {"model": Problem, "description": "Too many searches at once (Retry-After), or the index cannot answer."},
}
NOT_FOUND: dict[int | str, dict[str, Any]] = {404: {"model": Problem, "description": "There is none, or none that may be seen."}}
log = logging.getLogger("curate.retrieval.server")


@dataclass(frozen=True)
class Settings:
    """How a server behaves: the names it answers to, its limits, how many searches run at once and may wait."""

    hosts: Hosts = field(default_factory=lambda: Hosts("127.0.0.1"))
    limits: Limits = Limits()
    threads: int = 2
    waiting: int = WAITING_SEARCHES


def serve(root: Path, *, host: str, port: int, policy: str, model: str, rate: float, threads: int, names: Sequence[str]) -> None:
    """Serve the index of the run at `root` until interrupted; prints the address. Port 0 takes a free one.

    Raises UserError where the index cannot be opened under this policy, or the address cannot be had: then nothing is served.
    """
    import uvicorn

    from curate.retrieval.search import Searcher

    searcher = Searcher.open(root, model=model, policy=policy)
    settings = Settings(Hosts(host, names), Limits(rate=rate, burst=3 * rate), threads)
    with _bound(host, port) as listener:
        shown = f"[{host}]" if ":" in host else host
        print(f"http://{shown}:{listener.getsockname()[1]}", flush=True)
        config = uvicorn.Config(create_app(searcher, root, settings), log_level="warning", access_log=False, http="h11",
                                ws="none", proxy_headers=False, server_header=False, limit_concurrency=MAX_CONNECTIONS,
                                timeout_keep_alive=20, timeout_graceful_shutdown=5)
        threading.Thread(target=_warm, args=(searcher,), daemon=True).start()
        with suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[listener])


def _warm(searcher: "Searcher") -> None:
    """Load the model before somebody waits for it; without it the rest can still be asked."""
    try:
        searcher.search(Asked((Part(text="a picture"),), k=1))
    except UserError as error:
        print(f"no searches by text or picture: {error}", file=sys.stderr)


def create_app(searcher: "Searcher", root: Path, settings: Settings | None = None) -> Guard:
    """The server as an ASGI application, limits and headers included."""
    settings = settings or Settings()
    api = Api(searcher, root, settings)
    app = FastAPI(title="curate", summary="Search a run's pictures and captions.", version="1", docs_url=None, redoc_url=None,
                  openapi_url="/v1/openapi.json", lifespan=api.lifespan)
    api.add_routes(app)
    _answer_problems(app)
    _document_bodies(app)
    return Guard(app, settings.hosts, settings.limits, api.metrics.seen)


class Metrics:
    """What `/metrics` tells: requests by route and status, and how long they and the stages of a search took."""

    def __init__(self, searches: Slots) -> None:
        self.registry = prometheus.CollectorRegistry()
        self._requests = prometheus.Counter("curate_requests", "Requests answered.", ["route", "status"],
                                            registry=self.registry)
        self._seconds = prometheus.Histogram("curate_request_seconds", "From request to answer.", ["route"],
                                             registry=self.registry)
        self._stages = prometheus.Summary("curate_search_stage_seconds", "Stages of a search.", ["stage"],
                                          registry=self.registry)
        running = prometheus.Gauge("curate_searches_now", "Searches working or waiting.", registry=self.registry)
        running.set_function(lambda: searches.now)

    def seen(self, route: str, status: int, seconds: float) -> None:
        """A request was answered."""
        self._requests.labels(route, status).inc()
        self._seconds.labels(route).observe(seconds)

    def searched(self, milliseconds: dict[str, float]) -> None:
        """A search was answered."""
        for stage, value in milliseconds.items():
            self._stages.labels(stage).observe(value / 1000)


class Api:
    """The handlers, and what they share."""

    def __init__(self, searcher: "Searcher", root: Path, settings: Settings) -> None:
        self.searcher, self.root, self.about = searcher, root, searcher.info
        self.taken_down = tombstones.state_of(root)
        self.searches = Slots("search", settings.threads, settings.waiting)
        self.pictures = Slots("picture", PICTURE_THREADS, WAITING_PICTURES)
        self.metrics = Metrics(self.searches)
        self.web = {path.name: path.read_bytes() for path in WEB.iterdir() if path.suffix in TYPES}

    @asynccontextmanager
    async def lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        """Ends the threads with the server."""
        yield
        self.searches.close()
        self.pictures.close()

    def add_routes(self, app: FastAPI) -> None:
        """Every address there is."""
        app.add_api_route("/v1/search", self.search, methods=["POST"], response_model=SearchAnswer, responses=PROBLEMS,
                          openapi_extra=_takes(SearchBody))
        app.add_api_route("/v1/export", self.export, methods=["POST"], response_class=Response, responses=PROBLEMS,
                          openapi_extra=_takes(ExportBody))
        app.add_api_route("/v1/info", self.info)
        app.add_api_route("/v1/sample/{uid:path}", self.sample, responses=NOT_FOUND)
        app.add_api_route("/v1/image/{uid:path}", self.image, response_class=Response, responses=NOT_FOUND)
        app.add_api_route("/v1/funnel", self.funnel, responses=NOT_FOUND)
        app.add_api_route("/v1/rounds", self.rounds, responses=NOT_FOUND)
        app.add_api_route("/v1/card", self.card, responses=NOT_FOUND)
        app.add_api_route("/healthz", self.health)
        app.add_api_route("/metrics", self.prometheus, response_class=Response)
        app.add_api_route("/", self.index, include_in_schema=False)
        app.add_api_route("/web/{name}", self.file, include_in_schema=False)

    async def search(self, request: Request) -> SearchAnswer:
        """Rows like the texts, pictures, rows and vectors of a query, added and subtracted by weight; a page at a time."""
        body = read(SearchBody, await request.body())
        page = await self._ask(lambda: self.searcher.search(body.request(body.k, body.after)))
        self.metrics.searched(page.milliseconds)
        return SearchAnswer.of(page, THUMB, self.about)

    async def export(self, request: Request) -> Response:
        """The uids of what a search finds, as a file."""
        body = read(ExportBody, await request.body())
        uids = await self._ask(lambda: self.searcher.uids(body.request(1), body.limit))
        data = _npy(uids) if body.format == "npy" else _parquet(uids)
        return Response(data, media_type="application/octet-stream",
                        headers={"content-disposition": f'attachment; filename="found.{body.format}"', "x-rows": str(len(uids))})

    async def info(self) -> dict[str, Any]:
        """What is served: the run, its rows, the model, the policy, the columns that `where` may name, the records there are."""
        there = [name for name, file in RECORDS.items() if (self.root / file).exists()]
        return {**{name: _plain(value) for name, value in self.about.items()}, "records": there}

    async def sample(self, uid: str) -> dict[str, Any]:
        """Every measurement of a row, the verdict of every keep, its near-duplicates."""
        found = await self._ask(lambda: self.searcher.sample(uid))
        if found is None:
            raise _not_found()
        return {name: _plain(value) for name, value in found.items()}

    async def image(self, uid: str, size: Side = 256) -> Response:
        """A row's picture, decoded and encoded anew; a placeholder where it cannot be decoded."""
        data = await self._ask(lambda: self._thumbnail(uid, size), self.pictures)
        if data is None:
            raise _not_found()
        kind, body = ("image/jpeg", data) if data else (TYPES[".svg"], self.web["placeholder.svg"])
        return Response(body, media_type=kind, headers={"cache-control": "private, max-age=300"})

    async def funnel(self) -> list[dict[str, Any]]:
        """Rows in and out of every stage of the run, with each reason."""
        return list(self._recorded("funnel"))

    async def rounds(self) -> list[dict[str, Any]]:
        """The rounds of a loop: weights, data, figures, funnel."""
        return list(self._recorded("rounds"))

    async def card(self) -> dict[str, Any]:
        """The data card, as Croissant JSON-LD."""
        return dict(self._recorded("card"))

    async def health(self) -> dict[str, str]:
        """Whether the server answers."""
        return {"status": "ok"}

    async def prometheus(self) -> Response:
        """Figures for Prometheus."""
        return Response(prometheus.generate_latest(self.metrics.registry), media_type=prometheus.CONTENT_TYPE_LATEST)

    async def index(self) -> Response:
        """The page."""
        return await self.file("index.html")

    async def file(self, name: str) -> Response:
        """A file of the page; they are all in memory, so a name cannot lead anywhere else."""
        if name not in self.web:
            raise _not_found()
        return Response(self.web[name], media_type=TYPES[Path(name).suffix], headers={"cache-control": "no-cache"})

    async def _ask(self, work: Callable[[], T], slots: Slots | None = None) -> T:
        """What `work` gives in a thread. Raises BadQuery, Busy; any other fault is logged and told as a 503."""
        if tombstones.state_of(self.root) != self.taken_down:
            raise Refused(503, "unavailable", "rows were taken down since this server started; it has to be started again")
        future = (slots or self.searches).submit(work)
        await asyncio.wait([future])
        error = future.exception()
        if error is None:
            return future.result()
        if isinstance(error, BadQuery):
            raise error
        log.error("no answer", exc_info=error)
        raise Refused(503, "unavailable", "the index cannot answer; the server's log says why") from error

    def _thumbnail(self, uid: str, size: int) -> bytes | None:
        """A JPEG of at most `size` pixels a side; empty where the picture is broken, None where there is none to be seen."""
        data = self.searcher.image(uid)
        if data is None:
            return None
        fit = Fit(size, "keep_ratio_largest", only_if_bigger=True)
        try:
            return images.encode(images.load(data, fit).image, "jpg", THUMB_QUALITY)
        except BadImage:
            return b""

    def _recorded(self, name: str) -> Any:
        found = files.read_json(self.root / RECORDS[name])
        if found is None:
            raise _not_found()
        return found


def _takes(model: type[BaseModel]) -> dict[str, Any]:
    """The description of a body that a handler reads by itself, so that its size and form are checked before anything else."""
    schema = {"$ref": f"#/components/schemas/{model.__name__}"}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def _document_bodies(app: FastAPI) -> None:
    plain = app.openapi
    pairs: list[tuple[type[BaseModel], Literal["validation"]]] = [(SearchBody, "validation"), (ExportBody, "validation")]
    _, bodies = models_json_schema(pairs, ref_template="#/components/schemas/{model}")

    def openapi() -> dict[str, Any]:
        schema = plain()
        schema["components"]["schemas"].update(bodies["$defs"])
        return schema

    app.openapi = openapi   # type: ignore[method-assign]  # FastAPI's own way to extend it


def _answer_problems(app: FastAPI) -> None:
    """Every fault in the same form."""
    def answer(status: int, word: str, message: str, wait: float = 0.0) -> JSONResponse:
        headers = {"retry-after": retry_after(wait)} if wait else None
        return JSONResponse(problem(word, message), status, headers)

    def refused(_: Request, error: Exception) -> Response:
        assert isinstance(error, Refused)
        return answer(error.status, error.word, error.message, error.wait)

    def http(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return answer(error.status_code, HTTPStatus(error.status_code).phrase.lower().replace(" ", "_"), str(error.detail))

    app.add_exception_handler(Refused, refused)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(Busy, lambda *_: answer(503, "busy", "too many searches at once", 1.0))
    app.add_exception_handler(BadQuery, lambda _, error: answer(400, "bad_query", str(error)))
    app.add_exception_handler(RequestValidationError, lambda *_: answer(400, "bad_query", "size: a number from 16 to 1024"))
    app.add_exception_handler(Exception, lambda *_: answer(500, "fault", "a fault of the server; its log says more"))


def _not_found() -> Refused:
    """The same for what is not there and for what may not be seen."""
    return Refused(404, "not_found", "there is none")


def _npy(uids: Sequence[str]) -> bytes:
    """DataComp's array of uids: sorted pairs u8,u8."""
    out = io.BytesIO()
    np.save(out, np.unique(uid_bytes(uids)).view(">u8").astype("<u8").view(UID_PAIR))
    return out.getvalue()


def _parquet(uids: Sequence[str]) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.table({"uid": pa.array(uids, pa.string())}), out, compression="zstd")
    return out.getvalue()


def _plain(value: Any) -> Any:
    """A value as JSON can say it: no NaN, no bytes, no long lists."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, datetime | date | Decimal):
        return str(value)
    if isinstance(value, Mapping):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value


def _bound(host: str, port: int) -> socket.socket:
    """A listening socket. Raises UserError where the address cannot be had."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family, backlog=MAX_CONNECTIONS)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)      # else headers wait 40 ms for the client's nod
        return listener
    except (OSError, OverflowError) as error:
        raise UserError(f"cannot listen on {host}:{port}: {error}; --port 0 takes a free one") from None
