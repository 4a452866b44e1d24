"""Every mistake in a pipeline file or on the command line is one line that says where, what, what there is; exit code 2."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curate.cli import main

SOURCE = "source: {pairs: pool.parquet, url: url, caption: caption}\n"


def steps(*entries: str) -> str:
    """A pipeline of these steps; the first stands in line 3."""
    return SOURCE + "steps:\n" + "".join(f"  - {entry}\n" for entry in entries)


READS = "a keep has only comparisons of columns, constants and functions of them, joined by and, or, not"
PIPELINES = [
    # The file itself
    ("", "p.yaml:1: a pipeline is a map with 'source:' and 'steps:'"),
    ("- a\n- b\n", "p.yaml:1: a pipeline is a map with 'source:' and 'steps:'"),
    ("source: {pairs: pool.parquet\nsteps: [", "p.yaml:2: not YAML: expected ',' or '}', but got ':'"),
    ("steps: [caption_length]\n", "p.yaml:1: 'source:' is missing"),
    (SOURCE, "p.yaml:1: 'steps:' is missing"),
    (steps("caption_length") + "steps: []\n", "p.yaml:4: not YAML: 'steps' stands twice"),
    ("sorce: {}\nsteps: []\n", "p.yaml:1: no key 'sorce'; did you mean 'source'?"),
    # The source
    ("source: pool.parquet\nsteps: []\n",
     "p.yaml:1: 'source:' is a map, like {pairs: urls/*.parquet, url: URL, caption: TEXT}"),
    ("source: {pears: pool.parquet}\nsteps: []\n", "p.yaml:1: source has no setting 'pears'; did you mean 'pairs'?"),
    ("source: {pairs: gone.parquet, url: url, caption: caption}\nsteps: []\n", "p.yaml:1: no file matches 'gone.parquet'"),
    ("source: {pairs: pool.parquet, url: URL, caption: caption}\nsteps: []\n",
     "p.yaml:1: 'pool.parquet' has no column 'URL'; there is caption, score, tags, url"),
    ("source: {pairs: pool.parquet, shards: x.tar}\nsteps: []\n", "p.yaml:1: source needs one of pairs and shards, not both"),
    # Steps
    (SOURCE + "steps: caption_length\n", "p.yaml:2: 'steps:' is a list of steps and keeps"),
    (steps("languge"), "p.yaml:3: no step 'languge'; did you mean 'language'?"),
    (steps("caption_length", "langauge"), "p.yaml:4: no step 'langauge'; did you mean 'language'?"),
    (steps("caption_length: 5"), "p.yaml:3: step 'caption_length': settings are a map, not 5"),
    (steps("{caption_length: null, language: null}"),
     ("p.yaml:3: one step or keep a list item, like '- language' or '- keep: num_words >= 3', "
      "not {'caption_length': None, 'language': None}")),
    (steps("download: {imagesize: 3}"), "p.yaml:3: step 'download' has no setting 'imagesize'; did you mean 'image_size'?"),
    (steps("download: {image_size: big}"),
     "p.yaml:3: download.image_size: 'big': should be a valid integer, unable to parse string as an integer"),
    (steps("download: {resize_mode: squash}"),
     "p.yaml:3: download.resize_mode: 'squash': should be 'no', 'border', 'keep_ratio', 'keep_ratio_largest' or 'center_crop'"),
    (steps("caption_length", "caption_length"),
     "p.yaml:4: step 'caption_length' adds column 'num_chars', which line 3 has already; give it 'as: prefix'"),
    (steps("caption_length: {as: 3x}"), "p.yaml:3: step 'caption_length': as: '3x' is not a name of letters, digits and _"),
    (steps("caption_length: {reads: {text: caption}}"),
     "p.yaml:3: step 'caption_length' reads no column 'text'; there is caption"),
    (steps("caption_length: {reads: {caption: captoin}}"),
     "p.yaml:3: step 'caption_length' reads column 'captoin', which nothing before it adds; did you mean 'caption'?"),
    (steps("caption_length: {of: ref}"), "p.yaml:3: step 'caption_length': of: ref: no column it reads has that prefix"),
    (steps("clip_score"),
     "p.yaml:3: step 'clip_score' reads column 'image_emb', which nothing before it adds; put clip_embed before it"),
    (steps("image_shape"),
     "p.yaml:3: step 'image_shape' reads column 'image', which nothing before it adds; put download before it"),
    (steps("./mine.py:all_caps"), "p.yaml:3: step './mine.py:all_caps': no file {here}/mine.py"),
    (steps("nowhere.mine:all_caps"), "p.yaml:3: step 'nowhere.mine:all_caps': no module named 'nowhere'"),
    (steps("blocklist: {words: gone.txt}"), "p.yaml:3: blocklist.words: no file gone.txt"),
    # Keeps
    (steps("keep: num_words >= 3"),
     "p.yaml:3: keep reads column 'num_words', which nothing before it adds; put caption_length before it"),
    (steps("caption_length", "keep: num_wrds >= 3"),
     "p.yaml:4: keep reads column 'num_wrds', which nothing before it adds; did you mean 'num_words'?"),
    (steps("caption_length", "keep: num_words"), "p.yaml:4: `num_words` is number, not true or false; compare it with something"),
    (steps("caption_length", "keep: 3"),
     'p.yaml:4: keep takes an expression like "num_words >= 3", or {top: 0.3, by: clip_cos}, not 3'),
    (steps("caption_length", "keep: num_words >="), 'p.yaml:4: not an expression: syntax error at or near ">="'),
    (steps("caption_length", "keep: (select 1) = 1"), f"p.yaml:4: no subquery here; {READS}"),
    (steps("download", "keep: fetch_seconds < 3"),
     "p.yaml:4: keep: column 'fetch_seconds' differs from run to run, so nothing may rest on it"),
    (steps("keep: {top: 1.5, by: score}"), "p.yaml:3: keep top: 1.5 is not a share above 0 and at most 1"),
    (steps("keep: {top: 0.5}"), "p.yaml:3: keep top needs 'by: column'"),
    (steps("keep: {top: 0.5, by: caption}"), "p.yaml:3: keep top: column 'caption' is string, not a number"),
    (steps("keep: {top: 0.5, by: score, of: all}"), "p.yaml:3: keep top: of: 'all'; there is only 'source'"),
    # Shards
    (steps("caption_length") + "shards: {row: 5}\n", "p.yaml:4: shards has no setting 'row'; did you mean 'rows'?"),
    (steps("caption_length") + "shards: {rows: 0}\n", "p.yaml:4: shards.rows: 0 is not a whole number of 1 or more"),
    (steps("caption_length") + "shards: 5\n", "p.yaml:4: 'shards:' is a map like {rows: 10000}, or none"),
]
COMMANDS = [
    ("run gone.yaml", "no pipeline file gone.yaml"),
    ("run good.yaml --set x", "--set x: write it as key=value, like download.image_size=384"),
    ("run good.yaml --set langage.a=1",
     "--set langage.a=1: no step or key 'langage'; there is caption_length, expect, loop, shards, source, train"),
    ("run good.yaml --set caption_length=1",
     "--set caption_length=1: say which setting of 'caption_length', like caption_length.NAME=value"),
    ("run good.yaml --set caption_length.x=1",
     "good.yaml:3: step 'caption_length' has no setting 'x'; there is as, of, reads"),
    ("run good.yaml --until download", "--until download: no such step in the pipeline; there is caption_length"),
    ("run good.yaml --part 3/3", "--part 3/3: write it as I/N with I from 0 to N-1"),
    ("run good.yaml --retry all", "--retry all: there is only 'quarantined'"),
    ("run good.yaml --on spark", "--on spark: there is local, ray and ray://HOST:PORT"),
    ("run good.yaml --wrokers 2", "No such option: --wrokers (Possible options: --retry, --workers); see --help"),
    ("run good.yaml --limit 0", "Invalid value for '--limit': Input should be greater than or equal to 1; see --help"),
    ("run", "Missing argument 'PIPELINE'; see --help"),
    ("rnu good.yaml", "No such command 'rnu'. Did you mean 'run'?"),
    ("status nowhere", "nowhere holds no run (there is no nowhere/run.json)"),
    ("report nowhere", "nowhere has no funnel yet: the run is not finished; see 'curate status nowhere'"),
    ("why nowhere x", "nowhere holds no run (there is no nowhere/run.json)"),
    ("steps languge", "no step 'languge'; did you mean 'language'?"),
    ("shard nowhere --out o", "no file matches 'nowhere'"),
    ("verify nowhere", "no folder nowhere"),
]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a small pool and a good pipeline."""
    monkeypatch.chdir(tmp_path)
    pool = {"url": ["http://127.0.0.1/a"], "caption": ["a dog on grass"], "score": [1.0], "tags": [["a"]]}
    pq.write_table(pa.table(pool), "pool.parquet")
    Path("good.yaml").write_text(steps("caption_length", "keep: num_words >= 3"))
    return tmp_path


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a command answers with; it exits with 2 and prints nothing else."""
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    said = capsys.readouterr()
    assert stopped.value.code == 2
    assert said.out == ""
    assert said.err.endswith("\n") and said.err.count("\n") == 1
    return said.err.rstrip("\n")


@pytest.mark.parametrize(("text", "line"), PIPELINES, ids=[line.partition(": ")[2][:60] for _, line in PIPELINES])
def test_wrong_pipeline(text: str, line: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line with file and line number, and nothing is written."""
    Path("p.yaml").write_text(text)
    assert refused(["run", "p.yaml", "--on", "local", "--workers", "0"], capsys) == line.replace("{here}", str(here))
    assert not Path("runs").exists()


@pytest.mark.parametrize(("command", "line"), COMMANDS, ids=[command for command, _ in COMMANDS])
def test_wrong_command(command: str, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One line, and nothing is written."""
    assert refused(command.split(), capsys) == line
    assert not Path("runs").exists()
