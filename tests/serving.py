"""A server on loopback inside a test."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from curate.retrieval.guard import Guard


@contextmanager
def serving(app: Guard) -> Iterator[int]:
    """Serve `app` from a thread; its port."""
    with socket.create_server(("127.0.0.1", 0), backlog=512) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_level="critical", http="h11", ws="none", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join()
