"""Pictures that lie here already are rows in place: never copied, never lost, and a broken tar is one line."""

import json
import os
from pathlib import Path

import pytest
import webdataset

from curate.errors import UserError
from curate.sources.cut import peek
from curate.sources.samples import Seen
from curate.sources.source import Source
from curate.step import image
from curate.tar import Member
from tests.sources import PNG, memory_store, pid, rows_of, settings_of, stored, take, uid, write_tar


def img2dataset_members(first: int, count: int) -> list[tuple[str, bytes]]:
    """As img2dataset writes them: key.jpg, key.json, key.txt."""
    members = []
    for n in range(first, first + count):
        key, caption = f"{n:09d}", f"caption {n}"
        meta = json.dumps({"caption": caption, "url": f"http://a.org/{n}.jpg", "key": key, "status": "success",
                           "width": 256 + n, "exif": "{}"})
        members += [(f"{key}.jpg", PNG + bytes([n])), (f"{key}.json", meta.encode()), (f"{key}.txt", caption.encode())]
    return members


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
        assert row == {"uid": uid(url, f"caption {n}"), "image_id": pid(url), "url": url, "caption": f"caption {n}",
                       "source_error": None, "key": f"{n:09d}", "status": "success", "width": 256 + n, "exif": "{}"}
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
    ids = [pid(PNG + bytes([n])) for n in range(3)]
    assert [(r["uid"], r["image_id"], r["url"], r["caption"], r["key"], r["n"]) for r in rows] == [
        (pid(f"{ids[n]}\0caption {n}"), ids[n], None, f"caption {n}", f"sample{n}", n / 2) for n in range(3)]


def test_samples_as_they_come(tmp_path: Path) -> None:
    members = [
        ("a/1.jpg", PNG), ("a/1.txt", b"fine"), ("._1.jpg", b"a Mac was here"), ("README", b"no extension"),
        ("a/2.txt", b"no picture"), ("a/3.PNG", PNG + b"3"), ("a/4.webp", PNG + b"4"), ("a/4.json", b"{broken"),
        ("a/5.jpg", PNG + b"5"), ("a/5.json", b'{"caption": "of json", "url": " ", "deep": {"x": 1}}'),
        ("a/6.jpg", PNG + b"6"), ("a/6.txt", b"caf\xe9"), ("a/6.json", b"[1]"),
        ("a/7.jpg", PNG + b"7"), ("a/7.txt", b"first"), ("a/7.JPG", PNG + b"8"), ("a/7.TXT", b"second"), ("a/9.cls", b"1")]
    source = take(write_tar(tmp_path / "a.tar", members), tmp_path / "out", kind="shards")
    rows = rows_of(source)
    assert [(r["key"], r["caption"], r["source_error"]) for r in rows] == [
        ("a/1", "fine", None), ("a/2", "no picture", "no picture"), ("a/3", None, "no caption"),
        ("a/4", None, "its .json is not JSON"), ("a/5", "of json", None),
        ("a/6", "caf\ufffd", "its .json is not an object; caption: invalid characters replaced"),
        ("a/7", "first", None), ("a/7", "second", None), ("a/9", None, "no picture; no caption")]
    assert [r["image"] and stored(r) for r in rows] == [PNG, None, *(PNG + str(n).encode() for n in (3, 4, 5, 6, 7, 8)), None]
    assert [r["image_id"] for r in rows] == [r["image"] and pid(stored(r)) for r in rows]
    assert [r["deep"] for r in rows] == [None] * 4 + ['{"x": 1}'] + [None] * 4


def test_the_caption_of_a_tar_may_be_named(tmp_path: Path) -> None:
    meta = [{"caption": "alt text", "recaption": f"generated {n}", "uid": n, "link": f"http://{n}"} for n in range(2)]
    members = [(f"{n}.{extension}", data) for n in range(2)
               for extension, data in (("jpg", PNG), ("txt", b"alt text"), ("json", json.dumps(meta[n]).encode()))]
    path = write_tar(tmp_path / "a.tar", members)
    source = take(path, tmp_path / "out", kind="shards", caption="recaption", uid="uid", url="link")
    assert rows_of(source, "uid", "url", "caption", "source_caption") == [
        ("0", "http://0", "generated 0", "alt text"), ("1", "http://1", "generated 1", "alt text")]
    with pytest.raises(UserError, match=r"a.tar' has no column 'recaptoin'; did you mean 'recaption'\?$"):
        take(path, tmp_path / "other", kind="shards", caption="recaptoin")


def test_a_sample_brings_its_own_uid(tmp_path: Path) -> None:
    """DataComp's tars, and ours. A sample without one gets one, whatever its neighbours have; a name that is told must exist."""
    meta = [{"uid": "a" * 32}, {"uid": "any form"}, {"uid": None}, {}, {"uid": "a" * 32}]
    members = [(f"{n}.{extension}", data) for n in range(5)
               for extension, data in (("jpg", PNG + bytes([n])), ("txt", b"text"), ("json", json.dumps(meta[n]).encode()))]
    source = take(write_tar(tmp_path / "a.tar", members), tmp_path / "out", kind="shards")
    own = [pid(f"{pid(PNG + bytes([n]))}\0text") for n in range(5)]
    assert rows_of(source, "uid") == ["a" * 32, "any form", own[2], own[3], "a" * 32]
    assert source.repeated(0).tolist() == [4]
    assert "source_uid" not in source.columns
    take(tmp_path / "a.tar", tmp_path / "out", kind="shards", uid="uid")       # the same source, said in words
    with pytest.raises(UserError, match="uid was 'uid' in .*, now it is 'key'; a source only grows"):
        take(tmp_path / "a.tar", tmp_path / "out", kind="shards", uid="key")
    bare = write_tar(tmp_path / "b.tar", [("1.jpg", PNG), ("1.txt", b"text")])
    assert rows_of(take(bare, tmp_path / "bare", kind="shards"), "uid") == [pid(f"{pid(PNG)}\0text")]
    with pytest.raises(UserError, match="b.tar' has no column 'uid'"):
        take(bare, tmp_path / "other", kind="shards", uid="uid")


@pytest.mark.parametrize("cut", [0, 100, 600, 2000, 6144, -513])
def test_a_tar_that_is_cut_short_is_refused_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: int) -> None:
    monkeypatch.chdir(tmp_path)
    write_tar(Path("a.tar"), img2dataset_members(0, 2))
    whole = write_tar(Path("b.tar"), img2dataset_members(2, 20)).read_bytes().rstrip(b"\0")
    end = len(whole) + -len(whole) % 512
    Path("b.tar").write_bytes(whole.ljust(end, b"\0")[:cut if cut >= 0 else end + cut])
    with pytest.raises(UserError, match=r"^cannot read 'b.tar': "):
        take("*.tar", tmp_path, kind="shards", shard_rows=2)
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


def test_a_tar_in_an_object_store(tmp_path: Path) -> None:
    with memory_store() as store:
        store.pipe("/shards/a.tar", write_tar(tmp_path / "a.tar", img2dataset_members(0, 3)).read_bytes())
        rows = rows_of(take("memory://shards/*.tar", tmp_path, kind="shards"))
        place = rows[2]["image"]
        assert place["file"] == "memory:///shards/a.tar"
        assert store.cat_file("/shards/a.tar")[place["offset"]:place["offset"] + place["length"]] == PNG + b"\2"


def test_a_folder_of_pictures(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for name, data in {"b.jpg": PNG, "b.txt": b"of the text", "a.v2.PNG": PNG + b"a", "a.v2.json": b'{"caption": "of json"}',
                       "c.webp": PNG + b"c", "alone.txt": b"no row", ".d.jpg": b"", "more/b.jpg": PNG,
                       "more/b.txt": b"of the text"}.items():
        (folder / name).write_bytes(data)
    source = take(folder, tmp_path, kind="images")
    rows = rows_of(source)
    assert [(Path(r["image"]["file"]).relative_to(folder).as_posix(), r["caption"], r["source_error"]) for r in rows] == [
        ("a.v2.PNG", "of json", None), ("b.jpg", "of the text", None), ("c.webp", None, "no caption"),
        ("more/b.jpg", "of the text", None)]
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
    lines = ["file,text,n", "jpg/0.jpg,zero,1", "jpg/0.jpg,null,2", f"{tmp_path}/jpg/1.jpg,one,3", "jpg/2.jpg,two,4", ",none,5",
             "x"]
    (tmp_path / "photos.csv").write_text("\n".join(lines))
    source = take(tmp_path / "photos.csv", tmp_path, kind="images", path="file", caption="text")
    rows = rows_of(source)
    assert [(r["caption"], r["n"], r["source_error"]) for r in rows] == [
        ("zero", 1, None), ("null", 2, None), ("one", 3, None), ("two", 4, "no picture 'jpg/2.jpg'"), ("none", 5, "no picture"),
        (None, None, "line 7: 1 fields, not 3")]
    assert [r["image"] and stored(r) for r in rows] == [PNG + b"\0", PNG + b"\0", PNG + b"\1", None, None, None]
    assert [r["image_id"] for r in rows] == [pid(PNG + b"\0"), pid(PNG + b"\0"), pid(PNG + b"\1"), None, None, None]
    assert [r["file"] for r in rows][:2] == ["jpg/0.jpg", "jpg/0.jpg"]
    assert len({r["uid"] for r in rows}) == 6


def test_a_table_of_pictures_that_lie_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("jpg").mkdir()
    Path("jpg/0.jpg").write_bytes(PNG)
    Path("captions.tsv").write_text("path\tcaption\n0.jpg\tzero\n")
    source = take("captions.tsv", tmp_path, kind="images", root="jpg")
    assert [(r["image"]["file"], r["caption"]) for r in rows_of(source)] == [(str(tmp_path / "jpg/0.jpg"), "zero")]
    with pytest.raises(UserError, match="^no folder 'jgp'$"):
        take("captions.tsv", tmp_path / "other", kind="images", root="jgp")


@pytest.mark.parametrize(("meta", "caption", "error"), [
    (b' {"caption": "a"}', "a", None), (b'{"caption": "a"}\n', "a", None),
    (b'{"caption": "a"} {}', None, "its .json is not JSON"),
    (b'{"caption": "a"', None, "its .json is not JSON"), (b'[{}]', None, "its .json is not an object"),
    (b'\xef\xbb\xbf{"caption": "a"}', None, "its .json is not JSON"), (b"", None, "its .json is not JSON")])
def test_what_of_json_is_read(tmp_path: Path, meta: bytes, caption: str | None, error: str | None) -> None:
    source = take(write_tar(tmp_path / "a.tar", [("0.png", PNG), ("0.json", meta)]), tmp_path, kind="shards")
    said = error or ("no caption" if caption is None else None)
    assert rows_of(source, "caption", "source_error") == [(caption, said)]


@pytest.mark.parametrize("name", ["0.png", "\u00e9.png"])
def test_what_a_tar_was_read_as_is_one_hash_however_it_is_fed(name: str) -> None:
    plain, quick = Seen(), Seen()
    plain.add(name, 512, 8, "b", 2048, 100, b"text", None)
    quick.add_places([Member(name, 512, 8), Member("b", 2048, 100)])
    quick.add(b"text", None)
    assert quick.hexdigest() == plain.hexdigest()
