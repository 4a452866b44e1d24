"""Every format gives the same rows, every line is a row, and a broken file is one line on the terminal."""

import csv
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.errors import UserError
from curate.sources import readers
from curate.sources.cut import peek
from curate.sources.ingest import ingest
from curate.sources.locations import parse_source
from tests.sources import ROWS, TABLES, expected_uids, pid, rows_of, settings_of, take, uid, urls, write_pairs


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
    ("url,caption\nu1," + "x" * 200_000 + "\nu2,c\n",
     [(None, None, "line 2: field larger than field limit (131072)"), ("u2", "c", None)]),
    ('url,caption\nu1,"a\nb""\nu2,"c"\n',
     [(None, None, "line 2: a quote is never closed"), (None, None, "line 3: 1 fields, not 2"), ("u2", "c", None)]),
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
    lines = [b'"url"\tcaption', b'u1\ta "quoted word\r', b'u2\t"as ""a"" whole"', b'u3\t"', b"u4\ta\tb", b"", b'u5\t"a" and "b"']
    (tmp_path / "a.tsv").write_bytes(b"\n".join(lines))
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
    objects = [{"URL": "u1", "TEXT": "caf\ud800", "tag": "x"}, {"URL": "u2", "TEXT": "fine", "tag": "\udc00"}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(o) + "\n" for o in objects))
    noted = "tag: invalid characters replaced"
    for name, note in (("a.csv", noted), ("a.jsonl", noted), ("a.parquet", None)):
        rows = rows_of(take(tmp_path / name, tmp_path / f"{name}.out"), "caption", "source_error")
        assert rows == [("caf\ufffd", "TEXT: invalid characters replaced"), ("fine", note)]


def test_jsonl_as_it_comes(tmp_path: Path) -> None:
    lines = ['{"url": "u1", "caption": "a", "n": 1, "l": [1, {"x": 2}]}', "", "{broken", '["list"]',
             '{"caption": "no url", "n": 2.5}', '{"url": "u2", "caption": 7, "n": "many", "new": true}', "[" * 100_000,
             '{"url": "u3", "caption": "b\\u0000", "n": 99999999999999999999}']
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    source = ingest(parse_source({"pairs": str(tmp_path / "a.jsonl")}), tmp_path / "source", "a")
    assert rows_of(source, "url", "caption", "n", "l", "new", "source_error") == [
        ("u1", "a", "1", '[1, {"x": 2}]', None, None), (None, None, None, None, None, "line 3: not JSON"),
        (None, None, None, None, None, "line 4: not an object"), (None, "no url", "2.5", None, None, "no url"),
        ("u2", "7", "many", None, True, None), (None, None, None, None, None, "line 7: not JSON"),
        ("u3", "b\0", "99999999999999999999", None, None, None)]


def test_a_json_list_is_read_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "BLOCK", 7)
    elements = [*(json.dumps(r, ensure_ascii=False) for r in ROWS), "12345678901234567890"]
    (tmp_path / "a.json").write_text(" [ " + " ,\n".join(elements) + " ] ")
    source = take(tmp_path / "a.json", tmp_path)
    assert rows_of(source, "caption", "source_error") == [*((r["TEXT"], None) for r in ROWS), (None, "not an object")]


def test_types_widen_from_shard_to_shard_and_nothing_is_lost(tmp_path: Path) -> None:
    values = {"n": ["1", "2", "-3.5", "4"], "s": ["10", "11", "007", ""], "late": ["", "", "5", "6"], "never": ["", "", "", ""]}
    lines = [f"http://{i},c,{','.join(v[i] for v in values.values())}" for i in range(4)]
    (tmp_path / "a.csv").write_text("\n".join(["URL,TEXT," + ",".join(values), *lines]))
    source = take(tmp_path / "a.csv", tmp_path, shard_rows=2)
    assert {n: str(source.columns[n]) for n in values} == {"n": "double", "s": "string", "late": "int64", "never": "string"}
    assert rows_of(source, *values) == [
        (1.0, "10", None, None), (2.0, "11", None, None), (-3.5, "007", 5, None), (4.0, None, 6, None)]


def test_files_with_other_columns_and_types(tmp_path: Path) -> None:
    first = {"URL": pa.array(["u1"], pa.large_string()), "TEXT": pa.array(["a"]).dictionary_encode(),
             "n": pa.array([1], pa.int32()), "x": pa.array([[1, 2]]), "Big": pa.array([2**63], pa.uint64())}
    second = {"TEXT": pa.array(["b"], pa.string_view()), "n": pa.array([2**40]), "URL": ["u2"],
              "x": ["text"], "big": [-1], "more": [b"\0\1"]}
    for name, table in (("1", first), ("2", second)):
        pq.write_table(pa.table(table), tmp_path / f"{name}.parquet")
    source = take(tmp_path / "*.parquet", tmp_path)
    assert rows_of(source, "url", "caption", "n", "x", "Big", "more") == [
        ("u1", "a", 1, "[1, 2]", str(2**63), None), ("u2", "b", 2**40, "text", "-1", b"\0\1")]


@pytest.mark.parametrize(("numbers", "type_"), [
    (["0", "-1", "999999999999999999"], "int64"), (["0", "1.50"], "double"), (["1e5", "-2"], "double"), (["01"], "string"),
    (["+1"], "string"), (["9999999999999999999"], "string"), (["12345678901234567890.5"], "string"), (["1", "x"], "string"),
    (["nan"], "string"), (["-0"], "double"), (["true"], "string"), ([" 1"], "string"), (["١"], "string")])
def test_csv_numbers_are_numbers_only_where_that_gives_them_back(tmp_path: Path, numbers: list[str], type_: str) -> None:
    (tmp_path / "a.csv").write_text("URL,TEXT,n\n" + "".join(f"u,c,{n}\n" for n in numbers))
    assert str(peek(settings_of(tmp_path / "a.csv"))["n"]) == type_
    assert [float(v) if type_ == "double" else str(v) for v in rows_of(take(tmp_path / "a.csv", tmp_path), "n")] == [
        float(n) if type_ == "double" else n for n in numbers]


NO_FOOTER = "Parquet magic bytes not found in footer. Either the file is corrupted or this is not a parquet file."


@pytest.mark.parametrize(("name", "data", "message"), [
    ("a.csv", b"", "cannot read 'a.csv': it is empty"),
    ("a.csv", b"url,TEXT\n", "'a.csv' has no column 'URL'; there is TEXT, url"),
    ("a.csv", b"URL,TEXT,n,n\n", "cannot read 'a.csv': two columns are called 'n'"),
    ("a.jsonl", b'{"URI": 1}\n', "'a.jsonl' has no column 'TEXT'; there is URI"),
    ("a.json", b'{"URL": ["u"]}', "cannot read 'a.json': not a list of objects"),
    ("a.json", b'[{"URL": "u", "TEXT": "t"}, {"URL": ', "cannot read 'a.json': broken or cut short after element 1"),
    ("a.json", b'[{"URL": "u", "TEXT": "t"} {"URL": "u"}]', "cannot read 'a.json': broken after element 1"),
    ("a.csv.gz", gzip.compress(b"URL,TEXT\nu,t\n" * 99, mtime=0)[:-9],
     "cannot read 'a.csv.gz': Compressed file ended before the end-of-stream marker was reached"),
    ("a.csv.gz", b"URL,TEXT\n", "cannot read 'a.csv.gz': Not a gzipped file (b'UR')"),
    ("a.parquet", b"PAR1 but cut short",
     f"cannot read 'a.parquet': {NO_FOOTER}"),
    ("a.xlsx", b"",
     "'a.xlsx' is no parquet, csv, tsv, jsonl or json file; there is .csv, .json, .jsonl, .ndjson, .parquet, .tsv"),
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
    rows = pa.Table.from_pylist(urls(*range(5000)))
    pq.write_table(rows, "a.parquet", row_group_size=500, compression="none", use_dictionary=False)
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


@given(rows=TABLES)
@settings(max_examples=15, deadline=None)
def test_what_csv_can_say_it_says(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str | None, str | None]]) -> None:
    path = tmp_path_factory.mktemp("source") / "a.csv"
    text = io.StringIO(newline="")
    csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\n").writerows([("URL", "TEXT"), *rows])
    path.write_bytes(text.getvalue().encode())
    assert rows_of(take(path, path.parent), "uid") == expected_uids(rows)


@given(data=st.binary(max_size=300), suffix=st.sampled_from(["csv", "tsv", "jsonl"]))
@settings(max_examples=15, deadline=None)
def test_any_bytes_are_rows_or_one_line(tmp_path_factory: pytest.TempPathFactory, data: bytes, suffix: str) -> None:
    path = tmp_path_factory.mktemp("source") / f"a.{suffix}"
    head = b'{"URL": "u", "TEXT": "t"}\n' if suffix == "jsonl" else b"URL,TEXT\n" if suffix == "csv" else b"URL\tTEXT\n"
    path.write_bytes(head + data)
    source = take(path, path.parent)
    lines = [line for line in data.split(b"\n") if line.strip(b"\r")]
    if suffix == "tsv":
        assert source.num_rows == len(lines)
    assert len(rows_of(source)) == source.num_rows <= len(lines) + 1
