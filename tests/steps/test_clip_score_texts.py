"""The cosine of each of several texts: that of clip_score, by the text tower of the embeddings that are read."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from curate.errors import UserError
from curate.measure import matrix, to_column
from curate.pipeline import load
from curate.step import vector
from curate.steps.clip_embed import ClipEmbed
from curate.steps.clip_score import clip_score
from curate.steps.clip_score_texts import ClipScoreTexts
from tests.running import write_pipeline, write_pool
from tests.train.toys import caption, scene

MODEL = {"model": "curate-conv-64", "pretrained": "random:0"}


def test_a_text_has_the_cosine_that_clip_score_gives_it() -> None:
    texts = [caption(n) for n in range(4)]
    stored = {n: matrix(to_column(v, vector)) for n, v in ClipEmbed(**MODEL)([scene(n) for n in range(4)], texts).items()}
    expected = clip_score(stored["image_emb"], stored["text_emb"]).to_pylist()
    rows = [[texts[0], "a cat"], [], ["", texts[2], " "], [texts[3], texts[3]]]
    found = ClipScoreTexts(**MODEL)(stored["image_emb"], rows)["clip_cos_synthetic"]
    assert [len(row) for row in found] == [2, 0, 3, 2]
    assert [found[0][0], found[2][1], *found[3]] == pytest.approx([expected[0], expected[2], expected[3], expected[3]], abs=1e-6)
    assert found[2][::2] == [None, None] and found[0][1] != found[0][0]


def test_an_embedding_without_direction_gives_null() -> None:
    step = ClipScoreTexts(**MODEL)
    dims = step(np.zeros((1, 128), np.float32), [["a cat"]])["clip_cos_synthetic"]
    assert dims == [[None]]
    assert step(np.full((1, 128), np.nan, np.float32), [["a cat"]])["clip_cos_synthetic"] == [[None]]
    with pytest.raises(UserError, match="image_emb has 3 numbers a row, a text 128: they are not of one model"):
        step(np.ones((1, 3), np.float32), [["a cat"]])


def settings_of(folder: Path, *entries: str) -> Any:
    write_pool(folder, ["a"], made=pa.array([["b"]]), image_emb=pa.array([[0.5]], vector))
    return load(write_pipeline(folder, *entries)).stages[-1]


def test_model_and_weights_are_those_of_the_embeddings(tmp_path: Path) -> None:
    stage = settings_of(tmp_path, "clip_score_texts: {reads: {synthetic_captions: made}, model: ViT-B-32, pretrained: openai}")
    assert (stage.settings["model"], list(stage.adds.values())) == ("ViT-B-32", ["clip_cos_synthetic"])


def test_embeddings_that_nobody_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing says whose embeddings these are; give model and pretrained"):
        settings_of(tmp_path, "clip_score_texts: {reads: {synthetic_captions: made}}")
