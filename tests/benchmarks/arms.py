"""Arms of CapFilt: models trained from scratch on a pool's captions as they came, and as they were made and judged.

`capfilt`: the run's shards. `filter`: pictures whose web caption passed, with it alone. `captioner`: every picture with the web's
caption and the sound synthetic ones, unjudged. `raw`: the raw pool. `random`: as many pictures of it as CapFilt kept, by lot.
Equally many samples seen and the same seeds: the pictures and their captions differ, nothing else.
"""

import json
import os
import random
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from curate import files
from tests.benchmarks import ROOT
from tests.benchmarks.bench_loop import interval
from tests.site.capfilt import Pool

SEEDS = (0, 1, 2)
SAMPLES = 12_000
FIGURES = ("recall_at_1", "recall_at_10")


def compared(pool: Pool, judge: str) -> dict[str, Any]:
    """Means, 95 % intervals (Student's t over the seeds) and values of all arms, and of CapFilt's difference from the others.

    `judge` are shards that no arm has seen.
    """
    arms = arms_of(pool)
    jobs = list(product(arms, SEEDS))
    with ThreadPoolExecutor(2) as threads:
        found = dict(zip(jobs, threads.map(lambda job: trained(pool, job[0], arms[job[0]], job[1], judge), jobs), strict=True))
    by_arm = {arm: {f: [found[arm, seed][f] for seed in SEEDS] for f in FIGURES} for arm in arms}
    return {"arms": {arm: {f: interval(values) for f, values in of.items()} for arm, of in by_arm.items()},
            "differences": {f"capfilt - {arm}": {f: interval([a - b for a, b in zip(by_arm["capfilt"][f], by_arm[arm][f],
                                                                                     strict=True)]) for f in FIGURES}
                            for arm in arms if arm != "capfilt"}}


def arms_of(pool: Pool) -> dict[str, Any]:
    """Name → what is trained on. All but CapFilt's are score tables over the raw pool's shards."""
    rows, raw = list(pool.measured()), str(ROOT / pool.out / "raw/shards/*.tar")
    uids = sorted(row["uid"] for row in rows)
    chosen = set(random.Random(0).sample(uids, sum(bool(row["captions"]) for row in rows)))
    tables = {"filter": [{"uid": row["uid"], "keep": row["caption"] in row["captions"]} for row in rows],
              "captioner": [{"uid": row["uid"], "caption": [row["caption"], *sound(row)]} for row in rows],
              "random": [{"uid": uid, "keep": uid in chosen} for uid in uids]}
    arms: dict[str, Any] = {"capfilt": str(ROOT / pool.out / "run/shards/*.tar"), "raw": raw}
    for name, scores in tables.items():
        path = ROOT / pool.out / f"{name}.parquet"
        pq.write_table(pa.Table.from_pylist(scores), path)
        arms[name] = {"shards": raw, "scores": str(path)}
    return arms


def sound(row: Mapping[str, Any]) -> Sequence[str]:
    """Its synthetic captions without those that are degenerate."""
    return [text for text, faults in zip(row["synthetic_captions"], row["synthetic_faults"], strict=True) if not faults]


def trained(pool: Pool, arm: str, data: Any, seed: int, judge: str) -> dict[str, float]:
    """The figures of one training, on one core."""
    out = ROOT / pool.out / "arms" / f"{arm}-{seed}"
    settings = {"model": "curate-conv-64", "data": data, "samples_seen": SAMPLES, "batch": 128, "lr": 1e-3, "seed": seed,
                "threads": 1, "workers": 1, "tensorboard": False, "log_every": 20, "eval": {"retrieval": judge}}
    out.parent.mkdir(exist_ok=True)
    out.with_suffix(".yaml").write_text(json.dumps(settings))
    subprocess.run([sys.executable, "-m", "train", str(out.with_suffix(".yaml")), "--out", str(out)], cwd=ROOT, check=True,
                   stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return dict(files.read_json(out / "model" / "train.json")["figures"])
