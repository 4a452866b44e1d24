"""The README's own commands, run in its order on the run that `make demo` leaves: what a new user types must work as printed."""

import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.docs.markdown import blocks, spans
from tests.running import environment
from tests.site.server import serve
from tests.train.toys import caption, scene

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
SITE, RUN = ROOT / "runs/site", ROOT / "runs/quickstart"
INSTEAD = {"--nproc-per-node 8": "--nproc-per-node 2", "runs/NAME/model": "runs/settings/model",
           "runs/other": "runs/quickstart"}
"""What the README says for machines and names that a test has not → what is run."""
BEFORE = ("git clone", "make demo", ". .venv")


def doors() -> list[str]:
    """The commands in the table of doors, in order."""
    table = README.split("| I have |")[1].split("\n\n")[0]
    return [span for span, _ in spans(table) if span.startswith("curate ")]


def scripts() -> list[str]:
    """The commands in sh blocks, in order, but for those that made the run."""
    lines = [line.split("  #")[0].strip() for b in blocks(README) if b.language == "sh" for line in b.text.splitlines()]
    return [line for line in lines if line and not line.startswith(BEFORE)]


def test_all_are_found() -> None:
    assert [c.split()[1] for c in doors()] == ["init", "run", "init", "run", "shard", "verify"]
    assert [" ".join(c.split()[:2]) for c in scripts()] == [
        "curate train", "torchrun --nproc-per-node", "curate evaluate", "curate index", "curate search", "curate serve",
        "curate whatif", "curate diff", "curate gc", "curate takedown", "curate verify",
        "curate card", "curate card", "curate publish"]


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder with what the README speaks of: a run, tars, uids, a table of urls, settings, classes."""
    if not (RUN / "rounds.json").exists():
        pytest.skip("there is no finished runs/quickstart; make demo makes it")
    folder = tmp_path_factory.mktemp("desk")
    shutil.copytree(RUN, folder / "runs/quickstart", ignore=shutil.ignore_patterns("index", "card", "report"))
    shutil.copytree(RUN / "shards", folder / "cc12m")
    uids = pq.read_table(folder / "cc12m/00000.parquet")["uid"].to_pylist()[:50]
    pairs = np.array(sorted((int(u[:16], 16), int(u[16:], 16)) for u in uids), dtype="u8,u8")
    np.save(folder / "subset.npy", pairs)
    block = next(b.text for b in blocks(README) if b.language == "yaml" and b.text.startswith("# settings.yaml"))
    small = {r"model: .*": "model: curate-conv-64", r"init: .*\n": "", r"data: .*": "data: cc12m/*.tar",
             r"samples_seen: .*": "samples_seen: 128", r"batch: .*": "batch: 32"}
    for pattern, text in small.items():
        assert re.search(pattern, block), pattern
        block = re.sub(pattern, text, block)
    (folder / "settings.yaml").write_text(block)
    for number in (0, 1):
        (folder / f"imagenet/val/n{number}").mkdir(parents=True)
        scene(number).save(folder / f"imagenet/val/n{number}/a.png")
    (folder / "removed.txt").write_text(f"uid:{uids[0]}\n")
    (folder / "classes.txt").write_text(f"n0\t{caption(0)}\nn1\t{caption(1)}\n")
    return folder


def run(desk: Path, command: str) -> str:
    """What a command prints; it must end well."""
    for said, meant in INSTEAD.items():
        command = command.replace(said, meant)
    words = shlex.split(command)
    program = {"curate": [sys.executable, "-m", "curate"], "torchrun": [sys.executable, "-m", "torch.distributed.run"]}[words[0]]
    done = subprocess.run([*program, *words[1:]], cwd=desk, env={**environment(), "OMP_NUM_THREADS": "1"}, capture_output=True,
                          text=True, timeout=240, check=False)
    checks = words[1:] == ["card", "runs/quickstart", "--check"]       # a card that nobody has filled in is found wanting
    assert done.returncode == (1 if checks else 0), f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_three_doors(desk: Path) -> None:
    with serve(SITE) as site:
        pool = pq.read_table(site.pool, columns=["url", "caption"]).slice(0, 80)
        pq.write_table(pool.rename_columns({"url": "URL", "caption": "TEXT"}), desk / "my.parquet")
        commands = doors()
        assert "url: 'URL'" in run(desk, commands[0])
        settings = desk / "pipeline.yaml"
        settings.write_text(settings.read_text().replace("download: {", "download: {allow_private: [127.0.0.0/8], "))
        run(desk, "curate plan pipeline.yaml --on local")
        assert "rows in" in run(desk, f"{commands[1]} --on local")
        assert "rows in" in run(desk, f"{commands[1].replace(' --limit 1000', '')} --on local")
        assert "through all stages" in run(desk, "curate status runs/pipeline")
    run(desk, commands[2])
    assert "rows in" in run(desk, f"{commands[3]} --on local")
    assert "50 of 1,965 rows" in run(desk, commands[4])
    assert "every file is as the manifest says" in run(desk, commands[5])


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_what_stands_in_its_blocks(desk: Path) -> None:
    said = {command: served(desk, command) if " serve " in command else run(desk, command) for command in scripts()}
    names = ("train", "torchrun", "evaluate", "index", "search", "serve", "whatif", "diff", "gc", "takedown", "links", "card",
             "check", "publish")
    found = dict(zip(names, said.values(), strict=True))
    assert "accuracy" in found["evaluate"]
    assert "recall@40 1.000" in found["index"]
    assert len(re.findall(r"^ \d\.\d{4}  [0-9a-f]{32}  kept", found["search"], re.M)) == 5
    assert "of the source's 4,000 rows pass" in found["whatif"]
    assert "would" in found["takedown"]
    assert "could not tell" in found["links"]              # nobody serves the site
    assert "TODO-HUMAN" in found["check"]
    published = {p.name for p in (desk / "published").iterdir()}
    assert published >= {"README.md", "croissant.json", "uids.npy", "SHA256SUMS", "manifest.json"}


def served(desk: Path, command: str) -> str:
    """The first line of a server, which answers and is then asked to end."""
    words = [sys.executable, "-m", *shlex.split(command), "--port", "0"]
    with subprocess.Popen(words, cwd=desk, env=environment(), stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        line = server.stdout.readline()
        address = re.search(r"http://127\.0\.0\.1:\d+", line)
        assert address, line
        with urlopen(f"{address[0]}/healthz", timeout=30) as answer:
            assert answer.status == 200
        server.send_signal(signal.SIGINT)
        assert server.wait(30) == 0
    return line
