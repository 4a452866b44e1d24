"""`curate index`: everything embedded is in it once, its recall is measured, it is the same bytes twice, damage is noticed."""

import io
import json
import shutil
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curate import index
from curate.cli import main
from curate.errors import UserError
from curate.folder import Folder
from curate.index import Matrix, Space
from curate.retrieval.search import Request, Searcher
from curate.store import REMOVED
from tests.embedded import DIMS, drawn, indexed, make_run
from tests.running import run_here, tree, write_pipeline

PICS = [n // 2 if n < 100 else n for n in range(250)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 250 rows, the first hundred in pairs of one picture; 200 are kept."""
    root = make_run(tmp_path_factory.mktemp("made"), PICS, keep="n < 200", price=[n / 10 for n in range(250)])
    indexed(root)
    return root


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    return shutil.copytree(made, tmp_path / "run")


def vectors(rows: int, seed: int = 0) -> Matrix:
    """Points around 40 centres."""
    rng = np.random.default_rng(seed)
    return index.unit(rng.standard_normal((40, 24))[rng.integers(0, 40, rows)] + 0.5 * rng.standard_normal((rows, 24)))


def built(points: Matrix, *, recall: float = 0.95, flat_values: int = 0, chunk: int = 700) -> index.Built:
    """An index of points, in lists unless `flat_values` says otherwise."""
    def chunks() -> "object":
        return (points[at : at + chunk] for at in range(0, len(points), chunk))
    return index.build(chunks, len(points), points.shape[1], {"image": points[:100]}, recall, flat_values)  # type: ignore[arg-type]


def test_a_small_index_is_exact_and_a_large_one_in_lists() -> None:
    points = vectors(4000)
    assert (built(points, flat_values=10**6).kind, built(points).kind) == ("flat", "ivf")
    assert index.num_lists(1_000_000) == 2048 and index.num_lists(200_000) == 1024


def test_recall_is_that_of_brute_force() -> None:
    points = vectors(4000)
    made = built(points, recall=0.9)
    exact = np.argsort(-(points[:100] @ points.T), axis=1, kind="stable")[:, :40]
    found = made.index.search(points[:100], 40)[1]
    share = np.mean([len(set(a) & set(b)) / 40 for a, b in zip(exact.tolist(), found.tolist(), strict=True)])
    assert made.recall["value"] == pytest.approx(share, abs=1e-4) and share >= 0.9
    assert built(points, flat_values=10**6).recall["value"] == 1.0


def test_more_recall_takes_more_lists_and_everything_finds_everything() -> None:
    points = vectors(4000)
    few, many, every = (built(points, recall=r) for r in (0.5, 0.98, 1.0))
    assert few.parameters["probes"] < many.parameters["probes"] <= every.parameters["probes"]
    assert every.recall["value"] == 1.0


def test_a_recall_that_nothing_reaches_is_refused() -> None:
    with pytest.raises(UserError, match=r"finds 1\.0000 of the 40 nearest even when it looks at everything, and should"):
        built(vectors(500), recall=1.01)


@pytest.mark.parametrize("flat_values", [0, 10**6])
def test_the_same_vectors_give_the_same_bytes(flat_values: int) -> None:
    def written(chunk: int) -> bytes:
        file = io.BytesIO()
        index.write(built(vectors(2000), flat_values=flat_values, chunk=chunk), file)
        return file.getvalue()
    assert written(700) == written(700)


def test_positions_and_vectors_come_back_exactly(tmp_path: Path) -> None:
    points = vectors(2000)
    for flat_values in (0, 10**6):
        made = built(points, flat_values=flat_values)
        with open(tmp_path / "x.faiss", "wb") as file:
            index.write(made, file)
        space = Space.open(tmp_path / "x.faiss", {"kind": made.kind, "dims": 24, "vectors": 2000})
        assert (space.vectors(np.arange(2000)) == points).all()
        some = np.zeros(2000, bool)
        some[::50] = True
        found, score = space.search(points[3], 100, space.lists, index.selector(some))
        assert sorted(found) == list(range(0, 2000, 50)) and (np.diff(score) <= 0).all()
        assert set(space.above(points[3], 0.9)) <= set(np.flatnonzero(points @ points[3] > 0.9 - 1e-5))


def test_vectors_without_direction_are_nan() -> None:
    rows = np.array([[3, 4], [0, 0], [np.nan, 1], [np.inf, 1], [1e30, 1e30]], np.float64)
    assert np.isfinite(index.unit(rows)).all(axis=1).tolist() == [True, False, False, False, False]
    assert index.unit(rows)[0] == pytest.approx([0.6, 0.8], abs=1e-3)


def test_all_embedded_rows_are_in_it_once(made: Path) -> None:
    table = pq.read_table(made / "index" / "rows.parquet")
    assert table["n"].to_pylist() == list(range(250))
    assert table["state"].to_pylist() == ["kept"] * 200 + ["dropped"] * 50
    assert set(table["reason"].to_pylist()) == {None, "line 4: n < 200"}
    assert {"uid", "image_id", "caption", "url", "price", "pic"} <= set(table.column_names)
    image = faiss.read_index(str(made / "index" / "image.faiss"))
    assert (image.ntotal, faiss.read_index(str(made / "index" / "text.faiss")).ntotal) == (200, 250)
    found = image.reconstruct_batch(table["_image_vector"].to_numpy().astype(np.int64))
    assert (found == drawn(*PICS)).all()
    assert [len(set(p)) for p in (table["_picture"].to_pylist(), table["_image_vector"].to_pylist())] == [200, 200]


def test_the_manifest_says_what_it_is(made: Path) -> None:
    manifest = json.loads((made / "index" / "index.json").read_text())
    assert (manifest["rows"], manifest["kept"], manifest["same_by"]) == (250, 200, "cosine")
    assert manifest["chain"] == Folder.open(made).chain
    assert manifest["indexes"]["image"]["recall"] == {
        "at": 40, "value": 1.0, "of": {"image": 1.0, "text": 1.0}, "queries": {"image": 100, "text": 100},
        "how": "against brute force over all vectors"}
    assert sorted(manifest["files"]) == ["hits.arrow", "image.faiss", "rows.parquet", "text.faiss"]


def test_the_command_says_what_came_out(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["index", str(root)])
    assert ended.value.code == 0
    recall = "recall@40 1.000 for 100 image queries, 1.000 for 100 text queries"
    assert capsys.readouterr().out.splitlines() == [
        f"image: 250 rows, 200 distinct vectors of {DIMS} numbers; flat; {recall}",
        f"text: 250 rows, 250 distinct vectors of {DIMS} numbers; flat; {recall}",
        f"250 rows, 200 of them kept: {root}/index"]


def test_the_same_run_gives_the_same_bytes(root: Path) -> None:
    for flat_values in (index.FLAT_VALUES, 0):
        shutil.rmtree(root / "index")
        indexed(root, flat_values=flat_values)
        once = tree(root, "index")
        shutil.rmtree(root / "index")
        indexed(root, flat_values=flat_values)
        assert tree(root, "index") == once and len(once) == 5


def test_a_threshold_changed_costs_no_new_training(root: Path, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_here(write_pipeline(made.parent, "./steps.py:embed", "keep: n < 100",
                            source="source: {pairs: pool.parquet, url: url, caption: caption, shard_rows: 100}\n"), root)
    with pytest.raises(UserError, match=r"the run has changed since .* was built; `curate index .*` makes it anew"):
        Searcher.open(root)
    monkeypatch.setattr(index, "build", lambda *_: pytest.fail("trained again"))
    indexed(root)
    assert Searcher.open(root).info["kept"] == 100


@pytest.mark.parametrize("name", ["image.faiss", "text.faiss", "rows.parquet", "hits.arrow"])
@pytest.mark.parametrize("how", ["flipped", "cut", "gone"])
def test_a_damaged_file_is_one_line(root: Path, name: str, how: str) -> None:
    path = root / "index" / name
    data = bytearray(path.read_bytes())
    if how == "flipped":
        data[len(data) // 2] ^= 1
    path.unlink()
    if how != "gone":
        path.write_bytes(data if how == "flipped" else data[: len(data) // 2])
    with pytest.raises(UserError, match=rf"{name} is missing or not as it was written; `curate index .*` makes it anew") as error:
        Searcher.open(root)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"layout": 1}'])
def test_a_damaged_manifest_is_one_line(root: Path, text: str) -> None:
    (root / "index" / "index.json").write_text(text)
    with pytest.raises(UserError, match=r"index\.json is not as it was written"):
        Searcher.open(root)


def test_files_of_another_index_are_refused_even_if_the_manifest_is_signed_again(root: Path) -> None:
    from curate import files

    path = root / "index" / "index.json"
    manifest = json.loads(path.read_text())
    del manifest["digest"]
    shutil.copy(root / "index" / "text.faiss", root / "index" / "image.faiss")
    manifest["files"]["image.faiss"] = manifest["files"]["text.faiss"]
    path.write_text(json.dumps({**manifest, "digest": files.digest(manifest)}))
    with pytest.raises(UserError, match=r"holds \('flat', 16, 250\), and its manifest says \('flat', 16, 200\)"):
        Searcher.open(root)


def test_what_is_no_faiss_index_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "x.faiss").write_bytes(b"none" + bytes(100))
    with pytest.raises(UserError, match=r"is no FAISS index"):
        Space.open(tmp_path / "x.faiss", {"kind": "flat", "dims": 2, "vectors": 2})


def test_an_index_of_another_order_of_rows_is_refused(root: Path) -> None:
    from curate import files

    path = root / "index" / "index.json"
    manifest = json.loads(path.read_text())
    del manifest["digest"]
    manifest["uid_digest"] = "0" * 64
    path.write_text(json.dumps({**manifest, "digest": files.digest(manifest)}))
    with pytest.raises(UserError, match=r"the rows are not those that index\.json tells of"):
        Searcher.open(root)


def test_mistakes_are_one_line(root: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--model reff: the run has no such model"):
        indexed(root, model="reff")
    with pytest.raises(UserError, match=r"--recall 1\.5: a share"):
        indexed(root, recall=1.5)
    shutil.rmtree(root / "index")
    with pytest.raises(UserError, match=r"has no index; `curate index .*` makes it"):
        Searcher.open(root)
    for path in (root / "kept").glob("*/00001.parquet"):
        path.unlink()
    with pytest.raises(UserError, match=r"is not finished; run its pipeline again first"):
        indexed(root)
    with pytest.raises(UserError, match=r"holds no run"):
        indexed(tmp_path)


def test_a_run_of_several_models_needs_a_choice(tmp_path: Path) -> None:
    root = make_run(tmp_path, [0, 1, 2], "./steps.py:embed: {as: ref}", embed="./steps.py:embed: {as: loop}")
    with pytest.raises(UserError, match="choose one: --model loop or ref"):
        indexed(root)
    indexed(root, model="ref")
    assert Searcher.open(root, model="ref").info["rows"] == 3
    with pytest.raises(UserError, match="the index is of 'ref'"):
        Searcher.open(root, model="other")


def test_rows_without_a_picture_are_found_by_their_text(tmp_path: Path) -> None:
    root = make_run(tmp_path, [0, -1, 2])
    said = indexed(root)
    assert said[0].startswith("image: 2 rows") and said[1].startswith("text: 3 rows")
    page = Searcher.open(root).search(Request(where="n = 1"))
    assert [hit.caption for hit in page.hits] == ["row 1"]


def test_rows_taken_down_are_in_no_file(root: Path) -> None:
    path = root / "kept" / Folder.open(root).chain / "00001.parquet"
    kept = pq.read_table(path, partitioning=None)
    state = kept["state"].to_numpy().copy()
    state[50] = REMOVED
    pq.write_table(kept.set_column(0, kept.schema.field(0), pa.array(state)), path)
    indexed(root)
    assert 150 not in pq.read_table(root / "index" / "rows.parquet")["n"].to_pylist()
    assert faiss.read_index(str(root / "index" / "image.faiss")).ntotal == 199
    assert b"row 149" in (root / "index" / "hits.arrow").read_bytes()
    assert b"row 150row" not in (root / "index" / "hits.arrow").read_bytes()


def test_no_embeddings_no_index(tmp_path: Path) -> None:
    pq.write_table(pa.table({"url": ["http://a/1.jpg"], "caption": ["a"]}), tmp_path / "pool.parquet")
    run_here(write_pipeline(tmp_path, "caption_length"), tmp_path / "run")
    with pytest.raises(UserError, match="its pipeline has no clip_embed"):
        indexed(tmp_path / "run")
