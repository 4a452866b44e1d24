"""Where a source lies, what may be said about it, and the one line for what may not."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from curate.errors import UserError
from curate.sources.ingest import ingest
from curate.sources.locations import parse_source
from tests.sources import ROWS, memory_store, rows_of, take, write_pairs


@pytest.mark.parametrize(("where", "expected"), [
    ("urls/a.csv", ["a"]), ("urls/*.csv", ["a", "b"]), ("urls", ["a", "b", "deep/c"]), ("urls/**/[ab].csv", ["a", "b"]),
    ("urls/*/c.csv", ["deep/c"]), (["urls/b.csv", "urls/*.csv"], ["b", "a"])])
def test_a_file_a_pattern_a_folder_or_a_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: Any,
                                             expected: list[str]) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("urls/b.csv", "urls/a.csv", "urls/deep/c.csv", "urls/.hidden.csv", "urls/_temporary/d.csv"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(f"URL,TEXT\nhttp://{name},x\n")
    assert rows_of(take(where, tmp_path), "url") == [f"http://urls/{name}.csv" for name in expected]


def test_a_relative_path_is_looked_for_here_and_then_beside_the_pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, pipelines = tmp_path / "here", tmp_path / "pipelines"
    for folder in (here, pipelines):
        folder.mkdir()
        (folder / "both.csv").write_text(f"url,caption\n{folder.name},x\n")
    (pipelines / "one.csv").write_text("url,caption\nbeside,x\n")
    monkeypatch.chdir(here)
    for name, found in (("both.csv", "here"), ("one.csv", "beside")):
        source = ingest(parse_source({"pairs": name}, pipelines), tmp_path / name / "source", "a")
        assert rows_of(source, "url") == [found]


@pytest.mark.parametrize("where", ["memory://pool/*.csv", "memory://pool", "memory://pool/a.csv"])
def test_a_source_in_an_object_store(tmp_path: Path, where: str) -> None:
    with memory_store() as store:
        store.pipe("/pool/a.csv", b"URL,TEXT\nhttp://a.org/1.jpg,one\n")
        source = take(where, tmp_path)
        assert rows_of(source, "url", "caption") == [("http://a.org/1.jpg", "one")]
        assert take(where, tmp_path) == source
        store.pipe("/pool/a.csv", b"URL,TEXT\nhttp://a.org/1.jpg,two\n")
        with pytest.raises(UserError) as error:
            take(where, tmp_path)
    assert str(error.value) == "'memory:///pool/a.csv' has changed since this run read it; a source only grows; use another --out"


@pytest.mark.parametrize("suffix", ["parquet", "parquet.gz", "jsonl.gz"])
def test_other_formats_in_an_object_store(tmp_path: Path, suffix: str) -> None:
    local = write_pairs(tmp_path / "x.parquet", ROWS)
    if suffix.startswith("jsonl"):
        local.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    with memory_store() as store:
        store.pipe(f"/pool/x.{suffix}", gzip.compress(local.read_bytes()) if suffix.endswith("gz") else local.read_bytes())
        assert rows_of(take(f"memory://pool/*.{suffix}", tmp_path), "caption") == [r["TEXT"] for r in ROWS]


@pytest.mark.parametrize(("given_as", "message"), [
    ({}, "source needs pairs, shards or images: where the rows come from"),
    ({"pears": "x", "url": "URL"}, "source has no setting 'pears'; did you mean 'pairs'?"),
    ({"pairs": "x", "shards": "y"}, "source needs one of pairs and shards, not both"),
    ({"pairs": "x", "captoin": "TEXT"}, "source has no setting 'captoin'; did you mean 'caption'?"),
    ({"shards": "x", "path": "file"},
     "source has no setting 'path'; there is caption, ignore, limit, shard_rows, shards, uid, url"),
    ({"pairs": []}, "source: pairs must be a path, a pattern or a list of them"),
    ({"pairs": 7}, "source: pairs must be text or a list of texts, not 7"),
    ({"pairs": "x", "url": 7}, "source: url must be the name of a column, not 7"),
    ({"pairs": "x", "shard_rows": 0}, "source: shard_rows must be a number from 1, not 0"),
    ({"pairs": "x", "limit": True}, "source: limit must be a number from 1, not True"),
    ({"images": "s3://bucket/x"}, "source: images must lie on this machine; a table of urls is read with pairs"),
])
def test_wrong_settings_are_one_line(given_as: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        parse_source(given_as)
    assert str(error.value) == message


@pytest.mark.parametrize(("kind", "where", "more", "message"), [
    ("pairs", "no/*.csv", {}, "no file matches 'no/*.csv'"),
    ("pairs", "both", {}, "'both' holds csv and parquet files; say which, as in 'both/*.parquet'"),
    ("pairs", "empty", {}, "'empty' holds no parquet, csv, tsv, jsonl or json file"),
    ("shards", "empty", {}, "'empty' holds no tar file"),
    ("images", "empty", {}, "'empty' holds no picture"),
    ("shards", "x.tar.gz", {}, "'x.tar.gz' is a compressed tar, which cannot be read in place; unpack it with gunzip first"),
    ("pairs", "both/b.parquet", {"header": ["a"]},
     "source: header names the columns of csv and tsv files, not of 'both/b.parquet'"),
    ("pairs", "nowhere://x.csv", {}, "cannot open 'nowhere://x.csv': Protocol not known: nowhere"),
    ("pairs", "memory://none.csv", {}, "no file matches 'memory://none.csv'"),
])
def test_places_without_a_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, where: str, more: dict[str, Any],
                                 message: str) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("both/a.csv", "both/b.parquet", "empty/readme.md", "x.tar.gz"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).touch()
    with pytest.raises(UserError) as error:
        take(where, tmp_path, kind=kind, **more)
    assert str(error.value).removesuffix(".") == message
