"""`curate heal`: what failed in a way that may pass is asked for again, and the run is as if it had come at once."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curate.fetching.addresses import PASSING, RETRIED
from curate.heal import may_come
from tests.picture_server import Pictures, served
from tests.running import environment, run_here, tree, write_pipeline
from tests.train.toys import encoded, scene

ROWS = 24
STEPS = ("download: {image_size: 32, allow_private: [127.0.0.0/8], retries: 0, part_images: 32}", "keep: status = 'ok'",
         "image_shape", "caption_length", "keep: num_chars >= 5")
SOURCE = "source: {pairs: pool.parquet, url: url, caption: caption, shard_rows: 6}\n"
SAME = ("shards", "funnel.json", "kept")


@pytest.fixture
def web() -> Iterator[Pictures]:
    with served(Pictures(lambda number: encoded(scene(number)))) as found:
        yield found


@pytest.fixture
def pipeline(web: Pictures, tmp_path: Path) -> Path:
    """24 rows in four shards; rows 22 and 23 borrow the pictures 1 and 2 of the first shard."""
    urls = [web.url(n) for n in range(ROWS - 2)] + [web.url(1), web.url(2)]
    pq.write_table(pa.table({"url": urls, "caption": [f"picture {n}" for n in range(ROWS)]}), tmp_path / "pool.parquet")
    return write_pipeline(tmp_path, *STEPS, source=SOURCE, after="shards: {rows: 6, block: 1}\n")


def test_only_what_may_pass_is_asked_for_again_and_comes_into_its_place(web: Pictures, pipeline: Path, tmp_path: Path) -> None:
    run_here(pipeline, tmp_path / "whole")
    web.ill = {1: 503, 9: 500, 10: 404, 20: 429}
    ill = run_here(pipeline, tmp_path / "ill")
    assert ill.funnel[-1]["kept"] == ROWS - 5          # 22 borrows picture 1
    before = tree(tmp_path / "ill", "shards")
    web.asked.clear()
    again = run_here(pipeline, tmp_path / "ill")
    assert again.funnel == ill.funnel
    assert web.asked == [], "a status is final for a run that goes on"

    web.ill = {9: 500}
    healed = run_here(pipeline, tmp_path / "ill", heal=True)
    assert sorted(web.asked) == [1, 9, 20], "404 is meant for good"
    assert healed.funnel[-1]["kept"] == ROWS - 2
    assert healed.measured["image_shape"] == 3          # pictures 1 (two rows) and 20
    after = tree(tmp_path / "ill", "shards")
    untouched = {name for name in before if name.startswith("shards/00001.")}
    assert untouched and all(before[name] == after[name] for name in untouched), "a block without a change is not written again"

    web.ill, web.asked = {}, []
    run_here(pipeline, tmp_path / "ill", heal=True)
    assert web.asked == [9]
    web.asked.clear()
    run_here(pipeline, tmp_path / "ill", heal=True)
    assert web.asked == [], "nothing is left that may pass"


def test_when_all_has_come_the_run_is_the_one_that_never_failed(web: Pictures, pipeline: Path, tmp_path: Path) -> None:
    run_here(pipeline, tmp_path / "whole")
    web.ill = dict.fromkeys((0, 1, 2, 7, 21), 503)
    run_here(pipeline, tmp_path / "ill")
    web.ill = {}
    run_here(pipeline, tmp_path / "ill", heal=True)
    assert tree(tmp_path / "ill", *SAME) == tree(tmp_path / "whole", *SAME)


@pytest.mark.slow
@pytest.mark.parametrize("writes", [1, 4, 8, 12])
def test_killed_while_healing_a_plain_run_ends_the_same(web: Pictures, pipeline: Path, tmp_path: Path, writes: int,
                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    """At any write: what has come is decided, what has not stays failed, and the next heal completes it."""
    run_here(pipeline, tmp_path / "whole")
    web.ill = dict.fromkeys((0, 8, 21), 503)
    run_here(pipeline, tmp_path / "ill")
    web.ill = {}
    left, replace = [writes], os.replace

    def failing(*paths: Any) -> None:
        left[0] -= 1
        if not left[0]:
            raise OSError(28, "No space left on device")
        replace(*paths)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", failing)
        with pytest.raises(Exception, match="No space left"):
            run_here(pipeline, tmp_path / "ill", heal=True)
    outcome = run_here(pipeline, tmp_path / "ill")
    columns = pq.read_table(sorted((tmp_path / "ill" / "shards").glob("*.parquet")))
    assert columns.num_rows == outcome.funnel[-1]["kept"] >= ROWS - 3
    run_here(pipeline, tmp_path / "ill", heal=True)
    assert tree(tmp_path / "ill", *SAME) == tree(tmp_path / "whole", *SAME)


@pytest.mark.slow
def test_the_command_remembers_how_the_run_was_made(web: Pictures, tmp_path: Path) -> None:
    """`curate heal RUN` knows the pipeline, its --set and its --limit, and says what came."""
    urls = [web.url(n) for n in range(ROWS)]
    pq.write_table(pa.table({"url": urls, "caption": [f"picture {n}" for n in range(ROWS)]}), tmp_path / "pool.parquet")
    write_pipeline(tmp_path, "download: {image_size: 32, retries: 0}", "keep: status = 'ok'", source=SOURCE)
    web.ill = {3: 503, 20: 503}
    options = ["--limit", "12", "--set", "download.allow_private=[127.0.0.0/8]", "--set", "shards={rows: 6}"]
    said = curate(tmp_path, "run", "pipeline.yaml", "--out", "out", *options)
    assert "11 rows in" in said.stdout, said.stderr
    web.ill = {}
    said = curate(tmp_path, "heal", "out")
    assert said.stdout.splitlines()[-1] == "healed: http_5xx 1 → 0, ok 11 → 12"
    assert json.loads((tmp_path / "out/shards/manifest.json").read_text())["rows"] == 12
    assert curate(tmp_path, "heal", "out").stdout.splitlines()[-1] == "healed: nothing came that had not come"
    said = curate(tmp_path, "heal", "nowhere")
    assert (said.returncode, said.stderr) == (2, "nowhere holds no run (there is no nowhere/run.json)\n")


def curate(folder: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    on = ["--on", "local", "--workers", "0"]
    return subprocess.run([sys.executable, "-m", "curate", *words, *on], cwd=folder, env=environment(), capture_output=True,
                          text=True, timeout=100, check=False)


def test_the_newest_status_counts() -> None:
    parts = pa.table({"image_id": ["a", "b", "c", "a", "d"], "status": ["dns", "ok", "http_404", "ok", "slow"]})
    assert may_come(parts) == {"d"}
    assert may_come(None) == set()
    assert RETRIED < PASSING
    assert not PASSING & {"ok", "http_404", "http_410", "http_4xx", "opt_out", "private_address", "too_large", "decode_error"}
