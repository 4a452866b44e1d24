"""Our tars are read by everybody and always the same bytes; of everybody's tars we read only what no two readers differ on."""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.tar import BLOCK, BadTar, Member, TarWriter, members, safe_name

FILES = [("a.jpg", b"\xff" * 700), ("a.txt", "schön 🐕".encode()), ("a.json", b""), ("b/c.jpg", b"x" * 512)]
NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0\\"), min_size=1, max_size=40).filter(safe_name)


def packed(files: list[tuple[str, bytes]]) -> bytes:
    file = io.BytesIO()
    tar = TarWriter(file)
    for name, data in files:
        tar.add(name, data)
    tar.close()
    return file.getvalue()


def by_tarfile(files: list[tuple[str | tarfile.TarInfo, bytes]], format_: int) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=format_) as tar:
        for info, data in files:
            info = tarfile.TarInfo(info) if isinstance(info, str) else info
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return file.getvalue()


def special(type_: bytes, name: str = "odd.jpg", linkname: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = type_, linkname
    return info


def index(data: bytes) -> list[Member]:
    return list(members(io.BytesIO(data)))


def refusal(data: bytes) -> str:
    with pytest.raises(BadTar) as error:
        index(data)
    return str(error.value)


def sealed(header: bytes) -> bytes:
    """A header block with the right checksum."""
    blank = header[:148] + b" " * 8 + header[156:]
    return header[:148] + b"%06o\0 " % sum(blank) + header[156:]


@pytest.mark.parametrize("files", [[], FILES, [("k" * 80 + ".json", b"1"), ("l" * 96 + ".txt", b"2"), ("é" * 45 + ".jpg", b"3")]])
def test_tarfile_reads_what_we_write_with_nothing_in_it_that_varies(files: list[tuple[str, bytes]]) -> None:
    data = packed(files)
    assert len(data) % (20 * BLOCK) == 0
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
        infos = tar.getmembers()
        assert [(i.name, tar.extractfile(i).read()) for i in infos] == files  # type: ignore[union-attr]
    assert {(i.mode, i.uid, i.gid, i.mtime, i.uname, i.gname, i.type, i.linkname, tuple(i.pax_headers)) for i in infos} <= {
        (0o644, 0, 0, 0, "", "", tarfile.REGTYPE, "", ())}
    assert data == packed(files)


@given(files=st.lists(st.tuples(NAMES, st.binary(max_size=1100)), max_size=8, unique_by=lambda f: f[0]))
@settings(max_examples=50, deadline=None)
def test_our_reader_finds_every_byte_that_we_wrote(files: list[tuple[str, bytes]]) -> None:
    out = io.BytesIO()
    tar = TarWriter(out)
    said = [tar.add(name, data) for name, data in files]
    tar.close()
    found = index(out.getvalue())
    assert found == said
    assert [(m.name, out.getvalue()[m.offset:m.offset + m.length]) for m in found] == files


@pytest.mark.parametrize("name", ["", "/etc/passwd", "../up.jpg", "a/../b.jpg", "a//b.jpg", "a/.", "a\\b.jpg", "nul\0.jpg",
                                  "dir/", "k" * 101, "é" * 51])
def test_a_name_that_a_reader_would_refuse_is_never_written(name: str) -> None:
    out = io.BytesIO()
    with pytest.raises(ValueError, match="cannot be a tar's member"):
        TarWriter(out).add(name, b"")
    assert out.getvalue() == b""


@pytest.mark.parametrize("format_", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tars_of_others_are_indexed_as_tarfile_does(format_: int) -> None:
    names = ["a.jpg", "./b/c.jpg", "p" * 90 + "/" + "q" * 60 + ".jpg" if format_ == tarfile.USTAR_FORMAT else "d.jpg"]
    files: list[tuple[str | tarfile.TarInfo, bytes]] = [(special(tarfile.DIRTYPE, "b"), b"")]
    files += [(n, bytes([i]) * 700 * i) for i, n in enumerate(names)]
    data = by_tarfile(files, format_)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert index(data) == [(i.name, i.offset_data, i.size) for i in tar if i.isreg()]
        assert [m.name for m in index(data)] == names


def test_times_and_owners_in_pax_headers_as_webdataset_writes_them_are_fine(tmp_path: Path) -> None:
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as writer:
        writer.write({"__key__": "0", "jpg": b"picture", "txt": "words"})
    data = (tmp_path / "a.tar").read_bytes()
    assert b" mtime=" in data
    assert [(m.name, data[m.offset:m.offset + m.length]) for m in index(data)] == [("0.jpg", b"picture"), ("0.txt", b"words")]


def test_a_tar_before_ustar_and_directories_by_name() -> None:
    old = [sealed(packed([(name, data)])[:156] + b"\0" + bytes(355)) for name, data in (("d", b""), ("d/a.jpg", b"old"))]
    folder = sealed(old[0][:1] + b"/" + old[0][2:])
    data = folder + old[1] + b"old".ljust(512, b"\0") + bytes(1024)
    assert index(data) == [("d/a.jpg", 1024, 3)]


@pytest.mark.parametrize(("cut", "message"), [
    *((cut, "not a tar") for cut in (0, 100)), *((cut, "cut short inside 'a.jpg'") for cut in (512, 600, 1535)),
    *((cut, "cut short: no end of archive") for cut in (1536, 1600, 4096, 4096 + 512, 4096 + 1023))])
def test_a_tar_cut_short_at_any_place_is_refused(cut: int, message: str) -> None:
    data = packed(FILES)
    assert data.rstrip(b"\0") == data[:4096], "the last member ends here"
    assert refusal(data[:cut]) == message


@pytest.mark.parametrize("name", ["/abs.jpg", "../a.jpg", "a/../../b.jpg", "a/./b.jpg", "a//b.jpg", "a\\..\\b.jpg", "./../b.jpg"])
def test_names_that_leave_the_archive_are_refused(name: str) -> None:
    assert refusal(by_tarfile([("a.jpg", b""), (name, b"x")], tarfile.USTAR_FORMAT)) == f"member name '{name}' leaves the archive"


@pytest.mark.parametrize("type_", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE,
                                   tarfile.CONTTYPE, tarfile.GNUTYPE_SPARSE, b"V", b"M", b"Z"])
def test_links_devices_and_other_kinds_are_refused(type_: bytes) -> None:
    data = by_tarfile([(special(type_, linkname="a.jpg"), b"")], tarfile.USTAR_FORMAT)
    assert refusal(data) == "member 'odd.jpg' is not a plain file"


def test_a_member_that_stands_twice_is_refused() -> None:
    data = by_tarfile([("a.jpg", b"1"), ("b.jpg", b"2"), ("a.jpg", b"3")], tarfile.GNU_FORMAT)
    assert refusal(data) == "member 'a.jpg' stands twice"


def pax(**headers: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo("a.jpg")
    info.pax_headers = headers
    return info


@pytest.mark.parametrize(("info", "format_", "what"), [
    ("n" * 101 + ".jpg", tarfile.GNU_FORMAT, "path"), ("n" * 101 + ".jpg", tarfile.PAX_FORMAT, "path"),
    ("ü.jpg", tarfile.PAX_FORMAT, "path"), (special(tarfile.SYMTYPE, linkname="l" * 101), tarfile.GNU_FORMAT, "path"),
    (special(tarfile.SYMTYPE, linkname="l" * 101), tarfile.PAX_FORMAT, "linkpath"),
    (pax(path="../up.jpg"), tarfile.PAX_FORMAT, "path"), (pax(size="5"), tarfile.PAX_FORMAT, "size"),
    (pax(**{"GNU.sparse.map": "0,1"}), tarfile.PAX_FORMAT, "GNU.sparse.map")])
def test_names_and_sizes_outside_the_header_are_refused(info: str | tarfile.TarInfo, format_: int, what: str) -> None:
    assert refusal(by_tarfile([(info, b"")], format_)) == (
        f"a member's {what} stands in an extension header, where readers differ; pack the files anew, under names of "
        "100 ASCII characters at most")


@pytest.mark.parametrize(("records", "message"), [
    (b"12 mtime=1.5", "broken extension header"), (b"99 mtime=1\n", "broken extension header"), (b"x", "broken extension header"),
    (b"3 =\n", "broken extension header"), (b"0 a=\n", "broken extension header"), (b"9 path=x", "broken extension header"),
    (b"11 path=ab\n", "a member's path stands in an extension header"), (b"5 " * 40000, "an extension header is too large")])
def test_an_extension_header_that_makes_no_sense_is_refused(records: bytes, message: str) -> None:
    assert refusal(by_tarfile([(special(b"x"), records), ("a.jpg", b"")], tarfile.USTAR_FORMAT)).startswith(message)
    assert refusal(by_tarfile([(special(b"g"), records), ("a.jpg", b"")], tarfile.USTAR_FORMAT)).startswith(message)


def broken_checksum(head: bytes) -> bytes:
    return head[:148] + b"000000\0 " + head[156:]


def negative_size(head: bytes) -> bytes:
    return sealed(head[:124] + b"-0000000777\0" + head[136:])


def binary_size(head: bytes) -> bytes:
    return sealed(head[:124] + b"\x80" + bytes(10) + b"\1" + head[136:])


@pytest.mark.parametrize("damage", [broken_checksum, negative_size, binary_size])
def test_a_broken_header_is_refused(damage: Callable[[bytes], bytes]) -> None:
    data = packed(FILES)
    assert refusal(damage(data[:512]) + data[512:]) == "broken header, or not a tar"


def test_any_flipped_bit_of_a_header_is_refused() -> None:
    data = packed([("a.jpg", b"picture")])
    for at in range(512):
        wrong = data[:at] + bytes([data[at] ^ 1]) + data[at + 1:]
        with pytest.raises(BadTar):
            index(wrong)


def test_what_follows_the_end_is_refused() -> None:
    assert refusal(packed(FILES[:1]) + packed(FILES[1:])) == "something follows the end of the archive"
    assert index(packed(FILES[:1]) + bytes(99)) == index(packed(FILES[:1]))


@given(data=st.binary(max_size=2000))
@settings(max_examples=50, deadline=None)
def test_any_bytes_are_a_tar_or_one_reason(data: bytes) -> None:
    try:
        index(data)
    except BadTar as error:
        assert "\n" not in str(error) and str(error)
