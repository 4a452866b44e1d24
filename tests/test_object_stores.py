"""Sources and publications in an S3 bucket (moto's server on loopback): the rows and bytes that files give, by few requests."""

import gzip
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from curate import remote
from curate.cards.publish import publish
from curate.cards.verify import verify
from curate.cli import main
from curate.errors import RunStopped, UserError
from curate.remote import REQUEST_BYTES, Range, joined, read_each
from curate.run import Outcome
from tests import objects
from tests.cards import fill, make_run
from tests.objects import Objects
from tests.running import run_here, stage, tree, write_pipeline
from tests.site.make import make
from tests.site.server import serve
from tests.sources import ROWS, rows_of, take, write_pairs, write_tar

CHANGED = "has changed since this run read it; a source only grows; use another --out"
TAR = "/pool/00001.tar"
STEPS = ("caption_length", "image_shape", "keep: n % 4 != 1", "image_hash")


@pytest.fixture(scope="module")
def server() -> Iterator[Objects]:
    """The store for all tests of this file."""
    with objects.serve() as found:
        yield found


@pytest.fixture
def store(server: Objects) -> Iterator[Objects]:
    """The store, with an empty bucket `pool` and nothing asked yet."""
    yield server
    server.delay_seconds, server.before, server.forbidden = 0.0, lambda method, path: None, set()
    for path in server.system.find("pool"):
        server.system.rm_file(path)
    server.asked.clear()
    server.most = 0


def jpeg(number: int, side_px: int = 64) -> bytes:
    """Noise, so that it does not get small."""
    out = io.BytesIO()
    noise = np.random.default_rng(number).integers(0, 255, (side_px, side_px, 3), np.uint8)
    Image.fromarray(noise).save(out, "JPEG", quality=90)
    return out.getvalue()


@pytest.fixture(scope="module")
def tars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tars of 40 samples, of which number 7 of each is no picture, and one without urls."""
    folder = tmp_path_factory.mktemp("tars")
    for tar in range(3):
        members = []
        for i in range(40 if tar < 2 else 6):
            key = f"{tar}{i:04d}"
            meta = {"n": i} if tar == 2 else {"n": i, "url": f"http://a.example/{key}.jpg"}
            members += [(f"{key}.jpg", b"\xff\xd8\xffno picture" if i == 7 else jpeg(100 * tar + i)),
                        (f"{key}.txt", f"caption of {key}".encode()), (f"{key}.json", json.dumps(meta).encode())]
        write_tar(folder / f"{tar:05d}.tar", members)
    return folder


def upload(store: Objects, *files: Path) -> None:
    """Into the bucket, under their own names."""
    for file in files:
        store.system.pipe_file(f"pool/{file.name}", file.read_bytes())
    store.asked.clear()


def over_tars(where: str, here: Path, steps: Sequence[str] = STEPS) -> Path:
    """A pipeline over them."""
    here.mkdir(exist_ok=True)
    source = f"source: {{shards: '{where}/*.tar', shard_rows: 20}}\n"
    return write_pipeline(here, *steps, source=source, after="shards: {rows: 16}\n" if steps == STEPS else "shards: none\n")


@pytest.fixture(scope="module")
def from_files(tars: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    """The run over the local tars: its folder, and what came of it."""
    here = tmp_path_factory.mktemp("local") / "run"
    return here / "out", run_here(over_tars(str(tars), here), here / "out")


# Tables


@pytest.mark.parametrize("name", ["a.parquet", "a.csv", "a.tsv", "a.jsonl", "a.json", "a.csv.gz", "a.parquet.gz"])
def test_tables_of_any_format_are_read_from_a_bucket(store: Objects, tmp_path: Path, name: str) -> None:
    rows = [{k: v for k, v in row.items() if k in ("URL", "TEXT")} for row in ROWS]
    kind = name.split(".")[1]
    separator = {"csv": ",", "tsv": "\t"}.get(kind, "")
    if kind == "parquet":
        data = write_pairs(tmp_path / "plain", rows).read_bytes()
    elif kind.startswith("json"):
        data = ("\n".join(map(json.dumps, rows)) if kind == "jsonl" else json.dumps(rows)).encode()
    else:
        quoted = [[f'"{v}"'.replace('d "hi"', 'd ""hi""') if separator == "," else v for v in r.values()] for r in rows]
        data = "\n".join(separator.join(line) for line in [["URL", "TEXT"], *quoted]).encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    upload(store, tmp_path / name)
    assert rows_of(take(f"s3://pool/{name}", tmp_path), "url", "caption") == [(r["URL"], r["TEXT"]) for r in ROWS]
    assert sum(a.bytes for a in store.got(f"/pool/{name}")) == (tmp_path / name).stat().st_size, "each byte once"


@pytest.mark.parametrize("where", ["s3://pool/*.parquet", "s3://pool", "s3://pool/b.parquet"])
def test_a_source_in_a_bucket_only_grows(store: Objects, tmp_path: Path, where: str) -> None:
    upload(store, write_pairs(tmp_path / "b.parquet", ROWS[:2]))
    source = take(where, tmp_path)
    assert take(where, tmp_path) == source
    upload(store, write_pairs(tmp_path / "b.parquet", ROWS[1:3]))
    with pytest.raises(UserError) as error:
        take(where, tmp_path)
    assert str(error.value) == f"'s3://pool/b.parquet' {CHANGED}"


@pytest.mark.slow
def test_a_large_table_is_read_once_and_not_kept(store: Objects, tmp_path: Path) -> None:
    noise = np.random.default_rng(0)
    texts = {name: [noise.bytes(500).hex() for _ in range(3000)] for name in ("TEXT", "a", "b", "c", "d")}
    urls = [f"http://a.example/{i}.jpg" for i in range(3000)]
    pq.write_table(pa.table({"URL": urls, **texts}), tmp_path / "large.parquet", compression="none", use_dictionary=False,
                   row_group_size=900)
    size = (tmp_path / "large.parquet").stat().st_size
    upload(store, tmp_path / "large.parquet")
    assert size > 3 * remote.BLOCK_BYTES
    assert take("s3://pool/large.parquet", tmp_path).num_rows == 3000
    assert sum(a.bytes for a in store.got("/pool/large.parquet")) == size


@pytest.mark.slow
def test_from_a_table_in_a_bucket_over_a_faulty_web_to_shards(store: Objects, tmp_path: Path) -> None:
    faults = dict.fromkeys(("missing_404", "html_page", "truncated", "tiny"), .1)
    make(tmp_path / "site", 40, seed=3, faults=faults)
    with serve(tmp_path / "site") as site:
        upload(store, site.pool)
        steps = ("caption_length", "keep: num_chars >= 5", "download: {image_size: 64, allow_private: [127.0.0.0/8]}",
                 "keep: status = 'ok'", "image_shape", "keep: width_px >= 48")
        outcomes = []
        for name, where in (("here", str(site.pool)), ("there", f"s3://pool/{site.pool.name}")):
            (tmp_path / name).mkdir()
            source = f"source: {{pairs: '{where}', url: url, caption: caption, shard_rows: 15}}\n"
            outcomes.append(run_here(write_pipeline(tmp_path / name, *steps, source=source, after="shards: {rows: 9}\n"),
                                     tmp_path / name / "out"))
    here, there = outcomes
    assert there.funnel == here.funnel
    assert 20 < there.funnel[-1]["kept"] < 40
    shards = [{p: h for p, h in tree(tmp_path / name / "out", "shards").items() if p.endswith((".tar", ".parquet"))}
              for name in ("here", "there")]
    assert shards[0] == shards[1] != {}


# Tars


def test_tars_in_a_bucket_give_the_same_bytes(store: Objects, tars: Path, from_files: tuple[Path, Outcome],
                                              tmp_path: Path) -> None:
    out, local = from_files
    upload(store, *sorted(tars.iterdir()))
    found = run_here(over_tars("s3://pool", tmp_path / "run"), tmp_path / "run" / "out")
    assert found.funnel == local.funnel
    assert stage(found, "image_shape")["quarantined"] == 2
    assert tree(tmp_path / "run" / "out", "shards") == tree(out, "shards"), "the manifest too"
    left = sorted(p.name for p in (tmp_path / "run" / "out").rglob("*") if p.suffix in (".tar", ".jpg"))
    assert left == sorted(p.name for p in (out / "shards").glob("*.tar")), "nothing is copied but into shards"


@pytest.mark.slow
def test_a_step_asks_for_what_it_needs_in_few_requests(store: Objects, tars: Path, tmp_path: Path) -> None:
    upload(store, *sorted(tars.iterdir()))
    out, size = tmp_path / "run" / "out", (tars / "00001.tar").stat().st_size
    run_here(over_tars("s3://pool", tmp_path / "run", STEPS[:1]), out)
    assert [a.bytes for a in store.got(TAR)] == [size], "the scan reads a tar once"
    store.asked.clear()
    run_here(over_tars("s3://pool", tmp_path / "run", STEPS[:2]), out)
    first = store.got(TAR)
    assert len(first) == 3, "two source shards, of which one again for its broken picture"
    assert sum(a.bytes for a in first) < 1.5 * size
    store.asked.clear()
    run_here(over_tars("s3://pool", tmp_path / "run"), out)
    assert {a.path for a in store.asked if a.method == "GET"} == {"/pool", "/pool/00000.tar", TAR, "/pool/00002.tar"}
    assert sum(a.bytes for a in store.got(TAR)) < 2 * size, "image_hash and the shards, three quarters of the rows each"


def test_requests_run_side_by_side_and_answers_keep_their_order(store: Objects) -> None:
    data = np.random.default_rng(1).bytes(6_000_000)
    store.system.pipe_file("pool/x", data)
    ranges = [Range("s3://pool/x", i * 149_999 % 5_900_000, 1000) for i in range(40)]
    store.asked.clear()
    store.most, store.delay_seconds = 0, .02
    assert list(read_each(ranges)) == [data[r.offset:r.offset + 1000] for r in ranges]
    assert len(store.got("/pool/x")) == 40
    assert store.most > 4


RANGES = st.lists(st.tuples(st.integers(0, 5 * REQUEST_BYTES), st.integers(1, REQUEST_BYTES // 4)), min_size=1, max_size=40)


@given(RANGES)
@settings(deadline=None)
def test_ranges_are_joined_without_reading_twice_what_is_wanted(places: list[tuple[int, int]]) -> None:
    spans = joined([Range("s3://b/x", *place) for place in places])
    assert all(end < start for (_, end), (start, _) in zip(spans, spans[1:], strict=False))
    assert all(any(a <= at and at + length <= b for a, b in spans) for at, length in places)
    wanted = {byte for at, length in places for byte in range(at >> 10, (at + length >> 10) + 1)}
    assert sum(b - a for a, b in spans) <= 2 * 1024 * len(wanted)


def test_neighbours_are_one_request() -> None:
    def spans(*places: tuple[int, int]) -> list[tuple[int, int]]:
        return joined([Range("s3://b/x", *place) for place in places])

    assert spans((2000, 30_000), (512, 300), (34_000, 30_000), (34_000, 30_000)) == [(512, 64_000)]
    assert spans((0, 1000), (3000, 1000)) == [(0, 4000)], "half of it is wanted"
    assert spans((0, 1000), (3001, 1000)) == [(0, 1000), (3001, 4001)]
    assert spans((0, REQUEST_BYTES), (REQUEST_BYTES, 10)) == [(0, REQUEST_BYTES), (REQUEST_BYTES, REQUEST_BYTES + 10)]


@pytest.mark.slow
def test_worker_processes_find_the_store_by_themselves(store: Objects, tars: Path, from_files: tuple[Path, Outcome],
                                                       tmp_path: Path) -> None:
    upload(store, *sorted(tars.iterdir()))
    run_here(over_tars("s3://pool", tmp_path / "run"), tmp_path / "run" / "out", workers=2)
    assert tree(tmp_path / "run" / "out", "shards") == tree(from_files[0], "shards")


# What can go wrong


def test_a_tar_that_changes_between_scan_and_read_stops_the_step(store: Objects, tars: Path, tmp_path: Path) -> None:
    upload(store, *sorted(tars.iterdir()))
    out = tmp_path / "run" / "out"
    run_here(over_tars("s3://pool", tmp_path / "run", STEPS[:1]), out)
    pipeline = over_tars("s3://pool", tmp_path / "run")
    other = bytearray((tars / "00001.tar").read_bytes())
    other[2000:2010] = bytes(10)

    def swap(method: str, path: str) -> None:
        if (method, path) == ("GET", TAR):
            store.before = lambda method, path: None
            store.system.pipe_file(TAR, bytes(other))

    store.before = swap
    with pytest.raises(UserError) as error:
        run_here(pipeline, out)
    assert str(error.value) == f"'s3:/{TAR}' {CHANGED}"
    assert len(list((out / "columns").glob("image_shape-*/*.parquet"))) == 2, "the shards of the first tar and no other"
    with pytest.raises(UserError) as error:
        run_here(pipeline, out)
    assert str(error.value) == f"'s3:/{TAR}' {CHANGED}"


@pytest.mark.slow
def test_a_store_that_stops_answering_costs_no_row(store: Objects, tars: Path, from_files: tuple[Path, Outcome],
                                                   tmp_path: Path) -> None:
    upload(store, *sorted(tars.iterdir()))
    out = tmp_path / "run" / "out"
    run_here(over_tars("s3://pool", tmp_path / "run", STEPS[:1]), out)
    pipeline = over_tars("s3://pool", tmp_path / "run")

    def shut(method: str, path: str) -> None:
        if (method, path) == ("GET", TAR):
            store.forbidden = {TAR}

    store.before = shut
    with pytest.raises((RunStopped, UserError)) as error:
        run_here(pipeline, out)
    assert "records" in str(error.value) or "Forbidden" in str(error.value)
    store.before, store.forbidden = lambda method, path: None, set()
    assert run_here(pipeline, out).funnel == from_files[1].funnel
    assert tree(out, "shards") == tree(from_files[0], "shards")


def test_a_range_that_is_not_there(store: Objects) -> None:
    store.system.pipe_file("pool/x", b"0123456789")
    with pytest.raises(RunStopped, match=r"^'s3://pool/x' ends before byte 12; the same command looks at it again$"):
        list(read_each([Range("s3://pool/x", 8, 4)]))
    with pytest.raises(RunStopped, match=r"^cannot read 's3://pool/gone': .*; the same command goes on from there$"):
        list(read_each([Range("s3://pool/gone", 8, 4)]))


KEY = "The AWS Access Key Id you provided does not exist in our records."
MISTAKES = [
    ("pairs: s3://nobucket/*.parquet", {}, "cannot open 's3://nobucket/*.parquet': there is no bucket 'nobucket'"),
    ("pairs: s3://nobucket/a.parquet", {}, "cannot open 's3://nobucket/a.parquet': there is no bucket 'nobucket'"),
    ("shards: s3://nobucket/", {}, "cannot read 's3://nobucket/': The specified bucket does not exist"),
    ("pairs: s3://pool/b.parquet", {}, "no file matches 's3://pool/b.parquet'"),
    ("shards: s3://pool/x/*.tar", {}, "no file matches 's3://pool/x/*.tar'"),
    ("pairs: s3://pool/*.parquet", {"AWS_ACCESS_KEY_ID": "stranger"}, f"cannot read 's3://pool/*.parquet': {KEY}"),
    ("pairs: s3://pool/a.parquet", {"AWS_ACCESS_KEY_ID": "stranger"}, "cannot read 's3://pool/a.parquet': Forbidden"),
    ("pairs: s3://pool/*.parquet", {"AWS_ACCESS_KEY_ID": ""}, "cannot read 's3://pool/*.parquet': Unable to locate credentials"),
]


@pytest.mark.parametrize(("source", "environment", "message"), MISTAKES)
def test_a_mistake_is_one_line(store: Objects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str,
                               environment: dict[str, str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    upload(store, write_pairs(tmp_path / "a.parquet", ROWS))
    monkeypatch.chdir(tmp_path)
    columns = ", url: URL, caption: TEXT" if source.startswith("pairs") else ""
    write_pipeline(tmp_path, "caption_length", source=f"source: {{{source}{columns}}}\n")
    for name, value in environment.items():
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name)
    if environment:
        objects.forget()
    with pytest.raises(SystemExit) as end:
        main(["run", "pipeline.yaml", "--out", "out", "--on", "local", "--workers", "0"])
    monkeypatch.undo()
    if environment:
        objects.forget()
    assert (end.value.code, capsys.readouterr().err) == (2, f"pipeline.yaml:1: {message}\n")
    assert not list((tmp_path / "out").glob("source/*.parquet"))


@pytest.mark.parametrize("words", [["run", "pipeline.yaml", "--workers", "0", "--on", "local", "--out", "s3://pool/run"],
                                   ["shard", "s3://pool/*.tar", "--out", "s3://pool/run"], ["card", "s3://pool/run"]])
def test_a_runs_folder_is_no_object_store(store: Objects, tars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                          capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    upload(store, tars / "00000.tar")
    monkeypatch.chdir(tmp_path)
    write_pipeline(tmp_path, "caption_length", source="source: {shards: 's3://pool/*.tar'}\n")
    with pytest.raises(SystemExit) as end:
        main(words)
    what = "--out" if words[0] == "shard" else "a run's folder"
    assert (end.value.code, capsys.readouterr().err) == (
        2, f"{what} must be a folder of this machine, not s3://pool/run; `curate publish --to` takes urls\n")
    assert [p.name for p in tmp_path.iterdir()] == ["pipeline.yaml"]


def test_a_loop_over_tars_in_a_bucket_is_refused_before_it_measures(store: Objects, tars: Path, tmp_path: Path,
                                                                    capsys: pytest.CaptureFixture[str]) -> None:
    upload(store, tars / "00000.tar")
    model = "{as: loop, model: curate-conv-64, pretrained: loop, first: raw}"
    steps = ("held_out: {share: 0.2}", "keep: not held_out", f"clip_embed: {model}", "clip_score: {of: loop}",
             "keep: {top: 0.7, by: loop_clip_cos}")
    after = "train: {samples_seen: 100, batch: 10}\nloop: {trainings: 1, promote_if: recall_at_10 improves}\n"
    file = write_pipeline(tmp_path, *steps, source="source: {shards: 's3://pool/*.tar'}\n", after=after)
    with pytest.raises(SystemExit) as end:
        main(["run", str(file), "--out", str(tmp_path / "out"), "--on", "local", "--workers", "0"])
    assert (end.value.code, capsys.readouterr().err) == (
        2, (f"{file}:1: a loop trains on tars of this machine, and the source is 's3://pool/*.tar'; copy them, or run without "
            "'loop:' and train on the shards\n"))
    assert not (tmp_path / "out" / "source").exists()


@pytest.mark.slow
def test_curate_shard_reads_a_bucket(store: Objects, tars: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    upload(store, *sorted(tars.iterdir()))
    for source, out in ((str(tars), "here"), ("s3://pool/*.tar", "there")):
        with pytest.raises(SystemExit) as end:
            main(["shard", source, "--out", str(tmp_path / out), "--where", "n > 10", "--rows", "20", "--workers", "0"])
        assert end.value.code == 0
    assert tree(tmp_path / "here", "") == tree(tmp_path / "there", "") != {}


# Publications


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a complete card."""
    root = make_run(tmp_path_factory.mktemp("publish"))
    fill(root)
    return root


def test_a_publication_in_a_bucket_is_verified_there_and_is_a_source(store: Objects, run: Path, tmp_path: Path) -> None:
    to = "s3://pool/sets/pairs"
    list(publish(run, to, with_images=True, draft=False, attempt="test"))
    list(publish(run, str(tmp_path / "pub"), with_images=True, draft=False, attempt="test"))
    there = {p.removeprefix("pool/sets/pairs/"): store.system.cat_file(p) for p in store.system.find("pool")}
    assert there == {p: (tmp_path / "pub" / p).read_bytes() for p in tree(tmp_path / "pub", "")}
    _, said = publish(run, to, with_images=True, draft=False, attempt="test")
    assert said == f"{len(there) - 1} files were there already"
    assert [verify(place)[1] for place in (to, str(tmp_path / "pub"), str(run))] == [[], [], []]
    again = take(f"{to}/shards/*.tar", tmp_path, kind="shards")
    assert again.num_rows == 19
    tables = [pq.read_table(p) for p in sorted((run / "shards").glob("*.parquet"))]
    assert rows_of(again, "uid") == pa.concat_tables(tables)["uid"].to_pylist()


@pytest.mark.slow
def test_what_is_wrong_with_a_publication(store: Objects, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for to, say in ((str(tmp_path / "pub"), None), ("s3://pool/pub", store.system)):
        list(publish(run, to, with_images=False, draft=False, attempt="test"))
        where = to.removeprefix("s3://")

        def read(name: str, where: str = where, say: object = say) -> bytes:
            return store.system.cat_file(f"{where}/{name}") if say else Path(where, name).read_bytes()

        def write(name: str, data: bytes | None, where: str = where, say: object = say) -> None:
            if say:
                store.system.rm_file(f"{where}/{name}") if data is None else store.system.pipe_file(f"{where}/{name}", data)
            else:
                Path(where, name).unlink() if data is None else Path(where, name).write_bytes(data)

        table = bytearray(read("metadata/00000.parquet"))
        table[10] ^= 1
        write("metadata/00000.parquet", bytes(table))
        write("README.md", b"short")
        write("uids.npy", None)
        write("strange.txt", b"?")
        with pytest.raises(SystemExit) as end:
            main(["verify", to])
        assert end.value.code == 1
        size = next(f["bytes"] for f in json.loads(read("manifest.json"))["files"] if f["path"] == "README.md")
        assert sorted(capsys.readouterr().out.splitlines()) == [
            f"{to}/README.md: 5 bytes, the manifest says {size:,}",
            f"{to}/metadata/00000.parquet: sha256 differs from the manifest",
            f"{to}/strange.txt: not in the manifest", f"{to}/uids.npy: missing"]
        write("manifest.json", read("manifest.json").replace(b"some-pairs", b"same-pairs"))
        assert verify(to)[1] == [f"{to}/manifest.json: not as it was written"]
        write("manifest.json", None)
        assert verify(to)[1] == ([f"{to}: no manifest.json: nothing was published there, or not to its end"] if say else
                                 [f"{to}: no manifest.json: the set was never finished"])


def test_a_bucket_is_never_made(store: Objects, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["publish", str(run), "--to", "s3://mistyped/pairs"])
    assert (end.value.code, capsys.readouterr().err) == (
        2, "cannot open 's3://mistyped/pairs': there is no bucket 'mistyped'\n")
    assert not store.system.exists("mistyped")
    assert not [a for a in store.asked if a.method == "PUT"]
