"""Whether CapFilt makes a better dataset of the demo's pool, and what of it does so: five arms, three paired seeds (see `arms`).

Judged by retrieval on 500 clean scenes that no arm has seen. The captioner and the filter are those of `python -m
tests.site.capfilt`, trained first where they are not there. Figures go to runs/capfilt/figures.json and are printed. 32 to
50 minutes on two cores.
"""

import json
import sys

from curate import files
from tests.benchmarks import ROOT, Row
from tests.benchmarks.arms import SAMPLES, SEEDS, compared
from tests.site import capfilt
from tests.site.shards import write_shards

JUDGE = range(200_000, 200_500)


def run() -> list[Row]:
    """Recall of the model on CapFilt's shards beside that of the raw pool's, and how the filter tells wrong captions."""
    capfilt.main()
    out = ROOT / capfilt.SCENES.out
    figures = {**compared(capfilt.SCENES, write_shards(out / "judge", JUDGE)), "truth": capfilt.judged()}
    files.write_json(out / "figures.json", figures, "bench")
    print(json.dumps(figures, indent=1), file=sys.stderr)
    means = figures["arms"]
    return [Row("capfilt_recall_at_10", "share", means["capfilt"]["recall_at_10"]["mean"], means["raw"]["recall_at_10"]["mean"],
                limit="ratio >= 1", sizes=f"{SAMPLES:,} samples, {len(SEEDS)} seeds"),
            Row("capfilt_itm_auroc", "AUROC", figures["truth"]["ITM AUROC, right web captions against wrong ones"],
                limit="ours >= 0.9", sizes="the quickstart's pool")]
