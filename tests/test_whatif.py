"""`curate whatif`: what a keep would do to a finished run, held against what running it does, and against every row by hand."""

import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from curate.cli import main
from curate.deciding.frame import POS, database, frame, quoted
from curate.deciding.question import decidable
from curate.deciding.shift import Medians, Shares
from curate.deciding.whatif import Range, lines, whatif
from curate.errors import UserError
from curate.folder import Folder
from tests.running import run_here, tree, write_pipeline, write_pool
from tests.site.make import make
from tests.site.server import serve

ROWS = 60
HOSTILE = "\x1b[2J\u202eevil\nsecond line <b>" + " word" * 6
CAPTIONS = [HOSTILE if i == 40 else " ".join(["WORD" if i % 4 == 0 else "word"] * (1 + i // 5)) for i in range(ROWS)]
WORDS = [len(c.split()) for c in CAPTIONS]
SCORES = [i / ROWS for i in range(ROWS)]
FIRST = "num_words between 3 and 11 and score < 0.75"
LAST = "upper_ratio <= 0.5"
ENTRIES = ("caption_length", f"keep: {FIRST}", "caption_case", f"keep: {LAST}")
CAME = [i for i in range(ROWS) if 3 <= WORDS[i] <= 11 and SCORES[i] < 0.75]
UPPER = [i for i in range(ROWS) if i % 4 == 0 and i != 40]
KEPT = [i for i in CAME if i not in UPPER]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Row i has 1 + i // 5 words and score i / 60; every fourth shouts."""
    folder = tmp_path_factory.mktemp("whatif")
    write_pool(folder, CAPTIONS, score=SCORES)
    run_here(write_pipeline(folder, *ENTRIES), folder / "out")
    return folder / "out"


def rerun(folder: Path, *entries: str) -> int:
    """How many rows a run with these entries keeps."""
    write_pool(folder, CAPTIONS, score=SCORES)
    return int(run_here(write_pipeline(folder, *entries), folder / "out").funnel[-1]["kept"])


def test_by_itself_it_counts_every_row(out: Path) -> None:
    found = whatif(out, "score > 0.5 and num_words between 4 and 9")
    passes = [i for i in range(ROWS) if SCORES[i] > 0.5 and 4 <= WORDS[i] <= 9]
    then = set(passes)
    assert (found.source_rows, found.passes, found.alive, found.alive_passes) == (
        60, Range(len(then), len(then)), 60, Range(len(then), len(then)))
    assert found.clauses == (("score > 0.5", 31), ("num_words between 4 and 9", 29 - len(then)))
    assert (found.kept_now, found.kept_then.least, found.both, found.only_then.least, found.only_now) == (
        len(KEPT), len(then), len(then & set(KEPT)), len(then - set(KEPT)), len(set(KEPT) - then))
    assert found.behind == "caption_length (line 3)"


def test_rows_that_left_before_they_were_measured_make_a_range(out: Path) -> None:
    """upper_ratio is known of the rows that the first keep let through; the other clause rules some of the others out."""
    found = whatif(out, "upper_ratio <= 0.5 and score > 0.25")
    sure = [i for i in KEPT if SCORES[i] > 0.25]
    perhaps = [i for i in range(ROWS) if i not in CAME and SCORES[i] > 0.25]
    assert found.passes == Range(len(sure), len(sure) + len(perhaps))
    assert (found.alive, found.alive_passes) == (len(CAME), Range(len(sure), len(sure)))
    assert found.kept_then == Range(len(sure), len(sure))
    assert "a range: some left before they were measured" in "\n".join(lines(found))


@pytest.mark.parametrize(("text", "instead_of", "entries"), [
    ("upper_ratio <= 0.9", LAST, (*ENTRIES[:3], "keep: upper_ratio <= 0.9")),
    ("num_words >= 6", LAST, (*ENTRIES[:3], "keep: num_words >= 6")),
    ("score > 0.3", "4", ("caption_length", "keep: score > 0.3", *ENTRIES[2:])),
    ("num_words <= 8", FIRST, ("caption_length", "keep: num_words <= 8", *ENTRIES[2:])),
    ("score < 0.9", "score < 0.75", ("caption_length", "keep: num_words between 3 and 11 and score < 0.9", *ENTRIES[2:])),
    ("num_words = 4", "num_words between 3 and 11", ("caption_length", "keep: num_words = 4 and score < 0.75", *ENTRIES[2:])),
    ("upper_ratio > 0.5", FIRST, ("caption_length", "caption_case", "keep: upper_ratio > 0.5", f"keep: {LAST}")),
])
def test_instead_of_a_keep_the_range_holds_what_running_it_keeps(text: str, instead_of: str, entries: tuple[str, ...], out: Path,
                                                                 tmp_path: Path) -> None:
    found, really = whatif(out, text, instead_of), rerun(tmp_path, *entries)
    assert found.kept_then.least <= really <= found.kept_then.most
    if instead_of == LAST:                                               # nothing behind it has to be measured
        assert found.kept_then == Range(really, really)
    assert found.both + found.only_now == found.kept_now == len(KEPT)
    assert found.kept_then.most == found.both + found.only_then.most


def test_a_keep_that_lets_less_through_is_known_exactly(out: Path, tmp_path: Path) -> None:
    found = whatif(out, "num_words between 4 and 9 and score < 0.5", "line 4")
    really = rerun(tmp_path, "caption_length", "keep: num_words between 4 and 9 and score < 0.5", *ENTRIES[2:])
    assert (found.kept_then, found.only_then) == (Range(really, really), Range(0, 0))
    assert found.instead_of == f"line 4: {FIRST}"


def test_what_an_earlier_run_measured_narrows_the_range(tmp_path: Path) -> None:
    """The first run lets all through, the second few: the columns behind are known of rows that the second dropped."""
    assert rerun(tmp_path, "caption_length", "caption_case", f"keep: {LAST}") == ROWS - len(UPPER)
    assert rerun(tmp_path, "caption_length", "caption_case", "keep: score < 0.5", f"keep: {LAST}") == 22
    found = whatif(tmp_path / "out", "score < 0.9", "score < 0.5")
    really = [i for i in range(ROWS) if i not in UPPER and SCORES[i] < 0.9]
    assert found.kept_then == Range(len(really), len(really))


def test_what_rests_on_all_rows_would_run_again(tmp_path: Path) -> None:
    rerun(tmp_path, "caption_length", "keep: num_words >= 3", "caption_count", "keep: text_images <= 40",
          "keep: {top: 0.5, by: score}")
    found = whatif(tmp_path / "out", "num_words >= 5", "num_words >= 3")
    assert found.run_again == ((5, "caption_count"), (7, "keep top 0.5 by score"))
    assert "the counts take the verdicts of what would run again as they are now" in found.notes
    assert whatif(tmp_path / "out", "num_words > 2", "num_words >= 3").run_again == ()
    last = whatif(tmp_path / "out", "score > 0.2", "top 0.5 by score")
    assert (last.run_again, last.alive, last.kept_then) == ((), 50, Range(47, 47))


def test_the_rows_nearest_to_a_line_and_those_that_come_and_go(out: Path) -> None:
    found = {s.what: s.rows for s in whatif(out, "score > 0.5", rows=2).samples}
    assert [x.values["score"] for x in found["nearest to score > 0.5, pass"]] == [31 / ROWS, 32 / ROWS]
    assert [x.values["score"] for x in found["nearest to score > 0.5, stopped"]] == [30 / ROWS, 29 / ROWS]
    assert [x.now for x in found["nearest to score > 0.5, pass"]] == ["kept", f"line 6: {LAST}"]
    assert {x.now for x in found["only now"]} == {"kept"}
    assert all(x.now != "kept" for x in found["only then"])
    assert found == {s.what: s.rows for s in whatif(out, "score > 0.5", rows=2).samples}
    assert whatif(out, "score > 0.5", rows=0).samples == ()


def test_a_hostile_caption_stays_on_its_line(out: Path) -> None:
    text = list(lines(whatif(out, "score >= 0.66", rows=10)))
    [line] = {line for line in text if "evil" in line}
    assert "evil second line <b> word" in line
    assert all(c.isprintable() for line in text for c in line)


def test_shift_is_between_the_rows_kept_now_and_then(out: Path) -> None:
    found = {s.name: s for s in whatif(out, "num_words between 10 and 11").shift}
    middle = sorted(WORDS[i] for i in KEPT)[(len(KEPT) - 1) // 2]
    assert found["caption words"] == Medians("caption words", middle, 10)
    domains = found["domain"]
    assert isinstance(domains, Shares)
    assert domains.top == (("site", 1.0, 1.0),)


@pytest.mark.parametrize(("words", "message"), [
    (("num_wrods > 3",), "no column 'num_wrods'; did you mean 'num_words'?"),
    (("num_words > (select 1)",), None), (("read_text('/etc/passwd') = 'x'",), None), (("num_words",), None), (("",), None),
    (("num_words > 3", "--instead-of", "score < 0.76"),
     "--instead-of: no keep 'score < 0.76' in this run; did you mean 'score < 0.75'?"),
    (("num_words > 3", "--instead-of", "3"), "--instead-of 3: no keep stands in this line; there are keeps in lines 4, 6"),
])
def test_a_mistake_is_one_line_and_nothing_is_written(words: tuple[str, ...], message: str | None, out: Path,
                                                      capsys: pytest.CaptureFixture[str]) -> None:
    before = tree(out, ".")
    assert code("whatif", str(out), *words) == 2
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert message is None or said.err == message + "\n"
    assert tree(out, ".") == before


def code(*arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(list(arguments))
    return int(end.value.code or 0)


def test_as_json(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert code("whatif", str(out), "score > 0.5", "--json", "--rows", "1") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["keep"], found["kept_now"], found["passes"]) == ("score > 0.5", len(KEPT), {"least": 29, "most": 29})


def test_a_run_that_is_not_finished_is_refused(tmp_path: Path) -> None:
    rerun(tmp_path, *ENTRIES)
    (tmp_path / "out" / "funnel.json").unlink()
    with pytest.raises(UserError, match="has no funnel yet: the run is not finished"):
        whatif(tmp_path / "out", "score > 0.5")


@pytest.mark.parametrize("captions", [[], ["a"]])
def test_a_run_of_hardly_any_row(captions: list[str], tmp_path: Path) -> None:
    write_pool(tmp_path, captions or ["x"])
    run_here(write_pipeline(tmp_path, "caption_length", "keep: num_words > 5", "caption_case"), tmp_path / "out")
    found = whatif(tmp_path / "out", "upper_ratio < 0.5")
    assert (found.passes, found.kept_then) == (Range(0, 1), Range(0, 0))


# The frame


@pytest.mark.slow
def test_the_frame_is_what_the_folder_reads_row_by_row(tmp_path: Path) -> None:
    """Columns of the source, by row, by image (some images in two shards), in several parts, and of rows nobody measured."""
    make(tmp_path / "site", 60, seed=3, mismatch=0, faults={"dead_404": .1, "exact_dup": .1})
    with serve(tmp_path / "site") as site:
        source = f"source: {{pairs: {site.pool}, url: url, caption: caption, shard_rows: 16}}\n"
        entries = ("caption_length", "keep: num_words >= 9", "download: {image_size: 64, allow_private: [127.0.0.0/8]}",
                   "keep: status = 'ok'", "image_shape")
        run_here(write_pipeline(tmp_path, *entries, source=source), tmp_path / "out")
        run_here(write_pipeline(tmp_path, entries[0], "keep: num_words >= 4", *entries[2:], source=source), tmp_path / "out")
    folder = Folder.open(tmp_path / "out")
    assert max(len(folder.store.parts(folder.columns["width_px"].folder, n)) for n in range(folder.source.num_shards)) == 2
    names = list(decidable(folder))
    with database(tmp_path / "out") as connection:
        wanted = ", ".join(map(quoted, names))
        found = connection.execute(f"select {wanted} from ({frame(folder, names)}) order by {quoted(POS)}").fetchall()
    assert found == list(_by_row(folder, names))


def _by_row(folder: Folder, names: list[str]) -> Iterator[tuple[object, ...]]:
    for number in range(folder.source.num_shards):
        table: pa.Table = folder.table(number, names).select(names)
        yield from zip(*(table[n].to_pylist() for n in names), strict=True)
