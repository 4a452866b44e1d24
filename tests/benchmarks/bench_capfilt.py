"""Whether CapFilt makes a better dataset: models trained from scratch on its shards, on the raw pool and on a random part of it.

Three paired seeds, and equally many samples seen: the pool and its captions differ, nothing else. Judged by retrieval on 500
clean scenes that no arm has seen. `random` has as many pictures as CapFilt kept, with the web's captions. The captioner and the
filter are those of `python -m tests.site.capfilt`, trained first where they are not there. Figures, differences and their 95 %
intervals (Student's t over the seeds) go to runs/capfilt/figures.json and are printed. About 40 minutes on two cores.
"""

import json
import os
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from curate import files
from tests.benchmarks import ROOT, Row
from tests.benchmarks.bench_loop import interval
from tests.site import capfilt
from tests.site.shards import write_shards

SEEDS = (0, 1, 2)
JUDGE = range(200_000, 200_500)
SAMPLES = 12_000
FIGURES = ("recall_at_1", "recall_at_10")
OUT = ROOT / capfilt.OUT


def run() -> list[Row]:
    """Recall of the model on CapFilt's shards beside that of the raw pool's, and how the filter tells wrong captions."""
    capfilt.main()
    judge = write_shards(OUT / "judge", JUDGE)
    arms = {"capfilt": str(OUT / "run/shards/*.tar"), "raw": str(OUT / "raw/shards/*.tar"),
            "random": {"shards": str(OUT / "raw/shards/*.tar"), "scores": str(random_part(OUT / "random.parquet"))}}
    jobs = list(product(arms, SEEDS))
    with ThreadPoolExecutor(2) as pool:
        found = dict(zip(jobs, pool.map(lambda job: trained(job[0], arms[job[0]], job[1], judge), jobs), strict=True))
    by_arm = {arm: {f: [found[arm, seed][f] for seed in SEEDS] for f in FIGURES} for arm in arms}
    figures = {"arms": {arm: {f: interval(values) for f, values in of.items()} for arm, of in by_arm.items()},
               "differences": {f"capfilt - {arm}": {f: interval([a - b for a, b in zip(by_arm["capfilt"][f], by_arm[arm][f],
                                                                                         strict=True)]) for f in FIGURES}
                               for arm in ("raw", "random")},
               "truth": capfilt.judged()}
    files.write_json(OUT / "figures.json", figures, "bench")
    print(json.dumps(figures, indent=1), file=sys.stderr)
    sizes = f"{SAMPLES:,} samples, {len(SEEDS)} seeds"
    means = figures["arms"]
    return [Row("capfilt_recall_at_10", "share", means["capfilt"]["recall_at_10"]["mean"], means["raw"]["recall_at_10"]["mean"],
                limit="ratio >= 1", sizes=sizes),
            Row("capfilt_itm_auroc", "AUROC", figures["truth"]["ITM AUROC, right web captions against wrong ones"],
                limit="ours >= 0.9", sizes="the quickstart's pool")]


def random_part(path: Path) -> Path:
    """A score table that keeps as many pictures of the raw pool as CapFilt kept, by lot."""
    def uids(folder: str) -> list[str]:
        tables = map(pq.read_table, (OUT / folder / "shards").glob("*.parquet"))
        return sorted(uid for table in tables for uid in table["uid"].to_pylist())

    pool = uids("raw")
    chosen = set(random.Random(0).sample(pool, len(uids("run"))))
    pq.write_table(pa.table({"uid": pool, "keep": [uid in chosen for uid in pool]}), path)
    return path


def trained(arm: str, data: Any, seed: int, judge: str) -> dict[str, float]:
    """The figures of one training, on one core."""
    out = OUT / "arms" / f"{arm}-{seed}"
    settings = {"model": "curate-conv-64", "data": data, "samples_seen": SAMPLES, "batch": 128, "lr": 1e-3, "seed": seed,
                "threads": 1, "workers": 1, "tensorboard": False, "log_every": 20, "eval": {"retrieval": judge}}
    out.parent.mkdir(exist_ok=True)
    out.with_suffix(".yaml").write_text(json.dumps(settings))
    subprocess.run([sys.executable, "-m", "train", str(out.with_suffix(".yaml")), "--out", str(out)], cwd=ROOT, check=True,
                   stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return dict(files.read_json(out / "model" / "train.json")["figures"])
