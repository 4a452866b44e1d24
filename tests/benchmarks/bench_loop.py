"""Whether a dataset that its own model filtered is better: three paired seeds of the quickstart, and a random subset as control.

A seed is another initialisation and order of training, and another held-out tenth; the pool, the samples seen and everything else
stay. The control trains on a random 70 % instead of the model's best 70 %: what is gained there is not gained by filtering.
Figures, differences and their 95 % intervals (Student's t over the seeds) go to runs/bench_loop/figures.json and are printed.
The peer of `loop_recall_at_10` is the control. About 12 minutes on two cores.
"""

import json
import math
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from curate import files
from curate.folder import Folder
from tests.benchmarks import ROOT, Row
from tests.site import demo
from train.figures import auroc

SEEDS = (0, 1, 2)
T_95 = {2: 4.302653, 3: 3.182446, 4: 2.776445}
"""Student's t for a two-sided 95 % interval, by degrees of freedom."""
OUT = Path("runs/bench_loop")
FIGURES = ("recall_at_10", "mismatch_auroc", "kept_clean_share")
RANDOM_STEP = '''\
"""A score that knows nothing: the control of the loop's benchmark."""

from hashlib import blake2b

from curate.step import float32, step


@step(adds={"random_score": float32})
def random_score(uid: list[str]):
    """A number from 0 to 1 by a hash of the uid."""
    return [int.from_bytes(blake2b(u.encode(), digest_size=4).digest()) / 2**32 for u in uid]
'''


def run() -> list[Row]:
    """Recall of the second dataset's model beside the control's, and the two mismatch AUROCs."""
    demo.prepare()
    (ROOT / OUT).mkdir(parents=True, exist_ok=True)
    write_control(ROOT / OUT)
    with demo.served():
        ours = [rounds(demo.PIPELINE, seed) for seed in SEEDS]
        control = [rounds(OUT / "control.yaml", seed) for seed in SEEDS]
    found = summary(ours, control) | {"random_auroc": random_auroc(ROOT / OUT / "run")}
    files.write_json(ROOT / OUT / "figures.json", found, "bench")
    print(json.dumps(found, indent=1), file=sys.stderr)
    sizes = f"{demo.ROWS:,} rows, {len(SEEDS)} seeds"
    means = found["rounds"]
    return [Row("loop_recall_at_10", "share", means[2]["recall_at_10"]["mean"], found["control"]["recall_at_10"]["mean"],
                limit="ratio >= 1", sizes=sizes),
            Row("loop_round_1_auroc", "AUROC", means[1]["mismatch_auroc"]["mean"], found["random_auroc"], limit="ours >= 0.9",
                sizes=sizes)]


def write_control(folder: Path) -> None:
    """The quickstart with a rank that knows nothing."""
    text = (ROOT / demo.PIPELINE).read_text()
    last = "  - keep: {top: 0.7, by: loop_clip_cos}\n"
    assert last in text
    control = text.replace(last, "  - ./random_score.py:random_score\n  - keep: {top: 0.7, by: random_score}\n")
    (folder / "control.yaml").write_text(control)
    (folder / "random_score.py").write_text(RANDOM_STEP)


def rounds(pipeline: Path, seed: int) -> list[dict[str, float]]:
    """The figures of each round. All share one run's folder, so nothing is fetched or measured a second time."""
    sets = [*demo.SETTINGS, f"loop.truth={demo.SITE}/truth.parquet", f"train.seed={seed}", f"held_out.seed={seed}"]
    command = [sys.executable, "-m", "curate", "run", str(pipeline), "--out", str(OUT / "run"), "--on", "local"]
    subprocess.run([*command, *(word for s in sets for word in ("--set", s))], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return [dict(entry["figures"]) for entry in files.read_json(ROOT / OUT / "run" / "rounds.json")]


def summary(ours: Sequence[Sequence[Mapping[str, float]]], control: Sequence[Sequence[Mapping[str, float]]]) -> dict[str, Any]:
    """Every round's figures, and the paired differences: between rounds, and of round 2 from the control's."""
    def of(runs: Sequence[Sequence[Mapping[str, float]]], number: int, figure: str) -> list[float]:
        return [run[number][figure] for run in runs]

    def less(a: Sequence[float], b: Sequence[float]) -> dict[str, Any]:
        return interval([x - y for x, y in zip(a, b, strict=True)])

    return {
        "rounds": [{f: interval(of(ours, n, f)) for f in FIGURES} for n in range(3)],
        "control": {f: interval(of(control, 2, f)) for f in FIGURES},
        "differences": {f: {
            "round 1 - round 0": less(of(ours, 1, f), of(ours, 0, f)),
            "round 2 - round 1": less(of(ours, 2, f), of(ours, 1, f)),
            "control round 2 - round 1": less(of(control, 2, f), of(control, 1, f)),
            "round 2 - control": less(of(ours, 2, f), of(control, 2, f))} for f in FIGURES}}


def interval(values: Sequence[float]) -> dict[str, Any]:
    """The mean of a few values, the 95 % interval of it, and the values."""
    half = T_95[len(values) - 1] * statistics.stdev(values) / math.sqrt(len(values))
    mean = statistics.mean(values)
    return {"mean": round(mean, 4), "low": round(mean - half, 4), "high": round(mean + half, 4),
            "values": [round(v, 4) for v in values]}


def random_auroc(root: Path) -> float:
    """How the score that knows nothing tells right captions from wrong ones: one half, but for chance."""
    truth = {(r["url"], r["caption"]): r["kind"] == "mismatched"
             for r in pq.read_table(ROOT / demo.SITE / "truth.parquet", columns=["url", "caption", "kind"]).to_pylist()}
    folder = Folder.open(root)
    tables = [folder.table(n, ["url", "caption", "random_score"]) for n in range(folder.source.num_shards)]
    rows = [r for table in tables for r in table.to_pylist() if r["random_score"] is not None]
    right = np.array([not truth[r["url"], r["caption"]] for r in rows])
    return round(float(auroc(np.array([r["random_score"] for r in rows]), right)), 4)
