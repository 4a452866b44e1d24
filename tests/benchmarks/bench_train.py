"""`python -m train` against open_clip's own trainer: the same small CLIP, the same six shards of 1,000 photographs, one epoch.

`rate` is samples a second once running, by each one's own clock over the steps but the first three; `command` is seconds of the
whole command. `compute` is what the model, loss and optimizer alone do with one batch that is there already: nothing can be
faster. Both have two threads that compute and two workers that decode. That both learn the same from the same batches is a test
(tests/train/test_reference.py). Photographs come from the folder CURATE_BENCH_PHOTOS, or are drawn.
"""

import io
import json
import os
import re
import statistics
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

from tests.benchmarks import ROOT, Row, peer_venv
from tests.benchmarks.bench_download import drawn

MODEL, BATCH, SHARDS, ROWS, THREADS = "curate-vit-64", 128, 6, 1000, 2
REPEATS = int(os.environ.get("CURATE_BENCH_REPEATS", "3"))
WARM = 3
PEER = """
import sys, open_clip, torch
from open_clip_train.main import main
torch.set_num_threads(2)
open_clip.add_model_config("configs")
main(sys.argv[1:])
"""
COMPUTE = """
import statistics, sys, time, torch
from train.config import from_mapping
from train.dist import Ranks
from train.models.weights import load
from train.objectives import make_objective
from train.optim import make_optimizer
batch, steps = int(sys.argv[1]), int(sys.argv[2])
torch.set_num_threads(2)
config = from_mapping({"data": "none", "samples_seen": 1, "model": "curate-vit-64", "batch": batch})
loaded = load(config.model, "random:0")
objective, alone = make_objective(loaded, config).train(), Ranks(0, 1, torch.device("cpu"))
optimizer = make_optimizer(loaded.model, config)
pixels, tokens = torch.randn(batch, 3, 64, 64), loaded.tokenizer([f"photo number {n}" for n in range(batch)])
seconds = []
for _ in range(steps):
    since = time.perf_counter()
    objective.contrast(objective(pixels, tokens, torch.arange(batch)), alone).backward()
    torch.nn.utils.clip_grad_norm_(loaded.model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    seconds.append(time.perf_counter() - since)
print(batch / statistics.median(seconds[3:]))
"""


def run() -> list[Row]:
    """Rates and whole commands, one after the other in turns; medians."""
    python = peer_venv("open_clip", ["webdataset==0.2.86", f"numpy=={version('numpy')}", f"pyyaml=={version('pyyaml')}"])
    site = next((python.parents[1] / "lib").glob("python*/site-packages"))
    (site / "ours.pth").write_text(sysconfig.get_path("purelib") + "\n")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_shards(folder / "shards")
        rounds = [(ours(folder, n), theirs(python, folder, n), compute()) for n in range(REPEATS)]
    rate, command, peer_rate, peer_command, alone = (
        statistics.median(values) for values in zip(*((*a, *b, c) for a, b, c in rounds), strict=True))
    sizes = f"{SHARDS * ROWS:,} photos, batch {BATCH}"
    return [Row("train_rate", "samples/s", rate, peer_rate, limit="ratio >= 1.2", sizes=sizes),
            Row("train_command", "s", command, peer_command, limit="ratio <= 1", sizes=sizes),
            Row("train_of_compute", "samples/s", rate, alone, limit="ratio >= 0.95", sizes=f"{sizes}; peer: compute alone")]


def write_shards(folder: Path) -> None:
    """Tars of jpg and txt; the photographs come again, each time with another caption."""
    given = os.environ.get("CURATE_BENCH_PHOTOS")
    bodies = [p.read_bytes() for p in sorted(Path(given).iterdir())] if given else [drawn(seed) for seed in range(200)]
    folder.mkdir()
    for number in range(SHARDS):
        with tarfile.open(folder / f"{number:05d}.tar", "w") as archive:
            for n in range(number * ROWS, (number + 1) * ROWS):
                for kind, data in (("jpg", bodies[n % len(bodies)]), ("txt", f"photo number {n} of a set".encode())):
                    info = tarfile.TarInfo(f"{n:09d}.{kind}")
                    info.size = len(data)
                    archive.addfile(info, io.BytesIO(data))


def ours(folder: Path, number: int) -> tuple[float, float]:
    """(samples a second, seconds of the command) of our trainer."""
    out = folder / f"ours{number}"
    settings = {"data": str(folder / "shards/*.tar"), "model": MODEL, "samples_seen": "1 epoch", "batch": BATCH, "workers": 2,
                "threads": THREADS, "precision": "fp32", "log_every": 1, "tensorboard": False}
    (folder / "train.yaml").write_text(json.dumps(settings))
    since = time.perf_counter()
    subprocess.run([sys.executable, "-m", "train", str(folder / "train.yaml"), "--out", str(out)], cwd=ROOT, check=True,
                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    seconds = time.perf_counter() - since
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [line["samples_per_second"] for line in lines if "samples_per_second" in line][-1], seconds


def theirs(python: Path, folder: Path, number: int) -> tuple[float, float]:
    """The same of open_clip's; its log gives each step's samples a second."""
    (folder / "configs").mkdir(exist_ok=True)
    (folder / "configs" / f"{MODEL}.json").write_bytes((ROOT / "train/models" / f"{MODEL}.json").read_bytes())
    since = time.perf_counter()
    words = ("--dataset-type webdataset --workers 2 --epochs 1 --warmup 2 --precision fp32 --device cpu --log-every-n-steps 1 "
             f"--grad-clip-norm 1.0 --logs logs --train-num-samples {SHARDS * ROWS} --model {MODEL} --batch-size {BATCH}").split()
    subprocess.run([python, "-W", "ignore", "-c", PEER, *words, "--name", f"run{number}", "--train-data",
                    str(folder / f"shards/{{00000..{SHARDS - 1:05d}}}.tar")],
                   cwd=folder, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": str(THREADS)})
    seconds = time.perf_counter() - since
    text = (folder / f"logs/run{number}/out.log").read_text()
    times = [float(batch) for batch in re.findall(r"Batch \(t\): ([0-9.]+)", text)]
    return BATCH / statistics.mean(times[WARM:]), seconds


def compute() -> float:
    """Samples a second of the model alone."""
    done = subprocess.run([sys.executable, "-c", COMPUTE, str(BATCH), "20"], cwd=ROOT, check=True, capture_output=True, text=True)
    return float(done.stdout)
