"""What is exported is what transformers and open_clip load, as near to the original as its record says."""

import dataclasses
import json
from pathlib import Path

import open_clip
import pytest
import timm
import torch
from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

from tests.train.toys import caption, scene
from train import export as module
from train.errors import ConfigError, WeightsError
from train.export import export, inputs, lines
from train.huggingface import image_processor, to_transformers
from train.models.clip import embed_images, embed_texts, with_bias
from train.models.folder import weights_digest
from train.models.weights import Loaded, load

PICTURES, TEXTS = [scene(n, 32) for n in range(5)], [caption(n) for n in range(5)]


@pytest.fixture(scope="module")
def vit() -> Loaded:
    """A tiny ViT CLIP."""
    return load("toy-vit-32", "random:3")


def test_transformers_gives_the_same_embeddings(vit: Loaded, tmp_path: Path) -> None:
    """Through its own tokenizer and image processor; pictures of the model's size need no resizing."""
    record = export(vit, tmp_path / "out", "huggingface")
    theirs = CLIPModel.from_pretrained(tmp_path / "out", local_files_only=True).eval()
    texts = AutoTokenizer.from_pretrained(tmp_path / "out")(TEXTS, padding=True, return_tensors="pt")
    pixels = AutoImageProcessor.from_pretrained(tmp_path / "out")(PICTURES, return_tensors="pt")
    with torch.no_grad():
        found = theirs(**texts, **pixels)
    assert abs(found.image_embeds.numpy() - embed_images(vit, PICTURES, 8)).max() < 1e-5
    assert abs(found.text_embeds.numpy() - embed_texts(vit, TEXTS, 8)).max() < 1e-5
    assert theirs.logit_scale.item() == pytest.approx(vit.model.logit_scale.item())
    assert json.loads((tmp_path / "out/export.json").read_text()) == record
    assert record["weights"] == vit.digest and record["class"] == "CLIPModel" and record["left_out"] == []
    assert set(record["largest_difference"]) == {"image", "text", "tokenized text"}
    assert max(record["largest_difference"].values()) < 1e-6


def test_open_clip_and_the_trainer_load_safetensors(vit: Loaded, tmp_path: Path) -> None:
    record = export(vit, tmp_path / "out", "safetensors")
    assert record["largest_difference"] == {"image": 0.0, "text": 0.0}
    assert weights_digest("toy-vit-32", str(tmp_path / "out")) == vit.digest
    theirs, _, _ = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'out'}")
    assert theirs.state_dict().keys() == vit.model.state_dict().keys()
    assert lines(record, tmp_path / "out")[0] == "largest difference of image embeddings: 0"


def test_more_than_the_tolerance_leaves_nothing(vit: Loaded, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="embeddings differ by .* from the original, and at most -1 is allowed"):
        export(vit, tmp_path / "out", "safetensors", tolerance=-1)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_wrong_number_of_heads_is_seen(vit: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the measure is for: every tensor in its place, and yet another model."""
    def wrong(loaded: Loaded) -> tuple[object, list[str]]:
        theirs, left_out = to_transformers(loaded)
        theirs.config.vision_config.num_attention_heads = 1
        return theirs, left_out

    monkeypatch.setattr(module, "to_transformers", wrong)
    with pytest.raises(WeightsError, match=r"toy-vit-32 as huggingface: image embeddings differ by"):
        export(vit, tmp_path / "out", "huggingface")
    assert not list(tmp_path.iterdir())


def test_quick_gelu_and_a_bias_that_has_no_place() -> None:
    net = open_clip.CLIP(**open_clip.get_model_config("toy-vit-32"), quick_gelu=True)
    plain = load("toy-vit-32", "random")
    net.load_state_dict(plain.model.state_dict())
    net.visual.preprocess_cfg = plain.model.visual.preprocess_cfg
    loaded = with_bias(dataclasses.replace(plain, model=net.eval()))
    theirs, left_out = to_transformers(loaded)
    assert theirs.config.text_config.hidden_act == theirs.config.vision_config.hidden_act == "quick_gelu"
    assert left_out == ["logit_bias"]
    pixels, tokens = inputs(loaded)
    with torch.no_grad():
        found = theirs(pixel_values=pixels, input_ids=tokens)
        assert (found.image_embeds - net.encode_image(pixels, normalize=True)).abs().max() < 1e-6
        assert (found.image_embeds - plain.model.encode_image(pixels, normalize=True)).abs().max() > 1e-5, "gelu is another"
    record = {"largest_difference": {}, "left_out": left_out, "class": "CLIPModel", "format": "huggingface"}
    assert lines(record, Path("out"))[0] == "left out: logit_bias, which CLIPModel has not; embeddings do not depend on it"


class Timm(torch.nn.Module):
    """A timm ViT where open_clip has its image tower."""

    def __init__(self, like: torch.nn.Module) -> None:
        super().__init__()
        self.trunk = timm.models.VisionTransformer(img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2,
                                                   class_token=False, global_pool="map", num_classes=0)
        self.preprocess_cfg = like.preprocess_cfg

    def forward(self, pixels_NCHW: torch.Tensor) -> torch.Tensor:
        return self.trunk(pixels_NCHW)


def siglip(like: Loaded) -> Loaded:
    """A tiny SigLIP, put together from the parts that open_clip's are made of."""
    torch.manual_seed(0)
    net = open_clip.CustomTextCLIP.__new__(open_clip.CustomTextCLIP)
    torch.nn.Module.__init__(net)
    net.visual, net.output_dict = Timm(like.model.visual), False
    net.text = open_clip.transformer.TextTransformer(context_length=12, width=32, heads=2, layers=1, output_dim=32,
                                                     pool_type="last", no_causal_mask=True, proj_bias=True)
    net.logit_scale, net.logit_bias = (torch.nn.Parameter(torch.tensor(value)) for value in (2.0, -9.0))
    return dataclasses.replace(like, name="toy-siglip", model=net.eval())


def test_siglip_with_its_bias(vit: Loaded) -> None:
    ours = siglip(vit)
    theirs, left_out = to_transformers(ours)
    pixels, tokens = inputs(ours)
    with torch.no_grad():
        found = theirs(pixel_values=pixels, input_ids=tokens)
        image, text = ours.model.encode_image(pixels, normalize=True), ours.model.encode_text(tokens, normalize=True)
        logits = image @ text.T * ours.model.logit_scale.exp() + ours.model.logit_bias
    assert type(theirs).__name__ == "SiglipModel" and left_out == []
    assert (found.image_embeds - image).abs().max() < 1e-5 and (found.text_embeds - text).abs().max() < 1e-5
    assert (found.logits_per_image - logits).abs().max() < 1e-4


@pytest.mark.parametrize(("change", "why"), [
    ({"vision_cfg": {"layers": [1, 1, 1, 1], "width": 8, "head_width": 32, "patch_size": None}},
     "its image tower is a ModifiedResNet, and theirs is a ViT"),
    ({"vision_cfg": {"pool_type": "avg"}}, "its image tower pools by 'avg'"),
    ({"vision_cfg": {"no_ln_pre": True}}, "it has no visual.ln_pre.weight"),
    ({"vision_cfg": {"ls_init_value": 0.1}}, "theirs has no place for visual.transformer.resblocks.0.ls_1.gamma"),
    ({"text_cfg": {"no_causal_mask": True}}, "its text tower looks ahead"),
    ({"text_cfg": {"pool_type": "last"}}, "its text tower pools by 'last'"),
])
def test_what_cannot_be_expressed_is_named(change: dict[str, dict[str, object]], why: str, vit: Loaded, tmp_path: Path) -> None:
    config = open_clip.get_model_config("toy-vit-32")
    config = {**config, **{tower: {**config[tower], **change.get(tower, {})} for tower in ("vision_cfg", "text_cfg")}}
    net = open_clip.CLIP(**config).eval()
    net.visual.preprocess_cfg = vit.model.visual.preprocess_cfg
    with pytest.raises(WeightsError) as error:
        export(dataclasses.replace(vit, model=net), tmp_path / "out", "huggingface")
    assert str(error.value).startswith(f"toy-vit-32 cannot be a CLIPModel or SiglipModel of transformers: {why}")
    assert not list(tmp_path.iterdir())


def resized(loaded: Loaded, mode: str) -> Loaded:
    """The same with another way to make a square."""
    net = torch.nn.Module()
    net.visual = torch.nn.Module()
    net.visual.preprocess_cfg = {**loaded.model.visual.preprocess_cfg, "resize_mode": mode}
    return dataclasses.replace(loaded, model=net)


@pytest.mark.parametrize("mode", ["squash", "shortest"])
def test_pictures_become_the_same_pixels_there(mode: str, vit: Loaded) -> None:
    """Up to the resizing, which transformers leaves to another library: less than a level of grey on average."""
    loaded = resized(vit, mode)
    ours = open_clip.transform.image_transform_v2(
        open_clip.transform.PreprocessCfg(**loaded.model.visual.preprocess_cfg), is_train=False)
    wide = scene(3, 90).resize((90, 50))
    theirs = image_processor(loaded)(wide, return_tensors="pt")["pixel_values"][0]
    assert (theirs - ours(wide)).abs().mean() < 1 / 255


def test_a_longer_side_has_no_name_there(vit: Loaded) -> None:
    with pytest.raises(WeightsError, match="its pictures are resized by 'longest'"):
        image_processor(resized(vit, "longest"))


def test_only_an_export_is_replaced(vit: Loaded, tmp_path: Path) -> None:
    for name in ("out", "out"):
        export(vit, tmp_path / name, "safetensors")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(ConfigError, match="mine is there and is no export"):
        export(vit, tmp_path / "mine", "safetensors")
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "x"
    with pytest.raises(ConfigError, match="no format 'onnx'; there is huggingface, safetensors"):
        export(vit, tmp_path / "other", "onnx")
