"""`curate plan`: what it says of a faulty site before the run, held against the run; and it leaves nothing behind."""

import gzip
import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from curate.cli import main
from curate.errors import UserError
from curate.planning import sample
from curate.planning.estimate import estimate, interval, weights_copies
from curate.planning.estimated import Estimate, lines
from curate.planning.sample import draw
from curate.run import Outcome
from curate.sources.locations import parse_source
from tests.running import environment, run_here, tree, wait_for, write_pipeline, write_pool
from tests.site.make import make
from tests.site.server import Site, serve
from tests.sources import PNG, write_tar
from train.config import from_mapping

ROWS, SAMPLE = 1100, 400
STEPS = """\
source: {{pairs: {pool}, url: url, caption: caption, shard_rows: 300}}
steps:
  - caption_length
  - language
  - keep: num_words >= 3
  - keep: lang = 'en'
  - download: {{image_size: 128, deadline_seconds: 2, allow_private: [127.0.0.0/8]}}
  - keep: status = 'ok'
  - image_shape
  - keep: aspect <= 3.0 and width_px >= 48
  - image_hash
  - same_image
  - keep: not is_same_image
shards: {{rows: 200}}
"""


@dataclass(frozen=True)
class Web:
    """The site while it answers, and the pipeline over it."""

    site: Site
    pipeline: Path


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    """1,100 rows with every fault there is."""
    folder = tmp_path_factory.mktemp("web")
    make(folder / "site", ROWS, seed=3)
    with serve(folder / "site") as site:
        pipeline = folder / "pipeline.yaml"
        pipeline.write_text(STEPS.format(pool=site.pool))
        yield Web(site, pipeline)


@pytest.fixture(scope="module")
def planned(web: Web, tmp_path_factory: pytest.TempPathFactory) -> Estimate:
    """The plan, before any run."""
    out = tmp_path_factory.mktemp("runs") / "none"
    found = of(web.pipeline, out, SAMPLE)
    assert not out.exists()
    web.site.reset()
    return found


@pytest.fixture(scope="module")
def ran(web: Web, planned: Estimate, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    """The run itself."""
    out = tmp_path_factory.mktemp("runs") / "out"
    return out, run_here(web.pipeline, out)


def of(pipeline: Path, out: Path, rows: int, workers: int = 2, **options: Any) -> Estimate:
    """The estimate for a pipeline."""
    return estimate(pipeline, out, rows=rows, on="local", workers=workers, sets=options.pop("sets", ()), attempt="test")


def size_of(folder: Path, pattern: str = "*") -> int:
    """Bytes of the files below a folder."""
    return sum(p.stat().st_size for p in folder.rglob(pattern) if p.is_file())


@pytest.mark.slow
def test_rows_are_where_the_intervals_say(planned: Estimate, ran: tuple[Path, Outcome]) -> None:
    """At every stage but those that look for duplicates, of which the plan says that it understates them."""
    actual = {entry["what"]: entry["kept"] for entry in ran[1].funnel}
    assert [s.what for s in planned.stages] == [entry["what"] for entry in ran[1].funnel]
    certain = [s for s in planned.stages if not s.understated]
    assert [s.what for s in planned.stages if s.understated] == ["source", "keep not is_same_image"]
    assert [s.what for s in certain if not s.low <= actual[s.what] <= s.high] == []
    assert all(0 < s.high - s.low < ROWS / 8 for s in certain)
    last = planned.stages[-1]
    assert actual[last.what] <= last.high


@pytest.mark.slow
def test_bytes_are_what_comes(planned: Estimate, ran: tuple[Path, Outcome]) -> None:
    """Pictures, shards and traffic within a third; columns, whose small files weigh more, within a factor of two."""
    out, outcome = ran
    steps = {s.label: s for s in planned.steps}
    assert steps["download"].bytes == pytest.approx(size_of(out / "images", "*.tar"), rel=.33)
    assert planned.shard_bytes == pytest.approx(size_of(out / "shards"), rel=.33)
    fetched = pa.concat_tables([pq.read_table(p, columns=["num_bytes"], partitioning=None)
                                for p in (out / "columns").glob("download-*/*.parquet")])
    assert planned.traffic_bytes == pytest.approx(np.nansum(fetched["num_bytes"].to_numpy()), rel=.33)
    everything = sum(size_of(out / name) for name in ("source", "columns", "images", "kept", "shards"))
    assert everything / 2 < planned.disk_bytes < 2 * everything
    assert steps["download"].measures == pytest.approx(outcome.measured["download"], rel=.1)


@pytest.mark.slow
def test_rows_are_the_same_every_time(web: Web, planned: Estimate, tmp_path: Path) -> None:
    web.site.reset()
    again = of(web.pipeline, tmp_path / "out", SAMPLE, workers=7)
    assert again.stages == planned.stages
    assert again.how == "400 of 1,100 rows, drawn at random from all of them"
    assert [(s.label, s.measures) for s in again.steps] == [(s.label, s.measures) for s in planned.steps]


@pytest.mark.slow
def test_what_a_run_has_already_is_not_planned_again(web: Web, ran: tuple[Path, Outcome]) -> None:
    out, _ = ran
    before = tree(out, "columns", "kept", "images", "shards", "source", "run.json", "funnel.json")
    found = of(web.pipeline, out, SAMPLE)
    assert tree(out, "columns", "kept", "images", "shards", "source", "run.json", "funnel.json") == before
    steps = {s.label: s for s in found.steps}
    for label in ("caption_length", "language", "download", "image_shape", "image_hash"):
        assert steps[label].there >= .9 * steps[label].measures
        assert steps[label].seconds < 1
    assert found.source_bytes == 0
    assert any(f"are in {out} already" in line for line in lines(found))


@pytest.mark.slow
def test_the_plan_in_words(planned: Estimate) -> None:
    said = list(lines(planned))
    assert said[0].endswith("pipeline.yaml: 400 of 1,100 rows, drawn at random from all of them (seed 0)")
    stages = [line.split("  ")[-1].strip() for line in said[2:6]]
    assert stages == ["source *", "caption_length", "language", "keep num_words >= 3"]
    assert any(line.startswith("* the sample understates duplicates") for line in said)
    assert any(line.startswith("download: ") and "64 connections at once, 4 a host" in line for line in said)
    assert any(line.startswith("download: ok 9") for line in said)
    assert said[-1] == f"next: curate run {planned.file} --out {planned.out} --workers 2"
    assert not any("FIT" in line for line in said)
    assert any(line.endswith(f"free at {planned.out}: IT DOES NOT FIT") for line in lines(replace(planned, free_bytes=1)))


def test_json(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_pool(tmp_path, [f"words {'more' * (i % 2)}" for i in range(40)])
    file = write_pipeline(tmp_path, "caption_length", "keep: num_chars > 8")
    with pytest.raises(SystemExit):
        main(["plan", str(file), "--rows", "50", "--json", "--set", "source.shard_rows=7"])
    found = json.loads(capsys.readouterr().out)
    assert [(s["rows"], s["low"], s["high"]) for s in found["stages"]] == [(40, 40, 40), (40, 40, 40), (20, 20, 20)]
    assert found["how"] == "all 40 rows"
    assert found["next"] == f"curate run {file} --set source.shard_rows=7"
    assert {p.name for p in tmp_path.iterdir()} == {"pool.parquet", "pipeline.yaml"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda n: n.name)
def test_nothing_is_left_behind_when_it_is_stopped(tmp_path: Path, number: signal.Signals) -> None:
    """In the middle of a step that takes for ever."""
    (tmp_path / "slow.py").write_text("import time\nfrom curate.step import bool_, step\n\n\n@step(adds={'done': bool_})\n"
                                      "def slow(caption: list[str]):\n    '''Never.'''\n    time.sleep(600)\n")
    write_pool(tmp_path, [f"caption {i}" for i in range(40)])
    file, temporary = write_pipeline(tmp_path, "caption_count", "./slow.py:slow"), tmp_path / "tmp"
    temporary.mkdir()
    process = subprocess.Popen([sys.executable, "-m", "curate", "plan", str(file)], cwd=tmp_path, stderr=subprocess.DEVNULL,
                               stdout=subprocess.DEVNULL, env=environment() | {"TMPDIR": str(temporary)})
    wait_for(lambda: list(temporary.rglob("kept/*/*.parquet")))
    process.send_signal(number)
    assert process.wait(30) == {signal.SIGINT: 130, signal.SIGTERM: 143}[number]
    assert list(temporary.iterdir()) == []
    assert {p.name for p in tmp_path.iterdir()} - {"__pycache__"} == {"slow.py", "pool.parquet", "pipeline.yaml", "tmp"}


def test_mistakes(tmp_path: Path) -> None:
    write_pool(tmp_path, ["a", "b"])
    file = write_pipeline(tmp_path, "caption_length", "keep: num_char > 8")
    with pytest.raises(UserError, match="pipeline.yaml:4: .*num_char.*did you mean 'num_chars'"):
        of(file, tmp_path / "out", 10)
    with pytest.raises(UserError, match="^--on ray://x:1: a sample runs on this machine; there is local and ray$"):
        estimate(file, None, rows=10, on="ray://x:1", workers=1, sets=(), attempt="test")
    write_pool(tmp_path, [])
    with pytest.raises(UserError, match="pool.parquet' holds no row"):
        of(write_pipeline(tmp_path, "caption_length"), tmp_path / "out", 10)
    assert not (tmp_path / "out").exists()


def test_a_stage_that_keeps_nothing_of_the_sample(tmp_path: Path) -> None:
    write_pool(tmp_path, [f"caption {i}" for i in range(40)])
    found = of(write_pipeline(tmp_path, "caption_length", "keep: num_chars > 99", "language"), tmp_path / "out", 20)
    assert [(s.rows, s.low, s.high) for s in found.stages][2:] == [(0, 0, 7), (0, 0, 7)]
    assert any("no row of the sample came to the end" in line for line in lines(found))


@pytest.mark.slow
def test_barriers_are_timed_without_what_they_cost_to_begin(tmp_path: Path) -> None:
    """One that takes half a second to begin must not take that again for every 2,000 rows."""
    (tmp_path / "late.py").write_text(
        "import time\nimport numpy as np\nfrom curate.step import Chunks, int64, whole\n\n\n@whole(adds={'n': int64})\n"
        "def late(caption: Chunks):\n    'Zeros.'\n    time.sleep(.5)\n"
        "    for texts in caption:\n        yield {'n': np.zeros(len(texts), np.int64)}\n")
    write_pool(tmp_path, [f"caption {i}" for i in range(4000)])
    found = of(write_pipeline(tmp_path, "./late.py:late"), tmp_path / "out", 2000)
    assert found.steps[0].seconds_per_row is not None and found.steps[0].seconds_per_row < 1e-4


@pytest.mark.parametrize("share", [.02, .5, .97])
def test_intervals_hold_what_they_promise(share: float) -> None:
    """95 of 100 samples without replacement, of a pool a tenth of which is sampled (a bound that is too wide holds more)."""
    random, total, size = np.random.default_rng(1), 4000, 400
    right = int(share * total)
    found = [interval(int(k), size, total) for k in random.hypergeometric(right, total - right, size, 2000)]
    assert np.mean([low <= right <= high for low, high in found]) > .94
    assert np.mean([high - low for low, high in found]) < total / 9


def test_an_interval_knows_what_it_has_seen() -> None:
    assert interval(7, 10, 10) == (7, 7)
    assert interval(0, 10, 10) == (0, 0)
    assert interval(10, 10, 1000)[1] == 1000
    assert interval(0, 10, 1000)[0] == 0


# ---- the sample


def drawn(where: str | list[str], rows: int, **more: Any) -> sample.Sample:
    """A sample of a source whose columns are url, caption and n."""
    return draw(parse_source({"pairs": where, **more}), rows)


def numbers(start: int, stop: int) -> pa.Table:
    """Rows that say their number."""
    found = range(start, stop)
    return pa.table({"url": [f"http://a.org/{n}" for n in found], "caption": [f"caption {n}" for n in found], "n": found})


def test_rows_come_from_the_whole_source(tmp_path: Path) -> None:
    for i in range(4):
        pq.write_table(numbers(1000 * i, 1000 * (i + 1)), tmp_path / f"{i}.parquet", row_group_size=300)
    found = drawn(str(tmp_path), 400)
    n = found.table["n"].to_numpy()
    assert (found.rows, found.exact, len(n), len(set(n))) == (4000, True, 400, 400)
    assert list(n) == sorted(n)
    assert all(70 < ((n >= 1000 * i) & (n < 1000 * (i + 1))).sum() < 130 for i in range(4))
    assert drawn(str(tmp_path), 400).table.equals(found.table)
    assert drawn(str(tmp_path), 9000).how == "all 4,000 rows"
    assert max(drawn(str(tmp_path), 400, limit=500).table["n"].to_pylist()) < 500


def test_of_many_row_groups_some_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pq.write_table(numbers(0, 20_000), tmp_path / "a.parquet", row_group_size=100)
    monkeypatch.setattr(sample, "MOST_GROUPS", 20)
    found = drawn(str(tmp_path), 200)
    n = found.table["n"].to_numpy()
    assert len({int(i) // 100 for i in n}) == 20 and len(set(n)) == 200
    assert abs(n.mean() - 10_000) < 500
    assert found.how.startswith("200 of 20,000 rows, drawn at random from 20 of 200 row groups; ")


@pytest.mark.parametrize("ending", ["csv", "jsonl.gz"])
def test_files_that_have_to_be_read_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str) -> None:
    for i in range(3):
        if ending == "csv":
            pyarrow.csv.write_csv(numbers(4000 * i, 4000 * (i + 1)), tmp_path / f"{i}.csv")
        else:
            rows = "".join(json.dumps(row) + "\n" for row in numbers(4000 * i, 4000 * (i + 1)).to_pylist())
            (tmp_path / f"{i}.jsonl.gz").write_bytes(gzip.compress(rows.encode()))
    found = drawn(str(tmp_path), 300)
    n = found.table["n"].to_numpy()
    assert (found.rows, found.exact, len(set(n))) == (12_000, True, 300)
    assert abs(n.mean() - 6000) < 600
    monkeypatch.setattr(sample, "BUDGET", size_of(tmp_path) // 2)
    part = drawn(str(tmp_path), 300)
    assert not part.exact and 6_000 < part.rows < 18_000       # gzip reads ahead, which tells in files as small as these
    assert part.how.startswith("300 of about ") and "the beginning of each file" in part.how
    assert max(v % 4000 for v in part.table["n"].to_pylist()) < 4000
    whole = drawn(str(tmp_path), 300, limit=100)
    assert (whole.rows, whole.exact, sorted(whole.table["n"].to_pylist())) == (100, True, list(range(100)))


def test_tars_and_folders(tmp_path: Path) -> None:
    for i in range(3):
        (tmp_path / f"photos/{i}").mkdir(parents=True)
        (tmp_path / f"photos/{i}/a.jpg").write_bytes(PNG + bytes([i]))
        write_tar(tmp_path / f"{i}.tar", [(f"{n}.jpg", PNG + bytes([i, n])) for n in range(5)])
    tars = draw(parse_source({"shards": str(tmp_path / "*.tar")}), 6)
    assert (tars.rows, tars.exact, len(tars.table), tars.table["image"].null_count) == (15, True, 6, 0)
    photos = draw(parse_source({"images": str(tmp_path / "photos")}), 6)
    assert (photos.rows, photos.exact, len(photos.table)) == (3, True, 3)


# ---- models and rounds


@pytest.mark.slow
def test_a_loop_is_one_round_times_the_rounds(tmp_path: Path) -> None:
    make(tmp_path / "site", 300, seed=1, faults={})
    with serve(tmp_path / "site") as site:
        file = tmp_path / "loop.yaml"
        file.write_text(
            f"source: {{pairs: {site.pool}}}\nsteps:\n  - download: {{image_size: 64, allow_private: [127.0.0.0/8]}}\n"
            "  - keep: status = 'ok'\n  - held_out\n  - keep: not held_out\n"
            "  - clip_embed: {as: loop, model: curate-conv-64, pretrained: loop, first: raw}\n  - clip_score: {of: loop}\n"
            "  - keep: {top: 0.5, by: loop_clip_cos}\n"
            "train: {samples_seen: 1000, batch: 32, threads: 1}\nloop: {trainings: 2}\n")
        found = of(file, tmp_path / "out", 100)
    steps = {s.label: s for s in found.steps}
    assert steps["download"].rounds == 1 and steps["clip_embed as loop"].rounds == 3
    kept = next(s for s in found.stages if s.what == "keep not held_out")
    assert steps["clip_embed as loop"].measures == pytest.approx(3 * kept.rows, abs=3)
    assert (found.trainings, found.training_samples) == (2, 1000)
    gpu, pace = steps["clip_embed as loop"].gpu, steps["clip_embed as loop"].seconds_per_row
    assert gpu is not None and gpu.parameters and gpu.bytes > 4 * gpu.parameters
    assert pace is not None and found.training_seconds == pytest.approx(2 * 1000 * 3 * pace)
    assert found.stages[-1].sampled == kept.sampled // 2
    assert not (tmp_path / "out").exists() and not list(Path(tempfile.gettempdir()).glob("curate-plan-*"))


@pytest.mark.parametrize(("more", "copies"), [({}, 4), ({"ema": 0.99}, 5), ({"keep": 3, "ema": 0.99}, 13),
                                              ({"eval": {"retrieval": "x.tar", "keep_best": "recall_at_1"}}, 5)])
def test_copies_of_the_weights_on_disk(more: dict[str, Any], copies: int) -> None:
    """The model; in a checkpoint weights, two moments and a moving average; the best weights."""
    assert weights_copies(from_mapping({"data": "x", "samples_seen": 1, **more})) == copies
