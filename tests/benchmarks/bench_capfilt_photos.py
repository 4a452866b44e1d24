"""The same as bench_capfilt on a noisy web of real photographs: what CapFilt is worth where a small model understands little.

CURATE_BENCH_FLICKR8K names a folder with train.tsv, dev.tsv (image TAB caption, below a head) and images/. CURATE_BENCH_POOL
names one with pool.parquet (url, caption) and truth.parquet (the same rows with `image`, a file of images/, and `kind`:
`mismatched` is another picture's caption); its urls must answer while this runs. Photographs of train.tsv that no row shows are
the trusted set, with what people wrote of them; dev.tsv judges. Everything goes to runs/capfilt_photos.

Photographs have no attributes that a program knows. What captions are worth is told by the other captions that people wrote of
the same picture: CIDEr-D, and the share of telling words (in fewer than 5 % of what people wrote) that one of the others has too.
"""

import json
import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from curate import files
from tests.benchmarks import ROOT, Row
from tests.benchmarks.arms import SAMPLES, SEEDS, compared
from tests.benchmarks.photos import captions_of, write_photos
from tests.site.capfilt import Pool, filter_figures, texts_of

PHOTOS, FOLDER = os.environ.get("CURATE_BENCH_FLICKR8K", ""), os.environ.get("CURATE_BENCH_POOL", "")
POOL = Pool(Path("runs/capfilt_photos"), (f"source.pairs={FOLDER}/pool.parquet", "download.allow_private=[127.0.0.0/8]"),
            {"pretrained": 24_000, "captioner": 48_000, "filter": 24_000})
COMMON = .05
"""A word in this share of all written captions says nothing of a picture."""


def run() -> list[Row]:
    """Recall of the model on CapFilt's shards beside that of the raw pool's, and how the filter tells wrong captions."""
    if not PHOTOS or not FOLDER:
        print("capfilt_photos not run: it needs CURATE_BENCH_FLICKR8K and CURATE_BENCH_POOL, see its file", file=sys.stderr)
        return []
    truth = pq.read_table(Path(FOLDER) / "truth.parquet", columns=["url", "caption", "kind", "image"]).to_pylist()
    written = captions_of(Path(PHOTOS), "train")
    shown = {row["image"] for row in truth}
    POOL.run_raw()
    out = ROOT / POOL.out
    trusted = {image: texts for image, texts in written.items() if image not in shown}
    POOL.train_all(write_photos(Path(PHOTOS), trusted, out / "trusted"))
    POOL.run()
    judge = write_photos(Path(PHOTOS), captions_of(Path(PHOTOS), "dev"), out / "judge")
    figures = {**compared(POOL, judge), "truth": judged(truth, written)}
    files.write_json(out / "figures.json", figures, "bench")
    print(json.dumps(figures, indent=1), file=sys.stderr)
    means = figures["arms"]
    return [Row("capfilt_photos_recall_at_10", "share", means["capfilt"]["recall_at_10"]["mean"],
                means["raw"]["recall_at_10"]["mean"], limit="ratio >= 1", sizes=f"{SAMPLES:,} samples, {len(SEEDS)} seeds"),
            Row("capfilt_photos_itm_auroc", "AUROC", figures["truth"]["ITM AUROC, right web captions against wrong ones"],
                0.5, limit="ratio >= 1", sizes=f"{len(trusted):,} trusted photographs")]


def judged(truth: Sequence[Mapping[str, str]], written: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """Figures of the run."""
    known = {(row["url"], row["caption"]): row for row in truth}
    rows = list(POOL.measured())
    rows_truth = [known[row["url"], row["caption"]] for row in rows]
    figures = filter_figures(rows, np.array([row["kind"] == "mismatched" for row in rows_truth]))
    for name, texts in texts_of(rows).items():
        pairs = [(text, [other for other in written[rows_truth[n]["image"]] if other != text]) for n, text in texts]
        figures |= {f"{what} of {name} captions": value for what, value in said_too(pairs, written).items()}
    return figures


def said_too(pairs: Sequence[tuple[str, Sequence[str]]], written: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """Of (caption, what people wrote of the same picture): CIDEr-D (0 to 10), and the share of telling words that are there."""
    from train.captions import caption_figures, words

    everything = [set(words(text)) for texts in written.values() for text in texts]
    frequency = Counter(word for found in everything for word in found)
    common = {word for word, count in frequency.items() if count >= COMMON * len(everything)}
    found = [(set(words(text)) - common, set().union(*(words(other) for other in others))) for text, others in pairs]
    right, total = sum(len(said & there) for said, there in found), sum(len(said) for said, _ in found)
    return {"CIDEr-D": caption_figures([text for text, _ in pairs], [others for _, others in pairs])["cider_d"],
            "share of telling words that others wrote too": right / max(1, total)}
