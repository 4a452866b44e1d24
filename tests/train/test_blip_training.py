"""Training BLIP: what each loss asks, where its gradients go, the slowly following copy, and the same after a kill."""

import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import BlipForConditionalGeneration

from tests.train.blip_toys import TOY, chunk, saved, toy
from tests.train.halves import gradients
from tests.train.toys import Killed, config, logged, shard
from train.__main__ import main
from train.caching import Embedded, cached_backward
from train.config import from_mapping
from train.dist import Ranks
from train.errors import ConfigError
from train.figures import auroc
from train.log import Progress
from train.loop import train
from train.losses import clip_loss
from train.matching import NONE, itm_loss, lm_loss, wrong_partners
from train.models.weights import load
from train.objectives import make_objective
from train.optim import make_optimizer

ALONE = Ranks(0, 1, torch.device("cpu"))
LOSSES = ("blip", "blip_filter", "blip_captioner")
WITH_COPY = {"momentum": 0.9, "queue": 10, "soft_labels": 0.4}
SAME = partial(torch.testing.assert_close, rtol=1e-9, atol=1e-12)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(shard(tmp_path_factory.mktemp("shards") / "0.tar", range(24)))


def objective(loss: str, **more: Any) -> Any:
    return make_objective(toy(), config(data="x", model=TOY, loss=loss, **more)).train()


def total(found: Any, embedded: Embedded) -> Tensor:
    loss = found.contrast(embedded, ALONE)
    return loss if embedded.own_P is None else loss + embedded.own_P.sum()


def test_the_three_losses() -> None:
    found = objective("blip")
    model, (pixels, tokens, pictures) = found.model, chunk(toy(), 6)
    pictures[5] = 2
    torch.manual_seed(1)
    embedded = found(pixels, tokens, pictures)
    image, text = model.encode_image(pixels, normalize=True), model.encode_text(tokens, normalize=True)
    torch.testing.assert_close(embedded.image_ND, image)
    contrastive = clip_loss(image, text, torch.tensor(1 / 0.07)).item()
    assert found.contrast(embedded, ALONE).item() == pytest.approx(contrastive, rel=1e-5)

    torch.manual_seed(1)
    logits, patches = image @ text.T / 0.07, model.patches(pixels)
    texts, images = wrong_partners(logits, pictures), wrong_partners(logits.T, pictures)
    assert {2, 5}.isdisjoint(texts[[2, 5]].tolist())
    wrong = torch.cat([model.judge(patches, tokens[texts]), model.judge(patches[images], tokens)])
    itm, lm = embedded.own_P.tolist()
    assert itm == pytest.approx(itm_loss(model.judge(patches, tokens), wrong).item(), rel=1e-4)
    assert lm == pytest.approx(lm_loss(*model.next_words(patches, tokens)).item(), rel=1e-4)


def test_pairs_of_one_picture_alone_are_judged_right_ones_only() -> None:
    found, (pixels, tokens, _) = objective("blip_filter"), chunk(toy(), 2)
    embedded = found(pixels, tokens, torch.tensor([7, 7]))
    logits = found.model.judge(found.model.patches(pixels), tokens)
    assert wrong_partners(logits, torch.tensor([7, 7])).tolist() == [NONE, NONE]
    assert embedded.own_P.item() == pytest.approx(itm_loss(logits, logits[:0]).item(), rel=1e-4)


def test_the_captioner_learns_the_caption_behind_the_prompt(tmp_path: Path) -> None:
    loaded, prompt = toy(), "a picture of "
    found = make_objective(loaded, config(data="x", model=TOY, loss="blip_captioner", prompt=prompt))
    pixels, tokens, pictures = chunk(loaded, 4)
    theirs = BlipForConditionalGeneration.from_pretrained(saved(loaded, tmp_path / "model")).eval()
    words: Any = loaded.tokenizer
    given = [[theirs.config.text_config.bos_token_id, *words.words(prompt), *row[1:]] for row in tokens.tolist()]
    given = torch.tensor(given)
    labels = given.masked_fill(given == 0, -100)
    labels[:, : 1 + len(words.words(prompt))] = -100
    with torch.no_grad():
        expected = theirs(pixel_values=pixels, input_ids=given, attention_mask=(given != 0).long(), labels=labels).loss
        embedded = found(pixels, tokens, pictures)
    assert embedded.own_P.tolist() == [pytest.approx(expected.item(), rel=1e-5)]
    assert total(found, embedded) == embedded.own_P[0]


@pytest.mark.parametrize("loss", [*LOSSES, "clip"])
def test_every_parameter_that_learns_has_a_gradient(loss: str) -> None:
    """Which torch's distributed wrapper waits for; and with one chunk gradient caching is one pass."""
    loaded = toy()
    settings = config(data="x", model=TOY, loss=loss)
    make_optimizer(loaded.model, settings)
    found = make_objective(loaded, settings).double().train()
    pixels, tokens, pictures = chunk(loaded, 6)
    pixels = pixels.double()
    torch.manual_seed(2)
    total(found, found(pixels, tokens, pictures)).backward()
    expected, learn = gradients(found), {name for name, p in found.named_parameters() if p.requires_grad}
    found.zero_grad()
    assert expected.keys() == learn and {"model.vision_model.embeddings.class_embedding"} <= learn
    torch.manual_seed(2)
    cached_backward(found, lambda rows: found(pixels[rows], tokens[rows], pictures[rows]), [slice(0, 6)],
                    lambda embedded: found.contrast(embedded, ALONE))
    again = gradients(found)
    SAME({name: again[name] for name in expected}, expected)


@pytest.mark.parametrize("more", [{}, {"momentum": 0.9, "queue": 6, "soft_labels": 0.4}])
def test_in_chunks_the_contrastive_part_is_that_of_the_whole(more: dict[str, Any]) -> None:
    found = objective("blip_filter", **more).double()
    pixels, tokens, pictures = chunk(toy(), 6)
    pixels = pixels.double()
    for _ in range(2):
        whole = found.contrast(found(pixels, tokens, pictures), ALONE)
        value, embedded = cached_backward(found, lambda rows: found(pixels[rows], tokens[rows], pictures[rows]),
                                          [slice(0, 4), slice(4, 6)], lambda embedded: found.contrast(embedded, ALONE))
        assert value.item() - embedded.own_P.sum().item() == pytest.approx(whole.item(), rel=1e-9)
        found.after_step()      # the second time with a queue


def test_the_first_step_with_a_copy_is_clips() -> None:
    """The copy is the model then, nothing is queued, and soft labels have not begun."""
    found, plain = objective("blip_filter", **WITH_COPY), objective("blip_filter")
    pairs = chunk(toy(), 6)
    assert found.contrast(found(*pairs), ALONE).item() == pytest.approx(plain.contrast(plain(*pairs), ALONE).item(), rel=1e-6)


def test_the_copy_follows_and_the_queue_remembers() -> None:
    found = objective("blip", momentum=0.75, queue=10)
    momentum, model = found.momentum, found.model
    pixels, tokens, _ = chunk(toy(), 6)
    name = "text_encoder.encoder.layer.0.output.dense.weight"
    expected = model.get_parameter(name).detach().clone()
    seen = []
    for step in range(3):
        embedded = found(pixels, tokens, torch.arange(6) + 6 * step)
        found.contrast(embedded, ALONE)
        seen.append(embedded.steady[0])
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.01)
        expected = 0.75 * expected + 0.25 * model.get_parameter(name).detach()
        found.after_step()
        torch.testing.assert_close(momentum.teacher.get_parameter(name), expected)
    assert not any(parameter.requires_grad for parameter in momentum.parameters())
    rows = torch.cat(seen)
    order = [*range(10, 18), 8, 9]          # places 0 to 7 were taken again
    assert momentum.queue_pictures_K.tolist() == order
    assert torch.equal(momentum.queue_KD, rows[order])
    assert set(found.beside()) == {name for name in found.state_dict() if name.startswith("momentum.")}


def test_soft_labels_grow_and_a_queued_picture_counts_as_right() -> None:
    found = objective("blip_filter", **WITH_COPY)
    found.steps_per_epoch = 4
    momentum, (pixels, tokens, pictures) = found.momentum, chunk(toy(), 3)
    for step in range(10):
        embedded = found(pixels, tokens, pictures)
        loss = found.contrast(embedded, ALONE)
        fresh = embedded.steady[0]
        queued = momentum.queue_KD[: min(3 * step, 10)]
        image, text = torch.cat([fresh, queued]).chunk(2, dim=1)
        right = (pictures[:, None] == torch.cat([pictures, momentum.queue_pictures_K[: len(queued)]])).float()
        right /= right.sum(1, keepdim=True)
        soft = 0.4 * min(1, step / 8)
        value = 0.0
        for live, slow, others in ((embedded.image_ND, fresh[:, :16], text), (embedded.text_ND, fresh[:, 16:], image)):
            scale = embedded.scale
            wanted = soft * (scale * slow @ others.T).softmax(1) + (1 - soft) * right
            value -= 0.5 * (wanted * (scale * live @ others.T).log_softmax(1)).sum(1).mean().item()
        assert loss.item() == pytest.approx(value, rel=1e-5), step
        found.after_step()


@pytest.mark.parametrize(("scale", "kept"), [(1.0, 2.0), (50.0, 50.0), (5000.0, 1000.0)])
def test_the_scale_stays_where_blip_keeps_its_temperature(scale: float, kept: float) -> None:
    found = objective("blip")
    with torch.no_grad():
        found.model.logit_scale.fill_(math.log(scale))
    found.after_step()
    assert found.model.logit_scale.exp().item() == pytest.approx(kept)


def test_python_m_train(shards: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Pretrained, then captioner and filter apart from each other, each from what was pretrained."""
    file, parts = tmp_path / "blip.yaml", {}
    file.write_text(f"{{data: {shards}, model: {TOY}, samples_seen: 24, batch: 8, threads: 1, tensorboard: false, log_every: 1}}")
    for loss in LOSSES:
        init = [] if loss == "blip" else ["--set", f"init={tmp_path / 'blip' / 'model'}"]
        assert main([str(file), "--set", f"loss={loss}", *init, "--out", str(tmp_path / loss)]) == 0
        assert f"model: {tmp_path / loss / 'model'}" in capsys.readouterr().out
        first = logged(tmp_path / loss)[0]
        parts[loss] = {name for name in first if name.startswith("loss_")}
        assert first["loss"] == pytest.approx(sum(first[name] for name in parts[loss]), rel=1e-6)
    assert parts == {"blip": {"loss_contrastive", "loss_itm", "loss_lm"}, "blip_filter": {"loss_contrastive", "loss_itm"},
                     "blip_captioner": {"loss_contrastive", "loss_lm"}}
    digests = {loss: load(TOY, str(tmp_path / loss / "model")).digest for loss in LOSSES}
    assert len(set(digests.values())) == 3


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_it_learns_to_judge_and_to_write(shards: str, tmp_path: Path) -> None:
    """Twenty-four pictures by heart: the judge tells every other picture's caption from the right one, the words are known."""
    result = train(config(data=shards, model=TOY, loss="blip", batch=24, samples_seen="300 epochs", lr=3e-3, weight_decay=0.05,
                          crop=[1, 1], log_every=50), tmp_path)
    model, (pixels, tokens, pictures) = load(TOY, str(result.checkpoint)).model, chunk(toy(), 24)
    with torch.no_grad():
        patches = model.patches(pixels)
        rows, columns = torch.cartesian_prod(pictures, pictures).T
        together = model.judge(patches[rows], tokens[columns]).softmax(1)[:, 1].numpy()
        words = lm_loss(*model.next_words(patches, tokens), smoothing=0).item()
    assert auroc(together, (rows == columns).numpy()) > 0.9
    assert words < 0.5 < 1.5 < logged(tmp_path)[0]["loss_lm"]


@pytest.mark.slow
def test_killed_and_resumed_equals_undisturbed(shards: str, tmp_path: Path) -> None:
    """With everything on: copy, queue, soft labels, average, chunks."""
    settings = config(data=shards, model=TOY, loss="blip", samples_seen=32, checkpoint_every=2, keep=2, ema=0.9, micro_batch=5,
                      **WITH_COPY)
    whole = train(settings, tmp_path / "whole")

    def kill(progress: Progress) -> None:
        if progress.step == 3:
            raise Killed

    with pytest.raises(Killed):
        train(settings, tmp_path / "killed", kill)
    assert train(settings, tmp_path / "killed") == replace(whole, checkpoint=tmp_path / "killed" / "model")
    for name in ("model", "checkpoints/00000002", "checkpoints/00000004"):
        files = sorted((tmp_path / "whole" / name).iterdir())
        assert [file.name for file in files] == sorted(file.name for file in (tmp_path / "killed" / name).iterdir())
        for file in files:
            assert file.read_bytes() == (tmp_path / "killed" / name / file.name).read_bytes(), file.name
    assert (tmp_path / "whole" / "checkpoints" / "00000004" / "loss.safetensors").exists()


@pytest.mark.parametrize(("settings", "message"), [
    ({"loss": "blip", "queue": 8}, "momentum: queue and soft_labels need it, like 0.995"),
    ({"loss": "blip", "soft_labels": 0.4}, "momentum: queue and soft_labels need it, like 0.995"),
    ({"loss": "clip", "momentum": 0.9}, "momentum: loss: clip knows none, only blip and blip_filter"),
    ({"loss": "blip_captioner", "momentum": 0.9}, "momentum: loss: blip_captioner knows none, only blip and blip_filter"),
])
def test_settings_that_do_not_fit(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        from_mapping({"data": "x", "samples_seen": 8, **settings})
    assert str(error.value) == message
