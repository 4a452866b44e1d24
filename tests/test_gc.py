"""`curate gc`: what earlier settings left goes, what the present pipeline needs stays: run again, it measures nothing anew."""

import subprocess
import sys
from pathlib import Path

import pytest

from curate import files
from curate.errors import UserError
from curate.folder import Folder
from curate.gc import gc, left_over
from curate.needs import needed
from curate.start import start
from curate.store import Store
from tests.running import environment, tree, write_pipeline, write_pool

CAPTIONS = [f"row{i:02} " + " ".join(["word"] * (i % 7)) for i in range(40)]
HELD = ("source", "run.json", "funnel.json", "subset.parquet", "subset.npy")
BEFORE = ("caption_length", "keep: num_words >= 2", "caption_repetition", "caption_count", "keep: text_images <= 20",
          "keep: {top: 0.5, by: score}")
AFTER = ("caption_length", "keep: num_words >= 4", "caption_case", "caption_count", "keep: text_images <= 20",
         "keep: {top: 0.7, by: score}")


def run(folder: Path, attempt: str, *entries: str, until: str | None = None) -> list[str]:
    """Run a pipeline as the command does; what it says."""
    write_pool(folder, CAPTIONS, score=[i / 40 for i in range(40)])
    return list(start(write_pipeline(folder, *entries), folder / "out", on="local", workers=0, limit=None, until=until, part=None,
                      retry=False, sets=(), attempt=attempt))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A run that has gone through two pipelines."""
    run(tmp_path, "one", *BEFORE)
    run(tmp_path, "two", *AFTER)
    return tmp_path / "out"


def test_what_nothing_refers_to_goes_and_the_rest_stays(out: Path, tmp_path: Path) -> None:
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    run(fresh, "one", *AFTER)
    list(gc(out, "three"))
    assert tree(out, "columns", "kept", *HELD[2:]) == tree(fresh / "out", "columns", "kept", *HELD[2:])


def test_the_same_command_measures_nothing_anew_afterwards(out: Path, tmp_path: Path) -> None:
    before = tree(out, "subset.parquet", "funnel.json")
    list(gc(out, "three"))
    assert "measured now: nothing" in run(tmp_path, "four", *AFTER)
    assert tree(out, "subset.parquet", "funnel.json") == before
    assert left_over(out) == []


def test_a_dry_run_says_the_same_and_drops_nothing(out: Path) -> None:
    before = tree(out, "columns", "kept", *HELD)
    said = list(gc(out, "three", dry_run=True))
    assert tree(out, "columns", "kept", *HELD) == before
    gone = [line.split()[-1] for line in said[:-1]]
    assert {g.rpartition("-")[0] for g in gone if g.startswith("columns/")} == {
        "columns/caption_repetition", "columns/caption_count", "columns/top"}
    size = sum(p.stat().st_size for g in gone for p in (out / g).rglob("*") if p.is_file())
    assert said[-1].startswith(f"{size / 1000:.3g} KB".rjust(10) + "  to drop in ")
    assert list(gc(out, "three"))[:-1] == said[:-1]
    assert not any((out / g).exists() for g in gone)


def test_a_run_that_is_being_written_is_refused(out: Path) -> None:
    with Store(out, "other").lock(), pytest.raises(UserError, match="is being written by another run"):
        list(gc(out, "three"))


def test_a_run_that_is_not_finished_is_refused(out: Path, tmp_path: Path) -> None:
    run(tmp_path, "five", *AFTER, until="caption_case")
    before = tree(out, "columns", "kept")
    with pytest.raises(UserError, match="out does not say what it needs: its last command did not come to its end"):
        list(gc(out, "three"))
    run(tmp_path, "six", *AFTER)
    (out / "funnel.json").unlink()
    with pytest.raises(UserError, match="has no funnel yet"):
        list(gc(out, "three"))
    assert set(before) <= set(tree(out, "columns", "kept"))


def test_the_rounds_of_one_command_count_together(tmp_path: Path) -> None:
    run(tmp_path, "loop", *BEFORE)
    run(tmp_path, "loop", *AFTER)
    assert left_over(tmp_path / "out") == []
    found = needed(Folder.open(tmp_path / "out").store)
    assert found is not None
    assert sum(f.startswith("columns/top-") for f in found) == 2


def test_models_that_no_round_names_go_with_the_loop_alone(out: Path) -> None:
    folder, (old, new) = Folder.open(out), ("0" * 32, "1" * 32)
    for name in (old, new):
        files.write_bytes(out / "models" / name / "model" / "weights", b"w", "t")
    names = [f"pairs-{old}.parquet", f"pairs-{new}.parquet", "recall-x.json"]
    for name in names:
        files.write_bytes(out / "models" / name, b"x", "t")
    rounds = [{"weights": f"models/{new}/model", "trained_on": new, "promoted": True, "data": {"digest": "of another run"}}]
    files.write_json(out / "rounds.json", rounds, "t")
    list(gc(out, "three"))
    assert sorted(p.name for p in (out / "models").iterdir()) == sorted([old, new, *names])
    rounds[0]["data"] = {"digest": files.digest([folder.source.digest, folder.chain])}
    files.write_json(out / "rounds.json", rounds, "t")
    list(gc(out, "three"))
    assert sorted(p.name for p in (out / "models").iterdir()) == sorted([new, names[1], names[2]])


def test_the_command_says_a_line_a_thing(out: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "curate", "gc", str(out), "--dry-run"], capture_output=True, text=True,
                          env=environment(), check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1].endswith(f"to drop in {out}")
    done = subprocess.run([sys.executable, "-m", "curate", "gc", "nowhere"], capture_output=True, text=True, cwd=out,
                          env=environment(), check=False)
    assert (done.returncode, done.stderr) == (2, "nowhere holds no run (there is no nowhere/run.json)\n")
    assert not (out / "nowhere").exists()
