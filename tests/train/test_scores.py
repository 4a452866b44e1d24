"""A score table lies over the data by uid: what is kept, how often it is seen, which caption it shows."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.train.toys import config, pairs, table, uid_pairs, write_tar
from train.data import open_data
from train.data_settings import Data
from train.errors import DataError
from train.index import Index
from train.order import make_order


def scores(folder: Path, columns: Mapping[str, Any], name: str = "scores.parquet") -> str:
    pq.write_table(pa.table(dict(columns)), folder / name)
    return str(folder / name)


def opened(folder: Path, columns: Mapping[str, Any], *, numbers: Sequence[int] = range(4), missing: str = "drop",
           rank: str | None = None, captions: Mapping[int, list[str]] | None = None) -> Index:
    """Pictures `numbers`, whose uids are u0, u1, … and whose captions c0, c1, …, under these scores."""
    tar = write_tar(folder / "0.tar", uid_pairs(numbers, captions))
    return open_data(Data(shards=(str(tar),), scores=(scores(folder, columns),), missing=missing), rank)


def shown(index: Index) -> list[list[str]]:
    return [index.captions(i) for i in range(len(index))]


def vectors(*rows: Sequence[float]) -> pa.Array:
    """As curate stores embeddings: in half precision, all of one length."""
    flat = pa.array(np.array(rows, np.float16).ravel())
    return pa.FixedSizeListArray.from_arrays(flat, len(rows[0]))


TAUGHT = ("ref_image_emb", "ref_text_emb")


def taught(folder: Path, images: Sequence[Sequence[float]], texts: Sequence[Sequence[float]], *, missing: str = "drop") -> Index:
    """Pictures u0 … u3 and what a teacher made of the first of them."""
    tar = write_tar(folder / "0.tar", uid_pairs(range(4), {1: ["c1"]}))
    columns = {"uid": [f"u{n}" for n in range(len(images))], TAUGHT[0]: vectors(*images), TAUGHT[1]: vectors(*texts)}
    return open_data(Data(shards=(str(tar),), scores=(scores(folder, columns),), missing=missing), None, TAUGHT)


def test_a_teacher_s_embeddings_go_with_their_captions(tmp_path: Path) -> None:
    """The picture's beside the text's, of length 1, whatever their length in the table."""
    index = taught(tmp_path, [(0, 1), (3, 4)], [(1, 0), (0, -2)])
    assert shown(index) == [["c0"], ["c1"]]
    assert index.taught is not None
    np.testing.assert_allclose(index.taught, [[0, 1, 1, 0], [.6, .8, 0, -1]], atol=1e-3)
    assert taught(tmp_path, [(1, 0), (3, 4)], [(1, 0), (0, -2)]).digest != index.digest, "another teacher, another training"


def test_a_teacher_s_embeddings_that_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="2 captions are of rows that the scores do not know"):
        taught(tmp_path, [(0, 1), (3, 4)], [(1, 0), (0, -2)], missing="keep")
    with pytest.raises(DataError, match="no vector of finite numbers"):
        taught(tmp_path, [(0, 1), (0, 0)], [(1, 0), (0, -2)])
    tar = str(write_tar(tmp_path / "1.tar", uid_pairs(range(2))))
    with pytest.raises(DataError, match="no scores have ref_image_emb and ref_text_emb of .*1.tar"):
        open_data(Data(shards=(tar,)), None, TAUGHT)
    with pytest.raises(DataError, match="has no column 'ref_text_emb'"):
        open_data(Data(shards=(tar,), scores=(scores(tmp_path, {"uid": ["u0"], TAUGHT[0]: vectors((0, 1))}),)), None, TAUGHT)
    for images, texts in ((vectors((0, 1)), vectors((0, 1, 2))), (vectors((0, 1, 2)), vectors((0, 1)))):
        with pytest.raises(DataError, match="pictures and texts have . and . numbers"):
            file = scores(tmp_path, {"uid": ["u0"], TAUGHT[0]: images, TAUGHT[1]: texts})
            open_data(Data(shards=(tar,), scores=(file,)), None, TAUGHT)
    several = tuple(scores(tmp_path, {"uid": [f"u{n}"], TAUGHT[0]: vectors(row), TAUGHT[1]: vectors(row)}, f"{n}.parquet")
                    for n, row in enumerate(((0, 1), (0, 1, 2))))
    with pytest.raises(DataError, match="a teacher's embeddings have 2 and 3 numbers"):
        open_data(Data(shards=(tar,), scores=several), None, TAUGHT)
    ragged = pa.array([[1.0], [1.0, 2.0]], pa.list_(pa.float32()))
    for column in (ragged, pa.array([[1.0], None], pa.list_(pa.float32()))):
        with pytest.raises(DataError, match="a row has none, or one of another length"):
            file = scores(tmp_path, {"uid": ["u0", "u1"], TAUGHT[0]: column, TAUGHT[1]: column})
            open_data(Data(shards=(tar,), scores=(file,)), None, TAUGHT)


def test_only_what_is_kept_is_there(tmp_path: Path) -> None:
    index = opened(tmp_path, {"uid": ["u2", "u0", "u3", "u9"], "keep": [True, True, None, True]})
    assert shown(index) == [["c0"], ["c2"]]
    assert index.counts == {"scored": 3, "unscored": 1, "not_kept": 1, "unused_scores": 1}
    assert index.said == ["scores: 3 rows have one, 1 have none; 1 are not kept; 1 scores belong to no row"]


def test_rows_without_a_score_stay_only_where_asked(tmp_path: Path) -> None:
    assert shown(opened(tmp_path, {"uid": ["u1"]})) == [["c1"]]
    assert shown(opened(tmp_path, {"uid": ["u1"]}, missing="keep")) == [["c0"], ["c1"], ["c2"], ["c3"]]


def test_weights_are_of_pictures(tmp_path: Path) -> None:
    index = opened(tmp_path, {"uid": ["u0", "u1", "u2"], "weight": [2.0, 0.0, 0.5]}, missing="keep")
    assert shown(index) == [["c0"], ["c2"], ["c3"]]
    assert index.weight is not None and index.weight.tolist() == [2.0, 0.5, 1.0]


def test_rows_of_one_picture_share_its_turns_by_their_weights(tmp_path: Path) -> None:
    path = table(tmp_path, range(2), {0: ["a", "b"], 1: ["c"]})
    rows = pq.read_table(path)
    pq.write_table(rows.set_column(0, "uid", pa.array(["u0", "u1", "u2"])), path)
    file = scores(tmp_path, {"uid": ["u0", "u1", "u2"], "weight": [3.0, 1.0, 2.0]})
    index = open_data(Data(table=(str(path),), root=str(tmp_path), scores=(file,)))
    assert index.weight is not None and index.weight.tolist() == [3.0, 2.0]
    assert index.chance is not None and index.chance.tolist() == [0.75, 0.25, 1.0]


@pytest.mark.parametrize(("values", "expected"), [
    ([1, None], [["b"], ["c", "d"]]),
    (["new", None], [["new"], ["c", "d"]]),
    ([["x", "y", "x", " "], None], [["x", "y"], ["c", "d"]]),
])
def test_the_choice_of_a_caption(tmp_path: Path, values: list[Any], expected: list[list[str]]) -> None:
    found = opened(tmp_path, {"uid": ["u0", "u1"], "caption": values}, numbers=range(2), captions={0: ["a", "b"], 1: ["c", "d"]})
    assert shown(found) == expected


def test_probabilities_of_captions(tmp_path: Path) -> None:
    index = opened(tmp_path, {"uid": ["u0", "u1"], "caption_probs": [[3, 0, 1], None]}, numbers=range(2),
                   captions={0: ["a", "b", "c"], 1: ["d", "e"]})
    assert shown(index) == [["a", "c"], ["d", "e"]]
    assert index.chance is not None and index.chance.tolist() == [0.75, 0.25, 0.5, 0.5]


def test_the_column_of_a_curriculum_is_the_best_of_a_pictures_rows(tmp_path: Path) -> None:
    index = opened(tmp_path, {"uid": ["u0", "u1", "u2"], "clip_cos": [0.3, None, 0.1]}, missing="keep", rank="clip_cos")
    assert index.rank is not None and np.array_equal(index.rank, [0.3, np.nan, 0.1, np.nan], equal_nan=True)


def test_another_table_is_other_data(tmp_path: Path) -> None:
    base = {"uid": ["u0", "u1", "u2", "u3"], "weight": [1.0, 2.0, 1.0, 1.0], "caption": ["a", "b", "c", "d"],
            "more": [1, 2, 3, 4]}
    digest = opened(tmp_path, base).digest
    turned = {name: values[::-1] for name, values in base.items()}
    assert opened(tmp_path, {**turned, "more": [5, 5, 5, 5]}).digest == digest
    assert opened(tmp_path, {**base, "weight": [1.0, 2.0, 1.0, 1.5]}).digest != digest
    assert opened(tmp_path, {**base, "caption": ["a", "b", "c", "e"]}).digest != digest
    assert opened(tmp_path, {**base, "keep": [True, True, True, False]}).digest != digest


@pytest.mark.parametrize(("columns", "message"), [
    ({"id": ["u0"]}, "has no column 'uid'; did you mean 'id'?"),
    ({"uid": ["u0", None]}, ": a row has no uid"),
    ({"uid": ["u0", "u1", "u0"]}, ": a uid stands twice, first in row 2"),
    ({"uid": ["u8"]}, " knows the uid of none of the 4 rows"),
    ({"uid": ["u0"], "keep": [1]}, ": column 'keep' is int64, not bool"),
    ({"uid": ["u0"], "weight": ["much"]}, ": column 'weight' is string, not number"),
    ({"uid": ["u0"], "weight": [-1.0]}, ": weight: -1.0 in row 0 is not a number of 0 or more"),
    ({"uid": ["u0", "u1"], "weight": [1.0, None]}, ": weight: nan in row 1 is not a number of 0 or more"),
    ({"uid": ["u0"], "caption": [1]}, ": caption 1 in row 0, and the sample has 1"),
    ({"uid": ["u0"], "caption_probs": [[0.5, 0.5]]}, ": row 0: 2 caption_probs for 1 captions"),
    ({"uid": ["u0"], "caption_probs": [[0.0]]}, ": row 0: caption_probs [0.0] are not numbers of 0 or more, one of them above 0"),
])
def test_what_is_no_score_is_refused(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError) as error:
        opened(tmp_path, columns)
    assert str(error.value).startswith(f"{tmp_path}/scores.parquet") and str(error.value).endswith(message)


def test_a_curriculum_needs_its_column(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no column 'clip_cos'; did you mean 'clip_cosine'"):
        opened(tmp_path, {"uid": ["u0"], "clip_cosine": [0.1]}, rank="clip_cos")
    with pytest.raises(DataError, match="no scores say 'clip_cos' of .*0.tar, which the curriculum goes by"):
        open_data(Data(shards=(str(tmp_path / "0.tar"),)), "clip_cos")


@pytest.mark.parametrize(("first", "second"), [
    (pa.array([0], pa.int32()), pa.array([0], pa.int64())),
    (pa.array([["a"]], pa.list_(pa.string())), pa.array([["b"]], pa.large_list(pa.large_string()))),
    (pa.array(["a"], pa.string()), pa.array(["b"], pa.large_string()))])
def test_files_may_have_other_widths(first: pa.Array, second: pa.Array, tmp_path: Path) -> None:
    for n, column in enumerate((first, second)):
        pq.write_table(pa.table({"uid": [f"u{n}"], "caption": column}), tmp_path / f"{n}.parquet")
    write_tar(tmp_path / "0.tar", uid_pairs(range(2)))
    scores = tuple(str(tmp_path / f"{n}.parquet") for n in range(2))
    assert len(open_data(Data(shards=(str(tmp_path / "0.tar"),), scores=scores))) == 2


def test_files_of_other_kinds_are_refused(tmp_path: Path) -> None:
    for n, column in enumerate(([0], ["a"])):
        pq.write_table(pa.table({"uid": [f"u{n}"], "caption": column}), tmp_path / f"{n}.parquet")
    write_tar(tmp_path / "0.tar", uid_pairs(range(2)))
    with pytest.raises(DataError, match="column 'caption' is int64 in one file and large_string in another"):
        open_data(Data(shards=(str(tmp_path / "0.tar"),), scores=tuple(str(tmp_path / f"{n}.parquet") for n in range(2))))


def test_the_weights_of_rows_are_their_shares_of_a_picture(tmp_path: Path) -> None:
    """However many captions each has, and whether their chances are said."""
    metas = [{"uid": "a", "image_id": 7, "captions": ["x", "y", "z"]}, {"uid": "b", "image_id": 7, "captions": ["w"]}]
    members = [member for n, meta in enumerate(metas) for member in (pairs([n])[0], (f"{n:09d}.json", json.dumps(meta).encode()))]
    write_tar(tmp_path / "0.tar", members)
    pq.write_table(pa.table({"uid": ["a", "b"], "weight": [1.0, 1.0]}), tmp_path / "s.parquet")
    index = open_data(Data(shards=(str(tmp_path / "0.tar"),), scores=(str(tmp_path / "s.parquet"),)))
    assert index.chance is not None and index.chance.tolist() == pytest.approx([1 / 6, 1 / 6, 1 / 6, 1 / 2])


def test_an_epoch_is_as_many_pairs_as_there_are_pictures(tmp_path: Path) -> None:
    """Also where one picture is seen more often than the others."""
    write_tar(tmp_path / "0.tar", uid_pairs(range(40)))
    pq.write_table(pa.table({"uid": [f"u{n}" for n in range(40)], "weight": [3.0] + [1.0] * 39}), tmp_path / "s.parquet")
    index = open_data(Data(shards=(str(tmp_path / "0.tar"),), scores=(str(tmp_path / "s.parquet"),)))
    assert make_order(index, config(data="x", batch=8)).steps_per_epoch == 5
