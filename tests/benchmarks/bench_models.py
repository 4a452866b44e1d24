"""What each kind of model learns from the same clean pictures: CLIP, SigLIP, CoCa and BLIP from scratch, three seeds each.

`scenes`: 3,000 rendered ones with five captions each to learn from, 500 others to judge by. `photos`, where CURATE_BENCH_FLICKR8K
names a folder with train.tsv, dev.tsv (image TAB caption, below a head) and images/: the same of real photographs, without CoCa,
whose decoder has 49,408 words to choose from and takes as long as all the others together.

`recall_at_1`, `_10`: the mean of both directions. `cos_auroc`, `itm_auroc`: how a cosine, and BLIP's matching head, tell a
picture's caption from another's; of scenes one in which nothing is the same. `attribute_precision` and `_recall`: of the (colour,
shape) pairs in sampled captions (nucleus, p 0.9) the share that is to be seen, and of those to be seen the share that is named;
`colour_precision`, `shape_precision`: of the colours and of the shapes in them, of which one by lot is right in 0.17.
Means and 95 % intervals (Student's t) go to runs/bench_models/figures.json and are printed. A seed runs on one core; all
of them take an hour and a half on two.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from curate import files
from tests.benchmarks import ROOT, Row
from tests.benchmarks.bench_loop import interval
from tests.benchmarks.photos import captions_of, write_photos
from tests.site.attributes import attribute_accuracy
from tests.site.captions import captions
from tests.site.draw import render
from tests.site.scenes import Scene, scene
from tests.site.shards import write_shards

OUT = ROOT / "runs" / "bench_models"
TRAIN, JUDGE = range(3000), range(100_000, 100_500)
SEEDS = (0, 1, 2)
SAMPLES = int(os.environ.get("CURATE_BENCH_SAMPLES", "24000"))
PHOTOS = os.environ.get("CURATE_BENCH_FLICKR8K", "")
KINDS: dict[str, dict[str, Any]] = {
    "clip": {"model": "curate-conv-64", "loss": "clip", "lr": 1e-3},
    "siglip": {"model": "curate-conv-64", "loss": "siglip", "lr": 1e-3},
    "coca": {"model": "curate-coca-64", "loss": "coca", "lr": 2e-3},
    "blip": {"model": "curate-blip-64", "loss": "blip", "lr": 2e-3, "samples_seen": 2 * SAMPLES}}
"""What differs. Decoders need the larger rate: at 5e-4 they have hardly begun to write, and BLIP's matching head to judge. This
takes more samples as well: its three losses share one transformer."""


def run() -> list[Row]:
    """The figures of every kind on every pool; chance is the peer."""
    pools = ["scenes", *(["photos"] if PHOTOS else [])]
    for pool in pools:
        write(pool)
    jobs = [(pool, kind, seed) for pool in pools for seed, kind in product(SEEDS, KINDS) if (pool, kind) != ("photos", "coca")]
    with ThreadPoolExecutor(2) as threads:
        found = dict(zip(jobs, threads.map(lambda job: measured(*job), jobs), strict=True))
    table = {pool: {kind: {figure: interval([found[pool, kind, seed][figure] for seed in SEEDS])
                           for figure in found[pool, kind, 0]} for kind in KINDS if (pool, kind, 0) in found} for pool in pools}
    files.write_json(OUT / "figures.json", {"samples_seen": SAMPLES, "models": table}, "bench")
    print(json.dumps(table, indent=1), file=sys.stderr)
    return [*(Row(f"{pool}_{kind}_recall_at_1", "share", table[pool][kind]["recall_at_1"]["mean"], 1 / len(JUDGE),
                  limit="ratio >= 10" if pool == "scenes" else "", sizes=sizes(kind)) for pool in pools for kind in table[pool]),
            Row("blip_itm_auroc", "AUROC", table["scenes"]["blip"]["itm_auroc"]["mean"], limit="ours >= 0.9",
                sizes=sizes("blip"))]


def sizes(kind: str) -> str:
    """How much a kind sees, for the table."""
    return f"{KINDS[kind].get('samples_seen', SAMPLES):,} samples, {len(SEEDS)} seeds"


def write(pool: str) -> None:
    """The pool's tars to learn from and to judge by."""
    if pool == "scenes":
        write_shards(OUT / "scenes" / "train", TRAIN)
        write_shards(OUT / "scenes" / "judge", JUDGE)
        return
    for part, name in (("train", "train"), ("dev", "judge")):
        write_photos(Path(PHOTOS), captions_of(Path(PHOTOS), part), OUT / "photos" / name)


def measured(pool: str, kind: str, seed: int) -> dict[str, float]:
    """Train one and ask it, each in a process of one thread."""
    settings: dict[str, Any] = {
        "data": str(OUT / pool / "train/*.tar"), "samples_seen": SAMPLES, "batch": 64, "seed": seed, "threads": 1, "workers": 1,
        "tensorboard": False, "eval": {"retrieval": str(OUT / pool / "judge/*.tar")}, **KINDS[kind]}
    out = OUT / pool / f"{kind}-{seed}-{settings['samples_seen']}"
    files.write_json(out.with_suffix(".yaml"), settings, "bench")
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-m", "train", str(out.with_suffix(".yaml")), "--out", str(out)], cwd=ROOT, check=True,
                   env=env, stdout=subprocess.DEVNULL)
    figures = out / "asked.json"
    if not figures.exists():
        subprocess.run([sys.executable, "-m", "tests.benchmarks.bench_models", pool, kind, str(out)], cwd=ROOT, check=True,
                       env=env)
    card = files.read_json(out / "model" / "train.json")
    return {"recall_at_1": card["figures"]["recall_at_1"], "recall_at_10": card["figures"]["recall_at_10"],
            **files.read_json(figures)}


def ask(pool: str, kind: str, model: Path) -> dict[str, float]:
    """AUROCs, and of scenes attributes, of a trained model over what judges."""
    from train.figures import auroc
    from train.models.clip import embed_images, embed_texts
    from train.models.weights import load

    images, right, wrong = judged(pool)
    loaded = load(KINDS[kind]["model"], str(model))
    image_emb = embed_images(loaded, images)
    scores = [(image_emb * embed_texts(loaded, texts)).sum(1) for texts in (right, wrong)]
    truth = np.repeat([True, False], len(images))
    found = {"cos_auroc": auroc(np.concatenate(scores), truth)}
    if kind == "blip":
        from train.models.matcher import Matcher

        matcher = Matcher(str(model))
        probs = [matcher.match(images, list(enumerate(texts)))[0] for texts in (right, wrong)]
        found["itm_auroc"] = auroc(np.concatenate(probs), truth)
    if kind in ("coca", "blip") and pool == "scenes":
        found |= attribute_accuracy(zip(said(kind, loaded, model, images), (scene(0, n) for n in JUDGE), strict=True))
    return found


def judged(pool: str) -> tuple[list[Image.Image], list[str], list[str]]:
    """Pictures, a right caption of each, a wrong one of each."""
    if pool == "scenes":
        scenes = [scene(0, n) for n in JUDGE]
        return [render(s) for s in scenes], [captions(s, 1)[0] for s in scenes], [captions(other(s), 1)[0] for s in scenes]
    found = captions_of(Path(PHOTOS), "dev")
    right = [texts[0] for texts in found.values()]
    half = len(right) // 2
    return [Image.open(Path(PHOTOS) / "images" / name).convert("RGB") for name in found], right, right[half:] + right[:half]


def said(kind: str, loaded: Any, model: Path, images: Sequence[Image.Image]) -> list[str]:
    """One sampled caption a picture."""
    from train.models.captioner import captioner
    from train.models.sampling import Decoding

    writes = captioner(loaded, Decoding(prompt="", repetition_penalty=1.0))
    return [texts[0] for texts in writes.captions(images, [str(n) for n in JUDGE])]


def other(shown: Scene) -> Scene:
    """A scene in which nothing is as in this one."""
    return next(s for n in range(shown.index + 100_000, shown.index + 200_000)
                if not (s := scene(0, n)).things() & shown.things())


if __name__ == "__main__":
    files.write_json(Path(sys.argv[3]) / "asked.json", ask(sys.argv[1], sys.argv[2], Path(sys.argv[3]) / "model"), "bench")
