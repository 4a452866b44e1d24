"""CoCa: the captions' loss against plain sums in float64, chunks as one pass, and a training whose log names the parts."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from open_clip.loss import CoCaLoss
from PIL import Image
from torch import Tensor

from tests.train.blip_toys import TOY
from tests.train.halves import gradients, slices
from tests.train.toys import caption, config, logged, scene, shard
from train.caching import cached_backward
from train.dist import Ranks
from train.errors import ConfigError
from train.loop import train
from train.losses import caption_loss
from train.models.coca_captioner import CocaCaptioner
from train.models.sampling import Decoding
from train.models.weights import load
from train.objectives import make_objective

ALONE = Ranks(0, 1, torch.device("cpu"))
SAME = partial(torch.testing.assert_close, rtol=1e-9, atol=1e-12)
LENGTHS = (12, 5, 9, 7, 3, 12, 6)


def batch() -> tuple[Tensor, Tensor, Tensor]:
    """Seven pictures and captions of unequal length, ended by 0."""
    random = torch.Generator().manual_seed(0)
    pixels = torch.randn(7, 3, 32, 32, generator=random, dtype=torch.float64)
    tokens = torch.randint(1, 49408, (7, 12), generator=random)
    for row, length in enumerate(LENGTHS):
        tokens[row, length:] = 0
    return pixels, tokens, torch.arange(7)


def plain(logits: Tensor, labels: Tensor) -> float:
    """The mean over captions of the mean over their tokens of -log p."""
    means = []
    for row, wanted in zip(logits.tolist(), labels.tolist(), strict=True):
        lost = [math.log(sum(math.exp(x) for x in position)) - position[label]
                for position, label in zip(row, wanted, strict=True) if label]
        means.append(sum(lost) / len(lost))
    return sum(means) / len(means)


def test_captions_against_plain_sums() -> None:
    random = torch.Generator().manual_seed(1)
    logits = torch.randn(3, 4, 6, generator=random, dtype=torch.float64)
    labels = torch.tensor([[1, 5, 2, 3], [4, 0, 0, 0], [2, 2, 0, 0]])
    assert float(caption_loss(logits[labels != 0], labels, 0)) == pytest.approx(plain(logits, labels), rel=1e-12)


def test_captions_of_one_length_have_open_clips_loss() -> None:
    model = make_objective(load("toy-coca-32", "random:0"), config(data="none", loss="coca")).double().eval()
    pixels, tokens, pictures = batch()
    tokens[tokens == 0] = 7
    found = model(pixels, tokens, pictures)
    theirs = model.model(pixels, tokens)
    contrastive, captions = CoCaLoss(caption_loss_weight=2.0, clip_loss_weight=1.0)(
        theirs["image_features"], theirs["text_features"], theirs["logits"], theirs["labels"], theirs["logit_scale"])
    SAME(found.own_P.sum(), captions)
    SAME(model.contrast(found, ALONE), contrastive)


def test_padding_is_not_asked_for() -> None:
    """The loss of captions of unequal length is that of open_clip's own logits over all positions."""
    model = make_objective(load("toy-coca-32", "random:0"), config(data="none", loss="coca", caption_weight=1)).double().eval()
    pixels, tokens, pictures = batch()
    tokens[tokens.cumsum(1) == 0] = 1
    tokens[:, 10:] = 0
    theirs = model.model(pixels, tokens)
    labels = theirs["labels"]
    SAME(model(pixels, tokens, pictures).own_P[0], caption_loss(theirs["logits"][labels != 0], labels, 0))


def test_chunks_are_one_pass() -> None:
    model = make_objective(load("toy-coca-32", "random:0"), config(data="none", loss="coca")).double().train()
    pixels, tokens, pictures = batch()

    whole = model(pixels, tokens, pictures)
    total = model.contrast(whole, ALONE) + whole.own_P.sum()
    total.backward()
    expected = gradients(model)
    assert len(expected) == len(list(model.parameters()))
    model.zero_grad()
    value, found = cached_backward(model, lambda chunk: model(pixels[chunk], tokens[chunk], pictures[chunk]), slices(7, 3),
                                   lambda embedded: model.contrast(embedded, ALONE))
    SAME(value, total.detach())
    SAME(found.own_P, whole.own_P.detach())
    SAME(gradients(model), expected)


@pytest.mark.slow
def test_a_training(tmp_path: Path) -> None:
    shard(tmp_path / "0.tar", range(24))
    result = train(config(data=str(tmp_path / "0.tar"), model="toy-coca-32", loss="coca", samples_seen=80), tmp_path / "run")
    lines = [line for line in logged(tmp_path / "run") if "loss" in line]
    assert all(line["loss"] == pytest.approx(line["loss_contrastive"] + line["loss_caption"], rel=1e-5) for line in lines)
    assert lines[-1]["loss_caption"] < lines[0]["loss_caption"] == pytest.approx(2 * math.log(49408), rel=0.1)
    again = load("toy-coca-32", str(result.checkpoint))
    assert hasattr(again.model, "text_decoder") and again.digest == result.weights


def test_a_model_without_a_decoder(tmp_path: Path) -> None:
    shard(tmp_path / "0.tar", range(24))
    with pytest.raises(ConfigError) as error:
        train(config(data=str(tmp_path / "0.tar"), loss="coca"), tmp_path / "run")
    assert str(error.value) == ("loss: coca needs a model that writes captions, like coca_ViT-B-32 or curate-coca-64; "
                                "toy-conv-32 has no decoder")


def test_a_blip_learns_by_its_own_loss(tmp_path: Path) -> None:
    shard(tmp_path / "0.tar", range(24))
    with pytest.raises(ConfigError, match="blip-toy-32 is a BLIP, which learns by loss: blip"):
        train(config(data=str(tmp_path / "0.tar"), model=TOY, loss="coca"), tmp_path / "run")


def test_a_prompt_that_leaves_no_room() -> None:
    with pytest.raises(ConfigError, match="leaves . of the toy-coca-32's 12 for a caption of at least 5"):
        CocaCaptioner(load("toy-coca-32", "random"), Decoding(prompt="a very long picture of a red circle on a table"))


def said(images: list[Image.Image], uids: list[str], **decoding: Any) -> list[list[str]]:
    captioner = CocaCaptioner(load("toy-coca-32", "random:0"), Decoding(**{"prompt": "", "max_tokens": 6, **decoding}))
    return captioner.captions(images, uids)


def test_a_caption_is_its_rows_alone() -> None:
    """The same for a uid whatever stands beside it; other candidates and other rows draw otherwise."""
    images = [scene(n) for n in range(3)]
    found = said(images, ["a", "b", "c"], candidates=2)
    assert [len(texts) for texts in found] == [2, 2, 2]
    assert said([images[1]], ["b"], candidates=2) == [found[1]]
    assert len({text for texts in found for text in texts}) == 6
    assert said([images[1]], ["b"], candidates=2, seed=1) != [found[1]]


def test_words_are_asked_for_one_at_a_time() -> None:
    """The most probable words are those of whole texts' logits, of which the decoder computes the last place alone."""
    loaded = load("toy-coca-32", "random:0")
    shapes, tokens = [], loaded.tokenizer([""])[:, :1]
    images = torch.stack([loaded.preprocess_val(scene(0))])
    with torch.inference_mode():
        for _ in range(6):
            states, embedded = loaded.model._encode_image(images)[1], loaded.model._encode_text(tokens)[1]
            logits = loaded.model.text_decoder(states, embedded)[:, -1]
            logits[:, [0, int(tokens[0, 0])]] = -torch.inf
            tokens = torch.cat([tokens, logits.argmax(1, keepdim=True)], dim=1)
    loaded.model.text_decoder.register_forward_hook(lambda _module, _given, found: shapes.append(found.shape[1]))
    how = Decoding(prompt="", max_tokens=6, min_tokens=1, top_p=1e-9, repetition_penalty=1.0)
    assert CocaCaptioner(loaded, how).captions([scene(0)], ["a"]) == [[loaded.tokenizer.decode(tokens[0, 1:].tolist()).strip()]]
    assert shapes == [1] * 6


def test_a_prompt_is_not_part_of_the_caption() -> None:
    texts = said([scene(0)], ["a"], prompt="a picture of ")
    assert texts[0][0] and "picture of" not in texts[0][0]


def test_what_writes_no_captions() -> None:
    with pytest.raises(ConfigError) as error:
        CocaCaptioner(load("toy-vit-32", "random"), Decoding())
    assert str(error.value) == "toy-vit-32 writes no captions; coca_ViT-B-32 does, and a BLIP with a decoder"
    with pytest.raises(ConfigError) as error:
        CocaCaptioner(load("toy-coca-32", "random"), Decoding(beams=3))
    assert str(error.value) == "a CoCa samples its captions; beams are for BLIP"


@pytest.mark.slow
def test_it_says_what_it_saw(tmp_path: Path) -> None:
    """Eight scenes learnt by heart: with hardly any choice left (p 0.1) each gets its own caption."""
    shard(tmp_path / "0.tar", range(8))
    result = train(config(data=str(tmp_path / "0.tar"), model="toy-coca-32", loss="coca", batch=8, samples_seen=8 * 150, lr=1e-2,
                          checkpoint_every=1000), tmp_path / "run")
    captioner = CocaCaptioner(load("toy-coca-32", str(result.checkpoint)), Decoding(prompt="", top_p=0.1, min_tokens=1,
                                                                                     repetition_penalty=1.0))
    found = captioner.captions([scene(n) for n in range(8)], [str(n) for n in range(8)])
    right = sum(texts[0] == caption(n).lower() for n, texts in enumerate(found))
    assert right >= 7, found
