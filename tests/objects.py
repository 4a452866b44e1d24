"""An object store on loopback: moto's server, with a count of what is asked for, and faults."""

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import fsspec
import pytest
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

KEYS = {"AWS_ACCESS_KEY_ID": "known", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull}
DENIED = (b'<?xml version="1.0" encoding="UTF-8"?><Error><Code>InvalidAccessKeyId</Code>'
          b"<Message>The AWS Access Key Id you provided does not exist in our records.</Message></Error>")


class Asked(NamedTuple):
    """One request: GET, HEAD, PUT…; /bucket/key; the Range header, or nothing; bytes of the answer's body."""

    method: str
    path: str
    range: str
    bytes: int


@dataclass
class Objects:
    """The running store. `delay_seconds` come before each answer; who asks for a path in `forbidden` is not known."""

    delay_seconds: float = 0.0
    before: Callable[[str, str], None] = lambda method, path: None
    """called with (method, path) before an answer"""
    forbidden: set[str] = field(default_factory=set)
    asked: list[Asked] = field(default_factory=list)
    now: int = 0
    most: int = 0
    """requests at once"""

    def got(self, path: str) -> list[Asked]:
        """The GETs of an object."""
        return [a for a in self.asked if a.method == "GET" and a.path == path]

    @property
    def system(self) -> Any:
        """The store as fsspec knows it, with nothing remembered."""
        system = fsspec.filesystem("s3")
        system.invalidate_cache()
        return system


class _Quiet(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"       # a connection for many requests, as real stores keep it

    def log(self, *_: Any, **__: Any) -> None:
        """Say nothing."""


def _counting(objects: Objects, app: Any) -> Any:
    def answer(environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        objects.now += 1
        objects.most = max(objects.most, objects.now)
        time.sleep(objects.delay_seconds)
        objects.before(method, path)
        objects.now -= 1
        if "Credential=known/" not in environ.get("HTTP_AUTHORIZATION", "") or path in objects.forbidden:
            body = b"" if method == "HEAD" else DENIED
            start("403 Forbidden", [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
            return [body]
        body = b"".join(app(environ, start))
        objects.asked.append(Asked(method, path, environ.get("HTTP_RANGE", ""), len(body)))
        return [body]
    return answer


@contextmanager
def serve() -> Iterator[Objects]:
    """A store with the empty bucket `pool`, found by environment variables as any other; the environment is put back."""
    objects = Objects()
    server = make_server("127.0.0.1", 0, _counting(objects, DomainDispatcherApplication(create_backend_app)), threaded=True,
                         request_handler=_Quiet)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**KEYS, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}"}.items():
            patch.setenv(name, value)
        for name in ("AWS_SESSION_TOKEN", "AWS_PROFILE"):
            patch.delenv(name, raising=False)
        forget()
        objects.system.mkdir("pool")
        objects.asked.clear()
        try:
            yield objects
        finally:
            objects.system.rm("pool", recursive=True)
            forget()
            server.shutdown()
            thread.join()
            server.server_close()


def forget() -> None:
    """As a new process: no client with its credentials is remembered."""
    fsspec.get_filesystem_class("s3").clear_instance_cache()
