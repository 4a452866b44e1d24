"""CapFilt on this machine: a small BLIP learns on the faulty web and on clean scenes, and then mends the web's captions.

    python -m tests.site.capfilt

One model is pretrained on the raw pool and on 10,000 clean scenes (`trusted`), and fine-tuned on those twice, side by side: to
write captions, and to judge them (BLIP, arXiv 2201.12086, section 3.3). pipelines/local_capfilt.yaml runs with both. What is
printed in the end is told against the site's truth. Everything lies in runs/capfilt; what is there is not made again.
"""

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from tests.site import demo
from tests.site.attributes import attribute_accuracy
from tests.site.demo import ROOT
from tests.site.scenes import scene
from tests.site.shards import write_shards

OUT, PIPELINE = Path("runs/capfilt"), Path("pipelines/local_capfilt.yaml")
TRUSTED = range(100_000, 110_000)
MODEL = "curate-blip-64"
SAMPLES = {"pretrained": 24_000, "captioner": 96_000, "filter": 48_000}


def main() -> None:
    demo.prepare()
    with demo.served():
        run_raw()
        train_all()
        demo.curate("run", str(PIPELINE), "--out", str(OUT / "run"), "--on", "local", *sets())
    print("\nAgainst the truth:\n")
    for name, value in judged().items():
        print(f"  {value:>8.3f}  {name}")


def sets() -> list[str]:
    """The port that the site answers at is the pool's own; nothing else differs from the file."""
    return [word for s in demo.SETTINGS for word in ("--set", s)]


def run_raw() -> None:
    """The raw pool as shards in runs/capfilt/raw/shards: the same pipeline without what stands behind the pictures' keeps."""
    (ROOT / OUT).mkdir(parents=True, exist_ok=True)
    text = (ROOT / PIPELINE).read_text()
    before, _, _ = text.partition("  # A text for every picture")
    assert before != text
    (ROOT / OUT / "raw.yaml").write_text(before + "shards: {rows: 500}\n")
    demo.curate("run", str(OUT / "raw.yaml"), "--out", str(OUT / "raw"), "--on", "local", *sets())


def train_all() -> None:
    """The three trainings, the last two from the first."""
    trusted = write_shards(ROOT / OUT / "trusted", TRUSTED)
    raw = {"shards": str(ROOT / OUT / "raw/shards/*.tar"), "weight": 1}
    train("pretrained", {"data": [raw, {"shards": trusted, "weight": 1}], "loss": "blip", "lr": 2e-3})
    tuned = {"data": trusted, "init": str(OUT / "pretrained/model")}
    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(train, "captioner", {**tuned, "loss": "blip_captioner", "batch": 32, "lr": 2e-3}),
                pool.submit(train, "filter", {**tuned, "loss": "blip_filter", "batch": 32, "lr": 1e-3})]
        for job in jobs:
            job.result()


def train(name: str, settings: Mapping[str, Any]) -> None:
    """Train below runs/capfilt/NAME unless it is done there."""
    common = {"model": MODEL, "samples_seen": SAMPLES[name], "batch": 64, "threads": 1, "tensorboard": False, "log_every": 20}
    (ROOT / OUT / f"{name}.yaml").write_text(json.dumps({**common, **settings}))
    print(f"$ curate train {OUT / name}.yaml", flush=True)
    subprocess.run([sys.executable, "-m", "train", str(OUT / f"{name}.yaml"), "--out", str(OUT / name)], cwd=ROOT, check=True)


# ---- what came of it, by the truth


def judged() -> dict[str, float]:
    """Figures of the run; shares are 0 to 1."""
    from train.figures import auroc

    rows, scenes = list(measured()), truth()
    wrong = np.array([scenes[row["url"], row["caption"]][1] for row in rows])
    web = [row["caption"] in row["captions"] for row in rows]
    made = [(text, itm) for row in rows for text, itm in zip(row["synthetic_captions"], row["itm_synthetic"], strict=True)]
    kept = [(text, scene(demo.SEED, scenes[row["url"], row["caption"]][0])) for row in rows for text in row["captions"]]
    came = [(row["caption"], scene(demo.SEED, scenes[row["url"], row["caption"]][0])) for row in rows]
    said = [(text, scene(demo.SEED, scenes[row["url"], row["caption"]][0])) for row in rows for text in row["synthetic_captions"]]
    return {
        "rows judged": len(rows),
        "ITM AUROC, right web captions against wrong ones": auroc(np.array([row["itm_web"] for row in rows]), ~wrong),
        "ITC AUROC": auroc(np.array([row["itc_web"] for row in rows]), ~wrong),
        "wrong web captions removed": 1 - float(np.mean(np.array(web)[wrong])),
        "right web captions kept": float(np.mean(np.array(web)[~wrong])),
        "synthetic captions refused (ITM below 0.5)": float(np.mean([itm < .5 for _, itm in made])),
        "pictures that keep a caption": float(np.mean([bool(row["captions"]) for row in rows])),
        **_named("web", came), **_named("synthetic", said), **_named("chosen", kept)}


def _named(name: str, texts: Sequence[tuple[str, Any]]) -> dict[str, float]:
    return {f"{what.replace('_', ' ')} of {name} captions": value for what, value in attribute_accuracy(texts).items()}


def measured() -> Iterator[dict[str, Any]]:
    """Every row that was judged."""
    from curate.folder import Folder

    folder = Folder.open(ROOT / OUT / "run")
    columns = ["url", "caption", "captions", "synthetic_captions", "itm_web", "itc_web", "itm_synthetic"]
    for number in range(folder.source.num_shards):
        yield from (row for row in folder.table(number, columns).to_pylist() if row["captions"] is not None)


def truth() -> dict[tuple[str, str], tuple[int, bool]]:
    """(url, caption) → number of the scene, and whether the caption is another one's."""
    found = pq.read_table(ROOT / demo.SITE / "truth.parquet", columns=["url", "caption", "scene", "kind"]).to_pylist()
    return {(row["url"], row["caption"]): (row["scene"], row["kind"] == "mismatched") for row in found}


if __name__ == "__main__":
    main()
