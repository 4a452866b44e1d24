"""A reader that trusts no tar."""

import io
import pickle
import tarfile
from pathlib import Path

import pytest

from tests.train.toys import caption, encoded, pairs, scene, shard, write_tar
from train.errors import DataError
from train.tars import members, samples, split_name


def test_members_lie_where_the_index_says(tmp_path: Path) -> None:
    path = shard(tmp_path / "0.tar", range(3))
    data = path.read_bytes()
    assert [data[s.picture.offset : s.picture.offset + s.picture.length] for s in samples(path)] == [
        encoded(scene(n)) for n in range(3)]
    assert [s.txt and data[s.txt.offset : s.txt.offset + s.txt.length].decode() for s in samples(path)] == [
        caption(n) for n in range(3)]


@pytest.mark.parametrize(("cut", "message"), [
    ("header", "cut short: no end of archive"), ("picture", "cut short inside '000000001.png'"),
    ("end", "cut short: no end of archive")])
def test_a_tar_cut_short_is_refused(tmp_path: Path, cut: str, message: str) -> None:
    path = shard(tmp_path / "0.tar", range(2))
    second = samples(path)[1].picture
    last = samples(path)[1].txt
    assert last is not None
    length = {"header": second.offset - 300, "picture": second.offset + 40, "end": last.offset + 512}[cut]
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(DataError) as error:
        samples(path)
    assert str(error.value) == f"{path}: {message}"


PICTURE, TEXT = encoded(scene(0)), b"a red circle"


@pytest.mark.parametrize(("found", "message"), [
    ([("1.jpg", PICTURE), ("2.txt", TEXT)], "'1' has a picture but neither txt nor json"),
    ([("1.txt", TEXT), ("2.jpg", PICTURE), ("2.txt", TEXT)], "'1' has no picture (txt only)"),
    ([("1.jpg", PICTURE), ("1.png", PICTURE), ("1.txt", TEXT)], "'1' has 2 pictures"),
    ([("1.jpg", PICTURE), ("1.jpg", PICTURE), ("1.txt", TEXT)], "'1.jpg' stands twice"),
    ([("1.jpg", PICTURE), ("1.txt", TEXT), ("2.jpg", PICTURE), ("2.txt", TEXT), ("1.json", b"{}")],
     "the members of '1' do not stand together"),
])
def test_members_that_do_not_pair_up_are_refused(tmp_path: Path, found: list[tuple[str, bytes]], message: str) -> None:
    path = write_tar(tmp_path / "0.tar", found)
    with pytest.raises(DataError) as error:
        samples(path)
    assert str(error.value) == f"{path}: {message}"


def test_links_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "0.tar"
    with tarfile.open(path, "w") as archive:
        info = tarfile.TarInfo("1.jpg")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(info)
    with pytest.raises(DataError, match="member '1.jpg' is not a plain file"):
        samples(path)


def test_what_is_no_tar_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "0.tar"
    path.write_bytes(b"<html>" * 400)
    with pytest.raises(DataError, match="not a tar"):
        samples(path)
    with pytest.raises(DataError, match="No such file"):
        samples(tmp_path / "1.tar")


def test_other_members_are_left_alone(tmp_path: Path) -> None:
    """Class numbers, arrays and pickles may be there; a pickle that would run code is never opened."""
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return eval, (f"open({str(tmp_path / 'ran')!r}, 'w')",)

    path = write_tar(tmp_path / "0.tar", [("1.cls", b"7"), ("1.jpg", PICTURE), ("1.pkl", pickle.dumps(Bomb())), ("1.txt", TEXT),
                                          ("1.seg.png", PICTURE), ("2.npy", b"no array"), ("dataset.pickle", b"no pickle")])
    assert [s.key for s in samples(path)] == ["1"]
    assert not (tmp_path / "ran").exists()


def test_folders_in_a_tar_are_no_end(tmp_path: Path) -> None:
    path = tmp_path / "0.tar"
    with tarfile.open(path, "w") as archive:
        for name, data in pairs([1]):
            info = tarfile.TarInfo(f"train/{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        folder = tarfile.TarInfo("train")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
    with open(path, "rb") as file:
        assert [m.name for m in members(file)] == ["train/000000001.png", "train/000000001.txt"]
    assert samples(path)[0].key == "train/000000001"


def test_keys_end_at_the_first_dot_of_the_base_name() -> None:
    assert split_name("a.b/0001.seg.PNG") == ("a.b/0001", "seg.png")
    assert split_name("0001") == ("0001", "")


def test_what_stands_behind_the_end_is_refused(tmp_path: Path) -> None:
    """A second tar in the same file would be passed over without a word."""
    path = shard(tmp_path / "0.tar", [1])
    path.write_bytes(path.read_bytes() * 2)
    with pytest.raises(DataError) as error:
        samples(path)
    assert str(error.value) == f"{path}: more stands behind its end: two tars in one file?"


@pytest.mark.parametrize(("size", "message"), [
    (b"\xff" * 10 + b"\xfe\x00", "member '1.jpg' has a size below 0"),
    (b"\x80\x00\x00\x00\x00\x00\x10\x00\x00\x00\x00\x00", "cut short inside '1.jpg'")])
def test_sizes_that_cannot_be_are_refused(tmp_path: Path, size: bytes, message: str) -> None:
    path = write_tar(tmp_path / "0.tar", [("1.jpg", PICTURE), ("1.txt", TEXT)])
    header = bytearray(path.read_bytes()[:512])
    header[124:136], header[148:156] = size, b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    path.write_bytes(bytes(header) + path.read_bytes()[512:])
    with pytest.raises(DataError) as error:
        samples(path)
    assert str(error.value) == f"{path}: {message}"


def test_a_text_that_would_fill_the_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.tars.MAX_TEXT", 1 << 20)
    path = write_tar(tmp_path / "0.tar", [("1.jpg", PICTURE), ("1.json", b" " * (1 << 20) + b"{}")])
    with pytest.raises(DataError, match=r"'1.json' is larger than 1 MiB"):
        samples(path)
