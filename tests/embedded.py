"""Runs with embeddings, for tests of the index: vectors come from a step that draws them by number, so no model is needed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curate.index import unit
from curate.retrieval.indexed import build
from tests.running import run_here, write_pipeline

DIMS = 16
STEP = f'''
import numpy as np
from curate.step import step, vector

def drawn(seed):
    return None if seed < 0 else np.random.default_rng(seed).standard_normal({DIMS})

@step(adds={{"image_emb": vector, "text_emb": vector}}, version=1)
def embed(pic: list[int], n: list[int]):
    return {{"image_emb": [drawn(p % 10**6 if p >= 0 else p) for p in pic], "text_emb": [drawn(1_000_000 + i) for i in n]}}

'''


def drawn(*seeds: int) -> np.ndarray:
    """The vectors that the step draws, as an index keeps them."""
    return unit(np.stack([np.random.default_rng(seed).standard_normal(DIMS) for seed in seeds]).astype(np.float16))


def make_run(folder: Path, pics: Sequence[int], *entries: str, embed: str = "./steps.py:embed", keep: str = "n >= 0",
             shard_rows: int = 100, **columns: Sequence[Any]) -> Path:
    """A run over rows n = 0, 1, … whose vectors are drawn by `pics[n]` modulo a million (below 0: none), their url made of it."""
    folder.mkdir(parents=True, exist_ok=True)
    urls = [f"http://site/{pic if pic >= 0 else 10**6 + n}.jpg" for n, pic in enumerate(pics)]
    captions = [f"row {n}" for n in range(len(pics))]
    pq.write_table(pa.table({"url": urls, "caption": captions, "n": range(len(pics)), "pic": list(pics), **columns}),
                   folder / "pool.parquet")
    (folder / "steps.py").write_text(STEP)
    source = f"source: {{pairs: pool.parquet, url: url, caption: caption, shard_rows: {shard_rows}}}\n"
    pipeline = write_pipeline(folder, embed, *entries, f"keep: {keep}", source=source)
    run_here(pipeline, folder / "run")
    return folder / "run"


def indexed(root: Path, **options: Any) -> list[str]:
    """Build the index of a run; what `curate index` says."""
    return list(build(root, attempt="test", **options))
