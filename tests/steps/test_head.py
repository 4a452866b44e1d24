"""The step head, and what all steps with a head share: checked with the pipeline, unknown is never safe, identity by content."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from curate.cards import facts
from curate.errors import UserError
from curate.folder import Folder
from curate.heads.head import Threshold, read
from curate.heads.layers import Linear
from curate.pipeline import load
from curate.step import load_step
from curate.steps.head import Head
from tests.embedded import drawn, make_run
from tests.heads import DIM, write_head
from tests.running import run_here, write_pipeline, write_pool

PICS = [0, 1, 2, -1, 4, 5]      # row 3 has no embedding
EMBED = ["download", "clip_embed: {as: ref, model: curate-conv-64, pretrained: 'random:0'}"]


def test_scores_are_the_head_s(tmp_path: Path) -> None:
    toy = write_head(tmp_path / "toy", column="toy_score", activation="none")
    rows = np.random.default_rng(0).normal(size=(5, DIM)).astype(np.float32)
    rows[2] = 0
    found = Head(file=toy)(rows)
    assert found.type == pa.float32() and found.null_count == 1 and found[2].as_py() is None
    assert np.array_equal(found.to_numpy(zero_copy_only=False), read(toy).scores(rows), equal_nan=True)
    assert load_step("head").columns({"file": toy}) == {"toy_score": pa.float32()}


def test_unknown_is_never_safe(tmp_path: Path) -> None:
    """A head that calls everything safe: the row without an embedding is unknown, and unknown does not pass."""
    harmless = Linear(np.zeros((1, DIM), np.float32), np.array([-9], np.float32))
    toy = write_head(tmp_path / "toy", harmless, column="nsfw_prob")
    folder = Folder.open(make_run(tmp_path / "made", PICS, f"nsfw: {{file: {toy}}}", keep="nsfw_prob < 0.5"))
    table = folder.table(0, ["nsfw_prob"])
    assert table["nsfw_prob"].is_valid().to_pylist() == [True, True, True, False, True, True]
    assert table["state"].to_pylist() == ["kept", "kept", "kept", "unknown", "kept", "kept"]
    inverse = make_run(tmp_path / "inverse", PICS, f"nsfw: {{file: {toy}}}", keep="not (nsfw_prob >= 0.5)")
    assert Folder.open(inverse).table(0, [])["state"].to_pylist()[3] == "unknown"


def test_a_run_stores_what_the_head_gives(tmp_path: Path) -> None:
    """To the bit, in the head's own column, or with a prefix."""
    toy = write_head(tmp_path / "toy", column="toy_score", activation="none")
    folder = Folder.open(make_run(tmp_path / "made", PICS, f"head: {{file: {toy}, as: first}}", f"head: {{file: {toy}}}"))
    table = folder.table(0, ["first_toy_score", "toy_score", "image_emb"])
    assert table["first_toy_score"].equals(table["toy_score"])
    stored = np.stack([np.array(v, np.float16) for v in table["image_emb"].to_pylist() if v is not None]).astype(np.float32)
    assert table["toy_score"].drop_null().to_pylist() == read(toy).scores(stored).tolist()


def test_the_identity_is_the_content(tmp_path: Path) -> None:
    """A head copied elsewhere measures nothing anew; one of other numbers measures again."""
    write_pool(tmp_path, [f"row {n}" for n in range(6)], pic=PICS, n=range(6))
    write_head(tmp_path / "a/toy", column="toy_score")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    write_head(tmp_path / "c/toy", Linear(np.ones((1, DIM), np.float32), np.zeros(1, np.float32)), column="toy_score")
    make_run(tmp_path / "steps", [0])      # leaves the file with the step that draws vectors
    shutil.copy(tmp_path / "steps/steps.py", tmp_path / "steps.py")
    measured = {}
    for name in "abc":
        file = write_pipeline(tmp_path, "./steps.py:embed", f"head: {{file: {tmp_path / name / 'toy'}}}", "keep: toy_score > 0")
        measured[name] = run_here(file, tmp_path / "run").measured["head"]
    assert measured == {"a": 5, "b": 0, "c": 5}


def test_a_card_names_the_head(tmp_path: Path) -> None:
    """With what its maker says of it; and where it is gone, that it is."""
    toy = write_head(tmp_path / "toy", column="toy_score", licence="MIT", threshold=Threshold(drop=0.5))
    folder = Folder.open(make_run(tmp_path / "made", PICS, f"head: {{file: {toy}}}", "caption_length"))
    [found] = facts.heads(folder)
    assert found.value == read(toy).card.sha256
    assert found.what == ("head of 'head' as it lay there when this card was made: toy, calibration none, its maker's thresholds "
                          "drop 0.5, licence MIT; sha256 of its numbers")
    shutil.rmtree(toy)
    assert [h.what for h in facts.heads(folder)] == ["head of 'head', which cannot be read any more"]


def test_another_dimension_stops_the_run(tmp_path: Path) -> None:
    toy = write_head(tmp_path / "toy", dim=5)
    with pytest.raises(UserError) as caught:
        make_run(tmp_path / "made", PICS, f"head: {{file: {toy}}}")
    assert str(caught.value) == "head 'toy' takes embeddings of 5 numbers (curate-conv-64, random:0), these have 16"


# ---- refused with the pipeline, before anything runs


def refused(folder: Path, *entries: str, after: str = "shards: none\n") -> str:
    write_pool(folder, ["a dog"])
    with pytest.raises(UserError) as caught:
        load(write_pipeline(folder, *entries, after=after))
    return str(caught.value).replace(f"{folder}/", "").removeprefix("pipeline.yaml:")


def test_a_missing_head_stops_before_anything_is_computed(tmp_path: Path) -> None:
    assert refused(tmp_path, *EMBED, f"head: {{of: ref, file: {tmp_path / 'gone'}}}") == "5: head.file: no file gone"
    with pytest.raises(UserError, match="no file"):
        make_run(tmp_path / "made", PICS, "nsfw: {file: gone}")
    assert not (tmp_path / "made/run").exists()
    assert refused(tmp_path, *EMBED, "head: {of: ref}") == "5: step 'head' needs the setting 'file'"


def test_a_changed_head_stops_before_anything_is_computed(tmp_path: Path) -> None:
    write_head(tmp_path / "toy")
    data = bytearray((tmp_path / "toy/head.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "toy/head.safetensors").write_bytes(data)
    with pytest.raises(UserError, match="its sha256 is not that of head.safetensors"):
        make_run(tmp_path / "made", PICS, f"head: {{file: {tmp_path / 'toy'}}}")
    assert not (tmp_path / "made/run").exists()


def test_a_head_for_other_embeddings(tmp_path: Path) -> None:
    use = f"{{of: ref, file: {tmp_path / 'toy'}}}"
    write_head(tmp_path / "toy", model="ViT-L-14", pretrained="openai")
    assert refused(tmp_path, *EMBED, f"head: {use}") == (
        "5: step 'head': toy/head.json takes embeddings of ViT-L-14 (openai), these are of curate-conv-64 (random:0); if those "
        "are the same weights by another name, write that name into the file")
    write_head(tmp_path / "toy", pretrained="random:1")
    assert "takes embeddings of curate-conv-64 (random:1), these are of curate-conv-64 (random:0)" in refused(
        tmp_path, *EMBED, f"head: {use}")
    write_head(tmp_path / "toy")
    stages = load(write_pipeline(tmp_path, *EMBED, f"head: {use}")).stages
    assert stages[-1].settings["file"] == tmp_path / "toy/head.json"      # type: ignore[union-attr]


@pytest.mark.parametrize("step", ["head", "nsfw", "aesthetic", "watermark"])
def test_embeddings_of_the_loop(step: str, tmp_path: Path) -> None:
    """A head learnt for one set of weights says nothing once they are trained on."""
    write_head(tmp_path / "toy", column={"aesthetic": "aesthetic_score", "watermark": "watermark_prob"}.get(step, "nsfw_prob"))
    loop = "clip_embed: {as: loop, model: curate-conv-64, pretrained: loop, first: raw}"
    use = f"{step}: {{of: loop, file: {tmp_path / 'toy'}}}"
    said = refused(tmp_path, "download", "held_out", "keep: not held_out", loop, use,
                   after="train: {samples_seen: 1}\nloop: {trainings: 1}\n")
    assert said == (f"7: step '{step}' reads embeddings of the weights that the loop trains; what is learnt for one set of "
                    "weights says nothing of others, so it takes a frozen clip_embed")


@pytest.mark.parametrize("step", ["nsfw", "aesthetic", "watermark"])
def test_a_head_of_another_meaning(step: str, tmp_path: Path) -> None:
    write_head(tmp_path / "toy", column="teapot_prob")
    gives = {"nsfw": "nsfw_prob", "aesthetic": "aesthetic_score", "watermark": "watermark_prob"}[step]
    assert refused(tmp_path, *EMBED, f"{step}: {{of: ref, file: {tmp_path / 'toy'}}}") == (
        f"5: step '{step}': toy/head.json gives teapot_prob, not {gives}; the step head takes any")


def test_drawn_vectors_are_as_long_as_the_toy_head_s() -> None:
    assert drawn(0).shape == (1, DIM)
