"""`curate run` of a pipeline that only downloads, against img2dataset on the same urls of the same nginx on this machine.

`steady` is images a second between the first and the last request, by the server's own log, so it is measured the same way for
both; `command` is seconds of the whole command. The peer is img2dataset with as many processes as we may use. The limit
of a case is 1 / (1 / codec + 1 / fetch): what decoders do on bodies in memory with all cores, and what our fetcher does alone.
Photographs come from the folder CURATE_BENCH_PHOTOS, or are drawn. nginx must be there (Debian's `nginx-light`).
"""

import asyncio
import io
import multiprocessing
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from curate.decoding.images import Fit, encode, load
from curate.fetching.fetch import Fetcher, Limits
from tests.benchmarks import ROOT, Row, peer_venv

URLS = int(os.environ.get("CURATE_BENCH_URLS", "4000"))
REPEATS = int(os.environ.get("CURATE_BENCH_REPEATS", "5"))
CORES = 2
PEER = ["img2dataset==1.47.0", "webdataset<0.3"]
NGINX = """
daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{ worker_connections 4096; }}
http {{
    default_type image/jpeg; sendfile on; keepalive_requests 1000000;
    log_format when '$msec $status $uri'; access_log {folder}/access.log when;
    client_body_temp_path {folder}/t1; proxy_temp_path {folder}/t2; fastcgi_temp_path {folder}/t3; uwsgi_temp_path {folder}/t4;
    scgi_temp_path {folder}/t5;
    server {{ listen 127.0.0.1:{port} backlog=4096;
        location ~ ^/(\\w+)/\\d+/(\\d+)\\.jpg$ {{ alias {folder}/$1/$2.jpg; }}
        location / {{ return 404; }} }}
}}
"""


@dataclass(frozen=True)
class Case:
    """One way to download the photographs; `limit` as in Row, of the steady rate and of the whole command."""

    name: str
    photos: str
    ours: str
    peer: tuple[str, ...]
    steady: str
    command: str = ""


CASES = (Case("web", "web", "image_size: 256, resize_mode: keep_ratio, resize_only_if_bigger: false",
              ("--image_size", "256", "--resize_mode", "keep_ratio"), "ratio >= 1.3", "ratio <= 0.3333"),
         Case("large", "large", "image_size: 256, resize_mode: keep_ratio, resize_only_if_bigger: false",
              ("--image_size", "256", "--resize_mode", "keep_ratio"), "ratio >= 2"),
         Case("no_resize", "web", "resize_mode: 'no', skip_reencode: true", ("--resize_mode", "no", "--skip_reencode", "True"),
              "ratio >= 2"))


def run() -> list[Row]:
    """The three cases, and how near the first comes to its limit."""
    python = peer_venv("img2dataset", PEER)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_photos(folder)
        with nginx(folder) as port:
            for case in CASES:
                urls = write_urls(folder, case, port)
                ours = [ours_once(folder, case, urls, port) for _ in range(REPEATS)]
                peers = [peer_once(python, folder, case, urls) for _ in range(REPEATS)]
                steady, seconds = (statistics.median(x) for x in zip(*ours, strict=True))
                peer_steady, peer_seconds = (statistics.median(x) for x in zip(*peers, strict=True))
                sizes = f"{URLS:,} urls, {case.photos} photographs, medians of {REPEATS}"
                rows += [Row(f"download_{case.name}_steady", "images/s", steady, peer_steady, limit=case.steady, sizes=sizes),
                         Row(f"download_{case.name}_command", "s", seconds, peer_seconds, limit=case.command, sizes=sizes)]
                if case.name == "web":
                    rows.append(of_limit(folder, port, steady))
    return rows


def of_limit(folder: Path, port: int, steady: float) -> Row:
    """The steady rate against 1 / (1 / codec + 1 / fetch)."""
    codec, fetch = codec_rate(folder / "web"), fetch_rate(port)
    return Row("download_web_of_limit", "images/s", steady, 1 / (1 / codec + 1 / fetch), limit="ratio >= 0.85",
               sizes=f"codec alone {codec:,.0f}/s on {CORES} cores, fetch alone {fetch:,.0f}/s")


def write_photos(folder: Path) -> None:
    """web/0.jpg … as they are, large/0.jpg … with a longer side of 1,600 pixels."""
    given = os.environ.get("CURATE_BENCH_PHOTOS")
    bodies = [p.read_bytes() for p in sorted(Path(given).iterdir())] if given else [drawn(seed) for seed in range(200)]
    for kind in ("web", "large"):
        (folder / kind).mkdir()
    for number, body in enumerate(bodies):
        (folder / "web" / f"{number}.jpg").write_bytes(body)
        with Image.open(io.BytesIO(body)) as picture:
            scale = 1600 / max(picture.size)
            enlarged = picture.convert("RGB").resize((round(picture.width * scale), round(picture.height * scale)))
        enlarged.save(folder / "large" / f"{number}.jpg", quality=90)


def drawn(seed: int) -> bytes:
    """A 500 x 375 JPEG of about 110 kB: smooth shapes under noise, as hard to decode as a photograph."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8)).resize((500, 375), Image.Resampling.BICUBIC)
    noisy = np.asarray(coarse, np.float32) + rng.normal(0, 14, (375, 500, 3))
    out = io.BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(out, "JPEG", quality=90)
    return out.getvalue()


@contextmanager
def nginx(folder: Path) -> Iterator[int]:
    """A server of `folder` with one worker; its port."""
    found = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    if found is None:
        sys.exit("bench download: nginx is not there; on Debian: apt-get install nginx-light")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    folder.chmod(0o755)
    (folder / "nginx.conf").write_text(NGINX.format(folder=folder, port=port))
    with subprocess.Popen([found, "-c", str(folder / "nginx.conf")], stderr=subprocess.DEVNULL) as server:
        try:
            wait_for(port)
            yield port
        finally:
            server.terminate()


def wait_for(port: int) -> None:
    """Until somebody listens there."""
    end = time.monotonic() + 10
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)


def write_urls(folder: Path, case: Case, port: int, count: int = URLS) -> Path:
    """A table of `count` urls, all different."""
    photos = len(list((folder / case.photos).iterdir()))
    urls = [f"http://127.0.0.1:{port}/{case.photos}/{i}/{i % photos}.jpg" for i in range(count)]
    path = folder / f"{case.name}.parquet"
    pq.write_table(pa.table({"url": urls, "caption": [f"picture number {i}" for i in range(count)]}), path)
    return path


def steady_of(folder: Path, before: int) -> float:
    """Requests a second between the first and the last in the server's log since it had `before` bytes."""
    lines = (folder / "access.log").read_text()[before:].split("\n")
    times = [float(line.split()[0]) for line in lines if ".jpg" in line and " 200 " in line]
    assert len(times) == URLS, f"{len(times)} of {URLS} pictures were asked for"
    return (len(times) - 1) / (max(times) - min(times))


def timed(folder: Path, command: list[str], env: dict[str, str] | None = None) -> tuple[float, float]:
    """(steady images a second, seconds) of one whole command."""
    before = (folder / "access.log").stat().st_size
    begin = time.perf_counter()
    subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                   env={**os.environ, **(env or {})})
    return steady_of(folder, before), time.perf_counter() - begin


def ours_once(folder: Path, case: Case, urls: Path, port: int) -> tuple[float, float]:
    """A run into shards on `--on local`."""
    shutil.rmtree(folder / "run", ignore_errors=True)
    pipeline = folder / "pipeline.yaml"
    pipeline.write_text(f"source: {{pairs: {urls}, url: url, caption: caption}}\n"
                        f"steps:\n  - download: {{{case.ours}, allow_private: [127.0.0.0/8], concurrency: 64, per_host: 64}}\n"
                        f"  - keep: status = 'ok'\nshards: {{rows: 1000}}\n")
    command = [sys.executable, "-m", "curate", "run", str(pipeline), "--out", str(folder / "run"), "--on", "local",
               "--workers", str(CORES)]
    result = timed(folder, command)
    count(folder / "run" / "shards")
    return result


def peer_once(python: Path, folder: Path, case: Case, urls: Path) -> tuple[float, float]:
    """img2dataset's own command."""
    shutil.rmtree(folder / "peer", ignore_errors=True)
    command = [str(python.parent / "img2dataset"), "--url_list", str(urls), "--input_format", "parquet", "--url_col", "url",
               "--caption_col", "caption", "--output_format", "webdataset", "--output_folder", str(folder / "peer"),
               "--processes_count", str(CORES), "--thread_count", "64", "--number_sample_per_shard", "1000", "--enable_wandb",
               "False", *case.peer]
    result = timed(folder, command, {"NO_ALBUMENTATIONS_UPDATE": "1"})
    count(folder / "peer")
    return result


def count(shards: Path) -> None:
    """Fails unless every picture is in the tars: a fast run that lost some is no figure."""
    found = sum(pq.read_metadata(p).num_rows for p in shards.glob("*.parquet"))
    assert found == URLS, f"{found} of {URLS} pictures in {shards}"


def codec_rate(photos: Path) -> float:
    """Pictures a second that CORES processes decode, resize and encode from memory."""
    with multiprocessing.get_context("spawn").Pool(CORES) as pool:
        jobs = [str(photos)] * CORES
        pool.map(codec_once, jobs, chunksize=1)
        begin = time.perf_counter()
        done = sum(pool.map(codec_once, jobs * 3, chunksize=1))
        return done / (time.perf_counter() - begin)


def codec_once(photos: str) -> int:
    """All photographs once; how many."""
    bodies = [p.read_bytes() for p in Path(photos).iterdir()]
    fit = Fit(256, "keep_ratio", False)
    for body in bodies:
        encode(load(body, fit).image, "jpg")
    return len(bodies)


def fetch_rate(port: int) -> float:
    """Pictures a second that our fetcher alone takes in one process."""

    async def all_of_them() -> float:
        async with Fetcher(Limits(allow_private=("127.0.0.0/8",), concurrency=64, per_host=64)) as fetcher:
            turn = asyncio.Semaphore(64)

            async def one(number: int) -> None:
                async with turn:
                    outcome = await fetcher.get(f"http://127.0.0.1:{port}/web/{number}/{number % 200}.jpg")
                    assert outcome.status == "ok", outcome

            begin = time.perf_counter()
            await asyncio.gather(*(one(number) for number in range(URLS)))
            return URLS / (time.perf_counter() - begin)

    return asyncio.run(all_of_them())

