"""The retrieval server: what it answers, and that nothing hostile gets more than a short refusal."""

import asyncio
import base64
import http.client
import io
import json
import socket
import struct
import threading
import time
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from starlette.testclient import TestClient

from curate.cli import main
from curate.reshard import read_uids
from curate.retrieval.guard import CSP, Guard, Limits
from curate.retrieval.limits import Busy, Hosts, Slots, Tokens
from curate.retrieval.query import Part
from curate.retrieval.server import Settings, create_app
from curate.shards import UID_PAIR, uid_bytes
from tests.colours import DROPPED_BY, ROWS, SCRIPT, WORDS, Colours, uid_of
from tests.serving import serving

HOST = "127.0.0.1"
FREE = Limits(rate=10_000, burst=10_000)
RED = [float(word == "red") for word in WORDS]
NOT_FOUND = {"error": "not_found", "message": "there is none"}


def application(searcher: Colours, root: Path = Path("nowhere"), **settings: Any) -> Guard:
    return create_app(searcher, root, Settings(**{"limits": FREE, **settings}))     # type: ignore[arg-type]


@contextmanager
def client(searcher: Colours | None = None, root: Path = Path("nowhere"), **settings: Any) -> Iterator[TestClient]:
    app = application(searcher or Colours(), root, **settings)
    with TestClient(app, f"http://{HOST}", raise_server_exceptions=False) as open_:
        yield open_


def png(width: int, height: int) -> bytes:
    """A PNG whose header promises that many grey pixels, and whose data are none."""
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)) + chunk(b"IDAT", b"")


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


# What it answers


def test_a_search_says_what_it_found_and_what_it_left_out() -> None:
    with client() as web:
        answer = web.post("/v1/search", json={"query": [{"text": "a red square"}], "k": 2}).json()
    assert [r["caption"] for r in answer["results"]] == [f"a red square of {n} pixels" for n in (96, 160)]
    assert answer["results"][1] | {"score": 0} == {
        "uid": uid_of(6), "score": 0, "caption": "a red square of 160 pixels", "url": "https://pictures.example/6.jpg",
        "width_px": 160, "height_px": 96, "state": "kept", "reason": None, "group_size": 2, "group": [uid_of(7)],
        "thumb": f"/v1/image/{uid_of(6)}"}
    assert answer["left_out"] == {"policy": 0, "where": 0, "dropped": 5, "same_picture": 15}
    assert (answer["searched"], answer["exhausted"], answer["index_id"], answer["policy_id"]) == (60, False, "i0", "p0")
    assert answer["timings_ms"].keys() == {"search"}


def test_pages_join_up_without_gaps_or_repeats() -> None:
    seen, body = [], {"query": [{"text": "blue"}], "k": 7, "group": False}
    with client() as web:
        while True:
            page = web.post("/v1/search", json=body).json()
            seen += [r["uid"] for r in page["results"]]
            if page["exhausted"]:
                break
            body["after"] = page["after"]
    assert sorted(seen) == sorted(uid_of(r.number) for r in ROWS if r.state == "kept")
    assert page["after"] == ""


def test_every_setting_reaches_the_index() -> None:
    searcher = Colours()
    picture = ROWS[13].picture()
    query = [{"text": "a"}, {"image_b64": b64(picture), "weight": 0.5}, {"uid": uid_of(3), "weight": -1}, {"vector": RED}]
    with client(searcher) as web:
        done = web.post("/v1/search", json={"query": query, "k": 2, "where": "width_px >= 100", "dropped": True, "group": False,
                                             "after": "2", "against": "text"})
    assert done.status_code == 200
    (request,) = searcher.requests
    assert request.parts == (Part(text="a"), Part(image=picture, weight=0.5), Part(uid=uid_of(3), weight=-1),
                             Part(vector=tuple(RED)))
    assert (request.k, request.where, request.dropped, request.group, request.after, request.against) == \
        (2, "width_px >= 100", True, False, "2", "text")


def test_a_dropped_row_says_what_dropped_it() -> None:
    with client() as web:
        answer = web.post("/v1/search", json={"query": [{"uid": uid_of(4)}], "dropped": True, "k": 3}).json()
        gone = {r["uid"]: r["reason"] for r in answer["results"] if r["state"] == "dropped"}
        sample = web.get(f"/v1/sample/{uid_of(5)}").json()
    assert gone == {uid_of(5): DROPPED_BY}
    assert sample["verdicts"][1] == {"line": 7, "text": "num_words between 3 and 256", "verdict": "no"}
    assert sample["columns"]["clip_cos"] == "nan"       # JSON has no NaN


@pytest.mark.parametrize("size", [16, 64, 256])
def test_a_thumbnail_is_encoded_anew(size: int) -> None:
    with client() as web:
        answer = web.get(f"/v1/image/{uid_of(2)}", params={"size": size})
    image = Image.open(io.BytesIO(answer.content))
    assert (answer.headers["content-type"], image.format, max(image.size)) == ("image/jpeg", "JPEG", min(size, 160))


def test_a_broken_picture_has_a_placeholder() -> None:
    with client(Colours(broken=frozenset({2}))) as web:
        answer = web.get(f"/v1/image/{uid_of(2)}")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/svg+xml")


@pytest.mark.parametrize("form", ["npy", "parquet"])
def test_an_export_is_what_curate_shard_takes(form: str, tmp_path: Path) -> None:
    body = {"query": [{"text": "green"}], "where": "width_px >= 160", "group": False, "format": form}
    with client() as web:
        answer = web.post("/v1/export", json=body)
    file = tmp_path / f"found.{form}"
    file.write_bytes(answer.content)
    uids = [uid_of(r.number) for r in ROWS if r.width_px >= 160]
    assert answer.headers["content-disposition"] == f'attachment; filename="found.{form}"'
    assert answer.headers["x-rows"] == str(len(uids)) == "30"
    assert sorted(read_uids(file).tolist()) == sorted(uid_bytes(uids).tolist())
    if form == "npy":
        assert np.load(file).dtype == UID_PAIR
    else:
        assert set(pq.read_table(file)["uid"].to_pylist()) == set(uids)


def test_an_export_is_capped() -> None:
    with client() as web:
        assert web.post("/v1/export", json={"limit": 5}).headers["x-rows"] == "5"
        assert web.post("/v1/export", json={"limit": 10**6}).status_code == 400


@pytest.mark.parametrize("name", ["funnel", "rounds", "card"])
def test_what_the_run_recorded_is_served_and_what_it_did_not_is_a_404(name: str, tmp_path: Path) -> None:
    with client(root=tmp_path) as web:
        assert (web.get(f"/v1/{name}").status_code, web.get(f"/v1/{name}").json()) == (404, NOT_FOUND)
        file = tmp_path / ("card/croissant.json" if name == "card" else f"{name}.json")
        file.parent.mkdir(exist_ok=True)
        file.write_text('{"name": "x"}' if name == "card" else '[{"what": "source"}]')
        assert web.get(f"/v1/{name}").status_code == 200


def test_the_api_describes_itself() -> None:
    with client() as web:
        api = web.get("/v1/openapi.json").json()
    assert {"/v1/search", "/v1/export", "/v1/info", "/v1/sample/{uid}", "/v1/image/{uid}"} <= api["paths"].keys()
    body = api["paths"]["/v1/search"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    known = api["components"]["schemas"]
    assert body == {"$ref": "#/components/schemas/SearchBody"}
    assert known["SearchBody"]["properties"].keys() == {"query", "k", "where", "dropped", "group", "after", "against"}
    assert set(references(api)) <= {f"#/components/schemas/{name}" for name in known}
    for path in ("/v1/search", "/v1/export"):
        answers = api["paths"][path]["post"]["responses"]
        assert answers.keys() >= {"200", "400", "413", "429", "503"}
        assert all(answers[s]["description"] for s in answers)


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from (v for k, v in value.items() if k == "$ref")
        value = list(value.values())
    if isinstance(value, list):
        for inner in value:
            yield from references(inner)


def test_metrics_count_by_route_and_never_by_address() -> None:
    with client() as web:
        for path in ("/v1/image/nothing", "/v1/image/else", "/no/such", "/healthz"):
            web.get(path)
        web.post("/v1/search", json={})
        text = web.get("/metrics").text
    assert 'curate_requests_total{route="/v1/image/{uid:path}",status="404"} 2.0' in text
    assert 'curate_requests_total{route="other",status="404"} 1.0' in text
    assert 'curate_search_stage_seconds_count{stage="search"} 1.0' in text
    assert "nothing" not in text


# What is wrong with a question


WRONG: dict[str, tuple[Any, str]] = {
    "a thousand million hits": ({"k": 10**9}, "k: Input should be less than or equal to 200"),
    "no hits": ({"k": 0}, "k: Input should be greater than or equal to 1"),
    "fewer than none": ({"k": -1}, "k: Input should be greater than or equal to 1"),
    "half a hit": ({"k": 1.5}, "k: Input should be a valid integer"),
    "text for a number": ({"k": "7"}, "k: Input should be a valid integer"),
    "a huge number": (b'{"k": 1' + b"0" * 9000 + b"}", "Invalid JSON: number out of range at line 1 column 4308"),
    "too few dimensions": ({"query": [{"vector": [1.0]}]}, "a vector has 8 numbers here, not 1"),
    "too many dimensions": ({"query": [{"vector": [1.0] * 9}]}, "a vector has 8 numbers here, not 9"),
    "far too many": ({"query": [{"vector": [1.0] * 8193}]},
                     "query.0.vector: List should have at most 8192 items after validation, not 8193"),
    "no dimensions": ({"query": [{"vector": []}]}, "query.0.vector: List should have at least 1 item after validation, not 0"),
    "NaN": (b'{"query": [{"vector": [NaN]}]}', "query.0.vector.0: Input should be a finite number"),
    "Infinity": (b'{"query": [{"vector": [-Infinity]}]}', "query.0.vector.0: Input should be a finite number"),
    "overflow": (b'{"query": [{"vector": [1e999]}]}', "query.0.vector.0: Input should be a finite number"),
    "NaN as weight": (b'{"query": [{"text": "a", "weight": NaN}]}', "query.0.weight: Input should be a finite number"),
    "a zero vector": ({"query": [{"vector": [0.0] * 8}]}, "the parts of the query cancel each other out"),
    "parts that cancel": ({"query": [{"uid": uid_of(1)}, {"uid": uid_of(1), "weight": -1}]},
                          "the parts of the query cancel each other out"),
    "two in one part": ({"query": [{"text": "a", "uid": "b"}]},
                        "query.0: Value error, give exactly one of text, image_b64, uid and vector"),
    "an empty part": ({"query": [{}]}, "query.0: Value error, give exactly one of text, image_b64, uid and vector"),
    "too many parts": ({"query": [{"text": "a"}] * 17}, "query: List should have at most 16 items after validation, not 17"),
    "a long text": ({"query": [{"text": "a" * 1001}]}, "query.0.text: String should have at most 1000 characters"),
    "an address to fetch": ({"query": [{"image_url": "http://127.0.0.1/"}]},
                            "query.0.image_url: Extra inputs are not permitted"),
    "no base64": ({"query": [{"image_b64": "%%%"}]}, "image_b64: not base64"),
    "no ASCII": ({"query": [{"image_b64": "ä"}]}, "image_b64: not base64"),
    "no picture": ({"query": [{"image_b64": b64(b"<svg/>")}]}, "image_b64: not a JPEG, PNG, WebP or GIF"),
    "half a header": ({"query": [{"image_b64": b64(png(9, 9)[:20])}]}, "image_b64: Truncated File Read"),
    "a bomb": ({"query": [{"image_b64": b64(png(50_000, 50_000))}]}, None),     # type: ignore[dict-item]
    "a long bomb": ({"query": [{"image_b64": b64(png(2**31 - 1, 1))}]}, None),  # type: ignore[dict-item]
    "deep lists": (b'{"query": ' + b"[" * 1_000_000, "Invalid JSON: recursion limit exceeded at line 1 column 211"),
    "deep objects": (b'{"a":' * 1_000_000, "Invalid JSON: recursion limit exceeded at line 1 column 1006"),
    "no JSON": (b"query=a", "Invalid JSON: expected value at line 1 column 1"),
    "no text at all": (b"\xff\xfe\x00", "Invalid JSON: expected value at line 1 column 1"),
    "nothing": (b"", "Invalid JSON: EOF while parsing a value at line 1 column 0"),
    "a list": ([], "Input should be an object"),
    "an unknown key": ({"indice": "x"}, "indice: Extra inputs are not permitted"),
    "a lone surrogate": (b'{"query": [{"text": "\\ud800"}]}', "Invalid JSON: unexpected end of hex escape at line 1 column 28"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_question_is_a_400_that_says_why_at_once(name: str) -> None:
    body, message = WRONG[name]
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    with client() as web:
        start = time.perf_counter()
        answer = web.post("/v1/search", content=content, headers={"content-type": "application/json"})
        assert time.perf_counter() - start < 1
    assert answer.status_code == 400
    assert answer.json() == {"error": "bad_query", "message": message or answer.json()["message"]}
    assert len(answer.content) < 500


@pytest.mark.parametrize("where", [
    "width_px > 1; drop table batch", "width_px > (select 1)", "width_px in (select 1)", "exists (from read_csv('/etc/passwd'))",
    "lang = (select content from read_text('/etc/passwd'))", "copy batch to '/tmp/x'", "pragma version", "1 = 1",
    "width_px > 1 -- ", "getenv('HOME') = 'x'", "random() > 0.5", "width_px > 1 union select 1", "install httpfs", "secret = 1",
    "count(*) > 1", "read_csv('/etc/passwd') = 1", "current_setting('x') = 1", "((" * 300 + "width_px" + "))" * 300 + " > 1",
])
def test_a_condition_is_an_expression_over_columns_and_no_more(where: str) -> None:
    with client() as web:
        for path in ("/v1/search", "/v1/export"):
            answer = web.post(path, json={"where": where})
            assert (answer.status_code, answer.json()["error"]) == (400, "bad_query"), where


@pytest.mark.parametrize("uid", ["../../etc/passwd", "..%2f..%2fetc%2fpasswd", "%2e%2e/%2e%2e/etc/passwd", "/etc/passwd", "%00",
                                 "..\\..\\x", "a" * 5000, "%F0%9F%92%A9", "index.html"])
@pytest.mark.parametrize("address", ["/v1/image/", "/v1/sample/", "/web/"])
def test_no_path_leads_to_a_file(address: str, uid: str) -> None:
    if address + uid == "/web/index.html":
        return
    with client() as web:
        answer = web.get(address + uid)
    assert (answer.status_code, answer.json()["error"]) == (404, "not_found")


@pytest.mark.parametrize("address", ["/v1/image/{}", "/v1/sample/{}"])
def test_what_may_not_be_seen_looks_like_what_is_not_there(address: str) -> None:
    with client(Colours(forbidden=frozenset({3}))) as web:
        forbidden, unknown = web.get(address.format(uid_of(3))), web.get(address.format(uid_of(99)))
    assert (forbidden.status_code, forbidden.content) == (404, unknown.content)
    assert forbidden.headers == unknown.headers


def test_what_may_not_be_seen_is_in_no_answer() -> None:
    with client(Colours(forbidden=frozenset({3}))) as web:
        assert web.post("/v1/search", json={"query": [{"uid": uid_of(3)}]}).status_code == 400
        answer = web.post("/v1/search", json={"k": 200, "group": False, "dropped": True}).json()
        exported = np.frombuffer(web.post("/v1/export", json={"group": False, "dropped": True}).content[-59 * 16:], "V16")
    assert answer["left_out"]["policy"] == 1
    assert uid_of(3) not in {r["uid"] for r in answer["results"]}
    assert len(answer["results"]) == len(exported) == 59


# Limits


@pytest.mark.parametrize("name", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "", "localhost@evil", "[::1",
                                  "10.0.0.1", "localhost:80x"])
def test_it_answers_to_its_own_names_only(name: str) -> None:
    with client() as web:
        answer = web.get("/v1/info", headers={"host": name})
    assert (answer.status_code, answer.json()["error"]) == (421, "wrong_host")
    assert answer.headers["content-security-policy"] == CSP


def test_the_names_of_a_server_follow_what_it_is_bound_to() -> None:
    assert all(name in Hosts("127.0.0.1") for name in ("127.0.0.1", "localhost:8000", "[::1]:8000", "LOCALHOST"))
    assert "10.1.2.3:80" in Hosts("0.0.0.0") and "[fe80::1]:80" in Hosts("::")
    assert "box.lan" not in Hosts("0.0.0.0") and "box.lan:80" in Hosts("0.0.0.0", ["Box.lan"])


@pytest.mark.parametrize("path", ["/", "/web/app.js", "/v1/info", "/no/such", f"/v1/image/{uid_of(1)}", "/metrics"])
def test_every_answer_has_the_headers(path: str) -> None:
    with client() as web:
        headers = web.get(path).headers
    assert headers["content-security-policy"] == CSP
    assert (headers["x-content-type-options"], headers["referrer-policy"], headers["x-frame-options"]) == \
        ("nosniff", "no-referrer", "DENY")
    assert "access-control-allow-origin" not in headers


def test_a_client_that_asks_too_often_waits() -> None:
    with client(limits=Limits(rate=1, burst=3)) as web:
        answers = [web.post("/v1/search", json={}) for _ in range(5)]
    assert [a.status_code for a in answers] == [200, 200, 200, 429, 429]
    assert answers[-1].headers["retry-after"] == "1"
    assert answers[-1].json() == {"error": "too_many_requests", "message": "more than 1 requests a second"}


def test_tokens_flow_back_and_are_a_clients_own() -> None:
    now = [0.0]
    tokens = Tokens(2, 4, lambda: now[0])
    assert [tokens.take("a", 2) for _ in range(3)] == [0, 0, 1]
    assert tokens.take("b", 4) == 0
    now[0] = 1
    assert tokens.take("a", 2) == 0
    now[0] = 1000
    assert [tokens.take("a", 4), tokens.take("a", 1)] == [0, 0.5]


def test_searches_beyond_the_line_are_refused() -> None:
    with serving(application(Colours(delay_seconds=0.3), threads=1, waiting=2)) as port, ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: httpx.post(f"http://{HOST}:{port}/v1/search", json={}), range(8)))
    assert Counter(a.status_code for a in answers) == {200: 3, 503: 5}
    refused = next(a for a in answers if a.status_code == 503)
    assert (refused.json()["error"], refused.headers["retry-after"]) == ("busy", "1")


def test_a_search_that_fails_is_a_503_and_no_answer(caplog: pytest.LogCaptureFixture) -> None:
    with client(Colours(fault=KeyError("nsfw_prob"))) as web:
        answer = web.post("/v1/search", json={})
        assert web.get("/healthz").status_code == 200
    assert (answer.status_code, answer.json()["error"]) == (503, "unavailable")
    assert "nsfw_prob" not in answer.text
    assert "nsfw_prob" in caplog.text


def raw(port: int, request: bytes, more: Iterable[bytes] = ()) -> str:
    """The first line of the answer to these bytes; `more` is sent until the server has had enough."""
    with socket.create_connection((HOST, port), timeout=5) as connection:
        connection.sendall(request)
        try:
            for chunk in more:
                connection.sendall(chunk)
        except OSError:
            pass
        try:
            return connection.recv(4096).split(b"\r\n")[0].decode()
        except ConnectionResetError:
            return "reset"


@pytest.mark.parametrize("path", ["/v1/search", "/v1/export", "/no/such"])
def test_a_body_that_says_it_is_huge_is_not_read(path: str) -> None:
    with serving(application(Colours())) as port:
        start = time.perf_counter()
        head = f"POST {path} HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 1000000000\r\n\r\n".encode()
        assert raw(port, head) == "HTTP/1.1 413 Request Entity Too Large"
        assert time.perf_counter() - start < 1


def test_a_client_that_sends_too_much_hears_why() -> None:
    with serving(application(Colours(), limits=Limits(body_bytes=1 << 20, rate=100, burst=100))) as port:
        answer = httpx.post(f"http://{HOST}:{port}/v1/search", content=b" " * (3 << 20))
        assert (answer.status_code, answer.json()["message"]) == (413, "a body has at most 1,048,576 bytes")


def test_a_body_without_end_is_cut_off() -> None:
    """A million chunks of 64 KiB: some are read and thrown away, then the answer comes and the connection ends."""
    chunks = (b"10000\r\n" + b" " * 0x10000 + b"\r\n" for _ in range(1_000_000))
    with serving(application(Colours(), limits=Limits(body_bytes=1 << 20, rate=100, burst=100))) as port:
        head = f"POST /v1/search HTTP/1.1\r\nHost: {HOST}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
        start = time.perf_counter()
        assert raw(port, head, chunks) in ("HTTP/1.1 413 Request Entity Too Large", "reset")
        assert time.perf_counter() - start < 5


def test_all_bodies_together_are_bounded() -> None:
    limits = Limits(body_bytes=1 << 20, all_bodies_bytes=1 << 20, rate=100, burst=100)
    with serving(application(Colours(), limits=limits)) as port, socket.create_connection((HOST, port)) as slow:
        slow.sendall(f"POST /v1/search HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 900000\r\n\r\n".encode() + b" " * 800_000)
        time.sleep(0.3)
        answer = httpx.post(f"http://{HOST}:{port}/v1/search", content=b" " * 400_000)
        assert (answer.status_code, answer.json()["message"]) == (503, "too many uploads at once")
        slow.close()
        time.sleep(0.3)
        assert httpx.post(f"http://{HOST}:{port}/v1/search", json={"where": "", "query": []}).status_code == 200


def test_a_body_that_drips_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("curate.retrieval.guard.BODY_SECONDS", 0.2)
    with serving(application(Colours())) as port:
        head = f"POST /v1/search HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 100\r\n\r\n{{".encode()
        assert raw(port, head) == "HTTP/1.1 408 Request Timeout"


@pytest.mark.parametrize("head", [
    "GET / HTTP/1.1\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    "BREW / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: localhost\r\nX: " + "a" * 1_000_000 + "\r\n\r\n",
    "POST /v1/search HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
    "POST /v1/search HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999999999999\r\n\r\n",
])
def test_a_broken_request_is_the_clients_fault(head: str) -> None:
    with serving(application(Colours())) as port:
        assert raw(port, head.encode()).startswith(("HTTP/1.1 4", "reset"))


@pytest.mark.slow
def test_two_hundred_clients_at_once() -> None:
    """Each of 200 connections asks five times: it is answered or told to wait, and nobody waits long."""
    seconds: list[float] = []

    def ask(number: int) -> list[int]:
        connection, got = http.client.HTTPConnection(HOST, port, timeout=30), []
        for _ in range(5):
            start = time.perf_counter()
            connection.request("POST", "/v1/search", json.dumps({"query": [{"text": WORDS[number % len(WORDS)]}], "k": 5}))
            answer = connection.getresponse()
            answer.read()
            got.append(answer.status)
            seconds.append(time.perf_counter() - start)
        connection.close()
        return got

    with serving(application(Colours(delay_seconds=0.002), limits=Limits(rate=300, burst=300))) as port, \
            ThreadPoolExecutor(200) as pool:
        codes = Counter(code for codes in pool.map(ask, range(200)) for code in codes)
        assert httpx.get(f"http://{HOST}:{port}/healthz").status_code == 200
    assert codes.keys() <= {200, 429, 503}
    assert codes[200] >= 30 and sum(codes.values()) == 1000
    assert np.quantile(seconds, 0.99) < 10


def test_a_slot_is_free_again_when_the_work_ends() -> None:
    async def ask() -> None:
        go_on = threading.Event()
        first = slots.submit(go_on.wait)
        with pytest.raises(Busy):
            slots.submit(print)
        go_on.set()
        assert await first and slots.now == 0
        assert await slots.submit(lambda: 7) == 7

    slots = Slots("test", threads=1, waiting=0)
    asyncio.run(ask())
    slots.close()


# The command


def test_serving_a_folder_that_holds_no_run_is_a_users_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["serve", str(tmp_path)])
    assert end.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_caption_is_only_ever_text() -> None:
    with client() as web:
        answer = web.post("/v1/search", json={"query": [{"uid": uid_of(0)}]})
        page = web.get("/").text
    assert answer.json()["results"][0]["caption"] == SCRIPT
    assert answer.headers["content-type"] == "application/json"
    assert "<script>" not in page and " style=" not in page and "onclick" not in page
