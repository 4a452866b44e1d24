"""Peak memory of the driver and of the largest worker: ten times the rows take no more, but for what a barrier says it holds.

`peer` is the same process at a tenth of the rows. caption_count, the barrier here, counts in DuckDB within its `memory_gb`.
"""

import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.benchmarks import ROOT, Row

SMALL, LARGE = 20_000, 200_000
WORDS = ("a", "the", "red", "blue", "large", "small", "cube", "sphere", "dog", "cat", "house", "tree", "photo", "of", "on", "old")
PIPELINE = """
source: {pairs: rows.parquet, url: url, caption: caption}
steps:
  - caption_length
  - caption_repetition
  - caption_case
  - keep: num_words between 3 and 40 and num_chars >= 5
BARRIER  - keep: num_words < 12
shards: none
"""
BARRIER = "  - caption_count\n  - keep: text_images <= 10\n"


def run() -> list[Row]:
    """MiB of driver and worker at both sizes, with a barrier and without one."""
    rows = []
    for name, barrier in (("rowwise", ""), ("barrier", BARRIER)):
        small, large = (peaks(count, PIPELINE.replace("BARRIER", barrier)) for count in (SMALL, LARGE))
        rows += [Row(f"memory_{name}_{who}", "MiB", large[who], small[who], limit="ratio <= 1.25",
                     sizes=f"{LARGE:,} caption-only rows; peer: {SMALL:,}") for who in ("driver", "worker")]
    return rows


def write_rows(path: Path, count: int) -> None:
    """Urls of their own and captions of 3 to 14 words."""
    rng = np.random.default_rng(0)
    words = np.array(WORDS)[rng.integers(0, len(WORDS), (count, 14))]
    captions = [" ".join(line[:n]) for line, n in zip(words, rng.integers(3, 15, count), strict=True)]
    pq.write_table(pa.table({"url": [f"http://site.org/{i}.jpg" for i in range(count)], "caption": captions}), path)


def peaks(count: int, pipeline: str) -> dict[str, float]:
    """Peak resident MiB of the driver and of its largest child over a whole `curate run`."""
    with tempfile.TemporaryDirectory() as folder:
        write_rows(Path(folder, "rows.parquet"), count)
        Path(folder, "pipeline.yaml").write_text(pipeline)
        command = [sys.executable, "-m", "curate", "run", "pipeline.yaml", "--on", "local", "--workers", "2", "--out", "out"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        with subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, env=environment) as driver:
            last: dict[int, float] = {}
            while driver.poll() is None:
                last |= {pid: peak for pid in (driver.pid, *_children(driver.pid)) if (peak := _peak(pid))}
                time.sleep(0.01)
        if driver.returncode:
            raise subprocess.CalledProcessError(driver.returncode, command)
    return {"driver": last.pop(driver.pid), "worker": max(last.values())}


def _children(pid: int) -> list[int]:
    with suppress(OSError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def _peak(pid: int) -> float:
    """VmHWM in MiB; 0 for a process that has ended. Until it is executed a child has its parent's, so the last one counts."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) / 1024
    return 0
