"""`curate diff`: two runs over the same rows, or nearly, held against every row by hand."""

import json
import math
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curate.cli import main
from curate.deciding.diff import Reason, diff, lines
from curate.deciding.recipes import Change, Side, aligned
from curate.deciding.shift import psi
from curate.errors import UserError
from tests.running import run_here, tree, write_pipeline, write_pool

ROWS = 40
CAPTIONS = [f"row{i:02}" + " word" * (i % 8) for i in range(ROWS)]
WORDS = [1 + i % 8 for i in range(ROWS)]
SCORES = [i / ROWS for i in range(ROWS)]


def made(folder: Path, name: str, *entries: str, rows: int = ROWS) -> Path:
    """A run called `name` over the first rows."""
    (folder / name).mkdir(exist_ok=True)
    write_pool(folder / name, CAPTIONS[:rows], score=SCORES[:rows])
    run_here(write_pipeline(folder / name, *entries), folder / name / "out")
    return folder / name / "out"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """B demands more words, a higher score, counts otherwise, and its source lacks the last eight rows."""
    folder = tmp_path_factory.mktemp("diff")
    a = made(folder, "a", "caption_length", "keep: num_words >= 3", "caption_count", "keep: score < 0.9")
    b = made(folder, "b", "caption_length", "keep: num_words >= 4 and score > 0.1", "caption_count: {memory_gb: 3}", rows=32)
    return a, b


KEPT_A = [i for i in range(ROWS) if WORDS[i] >= 3 and SCORES[i] < 0.9]
KEPT_B = [i for i in range(32) if WORDS[i] >= 4 and SCORES[i] > 0.1]


def test_rows_of_one_run_alone_and_why_the_other_let_them_go(pair: tuple[Path, Path]) -> None:
    found = diff(*pair)
    only_a, only_b = sorted(set(KEPT_A) - set(KEPT_B)), set(KEPT_B) - set(KEPT_A)
    assert (found.both, found.only_a.rows, found.only_b.rows) == (len(set(KEPT_A) & set(KEPT_B)), len(only_a), len(only_b))
    words = sum(i < 32 and WORDS[i] < 4 for i in only_a)
    score = sum(i < 32 and WORDS[i] >= 4 for i in only_a)
    missing = sum(i >= 32 for i in only_a)
    assert set(found.only_a.reasons) == {Reason("line 4: num_words >= 4", words), Reason("line 4: score > 0.1", score),
                                         Reason("its source, which has no such row", missing)}
    assert found.only_a.reasons[0].rows == max(words, score, missing)
    assert found.only_b.reasons == ()
    swapped = diff(pair[1], pair[0])
    assert (swapped.only_b, swapped.only_a) == (found.only_a, found.only_b)


def test_a_row_that_is_kept_again_was_dropped_by_a_keep_of_the_other(pair: tuple[Path, Path], tmp_path: Path) -> None:
    loose = made(tmp_path, "c", "caption_length", "keep: num_words >= 2")
    found = diff(pair[0], loose)
    back = [i for i in range(ROWS) if WORDS[i] >= 2 and i not in KEPT_A]
    assert sum(r.rows for r in found.only_b.reasons) == len(back)
    assert {r.why for r in found.only_b.reasons} == {"line 4: num_words >= 3", "line 6: score < 0.9"}
    uids = [uid for uid, _ in found.only_b.samples]
    assert (len(uids), uids) == (3, sorted(uids))
    assert {caption for _, caption in found.only_b.samples} <= {CAPTIONS[i] for i in back}


def test_what_was_changed_and_the_funnels_beside_each_other(pair: tuple[Path, Path]) -> None:
    found = diff(*pair)
    what = {c.what: (c.a, c.b) for c in found.changes}
    assert [side.partition(",")[0] for side in what["source"]] == ["40 rows", "32 rows"]
    assert what["caption_count: memory_gb"] == ("2", "3.0")
    assert Change("stage", "keep num_words >= 3", "keep num_words >= 4 and score > 0.1") in found.changes
    assert Change("stage", "keep score < 0.9", "") in found.changes
    assert "caption_length: what it read" not in what
    assert found.funnel[:2] == (Side("source", 40, 32), Side("caption_length", 40, 32))
    assert Side("keep num_words >= 3", sum(w >= 3 for w in WORDS), None) in found.funnel
    assert found.funnel[-1] == Side("keep score < 0.9", len(KEPT_A), None)


def test_a_run_against_itself(pair: tuple[Path, Path]) -> None:
    found = diff(pair[0], pair[0])
    assert (found.both, found.only_a.rows, found.only_b.rows, found.changes) == (len(KEPT_A), 0, 0, ())
    assert {s.psi for s in found.shift} == {0.0}
    assert "nothing was decided or measured otherwise" in lines(found)


def test_the_shift_is_a_population_stability_index_over_deciles(tmp_path: Path) -> None:
    runs = [made(tmp_path, name, "caption_length", f"keep: score {keep}") for name, keep in (("a", ">= 0"), ("b", ">= 0.5"))]
    found = {s.column: s.psi for s in diff(*runs).shift}
    assert found["score"] == pytest.approx(psi([4] * 10, [0] * 5 + [4] * 5), abs=1e-6)
    assert found["score"] > 0.25 > 0.1 > found["num_words"]
    assert psi([10, 10], [10, 10]) == 0
    assert psi([3, 1], [1, 3]) == pytest.approx(2 * (3.5 - 1.5) / 5 * math.log(3.5 / 1.5))


def test_stages_are_told_by_their_words() -> None:
    assert list(aligned(["a", "keep 1", "b"], ["a", "keep 2", "b", "c"])) == [
        ("a", "a"), ("keep 1", "keep 2"), ("b", "b"), (None, "c")]
    assert list(aligned(["a", "keep 1"], ["a", "b"])) == [("a", "a"), ("keep 1", None), (None, "b")]


def test_hostile_captions_stay_on_their_lines_and_json_holds_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = []
    for name, keep in (("a", "score >= 0"), ("b", "score > 0.5")):
        (tmp_path / name).mkdir()
        write_pool(tmp_path / name, ["\x1b[2J\u202eevil\nline", "b"], score=[0.0, 1.0])
        run_here(write_pipeline(tmp_path / name, f"keep: {keep}"), tmp_path / name / "out")
        runs.append(tmp_path / name / "out")
    before = [tree(run, ".") for run in runs]
    text = list(lines(diff(*runs)))
    assert sum("evil line" in line for line in text) == 1
    assert all(c.isprintable() for line in text for c in line)
    with pytest.raises(SystemExit) as end:
        main(["diff", *map(str, runs), "--json"])
    assert not end.value.code
    found = json.loads(capsys.readouterr().out)
    assert (found["both"], found["only_a"]["rows"], found["only_a"]["reasons"]) == (
        1, 1, [{"why": "line 3: score > 0.5", "rows": 1}])
    assert [tree(run, ".") for run in runs] == before


def test_an_unfinished_run_is_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no funnel yet"):
        diff(pair[0], tmp_path)


def test_a_row_that_stands_twice_counts_once(tmp_path: Path) -> None:
    run = made(tmp_path, "a", "caption_length")
    (tmp_path / "b").mkdir()
    table = pq.read_table(tmp_path / "a" / "pool.parquet")
    pq.write_table(pa.concat_tables([table, table.slice(0, 5)]), tmp_path / "b" / "pool.parquet")
    run_here(write_pipeline(tmp_path / "b", "caption_length"), tmp_path / "b" / "out")
    found = diff(run, tmp_path / "b" / "out")
    assert (found.both, found.only_a.rows, found.only_b.rows) == (ROWS, 0, 0)
