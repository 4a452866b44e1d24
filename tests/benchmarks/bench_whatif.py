"""A million rows, a question: seconds of `curate whatif`'s answer, and of the whole command with Python's start.

The run is a real one of captions alone; score, width and height come with the source, so nothing has to be fetched. `ours` is the
median of five. `peer` of the answer is nobody's; of the command it is `python -c pass`, what no command can be without.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.benchmarks import ROOT, Row, median_seconds

ROWS = 1_000_000
QUESTION = "clip_cos > 0.27 and num_words between 3 and 20"
WORDS = ("a", "the", "red", "blue", "large", "small", "cube", "sphere", "dog", "cat", "house", "tree", "photo", "of", "on", "old")
ENDS = ("com", "de", "co.uk", "jp")
PIPELINE = """
source: {pairs: rows.parquet, url: url, caption: caption}
steps:
  - caption_length
  - language
  - keep: num_words between 3 and 20 and lang = 'en'
  - keep: clip_cos > 0.25
shards: none
"""


def run() -> list[Row]:
    """Seconds of the answer and of the command."""
    from curate.deciding.whatif import lines, whatif

    with tempfile.TemporaryDirectory() as name:
        out = finished(Path(name))
        answer = median_seconds(lambda: list(lines(whatif(out, QUESTION))), repeats=5)
        command = median_seconds(lambda: _curate("whatif", str(out), QUESTION), repeats=5)
        bare = median_seconds(lambda: subprocess.run([sys.executable, "-c", "pass"], check=True), repeats=5)
    sizes = f"{ROWS:,} rows, two clauses, 100 shards"
    return [Row("whatif_answer", "s", answer, limit="ours <= 2", sizes=sizes),
            Row("whatif_command", "s", command, bare, sizes=sizes)]


def finished(folder: Path) -> Path:
    """A finished run over made-up captions; hosts as uneven as the web's."""
    rng = np.random.default_rng(7)
    words, lengths = np.array(WORDS)[rng.integers(0, len(WORDS), (ROWS, 24))], rng.integers(1, 25, ROWS)
    hosts = rng.zipf(1.3, ROWS) % 20_000
    captions = [" ".join(row[:n]) for row, n in zip(words.tolist(), lengths.tolist(), strict=True)]
    urls = [f"https://img{h % 7}.site{h}.{ENDS[h % 4]}/p/{i}.jpg" for i, h in enumerate(hosts.tolist())]
    scores = rng.normal(.25, .05, ROWS).astype(np.float32)
    table = {"url": urls, "caption": captions, "clip_cos": scores, "width": rng.integers(50, 2000, ROWS),
             "height": rng.integers(50, 2000, ROWS)}
    pq.write_table(pa.table(table), folder / "rows.parquet")
    (folder / "p.yaml").write_text(PIPELINE)
    _curate("run", str(folder / "p.yaml"), "--on", "local", "--out", str(folder / "run"))
    return folder / "run"


def _curate(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "curate", *words], cwd=ROOT, check=True, capture_output=True)
