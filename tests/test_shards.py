"""Finished shards: the layout others read, always the same bytes, nothing rewritten that stays, nothing wrong goes unseen."""

import datetime
import errno
import hashlib
import json
import os
import shutil
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate import files
from curate.errors import RunStopped
from curate.run import Outcome
from curate.shards import key_of, uid_bytes, verify
from curate.store import alive_digest
from tests.running import run_here, tree, write_pipeline
from tests.sources import PNG, pid, uid

SOURCE = "source: {images: photos, uid: uid, shard_rows: 5}\n"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def photos(rows: Sequence[dict[str, Any]], folder: Path = Path("photos")) -> None:
    """A folder of pictures with a .json beside each."""
    folder.mkdir(parents=True)
    for i, row in enumerate(rows):
        (folder / f"{i:04d}.png").write_bytes(PNG + str(i).encode())
        (folder / f"{i:04d}.json").write_text(json.dumps(row))


def numbered(count: int) -> list[dict[str, Any]]:
    """Rows with an uid, a caption and a number."""
    return [{"uid": f"row{i:02d}", "caption": f"caption {i}", "n": i} for i in range(count)]


def pack(keep: str = "n >= 0", after: str = "shards: {rows: 4, block: 2}\n", out: str = "out", source: str = SOURCE,
         workers: int = 0) -> Outcome:
    """Take the photos that pass to shards, as `curate run` does."""
    files.sweep(Path(out))
    return run_here(write_pipeline(Path(), f"keep: {keep}", source=source, after=after), Path(out), workers=workers)


def contents(tar: Path) -> list[tuple[str, bytes]]:
    """name → bytes of a tar, in order, as Python reads it."""
    with tarfile.open(tar, "r:") as archive:
        return [(i.name, archive.extractfile(i).read()) for i in archive]  # type: ignore[union-attr]


def uids_of(shards: Path) -> list[list[str]]:
    """The uids of every tar of a set, from its .json members."""
    return [[json.loads(data)["uid"] for name, data in contents(tar) if name.endswith(".json")]
            for tar in sorted(shards.glob("*.tar"))]


def stamps(folder: Path) -> dict[str, tuple[int, int]]:
    """(inode, time) of every file: what tells that it was written anew."""
    return {p.name: (p.stat().st_ino, p.stat().st_mtime_ns) for p in folder.iterdir()}


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_layout_is_that_of_img2dataset_and_webdataset(here: Path) -> None:
    photos(numbered(6))
    outcome = pack()
    shards = here / "out" / "shards"
    assert sorted(p.name for p in shards.iterdir()) == ["00000.parquet", "00000.tar", "00000_stats.json", "00001.parquet",
                                                        "00001.tar", "00001_stats.json", "manifest.json"]
    rows = pq.read_table(shards / "00001.parquet").to_pylist()
    image_ids = [pid(PNG + b"4"), pid(PNG + b"5")]
    assert rows == [{"key": f"row0{i}", "uid": f"row0{i}", "image_id": image_ids[i - 4], "url": None, "caption": f"caption {i}",
                     "n": i} for i in (4, 5)]
    members = contents(shards / "00001.tar")
    assert [name for name, _ in members] == [f"row0{i}.{e}" for i in (4, 5) for e in ("png", "txt", "json")]
    assert [data for _, data in members[:2]] == [PNG + b"4", b"caption 4"]
    assert [json.loads(data) for name, data in members if name.endswith("json")] == [
        {n: v for n, v in row.items() if n != "image_id"} for row in rows]
    stats = files.read_json(shards / "00001_stats.json")
    assert {n: stats[n] for n in ("count", "successes", "failed_to_download", "failed_to_resize", "status_dict")} == {
        "count": 2, "successes": 2, "failed_to_download": 0, "failed_to_resize": 0, "status_dict": {"success": 2}}
    assert outcome.manifest == files.read_json(shards / "manifest.json")


def test_manifest_proves_every_file(here: Path) -> None:
    photos(numbered(6))
    pack()
    shards = here / "out" / "shards"
    manifest = files.read_json(shards / "manifest.json")
    digest = manifest.pop("digest")
    assert digest == files.digest(manifest)
    assert manifest == {
        "layout": 1, "rows": 6, "columns": ["key", "uid", "image_id", "url", "caption", "n"],
        "shards": [{
            "file": f"0000{n}.tar", "rows": rows, "bytes": (shards / f"0000{n}.tar").stat().st_size,
            "sha256": sha256(shards / f"0000{n}.tar"), "parquet_sha256": sha256(shards / f"0000{n}.parquet"),
            "uid_digest": alive_digest(pa.array([f"row0{i}" for i in range(4 * n, 4 * n + rows)])),
            "stats_sha256": sha256(shards / f"0000{n}_stats.json")} for n, rows in ((0, 4), (1, 2))]}
    assert list(verify(shards)) == []


@pytest.mark.parametrize(("keep", "sizes"), [
    ("n >= 0", [4, 4, 2, 4, 4, 2, 3]), ("n >= 7", [3, 4, 4, 2, 3]), ("n < 7", [4, 3]), ("n not between 2 and 18", [2, 1, 3]),
    ("n not between 10 and 19", [4, 4, 2, 3]), ("n < 0", [])])
def test_sizes_are_uniform_whatever_was_filtered(here: Path, keep: str, sizes: list[int]) -> None:
    """All tars of a block of two source shards hold four rows, but its last; rows stay in source order."""
    photos(numbered(23))
    outcome = pack(keep)
    found = uids_of(here / "out" / "shards")
    assert [len(t) for t in found] == sizes == [s["rows"] for s in outcome.manifest["shards"]]  # type: ignore[index]
    assert [u for t in found for u in t] == sorted(u for t in found for u in t)
    assert list(verify(here / "out" / "shards")) == []


@given(kept=st.sets(st.integers(0, 22)), rows=st.integers(1, 9), block=st.integers(1, 6), shard_rows=st.sampled_from([3, 5, 30]))
@settings(max_examples=8, deadline=None)
def test_every_kept_row_is_in_one_tar(tmp_path_factory: pytest.TempPathFactory, kept: set[int], rows: int, block: int,
                                      shard_rows: int) -> None:
    folder = tmp_path_factory.mktemp("pack")
    photos(numbered(23), folder / "photos")
    numbers = ", ".join(map(str, sorted(kept))) or "-1"
    pack(f"n in ({numbers})", f"shards: {{rows: {rows}, block: {block}}}\n", str(folder / "out"),
         f"source: {{images: {folder}/photos, uid: uid, shard_rows: {shard_rows}}}\n")
    found = uids_of(folder / "out" / "shards")
    assert [u for tar in found for u in tar] == [f"row{i:02d}" for i in sorted(kept)]
    size = shard_rows * block
    expected = [[i for i in sorted(kept) if first <= i < first + size] for first in range(0, 23, size)]
    assert [len(tar) for tar in found] == [len(part[i:i + rows]) for part in expected for i in range(0, len(part), rows)]


def test_second_packing_rewrites_nothing(here: Path) -> None:
    photos(numbered(23))
    pack()
    before = stamps(here / "out" / "shards")
    outcome = pack()
    assert stamps(here / "out" / "shards") == before
    assert not outcome.measured["shards"]


def test_a_changed_row_rewrites_its_tars_only(here: Path) -> None:
    photos(numbered(23))
    pack("n != 3")
    before = stamps(here / "out" / "shards")
    outcome = pack("n != 4")
    after = stamps(here / "out" / "shards")
    changed = {name for name in after if after[name] != before[name]}
    assert changed == {"00000.tar", "00000.parquet", "00000_stats.json", "manifest.json"}
    assert outcome.measured["shards"] == 4


def test_fewer_rows_leave_no_stray_and_nothing_else_is_touched(here: Path) -> None:
    photos(numbered(23))
    pack()
    shards = here / "out" / "shards"
    (shards / "README.md").write_text("mine")
    (shards / "2024.csv").write_text("mine")
    pack("n < 7")
    assert sorted(p.name for p in shards.iterdir()) == ["00000.parquet", "00000.tar", "00000_stats.json", "00001.parquet",
                                                        "00001.tar", "00001_stats.json", "2024.csv", "README.md", "manifest.json"]
    assert list(verify(shards)) == []
    assert not list((here / "out").rglob(f"*{files.TEMPORARY}"))
    pack("n < 0")
    assert sorted(p.name for p in shards.iterdir()) == ["2024.csv", "README.md", "manifest.json"]
    assert list(verify(shards)) == []


@pytest.mark.slow
def test_same_bytes_whatever_the_workers(here: Path) -> None:
    photos(numbered(23))
    pack()
    for workers in (1, 4):
        pack(out=f"out{workers}", workers=workers)
        assert tree(here / f"out{workers}" / "shards", "") == tree(here / "out" / "shards", "")


def test_more_source_shards_leave_earlier_blocks_alone(here: Path) -> None:
    photos(numbered(10), here / "photos" / "a")
    pack()
    before = stamps(here / "out" / "shards")
    photos([{"uid": f"more{i}", "caption": "more", "n": i} for i in range(3)], here / "photos" / "b")
    pack()
    after = stamps(here / "out" / "shards")
    assert {name for name in before if after[name] != before[name]} == {"manifest.json"}
    assert [len(t) for t in uids_of(here / "out" / "shards")] == [4, 4, 2, 3]


def killed_at(step: int, work: Callable[[], object]) -> bool:
    """Run `work` in a fork that dies as kill -9 makes it at its `step`-th sync, rename or removal; whether it got so far."""
    child = os.fork()
    if child == 0:
        left = [step]

        def deadly(call: Callable[..., Any]) -> Callable[..., Any]:
            def dies(*arguments: Any, **options: Any) -> Any:
                left[0] -= 1
                if left[0] < 0:
                    os._exit(9)
                return call(*arguments, **options)
            return dies

        try:
            for name in ("fsync", "replace", "unlink"):
                setattr(os, name, deadly(getattr(os, name)))
            work()
            os._exit(0)
        finally:
            os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 9)
    return code == 9


@pytest.mark.slow
def test_killed_anywhere_while_packing_and_run_again(here: Path) -> None:
    """Packing other rows over a finished set dies at every place it can; a manifest stands only for a set that is whole."""
    photos(numbered(9))
    few, many = "n not in (0, 1, 2)", "n != 4"
    for keep, name in ((few, "few"), (many, "many")):
        pack(keep)
        shutil.copytree("out", name)
    trees = {few: tree(here / "few" / "shards", ""), many: tree(here / "many" / "shards", "")}
    shards = here / "out" / "shards"
    step = 0
    while killed_at(step, lambda: pack(few)):
        assert list(verify(shards)) in ([], [f"{shards}: no manifest.json: the set was never finished"])
        again = (few, many)[step % 2]
        pack(again)
        assert tree(shards, "") == trees[again], "nothing of what was killed is taken for what it was to replace"
        if again == few:
            shutil.rmtree("out")
            shutil.copytree("many", "out")
        step += 1
    assert step > 20
    assert tree(shards, "") == trees[few]


def test_a_full_disk_stops_the_run_in_one_line(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos(numbered(6))
    pack("n < 5")
    expected = tree(here / "out" / "shards", "")

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("curate.shards.TarWriter.close", full)
        with pytest.raises(RunStopped) as error:
            pack("n > 0")
    assert str(error.value) == "cannot write out/shards/00000.tar: No space left on device; what is written stays"
    assert not list((here / "out").rglob("*.tmp"))
    pack("n < 5")
    assert tree(here / "out" / "shards", "") == expected


def test_a_picture_that_is_gone_stops_the_run_in_one_line(here: Path) -> None:
    Path("a.png").write_bytes(PNG)
    pq.write_table(pa.table({"path": ["a.png"], "caption": ["one"]}), "photos.parquet")
    source = "source: {images: photos.parquet}\n"
    pack("caption is not null", after="shards: none\n", source=source)
    os.truncate("a.png", 3)
    with pytest.raises(RunStopped) as error:
        pack("caption is not null", source=source)
    assert str(error.value) == (f"cannot write out/shards/00000.tar: {here / 'a.png'}: {len(PNG)} bytes wanted at 0, 3 there; "
                                "run the same command again")


@pytest.fixture
def whole(here: Path) -> Path:
    """A set of two shards."""
    photos(numbered(6))
    pack()
    assert list(verify(here / "out" / "shards")) == []
    return here / "out" / "shards"


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["00000.tar", "00001.parquet", "00000_stats.json"])
def test_verify_finds_a_flipped_bit(whole: Path, name: str) -> None:
    for at in (10, -10):
        flip(whole / name, at)
        assert list(verify(whole)) == [f"{whole / name}: sha256 differs from the manifest"]
        flip(whole / name, at)


def test_verify_finds_any_flipped_bit_of_the_manifest(whole: Path) -> None:
    path = whole / "manifest.json"
    for at in range(0, path.stat().st_size, 11):
        flip(path, at)
        assert list(verify(whole)) == [f"{path}: not as it was written"]
        flip(path, at)


def test_verify_finds_what_is_missing_or_too_much(whole: Path) -> None:
    for name in ("00001.tar", "00000.parquet", "00001_stats.json"):
        (whole / name).rename("away")
        assert list(verify(whole)) == [f"{whole / name}: missing"]
        Path("away").rename(whole / name)
    shutil.copy(whole / "00000.tar", whole / "00002.tar")
    assert list(verify(whole)) == [f"{whole / '00002.tar'}: not in the manifest"]
    (whole / "manifest.json").unlink()
    assert list(verify(whole)) == [f"{whole}: no manifest.json: the set was never finished"]


@pytest.mark.parametrize("cut", [100, 600, 1024])
def test_verify_finds_a_truncated_tar(whole: Path, cut: int) -> None:
    path = whole / "00000.tar"
    size = path.stat().st_size
    os.truncate(path, cut)
    assert list(verify(whole)) == [f"{path}: {cut:,} bytes, the manifest says {size:,}"]


def reseal(shards: Path) -> None:
    """A manifest that says what the files are, as somebody would write it who changes shards by hand."""
    manifest = files.read_json(shards / "manifest.json")
    del manifest["digest"]
    for entry in manifest["shards"]:
        tar = shards / entry["file"]
        entry |= {"bytes": tar.stat().st_size, "sha256": sha256(tar)}
    manifest["digest"] = files.digest(manifest)
    files.write_json(shards / "manifest.json", manifest, "test")


def test_verify_reads_rows_not_only_hashes(whole: Path) -> None:
    shutil.copy(whole / "00000.tar", whole / "00001.tar")
    reseal(whole)
    assert list(verify(whole)) == [f"{whole / '00001.tar'}: its rows are not those of the manifest"]
    (whole / "00001.tar").write_bytes((whole / "00000.tar").read_bytes()[:1536])
    reseal(whole)
    assert list(verify(whole)) == [f"{whole / '00001.tar'}: cut short inside 'row00.txt'"]


ODD = ["a.b", "a/b", "../up", "", " ", "日本語", "x" * 81, "x" * 5000, "nul\0", "new\nline", "🐕", "-", "a b"]


def test_odd_uids_get_hashed_keys_and_stay_in_the_table(here: Path) -> None:
    photos([{"uid": u, "caption": f"caption {i}", "n": i} for i, u in enumerate(ODD)])
    pack(after="shards: {rows: 99}\n")
    own = [uid_ if uid_.strip() else uid_of_photo(i) for i, uid_ in enumerate(ODD)]
    rows = pq.read_table(here / "out" / "shards" / "00000.parquet").to_pylist()
    assert [r["uid"] for r in rows] == own
    assert [r["key"] for r in rows] == ["-" if u == "-" else u if len(u) == 32 else hashed(u) for u in own]
    names = [name for name, _ in contents(here / "out" / "shards" / "00000.tar")]
    assert names == [f"{r['key']}.{e}" for r in rows for e in ("png", "txt", "json")]
    assert list(verify(here / "out" / "shards")) == []


def uid_of_photo(i: int) -> str:
    return pid(f"{pid(PNG + str(i).encode())}\0caption {i}")


def hashed(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def test_keys_are_uids_where_they_can_be() -> None:
    plain = [uid("http://a.org/1.jpg", "a"), "A-b_9", "x" * 80]
    assert [key_of(u) for u in plain] == plain
    assert all(len(key_of(u)) == 32 for u in ODD if u not in ("-", ""))


def test_captions_come_back_as_they_were(here: Path) -> None:
    captions = ["nul\0byte", "🐕\u200d🦺 dog", "two\nlines\r\n", '"quoted", \\ and \x7f', "e\u0301", "\u202eleft", "x" * 99_999]
    photos([{"uid": f"u{i}", "caption": c, "n": i} for i, c in enumerate(captions)])
    pack(after="shards: {rows: 99}\n")
    shards = here / "out" / "shards"
    members = contents(shards / "00000.tar")
    assert [data.decode() for name, data in members if name.endswith(".txt")] == captions
    assert [json.loads(data)["caption"] for name, data in members if name.endswith(".json")] == captions
    assert pq.read_table(shards / "00000.parquet")["caption"].to_pylist() == captions


def test_columns_of_every_type_reach_parquet_exactly_and_json_as_near_as_it_can(here: Path) -> None:
    Path("a.png").write_bytes(PNG)
    day = datetime.datetime(2024, 2, 29, 12, 30, tzinfo=datetime.UTC)
    columns = {
        "f32": pa.array([0.1, float("nan")], pa.float32()), "f64": pa.array([0.1, float("inf")]),
        "big": pa.array([2**63, None], pa.uint64()), "day": pa.array([day, None], pa.timestamp("us", "UTC")),
        "raw": pa.array([b"\xff\0", None]), "boxes": pa.array([[[1.5, float("nan")]], []]), "flag": pa.array([True, None])}
    others = {"path": ["a.png"] * 2, "caption": ["one", "two"], "key": ["000017", None], "vector": [[0.5], [0.25]]}
    pq.write_table(pa.table({**others, **columns}), "photos.parquet")
    pack("caption is not null", source="source: {images: photos.parquet}\n", after="shards: {rows: 99}\n")
    written = pq.read_table(here / "out" / "shards" / "00000.parquet")
    assert {n: str(written[n].combine_chunks()) for n in columns} == {n: str(c) for n, c in columns.items()}
    assert written["source_key"].to_pylist() == ["000017", None], "what the source calls key is not ours"
    assert "vector" not in written.column_names and "image" not in written.column_names
    members = contents(here / "out" / "shards" / "00000.tar")
    rows = [json.loads(data, parse_constant=pytest.fail) for name, data in members if name.endswith(".json")]
    assert [list(row) for row in rows] == [[n for n in written.column_names if n != "image_id"]] * 2
    assert [[row[n] for n in columns] for row in rows] == [
        [0.1, 0.1, 2**63, "2024-02-29 12:30:00+00:00", "ff00", [[1.5, None]], True], [None, None, None, None, None, [], None]]


def test_without_shards_a_table_and_the_uids_are_left(here: Path) -> None:
    uids = ["f" * 32, "0" * 31 + "1", "mine", "8" * 32, "A" * 32]
    photos([{"uid": u, "caption": f"caption {i}", "n": i} for i, u in enumerate(uids)])
    pack("n != 3", after="shards: none\n")
    assert not (here / "out" / "shards").exists()
    table = pq.read_table(here / "out" / "subset.parquet")
    assert table.column_names == ["uid", "image_id", "url", "caption", "n"]
    assert table["uid"].to_pylist() == ["f" * 32, "0" * 31 + "1", "mine", "A" * 32]
    pairs = np.load(here / "out" / "subset.npy")
    assert pairs.dtype == np.dtype("u8,u8")
    halves = [(int(u[:16], 16), int(u[16:], 16)) for u in ("f" * 32, "0" * 31 + "1", hashed("mine"), hashed("A" * 32))]
    assert pairs.tolist() == sorted(halves)


@given(uids=st.lists(st.binary(min_size=16, max_size=16).map(bytes.hex) | st.text(max_size=40), max_size=30))
@settings(max_examples=50, deadline=None)
def test_uid_bytes_sort_as_datacomps_pairs(uids: list[str]) -> None:
    texts = [u if len(u) == 32 and set(u) <= set("0123456789abcdef") else hashed(u) for u in uids]
    pairs = sorted((int(t[:16], 16), int(t[16:], 16)) for t in texts)
    ours = np.sort(uid_bytes(uids)).view(">u8").reshape(-1, 2)
    assert [tuple(p) for p in ours.tolist()] == pairs


def test_nothing_kept_leaves_an_empty_table(here: Path) -> None:
    photos(numbered(3))
    pack("n < 0", after="shards: none\n")
    assert pq.read_table(here / "out" / "subset.parquet").num_rows == 0
    assert np.load(here / "out" / "subset.npy").tolist() == []
