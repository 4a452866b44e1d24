"""What `make demo` runs: a faulty web on this machine, cleaned to shards.

    python -m tests.site.demo

Makes the site in runs/site unless it is there, serves it, runs pipelines/quickstart.yaml over it, and prints the funnel and the
rounds, what became of every planted fault, and what to try next. A second time nothing is fetched, measured or trained again.
"""

import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow.parquet as pq

from tests.site.faults import FAULTS
from tests.site.loopback import free_port
from tests.site.make import make, settings
from tests.site.routes import load

ROOT = Path(__file__).resolve().parents[2]
SITE, RUN, PIPELINE = Path("runs/site"), Path("runs/quickstart"), Path("pipelines/quickstart.yaml")
ROWS, SEED, MISMATCH = 4000, 0, .22
"""Of the rows that are left after cleaning, 28 % have a wrong caption."""
SETTINGS = (f"source.pairs={SITE}/pool.parquet", "download.allow_private=[127.0.0.0/8]")
CURATE = (sys.executable, "-m", "curate")


def main() -> None:
    begin = time.monotonic()
    prepare()
    with served():
        curate("run", str(PIPELINE), "--out", str(RUN), "--on", "local", *(word for s in SETTINGS for word in ("--set", s)))
    print(f"\nThat took {time.monotonic() - begin:.0f} s, the making of the site included.")
    print("\nWhat was planted, and how many rows of it are in the shards:\n")
    for line in fates():
        print(line)
    print("\nTry next:\n")
    for line in next_steps():
        print(line)


def prepare() -> None:
    """The site in SITE as this program makes it. A run over an older site goes, because its source is gone."""
    if (ROOT / SITE / "routes.json").exists() and load(ROOT / SITE).settings == settings(ROWS, SEED, MISMATCH, None):
        return
    if (ROOT / RUN).exists():
        print(f"removing {RUN}: it was run over another site")
        shutil.rmtree(ROOT / RUN)
    print(f"making {ROWS:,} rows of faulty web in {SITE} …", flush=True)
    make(ROOT / SITE, ROWS, SEED, MISMATCH, port=free_port(8765))


@contextmanager
def served() -> Iterator[None]:
    """The site, answering in a process of its own while the block runs. Exits where it cannot listen."""
    command = [sys.executable, "-m", "tests.site", "serve", str(SITE)]
    server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        if not server.stdout.readline():
            sys.exit(server.wait() or 1)
        yield
    finally:
        server.terminate()
        server.wait()
        server.stdout.close()


def curate(*arguments: str) -> None:
    """Run a command and show it; where it fails, fail alike."""
    print(f"$ curate {' '.join(arguments)}", flush=True)
    code = subprocess.run([*CURATE, *arguments], cwd=ROOT, check=False).returncode
    if code:
        sys.exit(code)


def fates() -> Iterator[str]:
    """A line for every kind of row: planted, and in the shards."""
    truth = pq.read_table(ROOT / SITE / "truth.parquet", columns=["url", "caption", "kind"]).to_pylist()
    tables = [pq.read_table(path, columns=["url", "caption"]) for path in sorted((ROOT / RUN / "shards").glob("*.parquet"))]
    kept = {(row["url"], row["caption"]) for table in tables for row in table.to_pylist()}
    planted = Counter(row["kind"] for row in truth)
    kinds = [row["kind"] for row in truth if row["kind"] != "repeated_row" and (row["url"], row["caption"]) in kept]
    left = Counter(kinds)
    for kind in ("clean", *FAULTS):
        yield f"{planted[kind]:>8,} {left[kind]:>8,}  {kind}"


def next_steps() -> Iterator[str]:
    """Commands worth a look, with rows of this very site."""
    truth = pq.read_table(ROOT / SITE / "truth.parquet", columns=["url", "kind"]).to_pylist()
    for kind, what in (("opt_out", "why a picture was not taken"), ("near_dup", "… was dropped as the same picture"),
                       ("mismatched", "… has another picture's caption: what the trained model made of it")):
        url = next(row["url"] for row in truth if row["kind"] == kind)
        yield f"  curate why {RUN} {url:<46} # {what}"
    yield f"  {f'curate status {RUN}':<74} # how far it is, and how the downloads ended"
    yield f"  {f'curate verify {RUN}':<74} # every shard hashed again"
    yield f"  {'python -m tests.site.demo':<74} # again: nothing is measured a second time"


if __name__ == "__main__":
    main()
