import io
import tokenize
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from curate.folder import Folder
from curate.heads import prompts
from curate.heads.layers import Linear
from curate.heads.prompts import HARMLESS, NSFW, grouped, zero_shot
from curate.pipeline import load
from curate.steps.nsfw import Nsfw
from tests.heads import write_head
from tests.running import run_here, write_pipeline, write_pool
from tests.steps.test_head import EMBED, refused
from train.models.clip import embed_texts
from train.models.weights import load as load_model


def test_by_a_head(tmp_path: Path) -> None:
    toy = write_head(tmp_path / "toy", Linear(np.array([[0, 2]], np.float32), np.zeros(1, np.float32)), dim=2)
    found = Nsfw(file=toy)(np.array([[1, 0], [0, 1], [0, 0]], np.float32)).to_pylist()
    assert found == [0.5, pytest.approx(1 / (1 + np.exp(-2))), None]


def test_the_groups_are_laion_s_without_its_missing_comma() -> None:
    """19 harmless prompts and 17 others; with the comma missing there were 18 before the first pornographic one."""
    assert (len(HARMLESS), len(NSFW)) == (19, 17)
    assert {"animal, bird, mammal, insect", "fashion, clothes"} <= set(HARMLESS)
    assert [*HARMLESS, *NSFW].index(NSFW[0]) == 19
    assert not any(word in prompt for prompt in HARMLESS for word in ("porn", "sex", "nipple", "hentai"))


def test_no_two_prompts_stand_side_by_side_without_a_comma() -> None:
    """Python joins such texts silently; that is how the published list lost one. Only in parentheses is it meant."""
    source = Path(prompts.__file__).read_text()
    tokens = [t for t in tokenize.generate_tokens(io.StringIO(source).readline) if t.type not in (tokenize.NL, tokenize.COMMENT)]
    joined = [(a.string, b.string) for a, b in pairwise(tokens) if a.type == b.type == tokenize.STRING]
    assert [(a[-10:], b) for a, b in joined] == [(' sexual, "', '"lick, licking"')]


def test_a_picture_like_one_prompt_is_of_that_prompt_s_group() -> None:
    """Every prompt on an axis of its own: the last harmless and the first other one are told apart; LAION's code did not."""
    axes = np.eye(36, dtype=np.float32)
    toy = grouped(axes[:19], axes[19:], 100.0, ("toy", "toy"))
    scores = toy.scores(axes)
    assert scores[:19].max() < 1e-6 and scores[19:].min() > 1 - 1e-6
    assert toy.scores((axes[18:19] + axes[19:20]) / 2).tolist() == pytest.approx([0.5])
    assert toy.scores(np.ones((1, 36), np.float32)).tolist() == pytest.approx([17 / 36])
    assert ((scores >= 0) & (scores <= 1)).all()


def test_prompts_of_a_model() -> None:
    """The text tower of the model named, at its own scale: the share of the softmax that falls on the 17."""
    model = ("curate-conv-64", "random:0")
    embedded = embed_texts(load_model(*model), [*HARMLESS, *NSFW])
    found = Nsfw(model=model[0], pretrained=model[1])(embedded).to_pylist()
    toy = zero_shot(*model)
    assert found == toy.scores(embedded).tolist()
    assert toy.card.input.dim == embedded.shape[1]
    scale = float(load_model(*model).model.logit_scale.detach().exp())
    shares = np.exp(scale * embedded.astype(np.float64) @ embedded.astype(np.float64).T)
    shares /= shares.sum(axis=1, keepdims=True)
    assert found == pytest.approx(shares[:, 19:].sum(axis=1).tolist(), abs=1e-4)


@pytest.mark.slow
def test_a_run_with_prompts(tmp_path: Path) -> None:
    """From pictures to nsfw_prob with nothing said but `of: ref`: what the prompts of that model give for what is stored."""
    for n in range(4):
        Image.new("RGB", (70, 70), (60 * n, 10, 200)).save(tmp_path / f"{n}.png")
    (tmp_path / "pool.csv").write_text("file,caption\n" + "".join(f"{n}.png,picture {n}\n" for n in range(4)))
    file = write_pipeline(tmp_path, EMBED[1], "nsfw: {of: ref}", "keep: nsfw_prob < 2",
                          source="source: {images: pool.csv, path: file, caption: caption}\n")
    assert run_here(file, tmp_path / "run", workers=1).measured["nsfw"] == 4
    table = Folder.open(tmp_path / "run").table(0, ["ref_image_emb", "nsfw_prob"])
    stored = np.array(table["ref_image_emb"].to_pylist(), np.float16).astype(np.float32)
    assert table["nsfw_prob"].to_pylist() == zero_shot("curate-conv-64", "random:0").scores(stored).tolist()
    assert run_here(file, tmp_path / "run").measured["nsfw"] == 0


def test_without_a_file_it_takes_the_model_that_it_reads(tmp_path: Path) -> None:
    write_pool(tmp_path, ["a dog"])
    for said in ("{of: ref}", "{of: ref, model: curate-conv-64}", "{of: ref, model: curate-conv-64, pretrained: 'random:0'}"):
        settings = load(write_pipeline(tmp_path, *EMBED, f"nsfw: {said}")).stages[-1].settings      # type: ignore[union-attr]
        assert settings == {"file": None, "model": "curate-conv-64", "pretrained": "random:0"}


def test_prompts_of_another_model_are_refused(tmp_path: Path) -> None:
    assert refused(tmp_path, *EMBED, "nsfw: {of: ref, model: ViT-B-32}") == (
        "5: step 'nsfw': prompts of ViT-B-32 (random:0) for embeddings of curate-conv-64 (random:0)")
    assert refused(tmp_path, *EMBED, "nsfw: {of: ref, pretrained: 'random:1'}") == (
        "5: step 'nsfw': prompts of curate-conv-64 (random:1) for embeddings of curate-conv-64 (random:0)")


def test_embeddings_from_elsewhere(tmp_path: Path) -> None:
    """Nothing says whose they are, so the pipeline has to."""
    (tmp_path / "steps.py").write_text("from curate.step import step, vector\n\n@step(adds={'image_emb': vector})\n"
                                       "def embed(caption: list[str]):\n    return [[1.0]] * len(caption)\n")
    assert refused(tmp_path, "./steps.py:embed", "nsfw") == (
        "4: step 'nsfw': nothing says whose embeddings these are; give model and pretrained, or a head as file")
    assert refused(tmp_path, "./steps.py:embed", "nsfw: {model: curate-conv-64, pretrained: loop, first: raw}").startswith(
        "4: step 'nsfw' takes frozen weights, not pretrained: loop")
    given = "nsfw: {model: curate-conv-64, pretrained: 'random:0'}"
    stage = load(write_pipeline(tmp_path, "./steps.py:embed", given)).stages[-1]
    assert stage.settings["pretrained"] == "random:0"       # type: ignore[union-attr]


def test_a_head_and_a_model_at_once(tmp_path: Path) -> None:
    write_head(tmp_path / "toy")
    assert refused(tmp_path, *EMBED, f"nsfw: {{of: ref, file: {tmp_path / 'toy'}, model: curate-conv-64}}") == (
        "5: step 'nsfw': 'model' belongs to prompts; a head's file says it itself")
