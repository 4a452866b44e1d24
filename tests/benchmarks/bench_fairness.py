"""What slow and silent servers cost the others: whole runs over a web on loopback, their rates as the servers see them.

fairness    50 hosts, of which one has 80 % of the urls and takes a second an answer: the others' rate, beside theirs alone
latency     250 hosts, 200 ms an answer, and 2 % of urls that never answer: the rate of the others, beside that of a run without
            such urls; and how long after the last good answer the run ends, of which 20 s are the deadline of a url

Hosts are addresses of 127.0.0.0/8, so Linux only. Linux on two cores answers some 300 urls a second here; the delays keep the
rates below that, so that places and not processors are what is shared.
"""

import asyncio
import io
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from tests.benchmarks import ROOT, Row
from tests.site.loopback import BACKLOG, listen

OTHERS, SLOW, SHARDS = 2_400, 9_600, 12
LATENCY_URLS, NEVER_SHARE = 3_000, 0.02
DELAYS = {"slow": 1.0, "other": 0.4, "late": 0.2, "never": 3_600.0}
PIPELINE = """
source: {{pairs: pool.parquet, url: url, caption: caption, shard_rows: {rows}}}
steps:
  - download: {{allow_private: [127.0.0.0/8], concurrency: {concurrency}, min_success: 0}}
shards: none
"""


def run() -> list[Row]:
    """The rows of both."""
    return [*fairness(), *latency()]


def fairness() -> list[Row]:
    """Answers a second of the 49 other hosts; each shard holds the same number of their urls in both runs."""
    with web(50) as served:
        hosts = served.hosts[:-1]
        others = [served.url(hosts[n % len(hosts)], "other", n) for n in range(OTHERS)]
        alone = rate(served, others, OTHERS // SHARDS, 64)[0]
        mixed = shuffled(others + [served.url(served.hosts[-1], "slow", n) for n in range(SLOW)])
        beside = rate(served, mixed, len(mixed) // SHARDS, 64)[0]
    return [Row("fairness_others", "urls/s", beside, alone, limit="ratio >= 0.9",
                sizes=f"{OTHERS:,} urls of 49 hosts; one more with {SLOW:,} at 1 s; {SHARDS} shards; peer: without it")]


def latency() -> list[Row]:
    """Good answers a second, and seconds from the last of them to the end of the run."""
    with web(250) as served:
        never = round(LATENCY_URLS * NEVER_SHARE)
        good = [served.url(served.hosts[n % len(served.hosts)], "late", n) for n in range(LATENCY_URLS - never)]
        clean = rate(served, good, LATENCY_URLS // 3, 32)[0]
        mixed = shuffled(good + [served.url(served.hosts[n * 7 % len(served.hosts)], "never", n) for n in range(never)])
        ours, end = rate(served, mixed, LATENCY_URLS // 3, 32, to_the_end=True)
    sizes = f"{LATENCY_URLS:,} urls of 250 hosts, 200 ms an answer, {NEVER_SHARE:.0%} never"
    return [Row("latency_never", "urls/s", ours, clean, limit="ratio >= 0.9", sizes=f"{sizes}; peer: none of those"),
            Row("latency_end", "s", end, limit="ours <= 22", sizes=f"{sizes}; from the last good answer")]


def shuffled(urls: Sequence[str]) -> list[str]:
    """In the same random order every time."""
    return random.Random(0).sample(urls, len(urls))


def rate(served: "Web", urls: Sequence[str], rows: int, concurrency: int, to_the_end: bool = False) -> tuple[float, float]:
    """Good answers a second of a run, from the first to the last; seconds from there to its end, 0 where it is stopped there."""
    served.good.clear()
    wanted = sum("/other/" in url or "/late/" in url for url in urls)
    with tempfile.TemporaryDirectory() as folder:
        table = {"url": urls, "caption": [f"picture {n}" for n in range(len(urls))]}
        pq.write_table(pa.table(table), Path(folder, "pool.parquet"))
        Path(folder, "pipeline.yaml").write_text(PIPELINE.format(rows=rows, concurrency=concurrency))
        command = [sys.executable, "-m", "curate", "run", "pipeline.yaml", "--on", "local", "--workers", "1", "--out", "out"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        with subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, env=environment) as process:
            while process.poll() is None and (to_the_end or len(served.good) < wanted):
                time.sleep(0.05)
            end = time.monotonic()
            process.terminate()
    if len(served.good) < wanted:
        raise RuntimeError(f"only {len(served.good):,} of {wanted:,} good answers")
    return (wanted - 1) / (served.good[-1] - served.good[0]), end - served.good[-1] if to_the_end else 0.0


class Web:
    """Answers /KIND/N after the delay of the kind, on many addresses; `good` are the times of answers to others and late."""

    def __init__(self, hosts: int) -> None:
        self.sockets = listen(hosts, 0)
        self.port = self.sockets[0].getsockname()[1]
        self.hosts = [s.getsockname()[0] for s in self.sockets]
        self.good: list[float] = []
        out = io.BytesIO()
        Image.linear_gradient("L").resize((64, 64)).save(out, "JPEG")
        self._head = b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(out.getvalue())
        self._picture = out.getvalue()

    def url(self, host: str, kind: str, number: int) -> str:
        """A url that is answered like this kind."""
        return f"http://{host}:{self.port}/{kind}/{number}"

    async def serve(self, stop: asyncio.Event) -> None:
        """Until it is stopped."""
        servers = [await asyncio.start_server(self._client, sock=s, backlog=BACKLOG) for s in self.sockets]
        await stop.wait()
        for server in servers:
            server.close()

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                kind = (await reader.readuntil(b"\r\n\r\n")).split(b"/")[1].decode("latin-1")
                await asyncio.sleep(DELAYS.get(kind, 0.0))
                found = kind in DELAYS
                writer.write(self._head + self._picture if found else b"HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n")
                await writer.drain()
                if kind in ("other", "late"):
                    self.good.append(time.monotonic())
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()


@contextmanager
def web(hosts: int) -> Iterator[Web]:
    """A web that answers, in a thread."""
    served, loop, stop = Web(hosts), asyncio.new_event_loop(), asyncio.Event()
    thread = threading.Thread(target=loop.run_until_complete, args=(served.serve(stop),))
    thread.start()
    try:
        yield served
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0.1))
        loop.close()
