"""What each kind of model learns from the same clean pictures: CLIP, SigLIP, CoCa and BLIP from scratch, three seeds each.

3,000 rendered scenes with five captions each to learn from, 500 others to judge by. `recall_at_1`: the mean of both directions.
`cos_auroc`, `itm_auroc`: how a cosine, and BLIP's matching head, tell a scene's caption from one of another scene in which
nothing is the same. `attribute_precision` and `_recall`: of the (colour, shape) pairs in captions by nucleus sampling (p 0.9),
the share that is to be seen, and of those to be seen the share that is named. Means and 95 % intervals (Student's t) go to
runs/bench_models/figures.json and are printed. About 30 minutes on two cores; a seed runs on one.
"""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from curate import files
from tests.benchmarks import ROOT, Row
from tests.benchmarks.bench_loop import interval
from tests.site.attributes import attribute_accuracy
from tests.site.captions import captions
from tests.site.draw import render
from tests.site.scenes import Scene, scene
from tests.site.shards import write_shards

OUT = ROOT / "runs" / "bench_models"
TRAIN, JUDGE = range(3000), range(100_000, 100_500)
SEEDS = (0, 1, 2)
SAMPLES = int(os.environ.get("CURATE_BENCH_SAMPLES", "24000"))
KINDS: dict[str, dict[str, Any]] = {
    "clip": {"model": "curate-conv-64", "loss": "clip", "lr": 1e-3},
    "siglip": {"model": "curate-conv-64", "loss": "siglip", "lr": 1e-3},
    "coca": {"model": "curate-coca-64", "loss": "coca", "lr": 5e-4},
    "blip": {"model": "curate-blip-64", "loss": "blip", "lr": 5e-4}}


def run() -> list[Row]:
    """The figures of every kind; chance is the peer."""
    write_shards(OUT / "train", TRAIN)
    write_shards(OUT / "judge", JUDGE)
    jobs = list(product(KINDS, SEEDS))
    with ThreadPoolExecutor(2) as pool:
        found = dict(zip(jobs, pool.map(lambda job: measured(*job), jobs), strict=True))
    table = {kind: {figure: interval([found[kind, seed][figure] for seed in SEEDS]) for figure in found[kind, 0]}
             for kind in KINDS}
    files.write_json(OUT / "figures.json", {"samples_seen": SAMPLES, "models": table}, "bench")
    print(json.dumps(table, indent=1), file=sys.stderr)
    sizes = f"{SAMPLES:,} samples, {len(SEEDS)} seeds"
    rows = [Row(f"{kind}_recall_at_1", "share", table[kind]["recall_at_1"]["mean"], 1 / len(JUDGE), limit="ratio >= 10",
                sizes=sizes) for kind in KINDS]
    return [*rows, Row("blip_itm_auroc", "AUROC", table["blip"]["itm_auroc"]["mean"], limit="ours >= 0.9", sizes=sizes)]


def measured(kind: str, seed: int) -> dict[str, float]:
    """Train one and ask it, each in a process of one thread."""
    out = OUT / f"{kind}-{seed}-{SAMPLES}"
    settings = {"data": str(OUT / "train/*.tar"), "samples_seen": SAMPLES, "batch": 64, "seed": seed, "threads": 1, "workers": 1,
                "tensorboard": False, "eval": {"retrieval": str(OUT / "judge/*.tar")}, **KINDS[kind]}
    files.write_json(OUT / f"{kind}-{seed}.yaml", settings, "bench")
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-m", "train", str(OUT / f"{kind}-{seed}.yaml"), "--out", str(out)], cwd=ROOT, check=True,
                   env=env, stdout=subprocess.DEVNULL)
    figures = out / "asked.json"
    if not figures.exists():
        subprocess.run([sys.executable, "-m", "tests.benchmarks.bench_models", kind, str(out)], cwd=ROOT, check=True, env=env)
    card = files.read_json(out / "model" / "train.json")
    return {"recall_at_1": card["figures"]["recall_at_1"], "recall_at_10": card["figures"]["recall_at_10"],
            **files.read_json(figures)}


def ask(kind: str, model: Path) -> dict[str, float]:
    """AUROCs and attributes of a trained model over the judging scenes."""
    from train.figures import auroc
    from train.models.clip import embed_images, embed_texts
    from train.models.weights import load

    scenes = [scene(0, n) for n in JUDGE]
    images, right = [render(s) for s in scenes], [captions(s, 1)[0] for s in scenes]
    wrong = [captions(other(s), 1)[0] for s in scenes]
    loaded = load(KINDS[kind]["model"], str(model))
    image_emb = embed_images(loaded, images)
    scores = [(image_emb * embed_texts(loaded, texts)).sum(1) for texts in (right, wrong)]
    truth = np.repeat([True, False], len(scenes))
    found = {"cos_auroc": auroc(np.concatenate(scores), truth)}
    if kind == "blip":
        from train.models.matcher import Matcher

        matcher = Matcher(str(model))
        probs = [matcher.match(images, list(enumerate(texts)))[0] for texts in (right, wrong)]
        found["itm_auroc"] = auroc(np.concatenate(probs), truth)
    if kind in ("coca", "blip"):
        found |= attribute_accuracy(zip(said(kind, loaded, model, images), scenes, strict=True))
    return found


def said(kind: str, loaded: Any, model: Path, images: list[Image.Image]) -> list[str]:
    """One sampled caption a picture."""
    from train.models.captioner import Captioner
    from train.models.coca_captioner import CocaCaptioner
    from train.models.sampling import Decoding

    how = Decoding(prompt="", repetition_penalty=1.0)
    captioner = Captioner(str(model), how) if kind == "blip" else CocaCaptioner(loaded, how)
    return [texts[0] for texts in captioner.captions(images, [str(n) for n in JUDGE])]


def other(shown: Scene) -> Scene:
    """A scene in which nothing is as in this one."""
    return next(s for n in range(200_000, 300_000) if not (s := scene(0, n)).things() & shown.things())


if __name__ == "__main__":
    files.write_json(Path(sys.argv[2]) / "asked.json", ask(sys.argv[1], Path(sys.argv[2]) / "model"), "bench")
