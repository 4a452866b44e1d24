"""Pictures and captions out of tars and tables."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.train.toys import caption, encoded, img2dataset_shard, pairs, scene, shard, table, write_tar
from train.config import Data
from train.data import Index, open_data
from train.errors import DataError
from train.order import caption_of


def content(index: Index) -> list[tuple[bytes, list[str]]]:
    return [(index.read(i), index.captions(i)) for i in range(len(index))]


def test_tars(tmp_path: Path) -> None:
    for number in range(3):
        shard(tmp_path / f"{number:05d}.tar", range(number * 4, number * 4 + 4))
    index = open_data(Data(shards=(str(tmp_path / "*.tar"),)))
    assert content(index) == [(encoded(scene(n)), [caption(n)]) for n in range(12)]
    assert index.name(5).startswith(f"{tmp_path}/00001.tar@")


def test_plain_img2dataset_shards(tmp_path: Path) -> None:
    img2dataset_shard(tmp_path / "00000.tar", range(3))
    index = open_data(Data(shards=(str(tmp_path / "00000.tar"),)))
    assert content(index) == [(encoded(scene(n), "JPEG"), [caption(n)]) for n in range(3)]


def test_a_table(tmp_path: Path) -> None:
    path = table(tmp_path, range(4), {1: ["one", "two", " one ", "", "three"], 2: ["  "]})
    index = open_data(Data(table=(str(path),), root=str(tmp_path)))
    assert content(index) == [(encoded(scene(0)), [caption(0)]), (encoded(scene(1)), ["one", "two", "three"]),
                              (encoded(scene(3)), [caption(3)])]
    assert (index.num_captions, index.num_blank) == (5, 2)


def test_a_list_of_captions_in_a_table(tmp_path: Path) -> None:
    """As in a json: the list where there is one, empty too, else the caption."""
    rows = pq.read_table(table(tmp_path, range(4))).to_pylist()
    lists: list[dict[str, object]] = [{"captions": ["a", "b"], "caption_probs": [3, 1]}, {"captions": []}, {"captions": None},
                                      {"captions": ["c", None, "c"]}]
    pq.write_table(pa.Table.from_pylist([row | more for row, more in zip(rows, lists, strict=True)]), tmp_path / "t.parquet")
    index = open_data(Data(table=(str(tmp_path / "t.parquet"),), root=str(tmp_path)))
    assert content(index) == [(encoded(scene(0)), ["a", "b"]), (encoded(scene(2)), [caption(2)]), (encoded(scene(3)), ["c"])]
    assert index.chance is not None and index.chance.tolist() == [0.75, 0.25, 1, 1]
    wrong = [row | {"captions": ["a", "b"], "caption_probs": [1]} for row in rows]
    pq.write_table(pa.Table.from_pylist(wrong), tmp_path / "t.parquet")
    with pytest.raises(DataError, match=r"t\.parquet: images/toy/00000\.tar at 512: "):
        open_data(Data(table=(str(tmp_path / "t.parquet"),), root=str(tmp_path)))


def test_a_list_of_captions_in_the_json(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "0.tar", [("1.jpg", encoded(scene(1))), ("1.json", json.dumps({"captions": ["a", "b"]}).encode()),
                                          ("1.txt", b"a"), ("2.jpg", encoded(scene(2))), ("2.json", b'{"caption": ["c", "d"]}'),
                                          ("3.jpg", encoded(scene(3))), ("3.json", b'{"caption": "e"}')])
    index = open_data(Data(shards=(str(path),)))
    assert [index.captions(i) for i in range(3)] == [["a", "b"], ["c", "d"], ["e"]]


def test_how_often_each_caption_is_shown(tmp_path: Path) -> None:
    json_of = [{"captions": ["a", "b", "c"], "caption_probs": [6, 2, 0]}, {"captions": ["d", "e"]}]
    path = write_tar(tmp_path / "0.tar", [member for n, meta in enumerate(json_of) for member in (
        (f"{n}.jpg", encoded(scene(n))), (f"{n}.json", json.dumps(meta).encode()))])
    index = open_data(Data(shards=(str(path),)))
    assert [index.captions(i) for i in range(2)] == [["a", "b"], ["d", "e"]]
    assert index.chance is not None and index.chance.tolist() == [0.75, 0.25, 0.5, 0.5]
    seen = [caption_of(np.arange(2), index.first, 5, epoch, index.chance).tolist() for epoch in range(4000)]
    assert abs(sum(first == 0 for first, _ in seen) / 4000 - 0.75) < 0.03
    assert {second for _, second in seen} == {2, 3}
    assert caption_of(np.array([1, 0]), index.first, 5, 3, index.chance).tolist() == seen[3][::-1]


def test_samples_of_one_image_are_one_picture_with_several_captions(tmp_path: Path) -> None:
    def member(key: str, image_id: str, text: str) -> list[tuple[str, bytes]]:
        return [(f"{key}.jpg", encoded(scene(int(image_id)))), (f"{key}.json", json.dumps({"image_id": image_id}).encode()),
                (f"{key}.txt", text.encode())]

    write_tar(tmp_path / "0.tar", [*member("1", "7", "a"), *member("2", "8", "b"), *member("3", "7", "c")])
    write_tar(tmp_path / "1.tar", [*member("1", "8", "d"), *member("2", "7", "a"), *member("3", "9", "e")])
    index = open_data(Data(shards=(str(tmp_path / "*.tar"),)))
    assert content(index) == [(encoded(scene(7)), ["a", "c"]), (encoded(scene(8)), ["b", "d"]), (encoded(scene(9)), ["e"])]


def test_equal_names_in_two_folders_are_two_pictures(tmp_path: Path) -> None:
    shard(tmp_path / "a" / "0.tar", [1])
    shard(tmp_path / "b" / "0.tar", [1])
    assert len(open_data(Data(shards=(str(tmp_path / "*" / "0.tar"),)))) == 2


def test_the_digest_says_what_is_inside_not_where_it_lies(tmp_path: Path) -> None:
    def digest(name: str, members: list[tuple[str, bytes]]) -> str:
        return open_data(Data(shards=(str(write_tar(tmp_path / name / "0.tar", members)),))).digest

    first = digest("a", pairs(range(3)))
    assert digest("b", pairs(range(3))) == first
    assert digest("c", pairs(range(3), {1: "another"})) != first
    assert digest("d", pairs(range(4))) != first
    assert digest("e", pairs([0, 2, 1])) != first


@pytest.mark.parametrize(("members", "message"), [
    ([("1.jpg", b"x"), ("1.json", b"{")], "'1.json' is not JSON"),
    ([("1.jpg", b"x"), ("1.json", b"[" * 100_000)], "'1.json' is not JSON"),
    ([("1.jpg", b"x"), ("1.json", b"[]")], "'1.json' is not a map"),
    ([("1.jpg", b"x"), ("1.json", b'{"captions": ["a"], "caption_probs": [1, 1]}')],
     "'1.json': 2 caption_probs for 1 captions"),
    ([("1.jpg", b"x"), ("1.json", b'{"key": "2"}')], "'1.json' belongs to '2'"),
])
def test_a_wrong_json_is_refused(tmp_path: Path, members: list[tuple[str, bytes]], message: str) -> None:
    path = write_tar(tmp_path / "0.tar", members)
    with pytest.raises(DataError) as error:
        open_data(Data(shards=(str(path),)))
    assert str(error.value) == f"{path}: {message}"


def test_data_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no file matches .*\*\.tar"):
        open_data(Data(shards=(str(tmp_path / "*.tar"),)))
    path = write_tar(tmp_path / "0.tar", [("1.jpg", b"x"), ("1.txt", b" ")])
    with pytest.raises(DataError, match="no picture with a caption in"):
        open_data(Data(shards=(str(path),)))
    (tmp_path / "t.parquet").write_bytes(b"no parquet")
    with pytest.raises(DataError, match=r"t\.parquet: "):
        open_data(Data(table=(str(tmp_path / "t.parquet"),)))


def test_a_table_without_its_columns(tmp_path: Path) -> None:
    pq.write_table(pa.table({"captions": ["a"]}), tmp_path / "t.parquet")
    with pytest.raises(DataError) as error:
        open_data(Data(table=(str(tmp_path / "t.parquet"),)))
    assert str(error.value) == f"{tmp_path}/t.parquet has no column 'caption'; did you mean 'captions'?"


def test_a_file_cut_short_after_it_was_indexed(tmp_path: Path) -> None:
    path = shard(tmp_path / "0.tar", range(2))
    index = open_data(Data(shards=(str(path),)))
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(DataError, match="bytes wanted at"):
        index.read(1)


def test_an_image_id_may_be_0(tmp_path: Path) -> None:
    numbered = [(f"{n:09d}.json", json.dumps({"image_id": n // 2, "caption": f"c{n}"}).encode()) for n in range(4)]
    members = [member for n in range(4) for member in (pairs([n])[0], numbered[n])]
    assert len(open_data(Data(shards=(str(write_tar(tmp_path / "0.tar", members)),)))) == 2


def test_rows_without_a_caption_are_counted_and_said(tmp_path: Path) -> None:
    """A list that is null is none; one that is empty says that nothing was chosen."""
    metas = [{"captions": None, "caption": "a"}, {"captions": [], "caption": "b"}, {"captions": ["c"]}, {"caption": " "}]
    members = [member for n, meta in enumerate(metas) for member in (pairs([n])[0], (f"{n:09d}.json", json.dumps(meta).encode()))]
    index = open_data(Data(shards=(str(write_tar(tmp_path / "0.tar", members)),)))
    assert [index.captions(i) for i in range(len(index))] == [["a"], ["c"]]
    assert (index.said, index.card["without_caption"]) == (["2 rows have no caption and are left out"], 2)


def test_a_file_counts_once_whatever_it_is_called(tmp_path: Path) -> None:
    shard(tmp_path / "0.tar", range(4))
    (tmp_path / "linked.tar").symlink_to(tmp_path / "0.tar")
    (tmp_path / "sub").mkdir()
    names = (str(tmp_path / "0.tar"), str(tmp_path / "sub/../0.tar"), str(tmp_path / "linked.tar"))
    assert len(open_data(Data(shards=names))) == 4
    with pytest.raises(DataError, match=r"no file matches .*, a folder; name its files, as .*/\*\.tar"):
        open_data(Data(shards=(str(tmp_path),)))


@pytest.mark.parametrize("image", ["photo.jpg", {"bytes": b"", "path": "photo.jpg"}, {"file": "photo.jpg"}])
def test_a_table_with_another_kind_of_picture(tmp_path: Path, image: object) -> None:
    pq.write_table(pa.Table.from_pylist([{"image": image, "caption": "a"}]), tmp_path / "t.parquet")
    with pytest.raises(DataError, match="column 'image' is .*, not file, offset and length of a picture"):
        open_data(Data(table=(str(tmp_path / "t.parquet"),), root=str(tmp_path)))
