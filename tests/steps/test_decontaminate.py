"""Pictures of benchmarks among the rows: found by bytes, by looks, by embedding, and never by what nobody gave."""

import hashlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageEnhance

from curate.certificate import digest_of, lacking
from curate.errors import UserError
from curate.files import read_json
from curate.fingerprint import phash, thumb
from curate.folder import Folder
from curate.measure import to_column
from curate.pipeline import load
from curate.searched import lines
from curate.shards import verify
from curate.sources.locations import content
from curate.step import load_step, vector
from curate.steps.decontaminate import Decontaminate
from curate.tar import TarWriter
from tests.running import exits, run_here, write_pipeline

Answer = tuple[bool | None, str | None, str | None]
CLEAN: Answer = (False, None, None)


def scene(seed: int, size: tuple[int, int] = (96, 72)) -> Image.Image:
    """A picture with structure, another one for every seed."""
    draw = np.random.default_rng(seed)
    return Image.fromarray(draw.integers(0, 256, (6, 8, 3), np.uint8)).resize(size, Image.Resampling.BICUBIC)


def file(picture: Image.Image, kind: str = "PNG", **how: Any) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind, **how)
    return out.getvalue()


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """A folder of three pictures, one in a folder below, beside a text."""
    folder = tmp_path / "coco"
    (folder / "deep").mkdir(parents=True)
    for seed in (1, 2):
        (folder / f"{seed}.png").write_bytes(file(scene(seed)))
    (folder / "deep" / "3.PNG").write_bytes(file(scene(3)))
    (folder / "labels.txt").write_text("cat dog")
    return folder


@pytest.fixture
def flickr(tmp_path: Path) -> Path:
    """A tar of two pictures with captions."""
    path = tmp_path / "flickr.tar"
    with open(path, "wb") as out:
        writer = TarWriter(out)
        for seed in (11, 12):
            writer.add(f"{seed}.png", file(scene(seed)))
            writer.add(f"{seed}.txt", b"a scene")
        writer.close()
    return path


def measure(step: Decontaminate, *pictures: bytes, came: list[str | None] | None = None, emb: Any = None) -> list[Answer]:
    decoded = [Image.open(io.BytesIO(data)).convert("RGB") for data in pictures]
    stored = pa.array([hashlib.sha256(data).hexdigest() for data in pictures])
    found = step([phash(p) for p in decoded], [thumb(p) for p in decoded], stored,
                 pa.array(came, pa.string()) if came else None, None if emb is None else to_column(emb, vector))
    columns = (found[name].to_pylist() for name in ("contaminated", "contaminated_by", "contaminated_how"))
    return list(zip(*columns, strict=True))


def against(value: Any) -> dict[str, str]:
    checked: dict[str, str] = load_step("decontaminate").settings["against"].check(value)
    return checked


def test_bytes_and_looks(coco: Path, flickr: Path) -> None:
    step = Decontaminate(against=against([str(coco), str(flickr)]))
    light = file(ImageEnhance.Brightness(scene(2)).enhance(1.05), "JPEG", quality=60)
    assert measure(step, file(scene(1)), file(scene(3), "JPEG", quality=40), light, file(scene(12)), file(scene(5))) == [
        (True, "coco", "bytes"), (True, "coco", "hash"), (True, "coco", "hash"), (True, "flickr", "bytes"), CLEAN]


def test_bytes_alone(coco: Path) -> None:
    step = Decontaminate(against=against(str(coco)), hash_bits=None)
    assert measure(step, file(scene(1)), file(scene(1), "JPEG")) == [(True, "coco", "bytes"), CLEAN]


def test_looks_alone(coco: Path) -> None:
    step = Decontaminate(against=against(str(coco)), bytes=False)
    assert measure(step, file(scene(1))) == [(True, "coco", "hash")]


def test_the_file_as_it_came_counts_whatever_was_made_of_it(coco: Path) -> None:
    """download stores another file; its sha256 is that of the one that came."""
    step = Decontaminate(against=against(str(coco)), hash_bits=None)
    came = hashlib.sha256((coco / "2.png").read_bytes()).hexdigest()
    assert measure(step, file(scene(2), "JPEG"), file(scene(1)), file(scene(1), "JPEG"), came=[came, None, None]) == [
        (True, "coco", "bytes"), (True, "coco", "bytes"), CLEAN]


def test_the_same_structure_in_other_colours_is_another_picture(coco: Path) -> None:
    red, green, blue = scene(1).split()
    swapped = Image.merge("RGB", (Image.eval(red, lambda v: v // 2), green, blue))
    step = Decontaminate(against=against(str(coco)), hash_bits=8)
    assert measure(step, file(swapped)) == [CLEAN]


@pytest.mark.parametrize("bits", range(9))
def test_every_distance_up_to_hash_bits_is_found_wherever_the_bits_lie(bits: int, coco: Path) -> None:
    step = Decontaminate(against=against(str(coco)), hash_bits=bits, bytes=False)
    own, colours, draw = int(phash(scene(1)), 16), thumb(scene(1)), np.random.default_rng(bits)
    flips = [sum(1 << int(bit) for bit in draw.choice(64, bits + i % 2, replace=False)) for i in range(100)]
    found = step([f"{own ^ flip:016x}" for flip in flips], [colours] * 100, pa.array(["0"] * 100), None, None)
    assert found["contaminated"].to_pylist() == [True, False] * 50


def test_the_first_benchmark_is_named_and_bytes_come_first(coco: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.jpg").write_bytes(file(scene(1), "JPEG", quality=95))
    (tmp_path / "other" / "b.png").write_bytes(file(scene(2)))
    step = Decontaminate(against=against({"mine": str(tmp_path / "other"), "theirs": str(coco)}))
    assert measure(step, file(scene(1)), file(scene(2)), file(scene(3))) == [
        (True, "theirs", "bytes"), (True, "mine", "bytes"), (True, "theirs", "bytes")]


# ---- embeddings


@pytest.fixture
def embedded(tmp_path: Path) -> dict[str, str]:
    """Embeddings of two benchmarks, one as clip-retrieval lays them out."""
    (tmp_path / "coco_emb" / "img_emb").mkdir(parents=True)
    (tmp_path / "coco_emb" / "text_emb").mkdir()
    np.save(tmp_path / "coco_emb" / "img_emb" / "img_emb_0.npy", np.array([[3, 4], [0, 0]], np.float16))
    np.save(tmp_path / "coco_emb" / "text_emb" / "text_emb_0.npy", np.array([[1, 0]], np.float16))
    np.save(tmp_path / "flickr.npy", np.array([[0, -2]], np.float32))
    return {"coco": str(tmp_path / "coco_emb"), "flickr": str(tmp_path / "flickr.npy")}


def test_embeddings(coco: Path, flickr: Path, embedded: dict[str, str]) -> None:
    step = Decontaminate(against=against([str(coco), str(flickr)]), cos=0.96, embeddings=embedded)
    other = file(scene(9))
    assert measure(step, other, other, other, file(scene(1)), emb=[[4, 3], [1, 0], [0, -1], [0, -1]]) == [
        (True, "coco", "embedding"), CLEAN, (True, "flickr", "embedding"), (True, "coco", "bytes")]


def test_a_threshold_is_reached_by_what_lies_on_it(coco: Path, embedded: dict[str, str]) -> None:
    """(4, 3) and (3, 4) are 24/25 apart."""
    for cos, hit in ((0.96, True), (0.9601, False)):
        step = Decontaminate(against=against(str(coco)), cos=cos, embeddings={"coco": embedded["coco"]})
        assert [a[0] for a in measure(step, file(scene(9)), emb=[[4, 3]])] == [hit]


def test_without_an_embedding_nobody_is_called_clean(coco: Path, embedded: dict[str, str]) -> None:
    step = Decontaminate(against=against(str(coco)), cos=0.96, embeddings={"coco": embedded["coco"]})
    other = file(scene(9))
    nan = float("nan")
    assert measure(step, other, other, other, file(scene(1)), other, emb=[None, [0, 0], [nan, 1], None, [1, 0]]) == [
        (None, None, None), (None, None, None), (None, None, None), (True, "coco", "bytes"), CLEAN]
    assert measure(step, other, file(scene(1)), emb=[None, None]) == [(None, None, None), (True, "coco", "bytes")]


def test_embeddings_of_another_size_are_a_mistake(coco: Path, embedded: dict[str, str]) -> None:
    step = Decontaminate(against=against(str(coco)), cos=0.96, embeddings={"coco": embedded["coco"]})
    with pytest.raises(UserError, match="^step 'decontaminate': image_emb has 3 numbers and the benchmark's 2$"):
        measure(step, file(scene(9)), emb=[[1, 0, 0]])
    with pytest.raises(UserError, match="^step 'decontaminate': cos needs the column image_emb; put a frozen"):
        measure(step, file(scene(9)))


# ---- what is given


@pytest.mark.parametrize(("value", "named"), [
    ("data/coco", {"coco": "data/coco"}), ("data/coco/", {"coco": "data/coco/"}),
    ("a/flickr/*.tar", {"flickr": "a/flickr/*.tar"}),
    (["x/a.tar", "y/b"], {"a": "x/a.tar", "b": "y/b"}), ({"one": "x"}, {"one": "x"}),
])
def test_names(value: Any, named: Mapping[str, str]) -> None:
    assert against(value) == named


@pytest.mark.parametrize("value", [3, ["x/a", "y/a"], [1], ""])
def test_what_is_no_name(value: Any) -> None:
    with pytest.raises(ValueError, match="should be a"):
        against(value)


def test_contents_and_names_count_places_do_not(coco: Path, tmp_path: Path) -> None:
    before = content({"coco": str(coco)})
    moved = (coco / "1.png").rename(coco / "z.png")
    coco.rename(tmp_path / "elsewhere")
    assert content({"coco": str(tmp_path / "elsewhere")}) == before != content({"other": str(tmp_path / "elsewhere")})
    (tmp_path / "elsewhere" / moved.name).write_bytes(file(scene(99)))
    assert content({"coco": str(tmp_path / "elsewhere")}) != before


def test_a_benchmark_that_cannot_be_looked_for_is_a_mistake(coco: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="^benchmark 'x': .*/labels.txt holds no picture$"):
        Decontaminate(against={"x": str(coco / "labels.txt")})
    (coco / "bad.jpg").write_bytes(b"<html>")
    with pytest.raises(UserError, match=r"/bad.jpg cannot be decoded \(wrong_type\), so nothing like it could be found"):
        Decontaminate(against={"x": str(coco)})
    assert measure(Decontaminate(against={"x": str(coco)}, hash_bits=None), file(scene(1))) == [(True, "x", "bytes")]
    (tmp_path / "cut.tar").write_bytes(b"x" * 1000)
    with pytest.raises(UserError, match=r"^.*/cut.tar: "):
        Decontaminate(against={"x": str(tmp_path / "cut.tar")})


SOURCE = "source: {images: pool}\n"


def pool(folder: Path) -> None:
    """Six pictures: two of coco's, one of them as a JPEG."""
    (folder / "pool").mkdir()
    for seed in (1, 5, 6, 7, 8):
        (folder / "pool" / f"{seed}.png").write_bytes(file(scene(seed)))
    (folder / "pool" / "2.jpg").write_bytes(file(scene(2), "JPEG", quality=50))
    for picture in list((folder / "pool").iterdir()):
        picture.with_suffix(".txt").write_text("a scene")


def test_in_a_pipeline(coco: Path, tmp_path: Path) -> None:
    pool(tmp_path)
    steps = ("image_hash", f"decontaminate: {{against: {{coco: {coco}}}}}", "keep: not contaminated")
    outcome = run_here(write_pipeline(tmp_path, *steps, source=SOURCE, after=""), tmp_path / "out")
    assert exits(outcome) == {"not contaminated": 2}
    assert outcome.funnel[-1]["kept"] == 4


@pytest.mark.parametrize(("settings", "message"), [
    ("bytes: false, hash_bits: null", "step 'decontaminate' compares nothing: it takes bytes: true, hash_bits: 4, cos: 0.975"),
    ("embeddings: {cocoa: COCO}", "step 'decontaminate': embeddings of 'cocoa'; did you mean 'coco'?"),
    ("cos: 0.975", "step 'decontaminate': nothing says which model made image_emb, so 'coco' cannot be embedded; give model and"),
])
def test_mistakes_are_found_before_anything_runs(settings: str, message: str, coco: Path, tmp_path: Path) -> None:
    pool(tmp_path)
    settings = settings.replace("COCO", str(coco))
    file = write_pipeline(tmp_path, "image_hash", f"decontaminate: {{against: {{coco: {coco}}}, {settings}}}", source=SOURCE)
    with pytest.raises(UserError) as mistake:
        load(file)
    assert str(mistake.value).startswith(f"{file}:4: {message}")


def test_the_model_is_that_of_the_embeddings_that_are_read(coco: Path, tmp_path: Path) -> None:
    pool(tmp_path)
    steps = ["image_hash", "clip_embed: {model: curate-conv-64, pretrained: 'random:3'}",
             f"decontaminate: {{against: {{coco: {coco}}}, hash_bits: null, bytes: false, cos: 0.999}}"]
    file = write_pipeline(tmp_path, *steps, source=SOURCE)
    found = load(file).stages[-1].settings  # type: ignore[union-attr]
    assert (found["model"], found["pretrained"]) == ("curate-conv-64", "random:3")
    other = steps[2].replace("cos:", "model: ViT-B-32, pretrained: openai, cos:")
    wrong = write_pipeline(tmp_path, *steps[:2], other, source=SOURCE)
    with pytest.raises(UserError, match="step 'decontaminate': ViT-B-32 openai for embeddings of curate-conv-64 random:3"):
        load(wrong)


@pytest.mark.slow
def test_pictures_are_embedded_by_the_same_model(coco: Path, tmp_path: Path) -> None:
    pool(tmp_path)
    file = write_pipeline(
        tmp_path, "image_hash", "clip_embed: {model: curate-conv-64, pretrained: 'random:3'}",
        f"decontaminate: {{against: {{coco: {coco}}}, hash_bits: null, bytes: false, cos: 1.0}}", "keep: not contaminated",
        source=SOURCE, after="")
    outcome = run_here(file, tmp_path / "out")
    assert exits(outcome) == {"not contaminated": 1}      # to the last bit the picture itself, and not the JPEG of the other


# ---- the certificate


def certified(folder: Path, coco: Path, *keeps: str) -> list[dict[str, Any]]:
    pool(folder)
    steps = ("image_hash", f"decontaminate: {{against: {{coco: {coco}}}}}", *keeps)
    run_here(write_pipeline(folder, *steps, source=SOURCE, after=""), folder / "out")
    assert not list(verify(folder / "out" / "shards"))
    entries: list[dict[str, Any]] = read_json(folder / "out" / "shards" / "manifest.json").get("decontaminated", [])
    assert read_json(folder / "out" / "run.json").get("decontaminated", []) == entries
    return entries


def test_the_manifest_says_against_what_the_rows_were_checked(coco: Path, tmp_path: Path) -> None:
    assert certified(tmp_path, coco, "keep: caption != 'x' or not contaminated", "keep: caption != '' and not contaminated") == [
        {"benchmark": "coco", "digest": digest_of(str(coco)), "keep": "not contaminated", "bytes": True, "hash_bits": 4,
         "max_levels": 24}]
    found = list(lines(Folder.open(tmp_path / "out")))
    assert found == [("decontaminate: 2 rows show a picture of the benchmark coco (the same bytes, phash within 4 bits), "
                      "0 of them were kept. Certificate: `not contaminated`, content digest of the benchmark "
                      f"{digest_of(str(coco))}.")]


@pytest.mark.parametrize("keep", ["contaminated or not contaminated", "caption != ''", "contaminated"])
def test_what_lets_benchmarks_pass_is_not_certified(keep: str, coco: Path, tmp_path: Path) -> None:
    assert certified(tmp_path, coco, f"keep: {keep}") == []
    assert " No certificate: no keep stops them." in next(lines(Folder.open(tmp_path / "out")))


def test_who_evaluates_is_told_what_the_data_was_not_checked_for(coco: Path, flickr: Path) -> None:
    entries = [{"benchmark": "coco", "digest": digest_of(str(coco))}]
    assert list(lacking(entries, [str(coco)])) == []
    assert list(lacking(entries, [str(coco), str(flickr)])) == [
        f"the training data was checked for the pictures of coco, not for those of {flickr}"]
    assert list(lacking(None, [str(coco)])) == [
        f"nothing says that the training data was checked for the pictures of {coco}: decontaminate, keep: not contaminated"]


def test_the_trainer_takes_it_from_the_manifests_beside_its_tars(tmp_path: Path) -> None:
    from train.config import Data
    from train.data import decontaminated

    one, two = {"benchmark": "coco", "digest": "1"}, {"benchmark": "flickr", "digest": "2"}
    for name, entries in (("a", [one, two]), ("b", [two])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.tar").touch()
        (tmp_path / name / "manifest.json").write_text(json.dumps({"shards": [{"file": "0.tar"}], "decontaminated": entries}))
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "0.tar").touch()
    assert decontaminated(Data(shards=(str(tmp_path / "a/*.tar"),))) == {"decontaminated": [one, two]}
    assert decontaminated(Data(shards=(str(tmp_path / "a/*.tar"), str(tmp_path / "b/0.tar")))) == {"decontaminated": [two]}
    assert decontaminated(Data(shards=(str(tmp_path / "[abc]/*.tar"),))) == {}
    known = pa.schema([("caption", pa.string())], {"decontaminated": json.dumps([two, one])})
    for name, schema in (("known", known), ("unknown", known.remove_metadata())):
        pq.write_table(pa.table({"caption": ["a"]}, schema=schema), tmp_path / f"{name}.parquet")
    tables = tuple(str(tmp_path / f"{name}.parquet") for name in ("known", "unknown"))
    assert decontaminated(Data(table=tables[:1])) == {"decontaminated": [two, one]}
    assert decontaminated(Data(table=tables)) == decontaminated(Data(table=tables[1:])) == {}
