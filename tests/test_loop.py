"""The loop: rounds over the raw pool, judged on held-out pictures, the same whatever happens on the way."""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curate.certificate import digest_of
from curate.errors import UserError
from curate.evaluation import unchecked
from curate.heads.layers import Linear
from curate.pipeline import load
from tests.heads import write_head
from tests.running import environment, tree
from tests.site.make import make
from tests.site.server import serve
from tests.train.toys import caption, scene, write_tar
from train.config import from_mapping
from train.loop import train

ROOT = Path(__file__).resolve().parents[1]
STEPS = """\
  - held_out: {share: 0.2}
  - keep: not held_out
  - clip_embed: {as: loop, model: curate-conv-64, pretrained: loop, first: raw}
  - clip_score: {of: loop}
  - keep: {top: 0.7, by: loop_clip_cos}
"""
CHECKED = """\
  - image_hash
  - decontaminate: {against: exam}
  - keep: not contaminated
"""
PIPELINE = f"""\
source: {{images: photos.csv, path: file, caption: caption, shard_rows: 40}}
steps:
{STEPS}shards: {{rows: 50}}
train: {{samples_seen: 480, batch: 32, threads: 1, lr: 1e-3, checkpoint_every: 5, tensorboard: false}}
loop: {{trainings: 1, promote_if: recall_at_10 improves, truth: truth.parquet, mismatched: wrong}}
"""


def write_site(folder: Path, rows: int = 120) -> None:
    """Pictures, a table of captions of which a quarter is wrong, and the truth."""
    draw = random.Random(0)
    (folder / "pictures").mkdir(parents=True)
    lines, truth = ["file,caption,url"], []
    for n in range(rows):
        scene(n).save(folder / f"pictures/{n:03d}.png")
        wrong = draw.random() < 0.25
        text = f"{caption(draw.randrange(rows) if wrong else n)}, picture {n}"
        lines.append(f'pictures/{n:03d}.png,"{text}",http://site/{n}')
        truth.append({"url": f"http://site/{n}", "caption": text, "wrong": wrong})
    (folder / "photos.csv").write_text("\n".join(lines) + "\n")
    pq.write_table(pa.Table.from_pylist(truth), folder / "truth.parquet")
    (folder / "pipeline.yaml").write_text(PIPELINE.replace("caption: caption,", "caption: caption, url: url,"))


def start(folder: Path, out: str, on: str = "local", workers: int = 1) -> "subprocess.Popen[str]":
    """`curate run`."""
    command = [sys.executable, "-m", "curate", "run", "pipeline.yaml", "--on", on, "--workers", str(workers), "--out", out]
    env = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(folder)}
    return subprocess.Popen(command, cwd=folder, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


SAME = ("shards", "funnel.json", "rounds.json")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_round_is_recorded_resumed_and_the_same_after_kills_and_on_ray(tmp_path: Path) -> None:
    """One training, on the raw pool; nothing done twice; same bytes when killed in training and again in measuring. The model
    says what its rows were checked for."""
    write_site(tmp_path)
    (tmp_path / "exam").mkdir()
    scene(500).save(tmp_path / "exam/asked.png")
    text = (tmp_path / "pipeline.yaml").read_text().replace("steps:\n", f"steps:\n{CHECKED}")
    (tmp_path / "pipeline.yaml").write_text(text)
    said, complaints = start(tmp_path, "whole", workers=2).communicate()
    assert "rows in" in said, complaints
    rounds = json.loads((tmp_path / "whole/rounds.json").read_text())
    assert [r["round"] for r in rounds] == [0, 1]
    assert rounds[0]["weights"] == "random:0" and rounds[0]["promoted"] and rounds[0]["trained_on"] == ""
    assert rounds[1]["weights"].startswith("models/")
    assert set(rounds[1]["figures"]) >= {"recall_at_1", "recall_at_5", "recall_at_10", "mismatch_auroc"}
    assert len({r["weights_digest"] for r in rounds}) == len(rounds)
    best = max((r for r in rounds if r["promoted"]), key=lambda r: r["round"])
    assert json.loads((tmp_path / "whole/funnel.json").read_text()) == best["funnel"]
    held_out = next(e for e in best["funnel"] if e["what"] == "keep not held_out")["dropped"]
    assert 0 < held_out < 60
    card = json.loads((tmp_path / "whole" / rounds[1]["weights"] / "train.json").read_text())
    assert card["data"]["decontaminated"] == [{"benchmark": "exam", "digest": digest_of(str(tmp_path / "exam")), "bytes": True,
                                              "keep": "not contaminated", "hash_bits": 4, "max_levels": 24}]
    assert list(unchecked(str(tmp_path / "whole" / rounds[1]["weights"]), [str(tmp_path / "exam")])) == []
    again, _ = start(tmp_path, "whole").communicate()
    assert "measured now: nothing" in again

    _, complaints = start(tmp_path, "ray", on="ray", workers=2).communicate()
    assert tree(tmp_path / "ray", *SAME) == tree(tmp_path / "whole", *SAME), complaints

    for moment in ("training", "measuring"):
        process = start(tmp_path, "killed")
        wait_for(tmp_path / "killed", moment, process)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    _, complaints = start(tmp_path, "killed").communicate()
    assert tree(tmp_path / "killed", *SAME) == tree(tmp_path / "whole", *SAME), complaints


def wait_for(out: Path, moment: str, process: "subprocess.Popen[str]") -> None:
    """Until the training has a checkpoint, or its model is there and the second measuring is under way."""
    for _ in range(6000):
        assert process.poll() is None, "it ended before it could be killed"
        if moment == "training" and list(out.glob("models/*/checkpoints/*")):
            return
        if moment == "measuring" and list(out.glob("models/*/model/train.json")):
            return
        time.sleep(0.02)
    raise AssertionError(f"never came to {moment}")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_laion_like_runs_with_stand_in_weights(tmp_path: Path) -> None:
    """The pipeline as it is shipped, over a faulty web, with a small model for the published ones: both models named by --set."""
    make(tmp_path / "site", 500, seed=5, mismatch=.22)
    checkpoint = stand_in(tmp_path)
    harmless = Linear(np.full((1, 128), 0.1, np.float32), np.array([-3], np.float32))
    nsfw = write_head(tmp_path / "nsfw", harmless, dim=128, pretrained=str(checkpoint))
    with serve(tmp_path / "site") as site:
        pool = pq.read_table(site.pool).rename_columns({"url": "URL", "caption": "TEXT"})
        (tmp_path / "urls").mkdir()
        pq.write_table(pool, tmp_path / "urls/0.parquet")
        sets = [f"source.pairs={tmp_path}/urls/*.parquet", "download.allow_private=[127.0.0.0/8]", "ref.model=curate-conv-64",
                f"ref.pretrained={checkpoint}", f"nsfw.file={nsfw}", "loop.model=curate-conv-64",
                f"loop.first={checkpoint}", "held_out.share=0.2",
                "train.samples_seen=640", "train.batch=32", "train.tensorboard=false", "loop.trainings=1"]
        command = [sys.executable, "-m", "curate", "run", str(ROOT / "pipelines/laion_like.yaml"), "--on", "local"]
        done = subprocess.run([*command, "--out", "out", *(word for s in sets for word in ("--set", s))], cwd=tmp_path, text=True,
                              capture_output=True, env=environment(), check=False)
    assert done.returncode == 0, done.stderr
    funnel = {e["what"]: e for e in json.loads((tmp_path / "out/funnel.json").read_text())}
    truth = pq.read_table(tmp_path / "site/truth.parquet").to_pylist()
    repeated = sum(row["kind"] == "repeated_row" for row in truth)
    assert funnel["source"]["kept"] == len(truth) - repeated
    english = funnel["keep num_chars >= 5 and lang = 'en'"]
    assert english["dropped"] >= sum(row["kind"] == "foreign" for row in truth)
    gone = funnel["keep status = 'ok' and num_bytes >= 5000"]["clauses"][0]["dropped"]
    assert gone == sum(row["expected_status"] != "ok" for row in truth)
    threshold = funnel["keep ref_clip_cos >= 0.28"]
    assert 0 < threshold["kept"] < threshold["in"] and threshold["unknown"] == 0
    safe = funnel["keep nsfw_prob < 0.5"]
    assert safe["kept"] == safe["in"] > 0, "the head calls everything safe, and every row has a score"
    top = funnel["keep top 0.3 by loop_clip_cos"]
    assert top["kept"] == int(0.3 * top["in"]) > 0
    rounds = json.loads((tmp_path / "out/rounds.json").read_text())
    assert [r["round"] for r in rounds] == [0, 1] and rounds[0]["weights"] == str(checkpoint)
    manifest = json.loads((tmp_path / "out/shards/manifest.json").read_text())
    assert manifest["rows"] == top["kept"]


def stand_in(folder: Path) -> Path:
    """A checkpoint for the published weights: trained a little on the site's clean pictures with their right captions."""
    truth = pq.read_table(folder / "site/truth.parquet").to_pylist()
    clean = [(row["url"].rpartition("/")[2], row["caption"]) for row in truth if row["kind"] == "clean"]
    members = [m for name, text in clean
               for m in ((name, (folder / "site/site" / name).read_bytes()), (name.replace(".jpg", ".txt"), text.encode()))]
    write_tar(folder / "clean/00000.tar", members)
    settings = {"model": "curate-conv-64", "data": str(folder / "clean/00000.tar"), "samples_seen": 3000, "batch": 64, "lr": 1e-3,
                "threads": 1, "tensorboard": False}
    return folder / "stand_in" / train(from_mapping(settings), folder / "stand_in").checkpoint


WRONG = [
    ("loop: {trainings: 0}\ntrain: {samples_seen: 1}\n", "p.yaml:8: loop.trainings: 0 is not a whole number of 1 or more"),
    ("loop: {training: 2}\ntrain: {samples_seen: 1}\n", "p.yaml:8: loop has no setting 'training'; did you mean 'trainings'?"),
    ("loop: {promote_if: loss improves}\ntrain: {samples_seen: 1}\n",
     ("p.yaml:8: loop.promote_if: 'loss improves'; write it as 'FIGURE improves', with a FIGURE of recall_at_1, recall_at_5, "
      "recall_at_10, mismatch_auroc")),
    ("loop: {trainings: 2}\n", "p.yaml:8: 'loop:' needs 'train:', a map like {samples_seen: 50M}"),
    ("", "p.yaml:5: step 'clip_embed' has 'pretrained: loop', but there is no 'loop:' in the file"),
]


@pytest.mark.parametrize(("after", "line"), WRONG, ids=[line[8:50] for _, line in WRONG])
def test_wrong_loop(after: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mistake in `loop:` is one line, found before anything runs."""
    monkeypatch.chdir(tmp_path)
    pq.write_table(pa.table({"url": ["http://a/b"], "caption": ["a dog"], "image": ["x"]}), "pool.parquet")
    steps = "  - clip_embed: {as: loop, pretrained: loop, first: raw}\n".join(STEPS.split(STEPS.splitlines(keepends=True)[2]))
    head = f"source: {{images: {tmp_path}/photos.csv, path: file}}\nsteps:\n{steps}"
    (tmp_path / "photos.csv").write_text("file,caption\na.png,a dog\n")
    scene(0).save(tmp_path / "a.png")
    Path("p.yaml").write_text(head + after)
    with pytest.raises(UserError) as error:
        load(Path("p.yaml"))
    assert str(error.value) == line


def test_threshold_on_a_column_of_the_loop_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fixed threshold on a score that changes its meaning every round."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos.csv").write_text("file,caption\na.png,a dog\n")
    scene(0).save(tmp_path / "a.png")
    steps = STEPS.replace("{top: 0.7, by: loop_clip_cos}", "loop_clip_cos > 0.3")
    Path("p.yaml").write_text(f"source: {{images: photos.csv, path: file}}\nsteps:\n{steps}loop: {{trainings: 1}}\n"
                              "train: {samples_seen: 1}\n")
    with pytest.raises(UserError, match="p.yaml:7: 'loop_clip_cos' depends on the weights the loop trains, so a fixed threshold"):
        load(Path("p.yaml"))
