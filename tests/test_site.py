"""The faulty site as it is made: the same bytes from the same seed, right captions, faults in exact number."""

import json
import tarfile
from collections import Counter
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from curate.steps.language import Language
from tests.site import captions, scenes
from tests.site.attributes import attribute_accuracy, mentions
from tests.site.draw import render
from tests.site.faults import FAULTS, NOINDEX, NOT_OPT_OUT, OPT_OUT, SHARING, STATUS, TWINS, planted
from tests.site.make import make, settings
from tests.site.routes import load, pool_for, truth
from tests.site.shards import write_shards

ROWS = 250


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("site")
    make(path, ROWS)
    return path


def all_bytes(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- scenes and pictures


def test_a_scene_depends_on_its_two_numbers_only() -> None:
    again = [scenes.scene(3, i) for i in (5, 1)]
    assert again == [scenes.scene(3, 5), scenes.scene(3, 1)]
    assert len({scenes.scene(seed, i).groups for seed in (0, 1) for i in range(50)}) > 95


def test_every_scene_can_be_told_apart_by_eye() -> None:
    for scene in (scenes.scene(0, i) for i in range(1000)):
        background = scenes.BACKGROUNDS[scene.background]
        assert all(scenes.contrast(scenes.COLOURS[g.colour], background) >= scenes.CONTRAST for g in scene.groups), scene
        assert len({g.shape for g in scene.groups}) == len({g.colour for g in scene.groups}) == len(scene.groups), scene
        assert len(scene.groups) == {None: 1, "between": 3}.get(scene.relation, 2), scene
        assert max(scene.width_px, scene.height_px) <= 1.5 * min(scene.width_px, scene.height_px) + 1, scene
        assert min(scene.width_px, scene.height_px) in range(128, 161), scene


def test_every_scene_can_be_drawn() -> None:
    for index in range(60):
        scene = scenes.scene(1, index)
        picture = render(scene)
        assert (picture.mode, picture.size) == ("RGB", (scene.width_px, scene.height_px))
        assert picture.tobytes() == render(scene).tobytes()


def test_the_picture_shows_its_colour() -> None:
    """A plain shape that has the picture to itself: its colour is there, over a good part of the area its size promises."""
    alone = [s for s in (scenes.scene(2, i) for i in range(400)) if s.relation is None and s.groups[0].texture == "plain"]
    for scene in alone[:12]:
        wanted = np.array(scenes.COLOURS[scene.groups[0].colour])
        near = np.abs(np.asarray(render(scene)).astype(int) - wanted).sum(axis=2) < 110
        assert near.sum() > 200 * scene.groups[0].count, scene


# --- captions


def test_captions_are_different_and_a_longer_list_begins_with_the_shorter() -> None:
    for scene in (scenes.scene(0, i) for i in range(200)):
        texts = captions.captions(scene, 5)
        assert texts[:2] == captions.captions(scene, 2)
        assert len({captions.plain(t) for t in texts}) == 5
        assert all(5 <= len(t.split()) <= 20 for t in texts)


def test_a_caption_names_the_colour_and_the_shape_of_every_group() -> None:
    for scene in (scenes.scene(0, i) for i in range(300)):
        for text in captions.captions(scene, 3):
            for group in scene.groups:
                assert any(word in text.lower() for word in captions.COLOURS.get(group.colour, (group.colour,))), text
                assert any(word in text.lower() for word in captions.SHAPES.get(group.shape, (group.shape,))), text


def test_captions_pass_for_english_and_foreign_ones_for_what_they_are() -> None:
    clean = Counter(captions.language(text) for i in range(1500) for text in captions.captions(scenes.scene(0, i), 2))
    assert clean["en"] >= .999 * clean.total(), clean
    for said, (pattern, firsts, ways, seconds) in captions.FOREIGN.items():
        texts = [pattern.format(a=a, way=way, b=b) for a, way, b in product(firsts, ways, seconds)]
        assert [text for text in texts if captions.language(text) != said] == []


# --- what is made


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    make(tmp_path / "again", ROWS)
    make(tmp_path / "other", ROWS, seed=1)
    port = load(folder).port
    pool_for(tmp_path / "again", port)
    assert all_bytes(tmp_path / "again") == all_bytes(folder)
    assert pq.read_table(tmp_path / "other/pool.parquet") != pq.read_table(folder / "pool.parquet")


def test_making_anew_leaves_nothing_of_the_old_site(tmp_path: Path) -> None:
    make(tmp_path, 30, faults={})
    make(tmp_path, 20, mismatch=0, faults={})
    assert len(list((tmp_path / "site").iterdir())) == 20
    assert load(tmp_path).settings == settings(20, 0, 0, {})


@pytest.mark.parametrize(("rows", "mismatch"), [(ROWS, .3), (3000, .3), (20_000, .1)])
def test_shares_become_exact_numbers(rows: int, mismatch: float) -> None:
    counts = planted(rows, {**FAULTS, "mismatched": mismatch})
    assert sum(counts.values()) == rows
    assert counts["mismatched"] == round(mismatch * rows)
    assert counts["bomb"] == max(1, round(.001 * rows))


def test_the_default_site_has_these_numbers() -> None:
    assert planted(3000, FAULTS) == {
        "mismatched": 900, "boilerplate": 90, "frequent_text": 60, "repeated_words": 45, "shouting": 45, "foreign": 60,
        "exact_dup": 60, "near_dup": 90, "shared_url": 90, "repeated_row": 30, "tiny": 30, "stretched": 30, "html": 15,
        "truncated": 15, "bomb": 3, "dead_404": 30, "gone_410": 15, "flaky_500": 15, "busy_429": 15, "drip": 3, "endless": 3,
        "opt_out": 18, "noindex": 9, "not_opt_out": 15, "redirect": 18, "redirect_loop": 3, "redirect_private": 3,
        "redirect_file": 3, "clean": 1287}


def test_too_many_faults_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^100 rows: 80 faults leave 20 clean ones, and 50 rows each copy one$"):
        planted(100, {"exact_dup": .5, "tiny": .3})


def test_the_tables_hold_what_was_counted(folder: Path, tmp_path: Path) -> None:
    counts = make(tmp_path, ROWS)
    rows = truth(folder)
    assert counts.rows == len(rows) == ROWS
    assert counts.kinds == Counter(row["kind"] for row in rows) == planted(ROWS, FAULTS)
    sizes = [file.stat().st_size for file in (tmp_path / "site").iterdir()]
    assert (counts.files, counts.num_bytes) == (len(sizes), sum(sizes))
    pool = pq.read_table(folder / "pool.parquet")
    assert pool.column_names == ["url", "caption", "page_lang"]
    assert pool.to_pylist() == [{name: row[name] for name in pool.column_names} for row in rows]
    assert {row["kind"]: row["expected_status"] for row in rows} == {kind: STATUS.get(kind, "ok") for kind in counts.kinds}


def test_captions_are_right_or_wrong_as_the_truth_says(folder: Path) -> None:
    seen = Counter[str]()
    for row in truth(folder):
        shown = scenes.scene(0, row["scene"])
        assert row["groups"] == [vars(group) for group in shown.groups]
        if row["kind"] == "mismatched":
            assert not scenes.scene(0, row["caption_scene"]).things() & shown.things()
        elif row["kind"] in ("boilerplate", "frequent_text", "foreign", "repeated_words"):
            assert row["caption_scene"] is None
        else:
            assert row["caption_scene"] == row["scene"]
        if row["kind"] not in ("boilerplate", "frequent_text", "foreign", "repeated_row"):
            seen[captions.plain(row["caption"])] += 1
    assert max(seen.values()) == 1
    assert {row["caption"] for row in truth(folder, "frequent_text")} == {captions.FREQUENT}
    assert all(row["caption"].isupper() or "!!!" in row["caption"] for row in truth(folder, "shouting"))
    assert all(len(set(row["caption"].split())) == 1 for row in truth(folder, "repeated_words"))
    assert {row["page_lang"] for row in truth(folder, "foreign")} <= set(captions.FOREIGN)


def test_the_language_step_finds_the_foreign_rows_and_no_others(folder: Path) -> None:
    rows = [row for row in truth(folder) if row["kind"] not in ("boilerplate", "repeated_words", "shouting")]
    found = Language()([row["caption"] for row in rows])["lang"]
    assert [row["detail"] if row["kind"] == "foreign" else "en" for row in rows] == found


def test_twins_have_a_clean_row_of_their_own(folder: Path) -> None:
    clean = {row["url"]: row for row in truth(folder, "clean")}
    twins = [row for row in truth(folder) if row["twin_of"]]
    assert {row["kind"] for row in twins} == set(TWINS)
    assert len({row["twin_of"] for row in twins}) == len(twins)
    for row in twins:
        base = clean[row["twin_of"]]
        assert (row["url"] == base["url"]) is (row["kind"] in SHARING)
        assert (row["caption"] == base["caption"]) is (row["kind"] == "repeated_row")
        assert row["scene"] == base["scene"]


def test_every_spelling_is_planted_in_the_default_site() -> None:
    counts = planted(3000, FAULTS)
    assert counts["opt_out"] >= len(OPT_OUT) and counts["noindex"] >= len(NOINDEX) and counts["not_opt_out"] >= len(NOT_OPT_OUT)


# --- attributes


def test_right_captions_name_all_that_is_there_and_nothing_else() -> None:
    said = [(text, scenes.scene(0, i)) for i in range(300) for text in captions.captions(scenes.scene(0, i), 5)]
    assert all(set(mentions(text)) == shown.things() for text, shown in said)
    assert set(attribute_accuracy(said).values()) == {1.0}


def test_wrong_captions_are_told_from_right_ones() -> None:
    assert mentions("Two small red circles with stripes over a striped violet crescent moon.") == [
        ("red", "circle"), ("purple", "moon")]
    assert mentions("a ring on a red background, red red and a hoop") == []
    shown = next(s for s in map(partial(scenes.scene, 0), range(100)) if len(s.groups) == 2)
    (colour, shape), other = sorted(shown.things())[0], next(s for s in scenes.SHAPES if s not in {g.shape for g in shown.groups})
    said = [(f"a {colour} {shape}", shown), (f"a {colour} {other} above a {colour} {shape}", shown), ("a picture", shown)]
    assert attribute_accuracy(said) == {"attribute_precision": 2 / 3, "colour_precision": 1.0, "shape_precision": 2 / 3,
                                        "attribute_recall": 2 / 6, "faultless_share": 1 / 3}


def test_shards_of_scenes(tmp_path: Path) -> None:
    assert write_shards(tmp_path / "set", [7, 8, 9], texts=3, rows=2) == str(tmp_path / "set/*.tar")
    names, said = [], []
    for path in sorted((tmp_path / "set").iterdir()):
        with tarfile.open(path) as archive:
            names += archive.getnames()
            said += [json.loads(archive.extractfile(name).read()) for name in archive.getnames() if name.endswith("json")]
    assert names == [f"{n:09d}.{kind}" for n in (7, 8, 9) for kind in ("jpg", "json", "txt")]
    assert [meta["captions"] for meta in said] == [captions.captions(scenes.scene(0, n), 3) for n in (7, 8, 9)]
