"""A download's peak memory at 10,000 and at 100,000 urls, and how soon a run over a million rows asks for its first picture.

The peak is that of the largest process. Pictures are 64 x 48 pixels, so that what grows is what the run itself keeps.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

from tests.benchmarks import ROOT, Row, peak_rss
from tests.benchmarks.bench_download import Case, nginx, write_urls

SMALL, LARGE = 10_000, int(os.environ.get("CURATE_BENCH_ROWS", "100000"))
MILLION = 1_000_000
CASE = Case("small", "web", "", (), "")


def run() -> list[Row]:
    """Peak MiB at both sizes, and seconds to the first request."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "web").mkdir()
        for number in range(200):
            Image.new("RGB", (64, 48), (number, 255 - number, 99)).save(folder / "web" / f"{number}.jpg")
        with nginx(folder) as port:
            few, many = (peak(folder, port, urls) for urls in (SMALL, LARGE))
            first = first_request(folder, port)
    return [Row("download_memory", "MiB", many, few, limit="ratio <= 1.1", sizes=f"{LARGE:,} urls against {SMALL:,}"),
            Row("download_first_request", "s", first, limit="ours <= 10", sizes=f"{MILLION:,} rows")]


def command(folder: Path, port: int, urls: int) -> list[str]:
    """A run over so many urls, into `run`."""
    shutil.rmtree(folder / "run", ignore_errors=True)
    table = write_urls(folder, CASE, port, urls)
    (folder / "pipeline.yaml").write_text(
        f"source: {{pairs: {table}, url: url, caption: caption}}\n"
        "steps:\n  - download: {allow_private: [127.0.0.0/8], per_host: 64}\n  - keep: status = 'ok'\nshards: {rows: 10000}\n")
    return [sys.executable, "-m", "curate", "run", str(folder / "pipeline.yaml"), "--out", str(folder / "run"), "--on", "local",
            "--workers", "2"]


def peak(folder: Path, port: int, urls: int) -> float:
    """MiB of the largest process."""
    return peak_rss(command(folder, port, urls))[1]


def first_request(folder: Path, port: int) -> float:
    """Seconds from the start of the command until the server hears of a picture."""
    words = command(folder, port, MILLION)
    log, begin = folder / "access.log", time.perf_counter()
    before = log.stat().st_size
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while log.stat().st_size == before and process.poll() is None:
            time.sleep(0.02)
        seconds = time.perf_counter() - begin
        assert process.poll() is None, "the run ended before it asked for anything"
        process.send_signal(signal.SIGINT)
    return seconds
