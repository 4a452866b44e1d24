"""A whole cheap recipe: COYO's text rules as pipelines/coyo.yaml has them, language, nouns and frequency of texts included.

`ours` is rows a second at CURATE_BENCH_ROWS (a million unless told), `peer` the same at a tenth of that: the rate must stay. Ten
million rows within 15 minutes are 11,112 a second. Captions are English words at random, one in eight of another language.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from tests.benchmarks import ROOT, Row, peak_rss

ROWS = int(os.environ.get("CURATE_BENCH_ROWS", "1000000"))
AT_ONCE = 100_000
FOREIGN = ["der", "die", "und", "ein", "Haus", "mit", "rotem", "Dach", "auf", "dem", "Berg", "hinter", "Bäumen",
           "la", "maison", "rouge", "avec", "une", "porte", "bleue", "dans", "le", "jardin"]


def run() -> list[Row]:
    """Rows a second and the peak of the largest process, at both sizes."""
    few, many = (measured(rows) for rows in (ROWS // 10, ROWS))
    sizes = f"{ROWS:,} rows; peer: {ROWS // 10:,}"
    return [Row("recipe_rate", "rows/s", ROWS / many[0], ROWS / 10 / few[0], limit="ours >= 11112", sizes=sizes),
            Row("recipe_memory", "MiB", many[1], few[1], limit="ours <= 1365", sizes=f"{sizes}; the largest of three processes")]


def measured(rows: int) -> tuple[float, float]:
    """(seconds, peak MiB) of one whole command."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_rows(folder / "rows.parquet", rows)
        (folder / "profanity.txt").write_text("damn\nhell\ncrap\n")
        (folder / "pipeline.yaml").write_text(texts_of_coyo(folder))
        return peak_rss([sys.executable, "-m", "curate", "run", str(folder / "pipeline.yaml"), "--on", "local", "--workers", "2",
                         "--out", str(folder / "out")])


def texts_of_coyo(folder: Path) -> str:
    """The recipe up to its download, over rows.parquet."""
    recipe = yaml.safe_load((ROOT / "pipelines" / "coyo.yaml").read_text())
    end = next(i for i, entry in enumerate(recipe["steps"]) if isinstance(entry, dict) and "download" in entry)
    steps = recipe["steps"][:end]
    blocklist = next(entry["blocklist"] for entry in steps if isinstance(entry, dict) and "blocklist" in entry)
    blocklist["words"] = str(folder / "profanity.txt")
    source = {"pairs": str(folder / "rows.parquet"), "url": "url", "caption": "caption"}
    return yaml.safe_dump({"source": source, "steps": steps, "shards": "none"}, sort_keys=False)


def write_rows(path: Path, count: int) -> None:
    """Urls of their own, captions of 2 to 14 words."""
    listed = json.loads((ROOT / "curate" / "steps" / "caption_tags_words.json").read_text())
    english = sorted({word for words in listed.values() if isinstance(words, str) for word in words.split() if word.isalpha()})
    rng = np.random.default_rng(0)
    with pq.ParquetWriter(path, pa.schema([("url", pa.string()), ("caption", pa.string())])) as out:
        for start in range(0, count, AT_ONCE):
            number = min(AT_ONCE, count - start)
            lengths = rng.integers(2, 15, number)
            foreign = np.repeat(rng.random(number) < 0.125, lengths)
            draws = rng.random(len(foreign))
            words = np.where(foreign, np.array(FOREIGN, object)[(len(FOREIGN) * draws).astype(int)],
                             np.array(english, object)[(len(english) * draws).astype(int)])
            ends = np.cumsum(lengths)
            captions = [" ".join(words[end - n:end]) for end, n in zip(ends.tolist(), lengths.tolist(), strict=True)]
            out.write_table(pa.table({"url": [f"http://site.org/{start + i}.jpg" for i in range(number)], "caption": captions}))
