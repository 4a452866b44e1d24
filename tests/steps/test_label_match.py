from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from curate.captions.words import stem as stemmed
from curate.errors import UserError
from curate.pipeline import load
from curate.steps import label_match
from curate.steps.label_match import LabelMatch
from tests.running import write_pipeline, write_pool

EMBED = ["download", "clip_embed: {as: ref, model: curate-conv-64, pretrained: 'random:0'}"]


@pytest.fixture
def step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LabelMatch:
    """Four labels, each on an axis of its own; the two likeliest count."""
    (tmp_path / "labels.txt").write_text("dog\ncat\nhot dog\nberries\ndog\n")
    monkeypatch.setattr(label_match, "_embedded", lambda names, model, pretrained: np.eye(len(names), dtype=np.float32))
    return LabelMatch(labels=tmp_path / "labels.txt", top=2, model="toy", pretrained="toy")


def test_a_caption_names_one_of_the_likeliest_labels(step: LabelMatch) -> None:
    """Both likeliest, the likelier first; the third does not count; all words of a label; plural and singular are one."""
    rows = np.array([[.9, .8, .1, 0], [.8, .9, .1, 0], *[[.1, 0, .9, .8]] * 3, [0, 0, 1, 1]], np.float32)
    captions = ["Dogs and a cat.", "dogs and cats", "a dog", "dogs that are hot", "one Berry", "doghouse"]
    found = step(rows, pa.array(captions))
    assert found["num_label_matches"] == [2, 2, 0, 1, 1, 0]
    assert found["label_match"] == ["dog", "cat", None, "hot dog", "berries", None]


def test_without_an_embedding_it_is_unknown(step: LabelMatch) -> None:
    rows = np.array([[0, 0, 0, 0], [np.nan, 0, 0, 1], [1, 0, 0, 0]], np.float32)
    found = step(rows, pa.array(["a dog", "a dog", ""]))
    assert found == {"num_label_matches": [None, None, 0], "label_match": [None, None, None]}
    assert step(np.empty((0, 4), np.float32), pa.array([], pa.string()))["num_label_matches"] == []


@pytest.mark.parametrize(("word", "stem"), [
    ("dogs", "dog"), ("berries", "berry"), ("shoes", "shoe"), ("houses", "house"), ("glass", "glass"), ("bus", "bus"),
    ("gas", "gas"), ("trees", "tree"), ("as", "as")])
def test_harman_s_stemmer(word: str, stem: str) -> None:
    """1991: ies → y, es → e, s → nothing; not after aeo before es, u or s before s. Words of up to 3 letters stay: ours."""
    assert stemmed(word) == stem


def test_it_takes_the_model_whose_embeddings_it_reads(tmp_path: Path) -> None:
    write_pool(tmp_path, ["a dog"])
    (tmp_path / "labels.txt").write_text("dog\n")
    labels = tmp_path / "labels.txt"
    stage = load(write_pipeline(tmp_path, *EMBED, f"label_match: {{of: ref, labels: {labels}}}")).stages[-1]
    assert (stage.settings["model"], stage.settings["pretrained"]) == ("curate-conv-64", "random:0")
    wrong = f"label_match: {{of: ref, labels: {labels}, model: ViT-B-32, pretrained: openai}}"
    with pytest.raises(UserError, match="labels by ViT-B-32 openai for embeddings of curate-conv-64 random:0"):
        load(write_pipeline(tmp_path, *EMBED, wrong))


@pytest.mark.slow
def test_the_text_tower_embeds_the_labels(tmp_path: Path) -> None:
    """A row that is a label's own embedding has that label first."""
    (tmp_path / "labels.txt").write_text("dog\ncat\ntree\n")
    real = LabelMatch(labels=tmp_path / "labels.txt", top=1, model="curate-conv-64", pretrained="random:0")
    found = real(real._emb, pa.array(["a dog, a cat, a tree"] * 3))
    assert found["label_match"] == ["dog", "cat", "tree"]


def test_no_labels(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("\n")
    with pytest.raises(UserError, match="has no label"):
        LabelMatch(labels=tmp_path / "labels.txt", model="curate-conv-64", pretrained="random:0")
