"""`curate init`: a right pipeline over somebody's own file, or one line that says why not; never a file overwritten."""

import gzip
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from curate.cli import main
from curate.errors import UserError
from curate.pipeline import load
from curate.planning.init import init
from curate.stages import StepUse
from tests.running import run_here
from tests.site.make import make
from tests.site.server import serve
from tests.sources import PNG, write_tar

URLS = [f"https://a.org/{i}.jpg" for i in range(20)]
CAPTIONS = [f"a photo of the red bicycle number {i} in the park" for i in range(20)]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def table(path: str, **columns: Sequence[Any]) -> str:
    """A parquet file with urls and captions, and these columns."""
    return tables(path, {"URL": URLS, "TEXT": CAPTIONS, **columns})


def tables(path: str, columns: Mapping[str, Sequence[Any]]) -> str:
    """A parquet file."""
    pq.write_table(pa.table(dict(columns)), path)
    return path


def made(*sources: str, out: str = "pipeline.yaml", url: str | None = None, caption: str | None = None,
         uid: str | None = None) -> dict[str, Any]:
    """The `source:` of the pipeline that init writes, which `curate run` takes as it is."""
    init(sources, Path(out), url=url, caption=caption, uid=uid, attempt="test")
    load(Path(out))
    return dict(yaml.safe_load(Path(out).read_text())["source"])


def refused(*sources: str, url: str | None = None) -> str:
    """The one line that init says; nothing is written."""
    with pytest.raises(UserError) as error:
        init(sources, Path("pipeline.yaml"), url=url, caption=None, uid=None, attempt="test")
    assert not Path("pipeline.yaml").exists()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_is_said_and_written(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table("pool.parquet", uid=[f"{i:032x}" for i in range(20)], similarity=[.3] * 20)
    with pytest.raises(SystemExit) as end:
        main(["init", "pool.parquet"])
    assert end.value.code == 0
    assert capsys.readouterr().out.splitlines() == [
        "20 rows in 1 parquet file; looked at 20",
        ("url: 'URL', by its name and values: 100% are http urls, 100% end like a picture; "
         "caption: 'TEXT', by its name and values: 11.0 words and 48 characters on average; "
         "uid: 'uid', by its name: 32 hex digits in every row"),
        "wrote pipeline.yaml; next: curate plan pipeline.yaml"]
    lines = Path("pipeline.yaml").read_text().splitlines()
    assert lines[2:5] == ["#   curate plan pipeline.yaml", "#   curate run pipeline.yaml --limit 1000",
                          "#   curate run pipeline.yaml"]
    assert "# 20 rows. Assumed, not measured (`curate plan` replaces it): if all are fetched, 2.6 MB over the wire and" in lines
    assert "source: {pairs: pool.parquet, url: URL, caption: TEXT, uid: uid}" in lines
    assert any(isinstance(s, StepUse) and s.spec.name == "download" for s in load(Path("pipeline.yaml")).stages)


def test_every_keep_has_its_source(here: Path) -> None:
    made(table("pool.parquet"))
    keeps = [line for line in Path("pipeline.yaml").read_text().splitlines() if "- keep:" in line]
    assert len(keeps) > 8
    sources = ("ours", "DataComp", "LAION", "ALIGN", "status = 'ok'", "not is_same", "not held_out")
    assert [line for line in keeps if not any(word in line for word in sources)] == []


def test_the_steps_in_comments_are_a_pipeline_too(here: Path) -> None:
    made(table("pool.parquet"))
    text = Path("pipeline.yaml").read_text()
    head, _, body = text.partition("source:")
    for mark in ("  # - ", "# train", "# loop"):
        body = body.replace(mark, mark.replace("# ", ""))
    Path("all.yaml").write_text(head + "source:" + body)
    pipeline = load(Path("all.yaml"))
    assert pipeline.loop is not None and pipeline.train is not None
    assert [s.label for s in pipeline.stages if isinstance(s, StepUse)][-4:] == [
        "clip_score as ref", "held_out", "clip_embed as loop", "clip_score as loop"]


def test_it_overwrites_nothing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table("pool.parquet")
    Path("pipeline.yaml").write_text("mine")
    Path("link.yaml").symlink_to("nowhere")
    for out in ("pipeline.yaml", "link.yaml"):
        with pytest.raises(SystemExit) as end:
            main(["init", "pool.parquet", "--out", out])
        assert (end.value.code, capsys.readouterr().err) == (2, f"{out} is there already; give another --out\n")
    assert Path("pipeline.yaml").read_text() == "mine"


@pytest.mark.parametrize(("columns", "url", "caption", "uid"), [
    ({"url": URLS, "caption": CAPTIONS}, "url", "caption", None),
    ({"image_url": URLS, "page_url": [u.replace("jpg", "html") for u in URLS], "alt_text": CAPTIONS, "title": CAPTIONS},
     "image_url", "alt_text", None),
    ({"url": [u.replace("jpg", "html") for u in URLS], "photo": URLS, "text": CAPTIONS}, "photo", "text", None),
    ({"a": URLS, "b": CAPTIONS, "c": range(20)}, "a", "b", None),
    ({"url": URLS, "text": CAPTIONS, "id": range(20), "key": [f"{i:032x}" for i in range(20)]}, "url", "text", "key"),
    ({"url": URLS, "text": CAPTIONS, "uid": [7] * 20, "id": range(20)}, "url", "text", "id"),
    ({"url": [*URLS[:12], *[None] * 8], "text": [None, *CAPTIONS[1:]], "uid": [None, *range(19)]}, "url", "text", None),
    ({"url": [None] * 20, "link": URLS, "caption": [None] * 20, "title": CAPTIONS}, "link", "title", None),
], ids=["plain", "better names", "pictures", "by values", "hex first", "distinct", "nulls", "names without values"])
def test_guesses(here: Path, columns: dict[str, Any], url: str, caption: str, uid: str | None) -> None:
    found = made(tables("pool.parquet", columns))
    assert (found["url"], found["caption"], found.get("uid")) == (url, caption, uid)


def test_an_id_that_begins_again_in_every_file_is_no_uid(here: Path) -> None:
    for name in "ab":
        tables(f"{name}.parquet", {"url": URLS, "text": [f"{name} {c}" for c in CAPTIONS], "id": range(20)})
    assert made("a.parquet", "b.parquet") == {"pairs": "*.parquet", "url": "url", "caption": "text"}


@pytest.mark.parametrize(("columns", "said"), [
    ({"TEXT": CAPTIONS}, "no column holds http urls (it has 'TEXT'); name it with --url NAME"),
    ({"url": [None] * 20, "text": CAPTIONS}, "no column holds http urls (it has 'url', 'text'); name it with --url NAME"),
    ({"URL": URLS}, "no column holds captions (it has 'URL'); name it with --caption NAME"),
    ({"url": URLS, "text": CAPTIONS, "caption": CAPTIONS},
     "'text' and 'caption' look equally like the caption column; say which with --caption NAME"),
    ({"url": URLS, "src": URLS, "text": CAPTIONS}, "'url' and 'src' look equally like the url column; say which with --url NAME"),
    ({"file": [f"{i}.jpg" for i in range(20)], "text": CAPTIONS},
     "no column holds http urls, but 'file' names picture files: write a pipeline with source: {images: FILE, path: COLUMN}"),
    ({"url": URLS[:0], "text": CAPTIONS[:0]}, "'pool.parquet' holds no row"),
], ids=["no url", "null urls", "no caption", "two captions", "two urls", "paths", "no rows"])
def test_where_it_cannot_guess(here: Path, columns: dict[str, Any], said: str) -> None:
    assert refused(tables("pool.parquet", columns)) == said


def test_columns_may_be_named(here: Path) -> None:
    tables("pool.parquet", {"url": URLS, "src": URLS, "text": CAPTIONS, "caption": CAPTIONS, "n": range(20)})
    assert refused("pool.parquet", url="scr") == "no column 'scr'; did you mean 'src'?"
    assert made("pool.parquet", url="src", caption="text", uid="n") == {
        "pairs": "pool.parquet", "url": "src", "caption": "text", "uid": "n"}


def test_columns_that_steps_measure_stay_out(here: Path) -> None:
    """DataComp's metadata has a sha256, COYO's a width; no two columns have one name, in whatever case."""
    table("pool.parquet", sha256=["x"] * 20, Status=["y"] * 20, width=[1] * 20)
    assert made("pool.parquet")["ignore"] == ["sha256", "Status"]
    assert set(load(Path("pipeline.yaml")).columns) == {"uid", "image_id", "url", "caption", "source_error", "width"}


def test_the_language_of_most_rows(here: Path) -> None:
    german = [f"ein rotes Fahrrad Nummer {i} steht auf der Wiese vor dem Haus" for i in range(20)]
    tables("pool.parquet", {"url": URLS, "text": german})
    made("pool.parquet")
    assert "- keep: lang = 'de'" in Path("pipeline.yaml").read_text()


PAIRS = "".join(f"{u},{c}\n" for u, c in zip(URLS, CAPTIONS, strict=True))
TEXTS: dict[str, tuple[str, bytes, dict[str, Any]]] = {
    "BOM": ("a.csv", b"\xef\xbb\xbfurl,caption\n" + PAIRS.encode(), {"url": "url", "caption": "caption"}),
    "no header": ("a.csv", PAIRS.encode(), {"url": "url", "caption": "caption", "header": ["url", "caption"]}),
    "no header, three columns": (
        "a.tsv", "".join(f"{c}\t{i}\t{u}\n" for i, (u, c) in enumerate(zip(URLS, CAPTIONS, strict=True))).encode(),
        {"url": "url", "caption": "caption", "header": ["caption", "column_2", "url"]}),
    "quotes": ("a.csv", b'"the ""url""",caption\n' + "".join(f'"{u}","{c}, ""quoted"""\n' for u, c in
                                                               zip(URLS, CAPTIONS, strict=True)).encode(),
               {"url": 'the "url"', "caption": "caption"}),
    "latin-1": ("a.csv", "url,légende\n".encode("latin-1") + PAIRS.replace("red", "ré").encode("latin-1"),
                {"url": "url", "caption": "l\ufffdgende"}),
    "gzip": ("a.csv.gz", gzip.compress(b"url,caption\n" + PAIRS.encode()), {"url": "url", "caption": "caption"}),
    "jsonl": ("a.jsonl", "".join(json.dumps({"link": u, "alt": c}) + "\n" for u, c in zip(URLS, CAPTIONS, strict=True)).encode(),
              {"url": "link", "caption": "alt"}),
    "windows": ("a.csv", b"url,caption\r\n" + PAIRS.replace("\n", "\r\n").encode(), {"url": "url", "caption": "caption"}),
    "names": ("a b#.csv", b"# url: x,- caption\n" + PAIRS.encode(), {"url": "# url: x", "caption": "- caption"}),
}


@pytest.mark.parametrize("name", TEXTS)
def test_text_files(here: Path, name: str) -> None:
    path, data, expected = TEXTS[name]
    Path(path).write_bytes(data)
    assert made(path) == {"pairs": path, **expected}


@pytest.mark.parametrize(("name", "data", "said"), [
    ("a.csv", b"", "cannot read 'a.csv': it is empty"),
    ("a.csv", b"url,caption\n", "'a.csv' holds no row"),
    ("a.csv", b"url\n" + "\n".join(URLS).encode(), "no column holds captions (it has 'url'); name it with --caption NAME"),
    ("a.csv", b"\xff\xfe\x00" * 50, "no column holds http urls"),
    ("a.parquet", b"PAR1 no", "cannot read 'a.parquet'"),
    ("a.jsonl", b"[]\n3\n", "no column holds http urls (it has no columns); name it with --url NAME"),
    ("a.zip", b"PK", "'a.zip' is no parquet, csv, tsv, jsonl or json file"),
    ("a.jpg", PNG, "'a.jpg' is a picture; give the folder it lies in"),
    ("a.tar", b"no tar" * 1000, "cannot read 'a.tar'"),
    ("a.csv", b"a,a\nx,y\n", "cannot read 'a.csv': two columns are called 'a'"),
], ids=str)
def test_files_that_are_refused(here: Path, name: str, data: bytes, said: str) -> None:
    Path(name).write_bytes(data)
    assert refused(name).startswith(said) or (said == "no column holds http urls" and "holds no row" in refused(name))


def test_sources_that_are_none(here: Path) -> None:
    Path("empty").mkdir()
    Path("both").mkdir()
    Path("both/a.jpg").write_bytes(PNG)
    Path("both/a.csv").write_text("url,caption\n")
    assert refused("gone.parquet") == "no file matches 'gone.parquet'"
    assert refused("empty") == "'empty' holds no table, tar or picture"
    assert refused("both") == ("'both' holds pictures and tables; give the tables, as in 'both/*.csv', or a folder of pictures "
                               "only")
    assert refused("x.csv", "x.tar") == "pairs and shards are two kinds of source; give one of them"


def test_the_source_is_found_from_where_the_pipeline_lies(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("data").mkdir()
    Path("other").mkdir()
    table("data/a.parquet")
    table("data/b[1].parquet")
    assert made("data/*.parquet")["pairs"] == "data/*.parquet"
    assert made("data", out="data/p.yaml")["pairs"] == str(here / "data")
    assert made("data/b[1].parquet", out="data/q.yaml")["pairs"] == "b[1].parquet"
    assert made("data/a.parquet", "data/b[1].parquet", out="r.yaml")["pairs"] == "data/*.parquet"
    assert made("data/*.parquet", out="other/p.yaml")["pairs"] == str(here / "data" / "*.parquet")
    monkeypatch.chdir("other")
    for path in (here / "pipeline.yaml", here / "data" / "p.yaml", here / "data" / "q.yaml", here / "other" / "p.yaml"):
        load(path)


def picture(side: int = 80) -> bytes:
    """A JPEG."""
    import io

    from PIL import Image

    out = io.BytesIO()
    Image.effect_noise((side, side), 60).convert("RGB").save(out, "JPEG")
    return out.getvalue()


def members(number: int, **meta: Any) -> list[tuple[str, bytes]]:
    """The files of a sample."""
    return [(f"{number}.jpg", picture()), (f"{number}.json", json.dumps(meta).encode())]


def test_tars(here: Path) -> None:
    write_tar(Path("a.tar"), [m for i in range(5) for m in members(i, url=URLS[i], caption=CAPTIONS[i], uid=f"{i:032x}")])
    assert made("a.tar") == {"shards": "a.tar"}
    assert not any(isinstance(s, StepUse) and s.spec.name == "download" for s in load(Path("pipeline.yaml")).stages)
    outcome = run_here(Path("pipeline.yaml"), here / "out")
    assert outcome.manifest is not None and outcome.manifest["rows"] == 5


def test_tars_whose_captions_have_another_name_or_none(here: Path) -> None:
    write_tar(Path("named.tar"), [m for i in range(5) for m in members(i, text=CAPTIONS[i])])
    assert made("named.tar") == {"shards": "named.tar", "caption": "text"}
    write_tar(Path("none.tar"), [m for i in range(5) for m in members(i, n=i)])
    assert made("none.tar", out="none.yaml") == {"shards": "none.tar"}
    assert run_here(Path("none.yaml"), here / "out").funnel[-1]["kept"] == 5


def test_a_folder_of_pictures(here: Path) -> None:
    for i in range(3):
        Path(f"photos/{i}").mkdir(parents=True)
        Path(f"photos/{i}/a.jpg").write_bytes(picture())
        Path(f"photos/{i}/a.txt").write_text(CAPTIONS[i])
    assert made("photos") == {"images": "photos"}
    assert run_here(Path("pipeline.yaml"), here / "out").funnel[-1]["kept"] == 3


def test_our_own_shards_are_a_source(here: Path) -> None:
    """They hold what steps measured; a pipeline over them measures it anew."""
    write_tar(Path("a.tar"), [m for i in range(5) for m in members(i, caption=CAPTIONS[i])])
    made("a.tar")
    run_here(Path("pipeline.yaml"), here / "out")
    ignored = made("out/shards", out="again.yaml")["ignore"]
    assert {"num_chars", "lang", "phash", "is_same_image"} <= set(ignored)
    assert run_here(Path("again.yaml"), here / "again").funnel[-1]["kept"] == 5


NAMES = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=12).filter(lambda n: n.strip() == n and n)


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(names=st.lists(st.one_of(NAMES, st.sampled_from(["null", "1", "~", "a: b", "- x", "#", "yes", "'", '"', "{", "uid"])),
                      min_size=2, max_size=5, unique_by=str.lower))
@example(names=["0", "0\x850"])
@example(names=["a\u2028b", "c\u2029d"])
def test_whatever_columns_are_called_the_file_is_a_pipeline(names: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path, out = Path(folder, "pool.parquet"), Path(folder, "p.yaml")
        numbers = {n: list(range(20)) for n in names[2:]}
        pq.write_table(pa.table({names[0]: URLS, names[1]: CAPTIONS, **numbers}), path)
        try:
            said = init([str(path)], out, url=None, caption=None, uid=None, attempt="test")
        except UserError as error:
            assert "\n" not in str(error) and not out.exists()
            return
        assert all("\n" not in line for line in said)
        load(out)
        source = yaml.safe_load(out.read_text())["source"]
        assert (source["url"], source["caption"]) == (names[0], names[1])


def said_by(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    """What a command says that ends well."""
    with pytest.raises(SystemExit) as end:
        main(list(arguments))
    said = capsys.readouterr()
    assert (end.value.code, said.err) == (0, "")
    return said.out.splitlines()


@pytest.mark.slow
def test_the_first_hour(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """init, plan, a trial of 1,000 rows, the same without a limit, with a look at how far it is."""
    make(here / "site", 1100, seed=4)
    with serve(here / "site") as site:
        said_by(capsys, "init", str(site.pool))
        text = Path("pipeline.yaml").read_text()        # the scenes are small and lie on this machine
        text = text.replace(">= 200", ">= 48").replace("num_bytes >= 5000", "num_bytes >= 500")
        Path("pipeline.yaml").write_text(text.replace("{image_size: 256,", "{image_size: 256, allow_private: [127.0.0.0/8],"))
        planned = said_by(capsys, "plan", "pipeline.yaml", "--rows", "200")
        assert planned[-1] == "next: curate run pipeline.yaml" and not Path("runs").exists()
        run = ("run", "pipeline.yaml", "--on", "local")
        trial = said_by(capsys, *run, "--limit", "1000")
        assert trial[-1].endswith("rows in 1 shards: runs/pipeline-limit1000/shards")
        said_by(capsys, *run, "--until", "language")
        assert said_by(capsys, "status", "runs/pipeline")[-1] == "  through all stages       1 of 1 shards"
        whole = said_by(capsys, *run)
        assert int(whole[-1].split()[0]) > int(trial[-1].split()[0]) > 500
        assert "measured now: caption_count" in whole[-2]       # the texts were measured before
        status = said_by(capsys, "status", "runs/pipeline")
        assert status[0] == "runs/pipeline: 1,100 rows in 1 source shards, pipeline pipeline.yaml"
        assert "  through all stages       1 of 1 shards" in status
        assert any(line.startswith("  images ok ") for line in status)
        assert said_by(capsys, *run)[-2] == "measured now: nothing"


def test_status_says_what_has_not_begun(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Behind a barrier nothing has an identity yet; a step in front of it breaks here."""
    Path("broken.py").write_text("from curate.errors import RunStopped\nfrom curate.step import bool_, step\n\n\n"
                                 "@step(adds={'never': bool_})\ndef broken(caption: list[str]):\n    'Raises.'\n"
                                 "    raise RunStopped('no more')\n")
    table("pool.parquet")
    Path("p.yaml").write_text("source: {pairs: pool.parquet, url: URL, caption: TEXT}\nsteps:\n  - caption_length\n"
                              "  - ./broken.py:broken\n  - caption_count\n  - language\n")
    with pytest.raises(SystemExit) as end:
        main(["run", "p.yaml", "--on", "local", "--workers", "0"])
    assert end.value.code == 3
    capsys.readouterr()
    assert said_by(capsys, "status", "runs/p") == [
        "runs/p: 20 rows in 1 source shards, pipeline p.yaml", "  caption_length           1 of 1 shards",
        "  broken                   0 of 1 shards", "  caption_count            not begun",
        "  language                 not begun", "  through those begun      0 of 1 shards"]
