"""BLIP as one model: what it shares, and that transformers' two models read it and say the same."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import BertTokenizer, BlipForConditionalGeneration, BlipForImageTextRetrieval, BlipProcessor
from transformers.utils import logging

from tests.train.blip_toys import TOY, chunk, saved, toy
from tests.train.toys import caption, config, scene
from train.errors import ConfigError, WeightsError
from train.matching import lm_loss
from train.models.blip_weights import waves
from train.models.clip import embed_images, embed_texts
from train.models.folder import CARD, weights_digest
from train.models.matcher import Matcher
from train.models.weights import Loaded, load
from train.objectives import make_objective

logging.disable_progress_bar()


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    return toy(1)


@pytest.fixture(scope="module")
def folder(loaded: Loaded, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(loaded, tmp_path_factory.mktemp("blip") / "model")


def test_patches_that_lie_together_start_alike() -> None:
    """Each place's nearest ones are those that touch it, and the model has these places when it is new."""
    side = 8
    places_SD = waves(side, 96)
    y, x = np.divmod(np.arange(side * side), side)
    steps_SS = abs(x[:, None] - x) + abs(y[:, None] - y)
    apart_SS = torch.cdist(places_SD, places_SD).numpy()
    assert apart_SS[steps_SS == 1].max() < apart_SS[steps_SS > 1].min()
    model = load("curate-blip-64", "random:0").model
    torch.testing.assert_close(model.vision_model.embeddings.position_embedding[0, 1:], places_SD)


@pytest.mark.parametrize("from_file", [False, True])
def test_encoder_and_decoder_share_all_but_self_attention(from_file: bool, loaded: Loaded, folder: Path) -> None:
    model = (load(TOY, str(folder)) if from_file else loaded).model
    decoder = dict(model.text_decoder.named_parameters())
    encoder = {parameter.data_ptr(): name for name, parameter in model.text_encoder.named_parameters()}
    own = {name for name, parameter in decoder.items() if parameter.data_ptr() not in encoder}
    assert own == {name for name in decoder if ".attention." in name or name.startswith("cls.") and ".decoder." not in name}
    width, words = 32, len(loaded.tokenizer.tokenizer)
    attention, transform = 2 * (4 * (width * width + width) + 2 * width), width * width + width + 2 * width
    count = sum(parameter.numel() for parameter in model.parameters())
    alone = sum(parameter.numel() for name, parameter in model.named_parameters() if not name.startswith("text_decoder"))
    assert count - alone == attention + transform + words


def test_one_digest_for_the_model_and_its_folder(loaded: Loaded, folder: Path) -> None:
    digests = {weights_digest(TOY, str(folder)), load(TOY, str(folder)).digest, load(f"hf-blip:{folder}", "random").digest}
    assert digests == {loaded.digest}
    assert load(TOY, "random:3").digest == load(TOY, "random:3").digest != load(TOY, "random:4").digest


def test_transformers_captioner_is_ours(loaded: Loaded, folder: Path) -> None:
    theirs, info = BlipForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["mismatched_keys"]
    pixels, tokens, _ = chunk(loaded, 5)
    given, mask = tokens.clone(), (tokens != 0).long()
    given[:, 0] = theirs.config.text_config.bos_token_id
    labels = tokens.masked_fill(tokens == 0, -100)
    with torch.no_grad():
        logits, words = loaded.model.next_words(loaded.model.patches(pixels), tokens)
        found = theirs.eval()(pixel_values=pixels, input_ids=given, attention_mask=mask, labels=labels)
    assert torch.equal(found.logits[:, :-1][labels[:, 1:] != -100], logits)
    assert found.loss.item() == pytest.approx(lm_loss(logits, words).item(), rel=1e-6)
    assert len(words) == int(mask.sum()) - 5


def test_transformers_matcher_is_ours(loaded: Loaded, folder: Path) -> None:
    theirs, info = BlipForImageTextRetrieval.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["mismatched_keys"]
    theirs.eval()
    pixels, tokens, _ = chunk(loaded, 5)
    mask, enc = (tokens != 0).long(), tokens.clone()
    enc[:, 0] = BertTokenizer.from_pretrained(folder).enc_token_id
    model = loaded.model
    with torch.no_grad():
        patches = model.patches(pixels)
        for given, ours in ((enc, model.judge(patches, tokens)), (tokens, model.judge(patches, tokens, first=2))):
            assert torch.equal(theirs(input_ids=given, attention_mask=mask, pixel_values=pixels).itm_score, ours)
        cosine = theirs(input_ids=tokens, attention_mask=mask, pixel_values=pixels, use_itm_head=False).itm_score
        assert torch.equal(cosine, model.project(patches) @ model.encode_text(tokens, normalize=True).T)
    assert not torch.equal(model.judge(patches, tokens), model.judge(patches, tokens, first=2))


def test_the_steps_matcher_judges_as_training_does(loaded: Loaded, folder: Path) -> None:
    pictures = [scene(n, side=32) for n in range(3)]
    probs, cosines = Matcher(str(folder)).match(pictures, [(n, caption(n)) for n in range(3)])
    pixels = torch.stack([loaded.preprocess_val(picture) for picture in pictures])
    tokens = loaded.tokenizer([caption(n) for n in range(3)])
    with torch.no_grad():
        patches = loaded.model.patches(pixels)
        expected = loaded.model.judge(patches, tokens).softmax(1)[:, 1]
        alike = (loaded.model.project(patches) * loaded.model.encode_text(tokens, normalize=True)).sum(1)
    np.testing.assert_allclose(probs, expected, atol=1e-4)
    np.testing.assert_allclose(cosines, alike, atol=1e-4)


def test_pictures_become_what_transformers_makes_of_them(loaded: Loaded, folder: Path) -> None:
    """Of 32 px they are only normalised; of other sizes pressed into a square."""
    processor = BlipProcessor.from_pretrained(folder)
    assert loaded.squash
    theirs = processor(images=[scene(1, side=32)], return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(theirs, loaded.preprocess_val(scene(1, side=32)), rtol=0, atol=1e-6)
    wide = Image.new("RGB", (64, 32), "red")
    assert processor(images=[wide], return_tensors="pt")["pixel_values"].shape == loaded.preprocess_val(wide)[None].shape


def test_tokens_are_berts_but_nobody_writes_special_ones(loaded: Loaded, folder: Path) -> None:
    theirs = BertTokenizer.from_pretrained(folder)
    texts = ["A red circle, two STARS", "é 日本", "", "word " * 30]
    expected = theirs(texts, padding="max_length", truncation=True, max_length=12, return_tensors="pt")["input_ids"]
    assert torch.equal(loaded.tokenizer(texts), expected)
    assert (theirs.bos_token_id, theirs.enc_token_id) == (len(theirs) - 2, len(theirs) - 1)
    settings = json.loads((folder / "config.json").read_text())["text_config"]
    assert (settings["bos_token_id"], settings["sep_token_id"], settings["pad_token_id"]) == (theirs.bos_token_id, 3, 0)
    written = loaded.tokenizer(["[SEP] [ENC]"])[0].tolist()
    assert written.count(theirs.sep_token_id) == 1 and theirs.enc_token_id not in written


def test_it_embeds_as_any_model_does(loaded: Loaded, folder: Path) -> None:
    again = load(TOY, str(folder))
    pictures, texts = [scene(n) for n in range(5)], [caption(n) for n in range(5)]
    images, words = embed_images(loaded, pictures, 4), embed_texts(loaded, texts, 4)
    assert images.shape == words.shape == (5, 16)
    np.testing.assert_allclose(np.linalg.norm(images, axis=1), 1, rtol=1e-5)
    assert (images == embed_images(again, pictures, 4)).all() and (words == embed_texts(again, texts, 4)).all()


def half(folder: Path, target: Path, *without: str) -> Path:
    """The folder as a published one is: not the tensors whose names begin so, nor what is ours."""
    target.mkdir()
    for file in folder.iterdir():
        if file.name not in (CARD, "model.safetensors"):
            (target / file.name).write_bytes(file.read_bytes())
    tensors = load_file(folder / "model.safetensors")
    without = (*without, "logit_scale", "text_decoder.cls.predictions.decoder")
    save_file({n: t for n, t in tensors.items() if not n.startswith(without)}, target / "model.safetensors",
              metadata={"format": "pt"})
    return target


def test_published_weights_are_one_half(loaded: Loaded, folder: Path, tmp_path: Path) -> None:
    writer = load(f"hf-blip:{half(folder, tmp_path / 'writer', 'text_encoder', 'vision_proj', 'text_proj', 'itm')}", "random")
    judge = load(f"hf-blip:{half(folder, tmp_path / 'judge', 'text_decoder')}", "random")
    pixels, tokens, _ = chunk(loaded, 3)
    with torch.no_grad():
        patches = loaded.model.patches(pixels)
        assert torch.equal(writer.model.next_words(patches, tokens)[0], loaded.model.next_words(patches, tokens)[0])
        assert torch.equal(judge.model.judge(patches, tokens), loaded.model.judge(patches, tokens))
    for call, what in ((lambda: writer.model.encode_text(tokens), "embeddings"),
                       (lambda: judge.model.next_words(patches, tokens), "decoder")):
        with pytest.raises(WeightsError, match=f"these weights of BLIP have no {what}"):
            call()
    for one, loss, what in ((writer, "blip_filter", "matching head"), (judge, "blip_captioner", "decoder"),
                            (judge, "blip", "decoder")):
        with pytest.raises(ConfigError, match=f"loss: {loss} needs a {what}, which .* does not have"):
            make_objective(one, config(data="x", loss=loss))
    with pytest.raises(ConfigError) as error:
        make_objective(load("toy-vit-32", "random"), config(data="x", loss="blip"))
    assert str(error.value) == "loss: blip needs a BLIP, like curate-blip-64 or hf-blip:NAME; toy-vit-32 is none"


class Payload:
    """Touches a file when unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return eval, (f"open({str(self.target)!r}, 'w')",)


def test_folders_that_are_refused(folder: Path, tmp_path: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    shared = "text_decoder.bert.encoder.layer.0.output.dense.weight"
    cases = [({**tensors, shared: tensors[shared] + 1}, f"its encoder and decoder do not share .*{shared[18:]}"),
             ({n: t for n, t in tensors.items() if n != "itm_head.bias"}, "it lacks 1 tensors, first itm_head.bias"),
             ({**tensors, "itm_head.weight": torch.ones(3, 32)}, "size mismatch")]
    for number, (wrong, message) in enumerate(cases):
        broken = half(folder, tmp_path / str(number))
        save_file(wrong, broken / "model.safetensors")
        with pytest.raises(WeightsError, match=f"not weights of hf-blip:.*{message}"):
            load(f"hf-blip:{broken}", "random")
    evil = half(folder, tmp_path / "evil")
    (evil / "model.safetensors").unlink()
    (evil / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(tmp_path / "ran"), protocol=2))
    with pytest.raises(WeightsError, match=r"pytorch_model\.bin: holds more than tensors, or is broken$"):
        load(f"hf-blip:{evil}", "random")
    assert not (tmp_path / "ran").exists()
    with pytest.raises(WeightsError, match=f"{folder} is a blip-toy-32, not a curate-blip-64"):
        load("curate-blip-64", str(folder))


@pytest.mark.parametrize(("model", "pretrained", "message"), [
    ("curate-blip-6", "random", "no model 'curate-blip-6'; did you mean 'curate-blip-64'?, and hf-blip:NAME for Hugging Face's"),
    ("blip-toy-32", "runs/none", "no checkpoint folder 'runs/none' of blip-toy-32"),
    ("hf-blip:./nothing", "random", "no folder ./nothing, and no name of Hugging Face's"),
])
def test_names_that_lead_nowhere(model: str, pretrained: str, message: str) -> None:
    with pytest.raises(WeightsError) as error:
        load(model, pretrained)
    assert str(error.value) == message


def test_words_are_the_pieces_alone() -> None:
    """What a captioner's prompt is made of: no padding, no [CLS], no [SEP]."""
    tokens = load("blip-toy-32", "random:0").tokenizer
    assert tokens.words("a picture of ") == tokens(["a picture of"])[0].tolist()[1 : 1 + len(tokens.words("a picture of "))]
    assert 0 < len(tokens.words("a picture of ")) < tokens.context - 2 and 0 not in tokens.words("a picture of ")
