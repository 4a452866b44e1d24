"""pipelines/blip_capfilt.yaml as it is shipped, on a small web, with small random models; what is in shards, report, card."""

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image

from curate import recaptioned
from curate.errors import UserError
from curate.folder import Folder
from curate.pipeline import load
from tests.blips import write_blip
from tests.recipes import file_of, write_rows
from tests.running import exits, run_here, stage, tree, write_pipeline
from tests.site.make import make
from tests.site.server import serve
from tests.train.toys import caption, scene
from train.config import Data
from train.data import open_data
from train.models.blip_folder import digest

ROWS = 16
SETS = ("ref.model=curate-conv-64", "ref.pretrained=random:0", "blip_caption.model=captioner", "blip_match.model=filter",
        "download.allow_private=[127.0.0.0/8]")
SOURCE = "source: {images: photos.csv, path: file, caption: caption, shard_rows: 4}\n"


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with two models and the run of the recipe as `run`."""
    folder = tmp_path_factory.mktemp("capfilt")
    write_blip(folder / "captioner", 0)
    write_blip(folder / "filter", 1)
    make(folder / "site", ROWS, seed=3, mismatch=.2, faults={"http_404": .2})
    for path in sorted((folder / "site/site").rglob("*.jpg")):
        with Image.open(path) as picture:
            picture.convert("RGB").resize((4 * picture.width, 4 * picture.height)).save(path, "JPEG")
    with pytest.MonkeyPatch.context() as patch, serve(folder / "site") as site:
        patch.chdir(folder)
        pool = pq.read_table(site.pool).to_pylist()
        write_rows(folder, [row["url"] for row in pool], [row["caption"] for row in pool])
        folder.joinpath("funnel.json").write_text(json.dumps(run_here(file_of("blip_capfilt"), folder / "run", sets=SETS).funnel))
        yield folder


@pytest.fixture(scope="module")
def rows(here: Path) -> list[dict[str, Any]]:
    """The rows of the only shard."""
    return list(pq.read_table(here / "run/shards/00000.parquet").to_pylist())


def facts(run: Path, step: str) -> dict[str, Any]:
    (done,) = run.glob(f"columns/{step}-*/done.json")
    return dict(json.loads(done.read_text())["facts"])


def test_nothing_is_lost_on_the_way(here: Path, rows: list[dict[str, Any]]) -> None:
    funnel = json.loads((here / "funnel.json").read_text())
    for before, after in zip(funnel, funnel[1:], strict=False):
        assert after["in"] == before["kept"] and after["quarantined"] == after["unknown"] == 0
    found = facts(here / "run", "choose_caption")
    chosen = next(entry for entry in funnel if entry["what"] == "keep num_captions >= 1")
    assert (chosen["in"], chosen["dropped"], chosen["kept"]) == (found["rows"], found["none"], len(rows))
    assert found["web"] + found["synthetic"] + found["both"] == len(rows)
    assert found["captions"] == sum(row["num_captions"] for row in rows)
    assert found["web_judged"] == found["synthetic_judged"] == found["rows"] > len(rows) > 0


def test_what_is_kept_passed_the_filter_and_the_rest_did_not(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        web, made = row["caption_provenance"]
        assert (web["text"], made["text"]) == (row["source_caption"], row["synthetic_captions"][0])
        for text in (web, made):
            assert text["is_chosen"] == (text["itm"] >= 0.5 and not text["faults"]), text
        chosen = sorted((t for t in (web, made) if t["is_chosen"]), key=lambda t: -t["itm"])
        assert row["captions"] == [t["text"] for t in chosen] and row["caption"] == chosen[0]["text"]
        assert row["chosen_clip_cos"] == pytest.approx(chosen[0]["clip_cos"])


def test_every_synthetic_caption_says_who_made_it_and_how(here: Path, rows: list[dict[str, Any]]) -> None:
    assert {row["synthetic_model"] for row in rows} == {digest(str(here / "captioner"))}
    assert {row["synthetic_decoding"] for row in rows} == {
        "nucleus p 0.9, seed 0, 5 to 30 tokens, repetition penalty 1.1, prompt 'a picture of'"}


def test_samples_are_as_neighbours_read_them_and_train_sees_every_caption(here: Path, rows: list[dict[str, Any]]) -> None:
    with tarfile.open(here / "run/shards/00000.tar") as tar:
        members = {m.name: tar.extractfile(m).read() for m in tar}  # type: ignore[union-attr]
    for row in rows:
        sample = json.loads(members[f"{row['key']}.json"])
        assert members[f"{row['key']}.txt"].decode() == sample["caption"] == row["caption"]
        assert (sample["source_caption"], sample["captions"]) == (row["source_caption"], row["captions"])
        assert sample["caption_provenance"] == row["caption_provenance"]
    index = open_data(Data(shards=(str(here / "run/shards/*.tar"),)))
    assert [index.captions(n) for n in range(len(index))] == [row["captions"] for row in rows]


def test_report_and_card_say_how_many_the_filter_rejects(here: Path) -> None:
    found = facts(here / "run", "choose_caption")
    below, judged = found["synthetic_below"], found["synthetic_judged"]
    said = list(recaptioned.lines(Folder.open(here / "run")))
    assert [line.partition(":")[0] for line in said] == ["caption_degenerate", *["choose_caption"] * 3]
    assert f"the filter rejects {below / judged:.1%} of {judged} synthetic captions (ITM below 0.5)" in said[2]
    from curate.pages.page import write
    assert said[2].replace("'", "&#39;") in write(here / "run", "test").read_text()


def test_another_rule_measures_nothing_again(here: Path) -> None:
    before = tree(here / "run", "columns")
    outcome = run_here(file_of("blip_capfilt"), here / "run", sets=(*SETS, "choose_caption.rule=blip2_top2"))
    after = tree(here / "run", "columns")
    assert before.items() <= after.items()
    assert {name.split("/")[1].split("-")[0] for name in after.keys() - before.keys()} == {"choose_caption"}
    assert stage(outcome, "keep num_captions >= 1")["dropped"] == 0


# ---- the same captions, whatever stands around a row

STEPS = ("blip_caption: {model: captioner, candidates: 2}", "blip_match: {model: filter}")


def write_photos(folder: Path, numbers: list[int]) -> None:
    (folder / "pictures").mkdir(exist_ok=True)
    lines = ["file,caption"]
    for n in numbers:
        scene(n).save(folder / f"pictures/{n:03d}.png")
        lines.append(f"pictures/{n:03d}.png,{caption(n) if n % 4 else ''}")
    (folder / "photos.csv").write_text("\n".join(lines) + "\n")


def measured(folder: Path, numbers: list[int], out: str) -> dict[str, dict[str, Any]]:
    write_photos(folder, numbers)
    run_here(write_pipeline(folder, *STEPS, source=SOURCE), folder / out)
    return {row["uid"]: row for row in pq.read_table(folder / out / "subset.parquet").to_pylist()}


def test_a_row_s_captions_and_scores_do_not_depend_on_other_rows(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(here)
    all_of_them, some = measured(here, list(range(6)), "all"), measured(here, [5, 2, 4], "some")
    assert len(some) == 3 and some == {uid: all_of_them[uid] for uid in some}
    without = [row for row in some.values() if not row["caption"]]
    assert [row["itm_web"] for row in without] == [None] and all(len(row["synthetic_captions"]) == 2 for row in without)


# ---- mistakes


@pytest.mark.parametrize(("entry", "said"), [
    ("blip_caption: {model: loop}", "should be a name of Hugging Face's or a folder"),
    ("blip_caption: {min_tokens: 31}", "min_tokens 31 is above max_tokens 30"),
    ("blip_caption: {beams: 3, candidates: 4}", "4 candidates of 3 beams"),
    ("blip_match: {first_token: sep}", "'enc' or 'cls'")])
def test_mistakes_are_found_before_anything_runs(entry: str, said: str, tmp_path: Path) -> None:
    write_photos(tmp_path, [1])
    with pytest.raises(UserError, match=said):
        load(write_pipeline(tmp_path, entry, source=SOURCE))


def test_shards_take_a_column_of_texts_as_caption(tmp_path: Path) -> None:
    write_photos(tmp_path, [1])
    file = write_pipeline(tmp_path, "caption_length", source=SOURCE, after="shards: {caption: num_chars}\n")
    with pytest.raises(UserError, match="shards.caption: 'num_chars' is not a column of texts; there is caption"):
        load(file)
    assert load(write_pipeline(tmp_path, "caption_clean", source=SOURCE, after="shards: {caption: caption_clean}\n"),
                until="caption_clean").shards.caption == "caption_clean"
    late = write_pipeline(tmp_path, "caption_length", "caption_clean", source=SOURCE, after="shards: {caption: caption_clean}\n")
    assert load(late, until="caption_length").shards.caption == "caption", "its shards are packed before the caption is there"


def test_captions_of_the_recipe_leave_by_the_keep_that_says_so(here: Path) -> None:
    outcome = run_here(file_of("blip_capfilt"), here / "run", sets=SETS)
    assert set(exits(outcome)) <= {"status = 'ok'", "num_captions >= 1"}


@pytest.mark.parametrize(("models", "said"), [
    ({"blip_match": "clip"}, "blip_match.model: clip: no BLIP: its config.json is missing, or no BLIP's"),
    ({"blip_match": "writes"}, "blip_match.model: writes learnt by loss: blip_captioner last, and what judges was left behind"),
    ({"blip_caption": "judges"}, "blip_caption.model: judges learnt by loss: blip_filter last, and what writes was left behind")])
def test_a_model_for_something_else_stops_a_run_before_it_begins(models: dict[str, str], said: str, tmp_path: Path,
                                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    """A barrier stands between the steps, so the filter would be looked at when all captions are made."""
    monkeypatch.chdir(tmp_path)
    write_photos(tmp_path, [1, 2])
    for name, loss in (("good", "blip"), ("writes", "blip_captioner"), ("judges", "blip_filter")):
        write_blip(tmp_path / name, 0)
        (tmp_path / name / "train.json").write_text(json.dumps({"model": "blip-toy-32", "settings": {"loss": loss}}))
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip" / "model.safetensors").write_bytes(b"")
    models = {"blip_caption": "good", "blip_match": "good", **models}
    file = write_pipeline(tmp_path, f"blip_caption: {{model: {models['blip_caption']}}}", "caption_degenerate",
                          f"blip_match: {{model: {models['blip_match']}}}", source=SOURCE)
    with pytest.raises(UserError) as error:
        run_here(file, tmp_path / "out")
    assert said in str(error.value)
    assert not (tmp_path / "out" / "columns").exists()
