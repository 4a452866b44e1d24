"""Near-duplicates among generated embeddings, and what comparing all pairs takes: `make bench ONLY=dedupe`.

Embeddings of 512 numbers: 70 % lie around 1,000 centres, at 0.8 of their length, and 30 % are one of these with up to 0.28 of its
length added, so most of them reach cos 0.96. CURATE_BENCH_ROWS sets the rows (a million); an eighth of them is measured too, for
the growth. The files are written before; a process of its own reads and dedupes them on all cores, one thread of BLAS each.
"""

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks import ROOT, Row

ROWS = int(os.environ.get("CURATE_BENCH_ROWS", "1000000"))
DIMS, CENTRES, SHARD, SHARE, COS = 512, 1000, 25_000, 0.3, 0.96
EXACT, QUERIES = 100_000, 10_000


def run() -> list[Row]:
    """Seconds, memory and recall at an eighth of the rows and at all of them; the exponent of the growth; against brute force."""
    rows, seconds = [], []
    for number in (ROWS // 8, ROWS):
        found = apart("ours", number)
        sizes = f"{number:,} embeddings of {DIMS}, {SHARE:.0%} duplicates, cos {COS}, {os.cpu_count()} cores"
        name = f"dedupe_{number // 1000}k"
        seconds.append(found["seconds"])
        rows += [Row(name, "s", found["seconds"], sizes=sizes, limit="ours <= 900" if number == ROWS else ""),
                 Row(f"{name}_memory", "MiB", found["memory"], sizes=sizes, limit="ours <= 8192"),
                 Row(f"{name}_recall", "", found["recall"], sizes=f"{sizes}; {found['pairs']} pairs", limit="ours >= 0.99")]
    exponent = math.log(seconds[1] / seconds[0]) / math.log(8)
    rows.append(Row("dedupe_growth", "", exponent, sizes=f"{ROWS // 8:,} to {ROWS:,}: seconds grow with rows to this power",
                    limit="ours <= 1.7"))
    ours, exact = apart("ours", EXACT)["seconds"], apart("exact", EXACT)["seconds"]
    return [*rows, Row("dedupe_100k", "s", ours, exact, limit="ratio <= 0.05",
                       sizes=f"{EXACT:,} embeddings of {DIMS}; peer: FAISS IndexFlatIP.range_search of all with all, {QUERIES:,} "
                             "queries measured and multiplied")]


def apart(what: str, number: int) -> dict[str, Any]:
    """The figures of a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder), number)
        words = [sys.executable, "-m", "tests.benchmarks.bench_dedupe", what, folder]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        found = subprocess.run(words, cwd=ROOT, check=True, capture_output=True, env=environment)
        return dict(json.loads(found.stdout))


def generate(folder: Path, number: int) -> None:
    """Files of SHARD embeddings each; a duplicate and its original may lie in one file only, at any place."""
    centres = np.random.default_rng(0).standard_normal((CENTRES, DIMS), dtype=np.float32)
    for i, start in enumerate(range(0, number, SHARD)):
        draw, rows = np.random.default_rng([1, i]), min(SHARD, number - start)
        first = unit(centres[draw.integers(0, CENTRES, rows)] + 0.8 * draw.standard_normal((rows, DIMS), dtype=np.float32))
        again = np.flatnonzero(draw.random(rows) < SHARE)
        noise = unit(draw.standard_normal((len(again), DIMS), dtype=np.float32)) * draw.random((len(again), 1), np.float32)
        first[again] = first[draw.integers(0, rows, len(again))] + 0.28 * noise
        np.save(folder / f"{i:05d}.npy", first.astype(np.float16))


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows of length 1."""
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def ours(folder: Path) -> dict[str, Any]:
    """Dedupe as a pipeline does it, but for reading parquet."""
    import pyarrow as pa

    from curate.measure import to_column
    from curate.step import Chunks, vector
    from curate.steps.dedupe import dedupe

    def shards() -> Iterator[np.ndarray]:
        return (np.load(path) for path in sorted(folder.glob("*.npy")))

    uids = Chunks(lambda: (pa.array([f"{i:05d}{n:027d}" for n in range(len(part))]) for i, part in enumerate(shards())))
    begin = time.perf_counter()
    found = dedupe(Chunks(lambda: (to_column(part, vector) for part in shards())), uids, None, cos=COS, threads=0)
    while True:
        try:
            next(found)
        except StopIteration as end:
            recall = end.value.get("recall", {"value": 1.0, "pairs": 0})
            return {"seconds": time.perf_counter() - begin, "recall": recall["value"], "pairs": recall["pairs"], "memory": peak()}


def exact(folder: Path) -> dict[str, Any]:
    """All pairs, by FAISS on all cores: a tenth of the queries, times ten."""
    import faiss

    faiss.omp_set_num_threads(os.cpu_count() or 1)
    vectors = np.concatenate([unit(np.load(path).astype(np.float32)) for path in sorted(folder.glob("*.npy"))])
    index = faiss.IndexFlatIP(DIMS)
    begin = time.perf_counter()
    index.add(vectors)
    for start in range(0, QUERIES, 1000):
        index.range_search(vectors[start : start + 1000], COS)
    return {"seconds": (time.perf_counter() - begin) * len(vectors) / QUERIES}


def peak() -> float:
    """MiB of this process at its largest, pages of its mapped file included."""
    words = Path("/proc/self/status").read_text().split()
    return int(words[words.index("VmHWM:") + 1]) / 1024


if __name__ == "__main__":
    print(json.dumps({"ours": ours, "exact": exact}[sys.argv[1]](Path(sys.argv[2]))))
