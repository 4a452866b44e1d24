"""Building and asking an index of generated vectors: `make bench ONLY=search`.

1,000 centres of 512 numbers, and around them as many vectors as wanted, at 0.8 of their length; queries are further draws. The
run goes through the same doors as any other: a source, a step that draws, `curate index`, `Searcher`. CURATE_BENCH_ROWS sets the
rows (a million); a tenth of them is built as well, to tell how memory grows. A request is the usual one: 40 hits, copies folded.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.benchmarks import ROOT, Row, peak_rss

ROWS = int(os.environ.get("CURATE_BENCH_ROWS", "1000000"))
DIMS, CENTRES, QUERIES, THREADS = 512, 1000, 200, 32
FILTERS = {"all": "", "half": "u < 0.5", "hundredth": "u < 0.01"}
STEP = f'''
import numpy as np
from curate.step import step, vector

CENTRES = np.random.default_rng(0).standard_normal(({CENTRES}, {DIMS})).astype(np.float32)

def around(seed, number):
    rng = np.random.default_rng(seed)
    return CENTRES[rng.integers(0, len(CENTRES), number)] + 0.8 * rng.standard_normal((number, {DIMS}), dtype=np.float32)

@step(adds={{"image_emb": vector}}, batch=5000)
def embed(n: np.ndarray):
    found = around(1 + int(n[0]), len(n))
    return {{"image_emb": found / np.linalg.norm(found, axis=1, keepdims=True)}}
'''


def run() -> list[Row]:
    """Time and memory of building and asking, at a tenth of the rows and at all of them."""
    rows = []
    for number in (ROWS // 10, ROWS):
        with tempfile.TemporaryDirectory() as folder:
            rows += measure(Path(folder), number)
    return rows


def measure(folder: Path, number: int) -> list[Row]:
    """The rows of one size."""
    root = make_run(folder, number)
    sizes = f"{number:,} vectors of {DIMS}, {CENTRES:,} centres, k=40"
    seconds, peak = peak_rss([sys.executable, "-m", "curate", "index", root])
    words = [sys.executable, "-m", "tests.benchmarks.bench_search", str(root)]
    answer: dict[str, Any] = json.loads(subprocess.run(words, cwd=ROOT, check=True, capture_output=True).stdout)
    name = f"search_{number // 1000}k"
    most = 400 + 1.5 * number * DIMS * 2 / 2**20
    found = [Row(f"{name}_build", "s", seconds, sizes=sizes), Row(f"{name}_build_memory", "MiB", peak, sizes=sizes),
             Row(f"{name}_memory", "MiB", answer.pop("memory"), sizes=sizes, limit=f"ours <= {most:.0f}")]
    limits = {"all_p50": "ours <= 15", "all_recall": "ours >= 0.94", "all_per_second": "ours >= 200"} if number == ROWS else {}
    units = {"recall": "", "second": "/s"}
    return found + [Row(f"{name}_{key}", units.get(key.rpartition("_")[2], "ms"), value, sizes=sizes, limit=limits.get(key, ""))
                    for key, value in answer.items()]


def make_run(folder: Path, number: int) -> Path:
    """A run whose rows have a vector each, and a column `u` from 0 to 1."""
    from tests.running import run_here

    u = np.random.default_rng(1).random(number)
    urls = pa.array([f"http://site/{n}.jpg" for n in range(number)])
    pq.write_table(pa.table({"url": urls, "caption": urls, "n": np.arange(number), "u": u}), folder / "pool.parquet")
    (folder / "steps.py").write_text(STEP)
    (folder / "pipeline.yaml").write_text("source: {pairs: pool.parquet, url: url, caption: caption, shard_rows: 50000}\n"
                                          "steps:\n  - ./steps.py:embed\nshards: none\n")
    run_here(folder / "pipeline.yaml", folder / "run")
    return folder / "run"


def ask(root: Path) -> dict[str, float]:
    """What the searches of one opened index take."""
    from curate.retrieval.search import Part, Request, Searcher

    scope: dict[str, Any] = {}
    exec((root.parent / "steps.py").read_text(), scope)
    searcher = Searcher.open(root)
    queries = [Part(vector=tuple(q)) for q in scope["around"](10**9, QUERIES * (1 + len(FILTERS))).tolist()]
    found = {}
    for turn, (name, where) in enumerate(FILTERS.items()):
        searcher.search(Request((queries[0],), where=where, k=1))
        spent, cpu = [], time.process_time()
        for part in queries[turn * QUERIES : (turn + 1) * QUERIES]:
            begin = time.perf_counter()
            assert searcher.search(Request((part,), where=where)).hits
            spent.append(time.perf_counter() - begin)
        found[f"{name}_p50"], found[f"{name}_p99"] = (1000 * float(np.quantile(spent, q)) for q in (0.5, 0.99))
        found[f"{name}_cpu"] = 1000 * (time.process_time() - cpu) / QUERIES
        found[f"{name}_recall"] = recall(searcher, queries[:100], where)
    begin = time.perf_counter()
    spent = []

    def one(part: Part) -> None:
        start = time.perf_counter()
        searcher.search(Request((part,)))
        spent.append(time.perf_counter() - start)
    many = queries[-QUERIES:] + queries[QUERIES:-QUERIES]
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(one, many))
    found["all_per_second"] = len(many) / (time.perf_counter() - begin)
    for name, q in (("p50", 0.5), ("p99", 0.99)):
        found[f"all_{THREADS}_threads_{name}"] = 1000 * float(np.quantile(spent, q))
    return found


def recall(searcher: Any, parts: list[Any], where: str) -> float:
    """recall@40 against brute force over the rows that pass."""
    from curate.retrieval.search import Request

    space, queries = searcher.spaces["image"], np.array([p.vector for p in parts], np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    allowed = searcher._allowed(Request(where=where)).vectors(searcher.rows.vectors["image"]).mask
    best = np.full((len(parts), 40), -2, np.float32)
    for start in range(0, space.rows, 20_000):
        positions = start + np.flatnonzero(allowed[start : start + 20_000])
        both = np.concatenate([best, queries @ space.vectors(positions).T], axis=1)
        best = np.partition(both, both.shape[1] - 40, axis=1)[:, -40:]
    hits = [searcher.search(Request((part,), where=where, group=False)).hits for part in parts]
    scores = np.array([[hit.score for hit in found] + [-3] * (40 - len(found)) for found in hits])
    return float((scores >= best.min(axis=1)[:, None] - 1e-5).mean())


def peak() -> float:
    """MiB of this process at its largest; Linux counts that of the parent into what getrusage says."""
    words = Path("/proc/self/status").read_text().split()
    return int(words[words.index("VmHWM:") + 1]) / 1024


if __name__ == "__main__":
    from curate.retrieval.search import Searcher

    opened = Searcher.open(Path(sys.argv[1]))
    memory = peak()
    del opened
    print(json.dumps({"memory": memory, **ask(Path(sys.argv[1]))}))
