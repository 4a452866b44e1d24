"""`curate shard`: the chosen rows of a run, of tars or of images, no others, once each; and every mistake in one line."""

import contextlib
import hashlib
import json
import shutil
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curate import files
from curate.cli import main
from curate.shards import verify
from tests.running import run_here, tree, write_pipeline
from tests.sources import PNG, pid, uid, write_tar


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def uid_at(i: int) -> str:
    """A uid as DataComp's: 32 hex digits."""
    return hashlib.md5(b"%d" % i, usedforsecurity=False).hexdigest()


def datacomp_tar(path: Path, numbers: Sequence[int], *, own_uid: bool = True, words: str = "caption") -> None:
    """A tar as DataComp's download tool leaves it: img2dataset's members, and the uid in the .json."""
    members = []
    for i in numbers:
        meta = {"uid": uid_at(i), "url": f"http://a.org/{i}.jpg", "caption": f"{words} {i}", "key": f"{i:012d}",
                "status": "success", "width": 100 + i, "original_width": None}
        if not own_uid:
            del meta["uid"]
        members += [(f"{i:012d}.jpg", PNG + b"%d" % i), (f"{i:012d}.json", json.dumps(meta).encode()),
                    (f"{i:012d}.txt", f"{words} {i}".encode())]
    path.parent.mkdir(exist_ok=True)
    write_tar(path, members)


def pairs(uids: Sequence[str]) -> np.ndarray:
    """DataComp's array of uids."""
    return np.array([(int(u[:16], 16), int(u[16:], 16)) for u in uids], np.dtype("u8,u8"))


def shard(*arguments: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What `curate shard` says."""
    with contextlib.suppress(SystemExit):
        main(["shard", *arguments, "--workers", "0"])
    said = capsys.readouterr()
    assert said.err == ""
    return said.out.splitlines()


def rows(shards: Path) -> list[dict[str, Any]]:
    """The rows of a set of shards, from the .json members, which the parquet files and pictures must agree with."""
    assert list(verify(shards)) == []
    found = []
    for path in sorted(shards.glob("*.tar")):
        with tarfile.open(path, "r:") as archive:
            data = {i.name: archive.extractfile(i).read() for i in archive}  # type: ignore[union-attr]
        here = [json.loads(d) for name, d in data.items() if name.endswith(".json")]
        assert pq.read_table(path.with_suffix(".parquet")).drop_columns("image_id").to_pylist() == here
        assert [d.decode() for name, d in data.items() if name.endswith(".txt")] == [r["caption"] for r in here]
        found += here
    return found


@pytest.fixture
def tars(here: Path) -> str:
    """Two tars of six rows each."""
    datacomp_tar(here / "tars" / "00000000.tar", range(6))
    datacomp_tar(here / "tars" / "00000001.tar", range(6, 12))
    return "tars/*.tar"


def test_a_uid_list_takes_these_rows_once_and_keeps_their_uids(here: Path, tars: str, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = [9, 2, 3, 11, 2, 2]
    np.save("list.npy", pairs([*map(uid_at, wanted), "f" * 32]))
    assert shard(tars, "--uids", "list.npy", "--out", "out", "--rows", "3", capsys=capsys) == [
        "4 of 12 rows in 2 shards: out", "1 of the 5 uids have no kept row with an image here"]
    found = rows(here / "out")
    assert [(r["uid"], r["key"], r["source_key"], r["url"], r["caption"], r["width"], r["original_width"]) for r in found] == [
        (uid_at(i), uid_at(i), f"{i:012d}", f"http://a.org/{i}.jpg", f"caption {i}", 100 + i, None) for i in (2, 3, 9, 11)]
    assert sorted(p.name for p in (here / "out").iterdir()) == [
        "00000.parquet", "00000.tar", "00000_stats.json", "00001.parquet", "00001.tar", "00001_stats.json", "manifest.json"]


def test_a_uid_list_may_be_a_table_and_name_uids_of_any_form(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = ["a", "b.2", "日本", "d" * 32]
    Path("photos").mkdir()
    for i, u in enumerate(own):
        Path(f"photos/{i}.png").write_bytes(PNG + b"%d" % i)
        Path(f"photos/{i}.json").write_text(json.dumps({"uid": u, "caption": f"caption {i}"}))
    pq.write_table(pa.table({"score": [1, 2, 3, 4], "uid": ["日本", None, "b.2", "d" * 32]}), "list.parquet")
    assert shard("photos", "--uids", "list.parquet", "--out", "out", capsys=capsys) == ["3 of 4 rows in 1 shards: out"]
    assert [r["uid"] for r in rows(here / "out")] == own[1:]


def test_an_empty_list_takes_nothing(here: Path, tars: str, capsys: pytest.CaptureFixture[str]) -> None:
    np.save("list.npy", pairs([]))
    assert shard(tars, "--uids", "list.npy", "--out", "out", capsys=capsys) == ["0 of 12 rows in 0 shards: out"]
    assert rows(here / "out") == []


def test_rows_without_a_uid_of_their_own_get_ours(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    datacomp_tar(here / "tars" / "a.tar", range(3), own_uid=False)
    np.save("list.npy", pairs([uid("http://a.org/1.jpg", "caption 1")]))
    assert shard("tars", "--uids", "list.npy", "--out", "out", capsys=capsys) == ["1 of 3 rows in 1 shards: out"]
    assert [(r["uid"], r["caption"]) for r in rows(here / "out")] == [(uid("http://a.org/1.jpg", "caption 1"), "caption 1")]


def test_a_uid_that_comes_again_is_said(here: Path, tars: str, capsys: pytest.CaptureFixture[str]) -> None:
    datacomp_tar(here / "tars" / "00000002.tar", [3, 12], words="another caption")
    assert shard(tars, "--out", "out", capsys=capsys) == [
        "13 of 14 rows in 1 shards: out", "1 rows are left out because an earlier row has the same uid"]
    assert [r["caption"] for r in rows(here / "out")] == [f"caption {i}" for i in range(12)] + ["another caption 12"]


def test_an_expression_takes_the_rows_for_which_it_is_true(here: Path, tars: str, capsys: pytest.CaptureFixture[str]) -> None:
    where = "width > 104 and (caption <> 'caption 7')"
    np.save("list.npy", pairs([uid_at(i) for i in range(8)]))
    shard(tars, "--where", where, "--uids", "list.npy", "--out", "out", capsys=capsys)
    assert [r["width"] for r in rows(here / "out")] == [105, 106]
    shard(tars, "--where", "original_width > '1'", "--out", "none", capsys=capsys)
    assert rows(here / "none") == [], "unknown is not true"


def test_a_second_list_into_the_same_folder_leaves_nothing_of_the_first(here: Path, tars: str,
                                                                       capsys: pytest.CaptureFixture[str]) -> None:
    first, second = range(12), [0, 1, 2, 3, 7]
    np.save("first.npy", pairs([uid_at(i) for i in first]))
    np.save("second.npy", pairs([uid_at(i) for i in second]))
    shard(tars, "--uids", "first.npy", "--out", "out", "--rows", "4", capsys=capsys)
    kept = (here / "out" / "00000.tar").stat().st_ino
    shard(tars, "--uids", "second.npy", "--out", "out", "--rows", "4", capsys=capsys)
    assert [r["uid"] for r in rows(here / "out")] == [uid_at(i) for i in second]
    shard(tars, "--uids", "second.npy", "--out", "fresh", "--rows", "4", capsys=capsys)
    assert tree(here / "out", "") == tree(here / "fresh", "")
    again = {p.name: p.stat().st_mtime_ns for p in (here / "out").iterdir()}
    shard(tars, "--uids", "second.npy", "--out", "out", "--rows", "4", capsys=capsys)
    assert {p.name: p.stat().st_mtime_ns for p in (here / "out").iterdir()} == again
    assert (here / "out" / "00000.tar").stat().st_ino != kept, "its source shard has other rows"


def test_other_content_under_the_same_uids_is_packed_anew(here: Path, tars: str, capsys: pytest.CaptureFixture[str]) -> None:
    shard(tars, "--out", "out", capsys=capsys)
    datacomp_tar(here / "tars" / "00000001.tar", range(6, 12), words="chapter")
    shard(tars, "--out", "out", capsys=capsys)
    assert [r["caption"] for r in rows(here / "out")] == [f"{'caption' if i < 6 else 'chapter'} {i}" for i in range(12)]


def test_shards_of_shards_are_the_same_rows(here: Path, tars: str, capsys: pytest.CaptureFixture[str]) -> None:
    shard(tars, "--out", "out", "--rows", "5", capsys=capsys)
    shard("out", "--out", "again", "--rows", "7", capsys=capsys)
    assert rows(here / "again") == rows(here / "out")


def test_same_bytes_with_two_workers(here: Path, tars: str) -> None:
    for workers in ("0", "2"):
        with contextlib.suppress(SystemExit):
            main(["shard", tars, "--out", f"out{workers}", "--rows", "3", "--workers", workers])
    assert len(rows(here / "out0")) == 12
    assert tree(here / "out2", "") == tree(here / "out0", "")


def test_a_table_of_pictures(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("a.png").write_bytes(PNG)
    Path("table.csv").write_text("path,caption,stars\na.png,one,5\ngone.png,two,4\n")
    assert shard("table.csv", "--out", "out", capsys=capsys) == ["1 of 2 rows in 1 shards: out"]
    assert [(r["uid"], r["caption"], r["stars"]) for r in rows(here / "out")] == [(pid(f"{pid(PNG)}\0one"), "one", 5)]


@pytest.fixture
def a_run(here: Path, tars: str) -> Path:
    """A run over the tars that kept four rows."""
    source = "source: {shards: tars/*.tar, uid: uid, shard_rows: 4}\n"
    file = write_pipeline(here, "caption_length", "keep: width >= 104 and width < 108", source=source)
    run_here(file, here / "run")
    return here / "run"


def test_a_run_gives_what_it_kept_and_is_left_as_it_was(here: Path, a_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = tree(a_run, "")
    assert shard("run", "--out", "out", capsys=capsys) == ["4 of 12 rows in 1 shards: out"]
    assert [(r["uid"], r["num_words"]) for r in rows(here / "out")] == [(uid_at(i), 2) for i in range(4, 8)]
    np.save("list.npy", pairs([uid_at(i) for i in (1, 5)]))
    assert shard("run", "--uids", "list.npy", "--where", "num_words = 2", "--out", "out", capsys=capsys) == [
        "1 of 12 rows in 1 shards: out", "1 of the 2 uids have no kept row with an image here"]
    assert shard("run", "--uids", "list.npy", "--dropped-too", "--out", "out", capsys=capsys) == ["2 of 12 rows in 1 shards: out"]
    assert [r["uid"] for r in rows(here / "out")] == [uid_at(1), uid_at(5)]
    assert tree(a_run, "") == before


def test_a_run_packs_the_same_bytes_as_its_own_shards(here: Path, tars: str, capsys: pytest.CaptureFixture[str]) -> None:
    source = "source: {shards: tars/*.tar, uid: uid}\n"
    run_here(write_pipeline(here, "keep: width < 108", source=source, after="shards: {rows: 5}\n"), here / "run")
    shard("run", "--out", "out", "--rows", "5", capsys=capsys)
    assert tree(here / "out", "") == tree(here / "run" / "shards", "")


def test_a_run_s_embeddings_go_along_where_they_are_named(here: Path, tars: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The same bytes as the run's own shards with them; none without being named."""
    (here / "steps.py").write_text("import numpy as np\nfrom curate.step import step, vector\n\n\n"
                                   "@step(adds={'one_emb': vector, 'two_emb': vector})\n"
                                   "def embed(width: list[int]):\n    return {'one_emb': [np.full(4, w) for w in width], "
                                   "'two_emb': [np.full(2, w) for w in width]}\n")
    after = "shards: {rows: 5, vectors: [one_emb, two_emb]}\n"
    source = "source: {shards: tars/*.tar, uid: uid}\n"
    run_here(write_pipeline(here, "./steps.py:embed", "keep: width < 108", source=source, after=after), here / "run")
    shard("run", "--out", "out", "--rows", "5", "--vectors", "one_emb", "--vectors", "two_emb", capsys=capsys)
    assert tree(here / "out", "") == tree(here / "run" / "shards", "")
    assert pq.read_table("out/00000.parquet")["one_emb"][0].as_py() == [100] * 4
    shard("run", "--out", "plain", capsys=capsys)
    assert not {"one_emb", "two_emb"} & set(pq.read_schema("plain/00000.parquet").names)
    assert refused("run", "--vectors", "one_em", "--out", "no", capsys=capsys) == (
        "--vectors: 'one_em' is not a column of embeddings; did you mean 'one_emb'?")


def test_what_a_killed_attempt_left_is_no_hindrance(here: Path, tars: str, capsys: pytest.CaptureFixture[str]) -> None:
    shard(tars, "--out", "clean", "--rows", "4", capsys=capsys)
    shutil.copytree("clean", "out")
    for name in ("manifest.json", "00002_stats.json", "00001.parquet"):
        (here / "out" / name).unlink()
    (here / "out" / "00001.tar").write_bytes(b"other rows")
    (here / "out" / f".00002.tar.dead.1{files.TEMPORARY}").write_bytes(b"half")
    (here / "out" / ".curate" / "source").mkdir(parents=True)
    (here / "out" / ".curate" / "source" / "source.json").write_text('{"of": "another source"}')
    assert refused(tars, "--out", "out", "--where", "1", capsys=capsys)
    shard(tars, "--out", "out", "--rows", "4", capsys=capsys)
    assert tree(here / "out", "") == tree(here / "clean", "")


def refused(*arguments: str, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a wrong command answers with."""
    with pytest.raises(SystemExit) as stopped:
        main(["shard", *arguments, "--workers", "0"])
    said = capsys.readouterr()
    assert (stopped.value.code, said.out, said.err.count("\n")) == (2, "", 1)
    return said.err.rstrip("\n")


MISTAKES = [
    ("nowhere", "no file matches 'nowhere'"),
    ("text.npy", "'text.npy' is no tar file; there is .tar"),
    ("empty", "'empty' holds no picture"),
    ("cut.tar", "cannot read 'cut.tar': cut short: no end of archive"),
    ("tars --uids gone.npy", "no file gone.npy"),
    ("tars --uids tars", "no file tars"),
    *((f"tars --uids {name}", f"{name}: --uids takes a .npy of u8,u8 pairs, or a parquet file with a column 'uid'")
      for name in ("text.npy", "nothing.npy", "floats.npy", "square.npy", "objects.npy", "lists.parquet", "text.txt")),
    ("tars --uids named.parquet", "named.parquet has no column 'uid'; did you mean 'uids'?"),
    ("tars --where widht>3", "no column 'widht'; did you mean 'width'?"),
    ("tars --where width>", 'not an expression: syntax error at or near ">"'),
    ("tars --where width", "`width` is number, not true or false; compare it with something"),
    ("tars --rows 0", "Invalid value for '--rows': Input should be greater than or equal to 1; see --help"),
    ("tars --dropped-too", "--dropped-too: tars is no run, nothing was dropped from it"),
    ("run --where widht>3", "no column 'widht'; did you mean 'width'?"),
    ("run --vectors width", "--vectors: 'width' is not a column of embeddings"),
    ("captions", "captions has no images to put into shards"),
]


@pytest.mark.parametrize(("command", "line"), MISTAKES, ids=[command for command, _ in MISTAKES])
def test_a_mistake_is_one_line_and_nothing_is_written(command: str, line: str, here: Path, a_run: Path,
                                                      capsys: pytest.CaptureFixture[str]) -> None:
    Path("empty").mkdir()
    whole = (here / "tars" / "00000000.tar").read_bytes().rstrip(b"\0")
    Path("cut.tar").write_bytes(whole + bytes(-len(whole) % 512))
    Path("text.npy").write_text("uid\nabcdefgh")
    Path("text.txt").write_text("uid\nabc")
    Path("nothing.npy").write_bytes(b"")
    np.save("floats.npy", np.zeros(3))
    np.save("square.npy", np.ones((4, 2), np.uint64))
    np.save("objects.npy", np.array([{"a": 1}]), allow_pickle=True)
    pq.write_table(pa.table({"uids": ["a"]}), "named.parquet")
    pq.write_table(pa.table({"uid": [["a"]]}), "lists.parquet")
    if command == "captions":
        pq.write_table(pa.table({"url": ["http://a/1"], "caption": ["one"]}), "pool.parquet")
        run_here(write_pipeline(here, "caption_length"), here / "captions")
    before = tree(here, "")
    assert refused(*command.split(), "--out", "out", capsys=capsys) == line
    assert not Path("out").exists()
    assert tree(here, "") == before


def test_a_folder_with_other_tars_is_never_written_into(here: Path, tars: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = tree(here, "")
    assert refused(tars, "--out", "tars", capsys=capsys) == (
        "--out tars holds '00000000.tar', which is not of a set of ours; give a folder of its own")
    Path("tars/manifest.json").write_text('{"name": "an app"}')
    assert refused(tars, "--out", "tars", capsys=capsys).startswith("--out tars holds '00000000.tar'")
    Path("tars/manifest.json").unlink()
    assert tree(here, "") == before
    shard(tars, "--out", "out", capsys=capsys)
    before = tree(here, "")
    assert refused("out/*.tar", "--out", "out", capsys=capsys) == (
        "--out out is where the source's own tars lie; give a folder of its own")
    assert tree(here, "") == before


def test_a_runs_own_shards_are_never_written_into(a_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert refused("run", "--out", "run/shards", capsys=capsys) == (
        "--out run/shards is where a run keeps its own shards; give a folder of its own")


def test_an_unfinished_run_is_refused_but_for_all_its_rows(here: Path, a_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chain = files.read_json(a_run / "run.json")["chain"]
    (a_run / "kept" / chain / "00001.parquet").unlink()
    assert refused("run", "--out", "out", capsys=capsys) == (
        "run is not finished; run its pipeline again first, or take --dropped-too")
    assert shard("run", "--dropped-too", "--out", "out", capsys=capsys) == ["12 of 12 rows in 1 shards: out"]
