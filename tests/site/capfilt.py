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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tests.site import demo
from tests.site.attributes import attribute_accuracy
from tests.site.demo import ROOT
from tests.site.scenes import scene
from tests.site.shards import write_shards

PIPELINE = Path("pipelines/local_capfilt.yaml")
TRUSTED = range(100_000, 110_000)
MODEL = "curate-blip-64"


@dataclass(frozen=True)
class Pool:
    """A pool of (url, caption) rows whose urls answer, and where its models and runs lie."""

    out: Path
    """below ROOT"""
    sets: tuple[str, ...]
    """what differs from PIPELINE"""
    samples: Mapping[str, int]
    """name of a training → pairs it sees"""

    def run(self) -> None:
        """PIPELINE with this pool's models, in `out`/run."""
        models = (f"blip_caption.model={self.out}/captioner/model", f"blip_match.model={self.out}/filter/model")
        self._curate(PIPELINE, "run", (*self.sets, *models))

    def run_raw(self) -> None:
        """The raw pool as shards, in `out`/raw: the same pipeline without what stands behind the pictures' keeps."""
        (ROOT / self.out).mkdir(parents=True, exist_ok=True)
        text = (ROOT / PIPELINE).read_text()
        before, _, _ = text.partition("  # A text for every picture")
        assert before != text
        (ROOT / self.out / "raw.yaml").write_text(before + "shards: {rows: 500}\n")
        self._curate(self.out / "raw.yaml", "raw", self.sets)

    def _curate(self, pipeline: Path, name: str, sets: Sequence[str]) -> None:
        words = [word for s in sets for word in ("--set", s)]
        demo.curate("run", str(pipeline), "--out", str(self.out / name), "--on", "local", *words)

    def train_all(self, trusted: str) -> None:
        """The three trainings, the last two from the first; `trusted` are shards of right pairs."""
        raw = {"shards": str(ROOT / self.out / "raw/shards/*.tar"), "weight": 1}
        self._train("pretrained", {"data": [raw, {"shards": trusted, "weight": 1}], "loss": "blip", "lr": 2e-3})
        tuned = {"data": trusted, "init": str(self.out / "pretrained/model"), "batch": 32}
        with ThreadPoolExecutor(2) as threads:
            jobs = [threads.submit(self._train, "captioner", {**tuned, "loss": "blip_captioner", "lr": 2e-3}),
                    threads.submit(self._train, "filter", {**tuned, "loss": "blip_filter", "lr": 1e-3})]
            for job in jobs:
                job.result()

    def _train(self, name: str, settings: Mapping[str, Any]) -> None:
        common = {"model": MODEL, "samples_seen": self.samples[name], "batch": 64, "threads": 1, "tensorboard": False,
                  "log_every": 20}
        file = self.out / f"{name}.yaml"
        (ROOT / file).write_text(json.dumps({**common, **settings}))
        print(f"$ curate train {file}", flush=True)
        subprocess.run([sys.executable, "-m", "train", str(file), "--out", str(self.out / name)], cwd=ROOT, check=True)

    def measured(self) -> Iterator[dict[str, Any]]:
        """Every row that was judged."""
        from curate.folder import Folder

        folder = Folder.open(ROOT / self.out / "run")
        columns = ["uid", "url", "caption", "captions", "synthetic_captions", "itm_web", "itc_web", "itm_synthetic",
                   "synthetic_faults"]
        for number in range(folder.source.num_shards):
            yield from (row for row in folder.table(number, columns).to_pylist() if row["captions"] is not None)


SCENES = Pool(Path("runs/capfilt"), demo.SETTINGS, {"pretrained": 24_000, "captioner": 96_000, "filter": 48_000})


def main() -> None:
    demo.prepare()
    with demo.served():
        SCENES.run_raw()
        SCENES.train_all(write_shards(ROOT / SCENES.out / "trusted", TRUSTED))
        SCENES.run()
    print("\nAgainst the truth:\n")
    for name, value in judged().items():
        print(f"  {value:>8.3f}  {name}")


# ---- what came of it, by the truth


def judged() -> dict[str, float]:
    """Figures of the run; shares are 0 to 1."""
    rows, scenes = list(SCENES.measured()), truth()
    shown = [scene(demo.SEED, scenes[row["url"], row["caption"]][0]) for row in rows]
    wrong = [scenes[row["url"], row["caption"]][1] for row in rows]
    return {**filter_figures(rows, np.array(wrong)),
            **{f"{what.replace('_', ' ')} of {name} captions": value for name, texts in texts_of(rows).items()
               for what, value in attribute_accuracy((text, shown[n]) for n, text in texts).items()}}


def filter_figures(rows: Sequence[Mapping[str, Any]], wrong: NDArray[np.bool_]) -> dict[str, float]:
    """How the filter judged `rows`, of which some have `wrong` captions."""
    from train.figures import auroc

    web = np.array([row["caption"] in row["captions"] for row in rows])
    return {
        "rows judged": len(rows),
        "ITM AUROC, right web captions against wrong ones": auroc(np.array([row["itm_web"] for row in rows]), ~wrong),
        "ITC AUROC": auroc(np.array([row["itc_web"] for row in rows]), ~wrong),
        "wrong web captions removed": 1 - float(np.mean(web[wrong])),
        "right web captions kept": float(np.mean(web[~wrong])),
        "synthetic captions refused (ITM below 0.5)": float(np.mean([itm < .5 for row in rows for itm in row["itm_synthetic"]])),
        "pictures that keep a caption": float(np.mean([bool(row["captions"]) for row in rows]))}


def texts_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[int, str]]]:
    """(number of the row, text) of the web's captions, the synthetic ones, and the chosen ones."""
    return {"web": [(n, row["caption"]) for n, row in enumerate(rows)],
            "synthetic": [(n, text) for n, row in enumerate(rows) for text in row["synthetic_captions"]],
            "chosen": [(n, text) for n, row in enumerate(rows) for text in row["captions"]]}


def truth() -> dict[tuple[str, str], tuple[int, bool]]:
    """(url, caption) → number of the scene, and whether the caption is another one's."""
    found = pq.read_table(ROOT / demo.SITE / "truth.parquet", columns=["url", "caption", "scene", "kind"]).to_pylist()
    return {(row["url"], row["caption"]): (row["scene"], row["kind"] == "mismatched") for row in found}


if __name__ == "__main__":
    main()
