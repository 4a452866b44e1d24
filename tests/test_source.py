"""A source: any format in, every row counted, the same shards however often and in however many goes they were made."""

import csv
import gzip
import hashlib
import io
import json
import os
import pickle
import subprocess
import sys
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import webdataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from curate import files, owners, readers
from curate.errors import UserError
from curate.source import Source, SourceSettings, ingest, parse_source, peek
from curate.step import image
from curate.tar import TarWriter

ROWS: list[dict[str, Any]] = [
    {"URL": "http://a.org/1.jpg", "TEXT": "a red cube", "WIDTH": 640, "SCORE": 0.5, "TAG": "x"},
    {"URL": "http://a.org/2.jpg", "TEXT": 'she said "hi", twice', "WIDTH": 480, "SCORE": 1.25, "TAG": "007"},
    {"URL": "http://a.org/3.jpg", "TEXT": "Müller's 犬 🐕", "WIDTH": 1024, "SCORE": 2.0, "TAG": None},
    {"URL": "http://a.org/4.jpg", "TEXT": "  spaces around ", "WIDTH": 7, "SCORE": -3e-5, "TAG": "y"},
    {"URL": "http://b.org/5.jpg", "TEXT": "the last one", "WIDTH": 8, "SCORE": 0.125, "TAG": "z"},
]
PNG = bytes.fromhex("89504e470d0a1a0a") + b"not really a picture"


def pid(data: str | bytes) -> str:
    """What identifies a picture, written down once more."""
    return hashlib.blake2b(data.encode() if isinstance(data, str) else data, digest_size=16).hexdigest()


def uid(url: str, caption: str) -> str:
    """What identifies a row, written down once more."""
    return pid(pid(url) + "\0" + unicodedata.normalize("NFC", caption).strip())


def settings_of(where: Any, kind: str = "pairs", **more: Any) -> SourceSettings:
    names = {"url": "URL", "caption": "TEXT"} if kind == "pairs" else {}
    return parse_source({kind: where if isinstance(where, list) else str(where), **names, **more})


def take(where: Any, out: Path, **more: Any) -> Source:
    return ingest(settings_of(where, **more), out / "source", "attempt")


def rows_of(source: Source, *names: str) -> list[Any]:
    """Every row of every shard, as a value, or as a tuple of the named columns."""
    tables = [source.table(n, list(names) or None) for n in range(source.num_shards)]
    assert [len(t) for t in tables] == [source.rows(n) for n in range(source.num_shards)]
    rows = [row for t in tables for row in t.to_pylist()]
    return [row[names[0]] for row in rows] if len(names) == 1 else [tuple(row.values()) for row in rows] if names else rows


def write_pairs(path: Path, rows: list[dict[str, Any]]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def urls(*numbers: int, caption: str = "caption") -> list[dict[str, Any]]:
    return [{"URL": f"http://a.org/{n}.jpg", "TEXT": f"{caption} {n}"} for n in numbers]


def tree(folder: Path) -> dict[str, bytes]:
    """Every file of a source folder but the record, which holds times."""
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.name != "source.json"}


def to_parquet(path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), path)


def to_csv(path: Path) -> None:
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(ROWS[0]))
        writer.writeheader()
        writer.writerows(ROWS)


def to_tsv(path: Path) -> None:
    lines = [list(ROWS[0]), *(["" if v is None else str(v) for v in row.values()] for row in ROWS)]
    path.write_text("".join("\t".join(line) + "\n" for line in lines))


def to_jsonl(path: Path) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))


def to_json(path: Path) -> None:
    path.write_text(json.dumps(ROWS, indent=1))


FORMATS: dict[str, Callable[[Path], None]] = {
    "parquet": to_parquet, "csv": to_csv, "tsv": to_tsv, "jsonl": to_jsonl, "ndjson": to_jsonl, "json": to_json}


@pytest.mark.parametrize("packed", ["", ".gz"])
@pytest.mark.parametrize("suffix", FORMATS)
def test_every_format_gives_the_same_rows(tmp_path: Path, suffix: str, packed: str) -> None:
    path = tmp_path / f"pairs.{suffix}"
    FORMATS[suffix](path)
    if packed:
        path = path.with_name(path.name + packed)
        path.write_bytes(gzip.compress(path.with_suffix("").read_bytes()))
    source = take(path, tmp_path, shard_rows=2)
    assert [source.rows(n) for n in range(source.num_shards)] == [2, 2, 1]
    assert rows_of(source) == [
        {"uid": uid(r["URL"], r["TEXT"]), "image_id": pid(r["URL"]), "url": r["URL"], "caption": r["TEXT"], "source_error": None,
         "WIDTH": r["WIDTH"], "SCORE": r["SCORE"], "TAG": r["TAG"]} for r in ROWS]
    assert source.columns == {"uid": pa.string(), "image_id": pa.string(), "url": pa.string(), "caption": pa.string(),
                              "source_error": pa.string(), "WIDTH": pa.int64(), "SCORE": pa.float64(), "TAG": pa.string()}
    assert peek(settings_of(path)) == source.columns
    assert not source.has_images


@pytest.mark.parametrize(("given_as", "expected"), [
    ("urls/*.csv", ["urls/a.csv", "urls/b.csv"]), ("urls", ["urls/a.csv", "urls/b.csv", "urls/deep/c.csv"]),
    ("urls/**/[ab].csv", ["urls/a.csv", "urls/b.csv"]), ("urls/*/c.csv", ["urls/deep/c.csv"]), (["urls/b.csv", "urls/*.csv"], ["urls/b.csv", "urls/a.csv"]),
    ("urls/[ab].csv", ["urls/a.csv", "urls/b.csv"])])
def test_a_file_a_pattern_a_folder_or_a_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given_as: Any, expected: list[str]) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("urls/b.csv", "urls/a.csv", "urls/deep/c.csv", "urls/.hidden.csv", "urls/_temporary/d.csv"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(f"URL,TEXT\nhttp://{name},x\n")
    assert rows_of(take(given_as, tmp_path), "url") == [f"http://{name}" for name in expected]


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


@pytest.fixture
def memory() -> Iterator[Any]:
    """fsspec's object store in memory, empty before and after."""
    store = fsspec.filesystem("memory")
    for path in store.find("/"):
        store.rm(path)
    yield store
    for path in store.find("/"):
        store.rm(path)


@pytest.mark.parametrize("where", ["memory://pool/*.csv", "memory://pool", "memory://pool/a.csv"])
def test_a_source_in_an_object_store(tmp_path: Path, memory: Any, where: str) -> None:
    memory.pipe("/pool/a.csv", b"URL,TEXT\nhttp://a.org/1.jpg,one\n")
    source = take(where, tmp_path)
    assert rows_of(source, "url", "caption") == [("http://a.org/1.jpg", "one")]
    assert take(where, tmp_path) == source
    memory.pipe("/pool/a.csv", b"URL,TEXT\nhttp://a.org/1.jpg,two\n")
    with pytest.raises(UserError, match=r"^'memory:///?pool/a.csv' has changed since this run read it; "):
        take(where, tmp_path)


@pytest.mark.parametrize("suffix", ["parquet", "parquet.gz", "json"])
def test_other_formats_in_an_object_store(tmp_path: Path, memory: Any, suffix: str) -> None:
    local = tmp_path / "x"
    FORMATS[suffix.removesuffix(".gz")](local)
    memory.pipe(f"/pool/x.{suffix}", gzip.compress(local.read_bytes()) if suffix.endswith("gz") else local.read_bytes())
    assert rows_of(take(f"memory://pool/*.{suffix}", tmp_path), "caption") == [r["TEXT"] for r in ROWS]


def test_columns_that_are_called_like_ours(tmp_path: Path) -> None:
    path = write_pairs(tmp_path / "a.parquet", [{"URL": "u", "TEXT": "t", "Caption": 1, "url": 2, "source_url": 3, "uid": 4, "a.b": 5,
                                                 "A.B": 6}])
    row = rows_of(take(path, tmp_path))[0]
    del row["uid"], row["image_id"]
    assert row == {"url": "u", "caption": "t", "source_error": None, "source_Caption": 1, "source_url": 2, "source_source_url": 3,
                   "source_uid": 4, "a.b": 5, "source_A.B": 6}


def test_the_users_own_uids(tmp_path: Path) -> None:
    rows = [{"URL": "http://a", "TEXT": "x", "id": 17}, {"URL": "http://a", "TEXT": "x", "id": 18}, {"URL": "http://a", "TEXT": "y"}]
    source = take(write_pairs(tmp_path / "a.parquet", rows), tmp_path, uid="id")
    assert rows_of(source, "uid") == ["17", "18", uid("http://a", "y")]
    assert source.columns.keys() == {"uid", "image_id", "url", "caption", "source_error"}
    assert source.repeated(0).tolist() == []


def test_a_column_may_mean_two_things(tmp_path: Path) -> None:
    source = take(write_pairs(tmp_path / "a.parquet", urls(1)), tmp_path, uid="URL")
    assert rows_of(source, "uid", "url") == [("http://a.org/1.jpg", "http://a.org/1.jpg")]


def test_the_same_text_in_other_bytes_is_the_same_row(tmp_path: Path) -> None:
    texts = ["Caf\u00e9 \u212b", "Cafe\u0301 \u00c5", " Caf\u00e9 A\u030a\u3000\n", "Cafe \u00c5"]
    source = take(write_pairs(tmp_path / "a.parquet", [{"URL": "http://a", "TEXT": t} for t in texts]), tmp_path)
    assert rows_of(source, "caption") == texts
    assert len(set(rows_of(source, "uid"))) == 2
    assert source.repeated(0).tolist() == [1, 2]
    assert source.num_distinct == 2


def test_rows_without_url_or_caption_are_rows(tmp_path: Path) -> None:
    rows = [{"URL": None, "TEXT": "a"}, {"URL": " ", "TEXT": "a"}, {"URL": "http://a", "TEXT": ""}, {"URL": "", "TEXT": None},
            {"URL": "http://a", "TEXT": "\t"}]
    source = take(write_pairs(tmp_path / "a.parquet", rows), tmp_path)
    assert rows_of(source, "url", "image_id", "caption", "source_error") == [
        (None, None, "a", "no url"), (None, None, "a", "no url"), ("http://a", pid("http://a"), None, "no caption"),
        (None, None, None, "no url; no caption"), ("http://a", pid("http://a"), None, "no caption")]
    uids = rows_of(source, "uid")
    assert len(set(uids)) == 4
    assert uids[2] == uids[4] == uid("http://a", "")
    assert source.repeated(0).tolist() == [4]


def test_rows_without_url_keep_their_uid_whatever_the_shards(tmp_path: Path) -> None:
    for n in range(2):
        write_pairs(tmp_path / f"{n}.parquet", [{"URL": None, "TEXT": "a"}] * 5)
    few, many = (rows_of(take(tmp_path / "*.parquet", tmp_path / str(size), shard_rows=size), "uid") for size in (2, 100))
    assert few == many
    assert len(set(few)) == 10


# -- csv, tsv and JSON as the web has them ------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("text", "expected"), [
    ("url,caption\r\nu1,a\r\n\r\nu2,b\r\n", [("u1", "a", None), ("u2", "b", None)]),
    ("\ufeffurl, caption\nu1,a", [("u1", "a", None)]),
    ('url,caption\nu1,"two\nlines, one ""row"""\nu2,b\n', [("u1", 'two\nlines, one "row"', None), ("u2", "b", None)]),
    ("url,caption\nu1\nu2,b,c\nu3,d\n",
     [(None, None, "line 2: 1 fields, not 2"), (None, None, "line 3: 3 fields, not 2"), ("u3", "d", None)]),
    ('url,caption\nu1,a\nu2,"never closed\nu3,c\nu4,5" pipe\n',
     [("u1", "a", None), (None, None, "line 3: a quote is never closed"), ("u3", "c", None), ("u4", '5" pipe', None)]),
    ('url,caption\nu1,"a" b\nu2,c\n', [("u1", "a b", None), ("u2", "c", None)]),
    ("url,caption\nu1,a\0b\n", [("u1", "a\0b", None)]),
    ("url,caption\nu1,a\rb\nu2,c\n", [(None, None, "line 2: new-line character seen in unquoted field"), ("u2", "c", None)]),
    ("url,caption\nu1," + "x" * 200_000 + "\nu2,c\n", [(None, None, "line 2: field larger than field limit (131072)"), ("u2", "c", None)]),
])
def test_csv(tmp_path: Path, text: str, expected: list[tuple[str | None, ...]]) -> None:
    (tmp_path / "a.csv").write_bytes(text.encode())
    source = ingest(parse_source({"pairs": str(tmp_path / "a.csv")}), tmp_path / "source", "a")
    assert rows_of(source, "url", "caption", "source_error") == expected


def test_an_open_quote_costs_one_line_however_long_the_file(tmp_path: Path) -> None:
    lines = [f"u{n},c{n}\n" for n in range(1000)]
    lines[500] = 'u500,"c500\n'
    lines[700] = 'u700,"c\n700"\n'
    (tmp_path / "a.csv").write_text("url,caption\n" + "".join(lines))
    source = ingest(parse_source({"pairs": str(tmp_path / "a.csv"), "shard_rows": 64}), tmp_path / "source", "a")
    captions = rows_of(source, "caption")
    assert captions == [None if n == 500 else "c\n700" if n == 700 else f"c{n}" for n in range(1000)]
    assert [e for e in rows_of(source, "source_error") if e] == ["line 502: a quote is never closed"]


def test_tsv_lines_are_rows_whatever_quotes_they_hold(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_bytes(b'"url"\tcaption\nu1\ta "quoted word\r\nu2\t"as ""a"" whole"\nu3\t"\nu4\ta\tb\n\nu5\t"a" and "b"\n')
    source = ingest(parse_source({"pairs": str(tmp_path / "a.tsv")}), tmp_path / "source", "a")
    assert rows_of(source, "url", "caption", "source_error") == [
        ("u1", 'a "quoted word', None), ("u2", 'as "a" whole', None), ("u3", '"', None),
        (None, None, "line 5: 3 fields, not 2"), ("u5", '"a" and "b"', None)]


def test_a_table_without_a_header_line(tmp_path: Path) -> None:
    (tmp_path / "cc3m.tsv").write_text("a dog\thttp://1\na cat\thttp://2\n")
    source = take(tmp_path / "cc3m.tsv", tmp_path, header=["TEXT", "URL"])
    assert rows_of(source, "url", "caption") == [("http://1", "a dog"), ("http://2", "a cat")]


def test_bytes_that_are_no_text_are_replaced_and_noted(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"URL,TEXT,tag\nu1,caf\xe9,x\nu2,fine,\xff\n")
    raw = pa.array([b"caf\xe9", b"fine"], pa.binary()).cast(pa.string(), safe=False)
    pq.write_table(pa.table({"URL": ["u1", "u2"], "TEXT": raw, "tag": pa.array([b"x", b"\xff"])}), tmp_path / "a.parquet")
    (tmp_path / "a.jsonl").write_text('{"URL": "u1", "TEXT": "caf\\ud800", "tag": "x"}\n{"URL": "u2", "TEXT": "fine", "tag": "\\udc00"}\n')
    for name, note in (("a.csv", "tag: invalid characters replaced"), ("a.jsonl", "tag: invalid characters replaced"), ("a.parquet", None)):
        rows = rows_of(take(tmp_path / name, tmp_path / f"{name}.out"), "caption", "source_error")
        assert rows == [("caf\ufffd", "TEXT: invalid characters replaced"), ("fine", note)]


def test_jsonl_as_it_comes(tmp_path: Path) -> None:
    lines = ['{"url": "u1", "caption": "a", "n": 1, "l": [1, {"x": 2}]}', "", "{broken", '["list"]', '{"caption": "no url", "n": 2.5}',
             '{"url": "u2", "caption": 7, "n": "many", "new": true}', "[" * 100_000, '{"url": "u3", "caption": "b\\u0000", "n": 99999999999999999999}']
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    source = ingest(parse_source({"pairs": str(tmp_path / "a.jsonl")}), tmp_path / "source", "a")
    assert rows_of(source, "url", "caption", "n", "l", "new", "source_error") == [
        ("u1", "a", "1", '[1, {"x": 2}]', None, None), (None, None, None, None, None, "line 3: not JSON"),
        (None, None, None, None, None, "line 4: not an object"), (None, "no url", "2.5", None, None, "no url"),
        ("u2", "7", "many", None, True, None), (None, None, None, None, None, "line 7: not JSON"),
        ("u3", "b\0", "99999999999999999999", None, None, None)]


def test_a_json_list_is_read_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "BLOCK", 7)
    (tmp_path / "a.json").write_text(" [ " + " ,\n".join([*(json.dumps(r, ensure_ascii=False) for r in ROWS), "12345678901234567890"]) + " ] ")
    source = take(tmp_path / "a.json", tmp_path)
    assert rows_of(source, "caption", "source_error") == [*((r["TEXT"], None) for r in ROWS), (None, "not an object")]


# -- types ---------------------------------------------------------------------------------------------------------------------------

def test_types_widen_from_shard_to_shard_and_nothing_is_lost(tmp_path: Path) -> None:
    values = {"n": ["1", "2", "-3.5", "4"], "s": ["10", "11", "007", ""], "late": ["", "", "5", "6"], "never": ["", "", "", ""]}
    lines = [f"http://{i},c,{','.join(v[i] for v in values.values())}" for i in range(4)]
    (tmp_path / "a.csv").write_text("\n".join(["URL,TEXT," + ",".join(values), *lines]))
    source = take(tmp_path / "a.csv", tmp_path, shard_rows=2)
    assert {n: str(source.columns[n]) for n in values} == {"n": "double", "s": "string", "late": "int64", "never": "string"}
    assert rows_of(source, *values) == [(1.0, "10", None, None), (2.0, "11", None, None), (-3.5, "007", 5, None), (4.0, None, 6, None)]


def test_files_with_other_columns_and_types(tmp_path: Path) -> None:
    first = {"URL": pa.array(["u1"], pa.large_string()), "TEXT": pa.array(["a"]).dictionary_encode(), "n": pa.array([1], pa.int32()),
             "x": pa.array([[1, 2]]), "Big": pa.array([2**63], pa.uint64())}
    second = {"TEXT": pa.array(["b"], pa.string_view()), "n": pa.array([2**40]), "URL": ["u2"], "x": ["text"], "big": [-1], "more": [b"\0\1"]}
    for name, table in (("1", first), ("2", second)):
        pq.write_table(pa.table(table), tmp_path / f"{name}.parquet")
    source = take(tmp_path / "*.parquet", tmp_path)
    assert rows_of(source, "url", "caption", "n", "x", "Big", "more") == [
        ("u1", "a", 1, "[1, 2]", str(2**63), None), ("u2", "b", 2**40, "text", "-1", b"\0\1")]


@pytest.mark.parametrize(("numbers", "type_"), [
    (["0", "-1", "999999999999999999"], "int64"), (["0", "1.50"], "double"), (["1e5", "-2"], "double"), (["01"], "string"), (["+1"], "string"),
    (["9999999999999999999"], "string"), (["12345678901234567890.5"], "string"), (["1", "x"], "string"), (["nan"], "string"), (["-0"], "double"),
    (["true"], "string"), ([" 1"], "string"), (["١"], "string")])
def test_csv_numbers_are_numbers_only_where_that_gives_them_back(tmp_path: Path, numbers: list[str], type_: str) -> None:
    (tmp_path / "a.csv").write_text("URL,TEXT,n\n" + "".join(f"u,c,{n}\n" for n in numbers))
    assert str(peek(settings_of(tmp_path / "a.csv"))["n"]) == type_
    assert [float(v) if type_ == "double" else str(v) for v in rows_of(take(tmp_path / "a.csv", tmp_path), "n")] == [
        float(n) if type_ == "double" else n for n in numbers]


# -- files that cannot be read, settings that cannot be meant ----------------------------------------------------------------------

@pytest.mark.parametrize(("name", "data", "message"), [
    ("a.csv", b"", "cannot read 'a.csv': it is empty"),
    ("a.csv", b"url,TEXT\n", "'a.csv' has no column 'URL'; there is TEXT, url"),
    ("a.csv", b"URL,TEXT,n,n\n", "cannot read 'a.csv': two columns are called 'n'"),
    ("a.jsonl", b'{"URI": 1}\n', "'a.jsonl' has no column 'TEXT'; there is URI"),
    ("a.json", b'{"URL": ["u"]}', "cannot read 'a.json': not a list of objects"),
    ("a.json", b'[{"URL": "u", "TEXT": "t"}, {"URL": ', "cannot read 'a.json': broken or cut short after element 1"),
    ("a.json", b'[{"URL": "u", "TEXT": "t"} {"URL": "u"}]', "cannot read 'a.json': broken after element 1"),
    ("a.csv.gz", gzip.compress(b"URL,TEXT\nu,t\n" * 99)[:-9], "cannot read 'a.csv.gz': Compressed file ended before the end-of-stream marker was reached"),
    ("a.csv.gz", b"URL,TEXT\n", "cannot read 'a.csv.gz': Not a gzipped file (b'UR')"),
    ("a.parquet", b"PAR1 but cut short", "cannot read 'a.parquet': Parquet magic bytes not found in footer. Either the file is corrupted or this is "
     "not a parquet file."),
    ("a.xlsx", b"", "'a.xlsx' is no parquet, csv, tsv, jsonl or json file; there is .csv, .json, .jsonl, .ndjson, .parquet, .tsv"),
])
def test_a_broken_file_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, data: bytes, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(data)
    with pytest.raises(UserError) as error:
        take(name, tmp_path)
    assert str(error.value) == message
    assert not list(tmp_path.glob("source/*")), "nothing of it is left"


def test_parquet_broken_inside_is_refused_with_what_was_read_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pq.write_table(pa.Table.from_pylist(urls(*range(5000))), "a.parquet", row_group_size=500, compression="none", use_dictionary=False)
    data = bytearray(Path("a.parquet").read_bytes())
    data[len(data) // 2:len(data) // 2 + 20000] = b"\xff" * 20000
    Path("a.parquet").write_bytes(data)
    with pytest.raises(UserError, match=r"^cannot read 'a.parquet': "):
        take("a.parquet", tmp_path, shard_rows=100)
    assert not list(tmp_path.glob("source/*"))


def test_a_caption_must_be_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_pairs(Path("a.parquet"), [{"URL": "u", "TEXT": ["several", "captions"]}])
    with pytest.raises(UserError) as error:
        take("a.parquet", tmp_path)
    assert str(error.value).startswith("cannot read 'a.parquet': column 'TEXT' is list<")


@pytest.mark.parametrize(("given_as", "message"), [
    ({}, "source needs pairs, shards or images: where the rows come from"),
    ({"pears": "x", "url": "URL"}, "source has no setting 'pears'; did you mean 'pairs'?"),
    ({"pairs": "x", "shards": "y"}, "source needs one of pairs and shards, not both"),
    ({"pairs": "x", "captoin": "TEXT"}, "source has no setting 'captoin'; did you mean 'caption'?"),
    ({"shards": "x", "path": "file"}, "source has no setting 'path'; there is caption, limit, shard_rows, shards, uid, url"),
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
    ("pairs", "both/b.parquet", {"header": ["a"]}, "source: header names the columns of csv and tsv files, not of 'both/b.parquet'"),
    ("pairs", "nowhere://x.csv", {}, "cannot open 'nowhere://x.csv': Protocol not known: nowhere"),
    ("pairs", "memory://none.csv", {}, "no file matches 'memory://none.csv'"),
])
def test_places_without_a_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: Any, kind: str, where: str, more: dict[str, Any],
                                 message: str) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("both/a.csv", "both/b.parquet", "empty/readme.md", "x.tar.gz"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).touch()
    with pytest.raises(UserError) as error:
        take(where, tmp_path, kind=kind, **more)
    assert str(error.value).removesuffix(".") == message


# -- once, append-only, in however many goes ---------------------------------------------------------------------------------------

@pytest.fixture
def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three files of 5, 0 and 4 rows; the third has a picture of the first."""
    monkeypatch.chdir(tmp_path)
    for name, rows in (("a", urls(1, 2, 3, 4, 5)), ("b", []), ("c", [*urls(6, 2, 7), *urls(1, caption="other")])):
        pq.write_table(pa.Table.from_pylist(rows, pa.schema({"URL": pa.string(), "TEXT": pa.string()})), f"{name}.parquet")
    return tmp_path


def test_a_second_ingest_reads_nothing(pool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = take("*.parquet", pool, shard_rows=2)
    before = {p: p.stat().st_mtime_ns for p in (pool / "source").iterdir()}
    monkeypatch.setattr(readers, "read_table", None)
    monkeypatch.setattr(owners, "write", None)
    assert take("*.parquet", pool, shard_rows=2) == source
    assert {p: p.stat().st_mtime_ns for p in (pool / "source").iterdir()} == before
    assert Source.open(pool / "source") == source


def test_shards_never_span_files(pool: Path) -> None:
    source = take("*.parquet", pool, shard_rows=2)
    assert [source.rows(n) for n in range(source.num_shards)] == [2, 2, 1, 2, 2]
    assert [Path(source.part(n).path).name for n in range(source.num_shards)] == ["a.parquet"] * 3 + ["c.parquet"] * 2
    assert [(Path(p.path).name, p.rows, p.first_shard, p.shards) for p in source.parts] == [
        ("a.parquet", 5, 0, 3), ("b.parquet", 0, 3, 0), ("c.parquet", 4, 3, 2)]
    with pytest.raises(IndexError, match="no source shard 5, there are 5"):
        source.rows(5)


def test_the_record_says_what_was_read(pool: Path) -> None:
    source = take("*.parquet", pool, shard_rows=2)
    record = json.loads((pool / "source/source.json").read_text())
    assert record["files"][0] == {
        "path": str(pool / "a.parquet"), "bytes": (pool / "a.parquet").stat().st_size, "mtime_ns": (pool / "a.parquet").stat().st_mtime_ns,
        "version": None, "sha256": hashlib.sha256((pool / "a.parquet").read_bytes()).hexdigest(), "rows": 5, "first_shard": 0, "shards": 3}
    assert (record["rows"], record["shards"], record["repeated_rows"]) == (9, 5, 1)
    assert record["columns"] == {n: "string" for n in ("uid", "image_id", "url", "caption", "source_error")}
    assert len(source.digest) == 32


def test_the_digest_is_of_what_the_files_hold(pool: Path, tmp_path: Path) -> None:
    digest = take("*.parquet", pool, shard_rows=2).digest
    (tmp_path / "moved").mkdir()
    for name in "abc":
        (tmp_path / "moved" / f"{name}.parquet").write_bytes((pool / f"{name}.parquet").read_bytes())
    assert take("moved/*.parquet", tmp_path / "moved_out", shard_rows=2).digest == digest
    assert take("moved/*.parquet", tmp_path / "other_out", shard_rows=3).digest != digest
    assert take("moved/[ab].parquet", tmp_path / "fewer_out", shard_rows=2).digest != digest


def test_a_new_file_adds_shards(pool: Path) -> None:
    before = take("*.parquet", pool, shard_rows=2)
    shards = tree(pool / "source")
    write_pairs(pool / "Before.parquet", [*urls(7, 8), *urls(1, caption="third")])
    after = take("*.parquet", pool, shard_rows=2)
    assert (before.num_shards, after.num_shards, after.num_rows, after.num_repeated) == (5, 7, 12, 2)
    assert {n: b for n, b in tree(pool / "source").items() if n in shards and n[0] == "0"} == {n: b for n, b in shards.items() if n[0] == "0"}
    assert rows_of(after, "url")[9:] == [f"http://a.org/{n}.jpg" for n in (7, 8, 1)]
    assert after.repeated(5).tolist() == [0]
    assert after.owners(6) == {pid("http://a.org/1.jpg"): 0}
    assert after.digest != before.digest


def test_a_file_with_a_new_time_but_the_same_bytes_is_the_same(pool: Path) -> None:
    source = take("*.parquet", pool)
    os.utime(pool / "a.parquet", ns=(1, 1))
    again = take("*.parquet", pool)
    assert again.parts[0].mtime_ns == 1
    assert again.digest == source.digest
    assert take("*.parquet", pool) == again


def test_a_changed_or_vanished_file_is_refused(pool: Path) -> None:
    take("*.parquet", pool)
    shards = tree(pool / "source")
    write_pairs(pool / "a.parquet", urls(9))
    with pytest.raises(UserError) as error:
        take("*.parquet", pool)
    assert str(error.value) == "'a.parquet' has changed since this run read it; a source only grows; use another --out"
    (pool / "a.parquet").unlink()
    with pytest.raises(UserError) as error:
        take("*.parquet", pool)
    assert str(error.value) == "'a.parquet' was part of the source and is not any more; a source only grows; use another --out"
    assert tree(pool / "source") == shards


@pytest.mark.parametrize(("more", "message"), [
    ({"url": "TEXT"}, "source: url was 'URL' in '{}', now it is 'TEXT'"), ({"caption": "URL"}, "source: caption was 'TEXT' in '{}', now it is 'URL'"),
    ({"uid": "URL"}, "source: uid was not set in '{}', now it is 'URL'"), ({"shard_rows": 7}, "source: shard_rows was 10000 in '{}', now it is 7"),
    ({"limit": 3}, "source: limit was not set in '{}', now it is 3")])
def test_changed_settings_are_refused(pool: Path, more: dict[str, Any], message: str) -> None:
    take("*.parquet", pool)
    with pytest.raises(UserError) as error:
        ingest(parse_source({"pairs": "*.parquet", "url": "URL", "caption": "TEXT", **more}), pool / "source", "attempt")
    assert str(error.value) == message.format(pool) + "; a source only grows; use another --out"


@pytest.mark.parametrize(("limit", "rows", "shards"), [(1, 1, 1), (4, 4, 2), (5, 5, 3), (7, 7, 4), (100, 9, 5)])
def test_a_limit_takes_the_first_rows(pool: Path, limit: int, rows: int, shards: int) -> None:
    whole = rows_of(take("*.parquet", pool / "whole", shard_rows=2), "uid")
    source = ingest(settings_of("*.parquet", shard_rows=2), pool / "source", "a", limit)
    assert rows_of(source, "uid") == whole[:rows]
    assert (source.num_rows, source.num_shards) == (rows, shards)
    assert ingest(settings_of("*.parquet", shard_rows=2, limit=limit), pool / "source", "b") == source


def test_progress_is_told_after_each_shard(pool: Path) -> None:
    told: list[int] = []
    ingest(settings_of("*.parquet", shard_rows=2), pool / "source", "a", progress=told.append)
    assert told == [2, 4, 5, 5, 7, 9]


@pytest.mark.parametrize("written", range(8))
def test_an_ingest_that_stops_anywhere_goes_on_to_the_same_bytes(pool: Path, monkeypatch: pytest.MonkeyPatch, written: int) -> None:
    take("*.parquet", pool / "whole", shard_rows=2)
    whole = tree(pool / "whole/source")
    left = written
    atomic = files.atomic

    def failing(path: Path, attempt: str) -> Any:
        nonlocal left
        left -= path.suffix == ".parquet"
        if left < 0 and path.suffix == ".parquet":
            raise OSError(28, "no space left")
        return atomic(path, attempt)

    with monkeypatch.context() as patch:
        patch.setattr(files, "atomic", failing)
        with pytest.raises(OSError, match="no space left"):
            take("*.parquet", pool, shard_rows=2)
    assert take("*.parquet", pool, shard_rows=2).num_rows == 9
    assert tree(pool / "source") == whole


KILLED = """
import os, sys
from pathlib import Path
from curate import files
from curate.source import ingest, parse_source

replace, left = os.replace, int(sys.argv[1])
def until(source, target):
    global left
    left -= 1
    replace(source, target) if left >= 0 else os._exit(9)
os.replace = until
ingest(parse_source({"pairs": "*.parquet", "url": "URL", "caption": "TEXT", "shard_rows": 2}), Path("source"), "killed")
"""


@pytest.mark.parametrize("renames", [1, 5, 7, 9])
def test_a_killed_ingest_goes_on_to_the_same_bytes(pool: Path, renames: int) -> None:
    take("*.parquet", pool / "whole", shard_rows=2)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    assert subprocess.run([sys.executable, "-c", KILLED, str(renames)], cwd=pool, env=environment).returncode == 9
    assert files.sweep(pool / "source") == 1
    take("*.parquet", pool, shard_rows=2)
    assert tree(pool / "source") == tree(pool / "whole/source")


def test_a_file_that_changes_while_it_is_read_is_refused(pool: Path) -> None:
    with pytest.raises(UserError) as error:
        ingest(settings_of("a.parquet"), pool / "source", "a", progress=lambda _: os.utime(pool / "a.parquet", ns=(1, 1)))
    assert str(error.value) == "'a.parquet' changed while it was read; run the same command again"
    assert not list(pool.glob("source/*"))


def test_a_source_goes_to_workers_by_pickle(pool: Path) -> None:
    source = take("*.parquet", pool, shard_rows=2)
    assert len(source.digest) == 32
    assert pickle.loads(pickle.dumps(source)).table(4).equals(source.table(4))


def test_no_source_yet(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="^'.*' holds no source; `curate run` makes it$"):
        Source.open(tmp_path / "source")


# -- repeats and owners --------------------------------------------------------------------------------------------------------------

def test_repeated_rows_and_shared_pictures(tmp_path: Path) -> None:
    def row(url: int | None, caption: str) -> dict[str, Any]:
        return {"URL": url and f"http://{url}", "TEXT": caption}

    rows = [row(1, "a"), row(1, "b"), row(2, "a"),          # shard 0
            row(1, "a"), row(2, "b"), row(3, "a"),          # shard 1: its first row is a repeat, so it does not hold picture 1
            row(3, "b"), row(1, "c"), row(None, "a"),       # shard 2
            row(None, "a"), row(3, "a"), row(2, "b"),       # shard 3: two repeats, nothing else of pictures 2 and 3
            row(2, "c"), row(4, "a"), row(4, "a")]          # shard 4
    source = take(write_pairs(tmp_path / "a.parquet", rows), tmp_path, shard_rows=3)
    assert [source.repeated(n).tolist() for n in range(5)] == [[], [0], [], [1, 2], [2]]
    assert (source.num_rows, source.num_repeated, source.num_distinct) == (15, 4, 11)
    one, two, three = pid("http://1"), pid("http://2"), pid("http://3")
    assert [source.owners(n) for n in range(5)] == [{}, {two: 0}, {three: 1, one: 0}, {}, {two: 0}]
    assert [source.borrowers(n) for n in range(5)] == [{1: [two], 2: [one], 4: [two]}, {2: [three]}, {}, {}, {}]
    assert [source.depends(n) for n in range(5)] == [set(), {0}, {0, 1}, set(), {0}]


def test_a_folder_whose_name_is_a_pattern(tmp_path: Path) -> None:
    source = take(write_pairs(tmp_path / "a.parquet", urls(1, 1)), tmp_path / "it's [1] x=*")
    assert source.repeated(0).tolist() == [1]
    assert take(tmp_path / "a.parquet", tmp_path / "it's [1] x=*") == source


def test_a_source_without_rows(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("URL,TEXT\n")
    source = take(tmp_path / "a.csv", tmp_path)
    assert (source.num_shards, source.num_rows, list(source.columns)) == (0, 0, ["uid", "image_id", "url", "caption", "source_error"])


# -- tars ----------------------------------------------------------------------------------------------------------------------------

def write_tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    with open(path, "wb") as file:
        tar = TarWriter(file)
        for name, data in members:
            tar.add(name, data)
        tar.close()
    return path


def img2dataset_members(first: int, count: int) -> list[tuple[str, bytes]]:
    """As img2dataset writes them: key.jpg, key.json, key.txt."""
    members = []
    for n in range(first, first + count):
        meta = {"caption": f"caption {n}", "url": f"http://a.org/{n}.jpg", "key": f"{n:09d}", "status": "success", "width": 256 + n, "exif": "{}"}
        members += [(f"{n:09d}.jpg", PNG + bytes([n])), (f"{n:09d}.json", json.dumps(meta).encode()), (f"{n:09d}.txt", f"caption {n}".encode())]
    return members


def stored(row: dict[str, Any]) -> bytes:
    with open(row["image"]["file"], "rb") as file:
        file.seek(row["image"]["offset"])
        return file.read(row["image"]["length"])


def test_tars_of_img2dataset_are_read_in_place(tmp_path: Path) -> None:
    for n in range(2):
        write_tar(tmp_path / f"{n:05d}.tar", img2dataset_members(3 * n, 3))
    (tmp_path / "00000.parquet").write_bytes(b"img2dataset's own table is no part of it")
    source = take(tmp_path, tmp_path / "out", kind="shards")
    rows = rows_of(source)
    assert [source.rows(n) for n in range(source.num_shards)] == [3, 3]
    for n, row in enumerate(rows):
        url = f"http://a.org/{n}.jpg"
        assert row["image"]["file"] == str(tmp_path / f"{n // 3:05d}.tar")
        assert stored(row) == PNG + bytes([n])
        del row["image"]
        assert row == {"uid": uid(url, f"caption {n}"), "image_id": pid(url), "url": url, "caption": f"caption {n}", "source_error": None,
                       "key": f"{n:09d}", "status": "success", "width": 256 + n, "exif": "{}"}
    assert source.columns["image"] == image
    assert source.has_images
    assert peek(settings_of(tmp_path, kind="shards")) == source.columns


def test_tars_of_webdataset_without_urls(tmp_path: Path) -> None:
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as writer:
        for n in range(3):
            writer.write({"__key__": f"sample{n}", "jpg": PNG + bytes([n]), "txt": f"caption {n}", "json": {"n": n / 2}})
    source = take(tmp_path / "a.tar", tmp_path / "out", kind="shards", shard_rows=2)
    rows = rows_of(source)
    assert [stored(row) for row in rows] == [PNG + bytes([n]) for n in range(3)]
    assert [(r["uid"], r["image_id"], r["url"], r["caption"], r["key"], r["n"]) for r in rows] == [
        (pid(pid(PNG + bytes([n])) + f"\0caption {n}"), pid(PNG + bytes([n])), None, f"caption {n}", f"sample{n}", n / 2) for n in range(3)]


def test_samples_as_they_come(tmp_path: Path) -> None:
    members = [
        ("a/1.jpg", PNG), ("a/1.txt", b"fine"), ("._1.jpg", b"a Mac was here"), ("README", b"no extension"),
        ("a/2.txt", b"no picture"), ("a/3.PNG", PNG + b"3"), ("a/4.webp", PNG + b"4"), ("a/4.json", b"{broken"),
        ("a/5.jpg", PNG + b"5"), ("a/5.json", b'{"caption": "of json", "alt": "other", "deep": {"x": 1}}'),
        ("a/6.jpg", PNG + b"6"), ("a/6.txt", b"caf\xe9"), ("a/6.json", b"[1]"),
        ("a/7.jpg", PNG + b"7"), ("a/7.txt", b"first"), ("a/7.jpg", PNG + b"8"), ("a/7.txt", b"second"), ("a/9.cls", b"1")]
    source = take(write_tar(tmp_path / "a.tar", members), tmp_path / "out", kind="shards")
    rows = rows_of(source)
    assert [(r["key"], r["caption"], r["source_error"]) for r in rows] == [
        ("a/1", "fine", None), ("a/2", "no picture", "no picture"), ("a/3", None, "no caption"), ("a/4", None, "its .json is not JSON"),
        ("a/5", "of json", None), ("a/6", "caf\ufffd", "its .json is not an object; caption: invalid characters replaced"),
        ("a/7", "first", None), ("a/7", "second", None), ("a/9", None, "no picture; no caption")]
    assert [r["image"] and stored(r) for r in rows] == [PNG, None, *(PNG + str(n).encode() for n in (3, 4, 5, 6, 7, 8)), None]
    assert [r["deep"] for r in rows] == [None] * 4 + ['{"x": 1}'] + [None] * 4


def test_the_caption_of_a_tar_may_be_named(tmp_path: Path) -> None:
    meta = [{"caption": "alt text", "recaption": f"generated {n}", "uid": n, "link": f"http://{n}"} for n in range(2)]
    members = [m for n in range(2) for m in ((f"{n}.jpg", PNG), (f"{n}.txt", b"alt text"), (f"{n}.json", json.dumps(meta[n]).encode()))]
    path = write_tar(tmp_path / "a.tar", members)
    source = take(path, tmp_path / "out", kind="shards", caption="recaption", uid="uid", url="link")
    assert rows_of(source, "uid", "url", "caption", "source_caption") == [
        ("0", "http://0", "generated 0", "alt text"), ("1", "http://1", "generated 1", "alt text")]
    with pytest.raises(UserError, match=r"a.tar' has no column 'recaptoin'; did you mean 'recaption'\?$"):
        take(path, tmp_path / "other", kind="shards", caption="recaptoin")


@pytest.mark.parametrize("cut", [0, 100, 600, 2000, 6144, -513])
def test_a_tar_that_is_cut_short_is_refused_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: int) -> None:
    monkeypatch.chdir(tmp_path)
    write_tar(Path("a.tar"), img2dataset_members(0, 2))
    size = Path("a.tar").stat().st_size
    whole = write_tar(Path("b.tar"), img2dataset_members(2, 20)).read_bytes().rstrip(b"\0")
    end = len(whole) + -len(whole) % 512
    Path("b.tar").write_bytes(whole.ljust(end, b"\0")[:cut if cut >= 0 else end + cut])
    with pytest.raises(UserError, match=r"^cannot read 'b.tar': "):
        take("*.tar", tmp_path, kind="shards", shard_rows=2)
    assert size == 10240
    kept = Source.open(tmp_path / "source")
    assert (kept.num_rows, [p.name for p in sorted((tmp_path / "source").glob("*.parquet"))]) == (2, ["00000.parquet"])


def test_a_copied_tar_is_the_same_and_an_edited_one_is_not(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", img2dataset_members(0, 3))
    source = take(path, tmp_path, kind="shards")
    os.utime(path, ns=(1, 1))
    assert take(path, tmp_path, kind="shards").digest == source.digest
    path.write_bytes(path.read_bytes().replace(b"caption 1", b"caption X"))
    with pytest.raises(UserError, match="has changed since this run read it"):
        take(path, tmp_path, kind="shards")


def test_a_tar_in_an_object_store(tmp_path: Path, memory: Any) -> None:
    memory.pipe("/shards/a.tar", write_tar(tmp_path / "a.tar", img2dataset_members(0, 3)).read_bytes())
    rows = rows_of(take("memory://shards/*.tar", tmp_path, kind="shards"))
    assert rows[2]["image"]["file"] == "memory:///shards/a.tar"
    place = rows[2]["image"]
    assert memory.cat_file("/shards/a.tar")[place["offset"]:place["offset"] + place["length"]] == PNG + b"\2"


# -- local pictures ------------------------------------------------------------------------------------------------------------------

def test_a_folder_of_pictures(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for name, data in {"b.jpg": PNG, "b.txt": b"of the text", "a.v2.PNG": PNG + b"a", "a.v2.json": b'{"caption": "of json", "n": 1}',
                       "c.webp": PNG + b"c", "alone.txt": b"no row", ".d.jpg": b"", "more/b.jpg": PNG, "more/b.txt": b"of the text"}.items():
        (folder / name).write_bytes(data)
    source = take(folder, tmp_path, kind="images")
    rows = rows_of(source)
    assert [(Path(r["image"]["file"]).relative_to(folder).as_posix(), r["caption"], r["source_error"]) for r in rows] == [
        ("a.v2.PNG", "of json", None), ("b.jpg", "of the text", None), ("c.webp", None, "no caption"), ("more/b.jpg", "of the text", None)]
    assert [stored(r) for r in rows] == [PNG + b"a", PNG, PNG + b"c", PNG]
    assert [r["image_id"] for r in rows] == [pid(stored(r)) for r in rows]
    assert rows[1]["uid"] == rows[3]["uid"] == pid(pid(PNG) + "\0of the text")
    assert [source.rows(n) for n in range(source.num_shards)] == [3, 1]
    assert source.repeated(1).tolist() == [0]


def test_a_folder_of_pictures_grows_by_folders(tmp_path: Path) -> None:
    (tmp_path / "photos/day1").mkdir(parents=True)
    (tmp_path / "photos/day1/a.jpg").write_bytes(PNG)
    take(tmp_path / "photos", tmp_path, kind="images")
    os.utime(tmp_path / "photos/day1/a.jpg", ns=(1, 1))
    (tmp_path / "photos/day0").mkdir()
    (tmp_path / "photos/day0/b.jpg").write_bytes(PNG + b"b")
    source = take(tmp_path / "photos", tmp_path, kind="images")
    assert [Path(f).name for f in (r["file"] for r in rows_of(source, "image"))] == ["a.jpg", "b.jpg"]
    (tmp_path / "photos/day1/c.jpg").write_bytes(PNG)
    with pytest.raises(UserError, match="day1' has changed since this run read it"):
        take(tmp_path / "photos", tmp_path, kind="images")


def test_a_table_of_pictures(tmp_path: Path) -> None:
    (tmp_path / "jpg").mkdir()
    for n in range(2):
        (tmp_path / f"jpg/{n}.jpg").write_bytes(PNG + bytes([n]))
    (tmp_path / "photos.csv").write_text(f"file,text,n\njpg/0.jpg,zero,1\njpg/0.jpg,null,2\n{tmp_path}/jpg/1.jpg,one,3\njpg/2.jpg,two,4\n,none,5\nx\n")
    source = take(tmp_path / "photos.csv", tmp_path, kind="images", path="file", caption="text")
    rows = rows_of(source)
    assert [(r["caption"], r["n"], r["source_error"]) for r in rows] == [
        ("zero", 1, None), ("null", 2, None), ("one", 3, None), ("two", 4, "no picture 'jpg/2.jpg'"), ("none", 5, "no picture"),
        (None, None, "line 7: 1 fields, not 3")]
    assert [r["image"] and stored(r) for r in rows] == [PNG + b"\0", PNG + b"\0", PNG + b"\1", None, None, None]
    assert [r["image_id"] for r in rows] == [pid(PNG + b"\0"), pid(PNG + b"\0"), pid(PNG + b"\1"), None, None, None]
    assert [r["file"] for r in rows][:2] == ["jpg/0.jpg", "jpg/0.jpg"]
    assert len({r["uid"] for r in rows}) == 6


# -- for all rows ----------------------------------------------------------------------------------------------------------------------

TEXTS = st.one_of(st.none(), st.text(max_size=12), st.text(alphabet='a",\n\r\t \x1f\u0301é', max_size=8))
TABLES = st.lists(st.tuples(TEXTS, TEXTS), max_size=25)
MANY = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def expected_uids(rows: list[tuple[str | None, str | None]]) -> list[str]:
    def one(number: int, url: str | None, caption: str | None) -> str:
        lost = pid(f"row\0{0}\0{number}")
        return uid(url, (caption or "") if (caption or "").strip() else "") if url and url.strip() else lost
    return [one(number, *row) for number, row in enumerate(rows)]


@given(rows=TABLES, size=st.integers(1, 7))
@MANY
def test_no_row_is_lost_or_invented(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str | None, str | None]], size: int) -> None:
    folder = tmp_path_factory.mktemp("source")
    table = [{"URL": u, "TEXT": c} for u, c in rows]
    pq.write_table(pa.Table.from_pylist(table, pa.schema({"URL": pa.string(), "TEXT": pa.string()})), folder / "a.parquet")
    (folder / "a.jsonl").write_text("".join(json.dumps(r) + "\n" for r in table))
    (folder / "a.json").write_text(json.dumps(table, ensure_ascii=False))
    for name in ("a.parquet", "a.jsonl", "a.json"):
        source = take(folder / name, folder / f"{name}.out", shard_rows=size)
        assert rows_of(source, "uid") == expected_uids(rows)
        assert source.num_shards == -(-len(rows) // size)
        repeats = sum(len(source.repeated(n)) for n in range(source.num_shards))
        assert repeats == source.num_repeated == len(rows) - len(set(expected_uids(rows)))


@given(rows=TABLES)
@MANY
def test_what_csv_can_say_it_says(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str | None, str | None]]) -> None:
    path = tmp_path_factory.mktemp("source") / "a.csv"
    text = io.StringIO(newline="")
    csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\n").writerows([("URL", "TEXT"), *rows])
    path.write_bytes(text.getvalue().encode())
    assert rows_of(take(path, path.parent), "uid") == expected_uids(rows)


@given(data=st.binary(max_size=300), suffix=st.sampled_from(["csv", "tsv", "jsonl"]))
@MANY
def test_any_bytes_are_rows_or_one_line(tmp_path_factory: pytest.TempPathFactory, data: bytes, suffix: str) -> None:
    path = tmp_path_factory.mktemp("source") / f"a.{suffix}"
    head = b'{"URL": "u", "TEXT": "t"}\n' if suffix == "jsonl" else b"URL,TEXT\n" if suffix == "csv" else b"URL\tTEXT\n"
    path.write_bytes(head + data)
    source = take(path, path.parent)
    lines = [line for line in data.split(b"\n") if line.strip(b"\r")]
    if suffix == "tsv":
        assert source.num_rows == len(lines)
    assert len(rows_of(source)) == source.num_rows <= len(lines) + 1
