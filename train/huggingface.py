"""A model of open_clip as a folder that transformers loads: `CLIPModel` or `SiglipModel`, with its tokenizer and image processor.

What an architecture has that theirs has not is named, and nothing is written. Every tensor must find its place.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import open_clip
import torch
from torch import Tensor, nn

from train.errors import WeightsError
from train.models.weights import Loaded

START, END = "<|startoftext|>", "<|endoftext|>"
"""What transformers calls the first and the last token of a text."""


def to_transformers(loaded: Loaded) -> tuple[Any, list[str]]:
    """(the model as transformers has it, what of ours it has no place for but works without).

    Raises WeightsError of one line where the architecture cannot be expressed.
    """
    model = loaded.model
    if hasattr(model, "text_decoder"):
        raise _no(loaded, "it has a decoder of captions")
    text = getattr(model, "text", model)
    if not isinstance(getattr(text, "transformer", None), open_clip.transformer.Transformer):
        raise _no(loaded, f"its text tower is a {type(text).__name__}")
    if hasattr(model.visual, "trunk"):
        return _siglip(loaded, text), []
    if not isinstance(model.visual, open_clip.transformer.VisionTransformer):
        raise _no(loaded, f"its image tower is a {type(model.visual).__name__}, and theirs is a ViT")
    return _clip(loaded, text)


def save_preprocessing(loaded: Loaded, folder: Path) -> None:
    """Tokenizer and image processor as transformers reads them. Raises WeightsError where the pictures' resizing has no name."""
    image_processor(loaded).save_pretrained(folder)
    if isinstance(loaded.tokenizer, open_clip.tokenizer.SimpleTokenizer):
        _tokenizer(loaded.tokenizer).save_pretrained(folder)
    elif isinstance(loaded.tokenizer, open_clip.tokenizer.HFTokenizer):
        loaded.tokenizer.save_pretrained(folder)
    else:
        raise _no(loaded, f"its tokenizer is a {type(loaded.tokenizer).__name__}")


@contextmanager
def without_bars() -> Iterator[None]:
    """Without transformers' progress bars, which it draws for every file it reads or writes."""
    from transformers.utils import logging

    before = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if before:
            logging.enable_progress_bar()


def _clip(loaded: Loaded, text: Any) -> tuple[Any, list[str]]:
    from transformers import CLIPConfig, CLIPModel

    model, visual, tokenizer = loaded.model, loaded.model.visual, loaded.tokenizer
    pool = getattr(text, "pool_type", None) or model.text_pool_type
    for wrong, why in ((visual.pool_type != "tok", f"its image tower pools by '{visual.pool_type}'"),
                       (visual.final_ln_after_pool, "its image tower normalises after pooling"),
                       (pool != "argmax", f"its text tower pools by '{pool}'"),
                       (text.attn_mask is None, "its text tower looks ahead")):
        if wrong:
            raise _no(loaded, why)
    if not isinstance(tokenizer, open_clip.tokenizer.SimpleTokenizer):
        raise _no(loaded, "its tokenizer is not CLIP's")
    moving = _Moving(loaded, _state(model))
    moving.clip_image(len(visual.transformer.resblocks))
    moving.text(len(text.transformer.resblocks))
    moving.clip_projections(text)
    moving.put("logit_scale", "logit_scale")
    dropped = ["logit_bias"] if moving.left.pop("logit_bias", None) is not None else []
    end, width = tokenizer.eot_token_id, moving.moved["visual_projection.weight"].shape[0]
    config = CLIPConfig(
        text_config={"projection_dim": width, **_tower(text.transformer, text.ln_final), "vocab_size": text.vocab_size,
                     "max_position_embeddings": text.context_length, "bos_token_id": tokenizer.sot_token_id,
                     "eos_token_id": end, "pad_token_id": end},
        vision_config={"projection_dim": width, **_tower(visual.transformer, visual.ln_post),
                       "image_size": visual.image_size[0], "patch_size": visual.patch_size[0]},
        projection_dim=width)
    return moving.into(CLIPModel(config)), dropped


def _siglip(loaded: Loaded, text: Any) -> Any:
    from transformers import SiglipConfig, SiglipModel

    trunk = loaded.model.visual.trunk
    pool = getattr(text, "pool_type", "")
    for wrong, why in ((type(trunk).__name__ != "VisionTransformer" or type(trunk.attn_pool).__name__ != "AttentionPoolLatent",
                        f"its image tower is timm's {type(trunk).__name__}, and theirs is SigLIP's ViT with attention pooling"),
                       (pool != "last", f"its text tower pools by '{pool}'"),
                       (text.attn_mask is not None, "its text tower does not look ahead")):
        if wrong:
            raise _no(loaded, why)
    moving = _Moving(loaded, _state(loaded.model))
    moving.timm_image(len(trunk.blocks))
    moving.text(len(text.transformer.resblocks))
    moving.put("text_projection", "text_model.head")
    for name in ("logit_scale", "logit_bias"):
        moving.put(name, name, shape=(1,))
    config = SiglipConfig(
        text_config={**_tower(text.transformer, text.ln_final), "vocab_size": text.vocab_size,
                     "max_position_embeddings": text.context_length, "projection_size": text.output_dim},
        vision_config={"hidden_size": trunk.embed_dim, "num_hidden_layers": len(trunk.blocks),
                       "num_attention_heads": trunk.blocks[0].attn.num_heads, "hidden_act": _activation(trunk.blocks[0].mlp.act),
                       "intermediate_size": trunk.blocks[0].mlp.fc1.out_features, "layer_norm_eps": trunk.norm.eps,
                       "image_size": trunk.patch_embed.img_size[0], "patch_size": trunk.patch_embed.patch_size[0]})
    return moving.into(SiglipModel(config))


class _Moving:
    """Tensors on their way from open_clip's names to transformers'."""

    def __init__(self, loaded: Loaded, tensors: Mapping[str, Tensor]) -> None:
        self._loaded = loaded
        self.left = dict(tensors)
        self.moved: dict[str, Tensor] = {}

    def put(self, ours: str, theirs: str, shape: tuple[int, ...] | None = None) -> None:
        """The tensor called `ours`, or its weight and bias."""
        parts = [""] if ours in self.left else [".weight", ".bias"]
        for part in parts:
            tensor = self.take(ours + part)
            self.moved[theirs + part] = tensor if shape is None else tensor.reshape(shape)

    def take(self, ours: str) -> Tensor:
        """The tensor called so, which then is not left any more."""
        if ours not in self.left:
            raise _no(self._loaded, f"it has no {ours}")
        return self.left.pop(ours)

    def clip_image(self, layers: int) -> None:
        """open_clip's ViT."""
        theirs = "vision_model."
        self.moved[f"{theirs}embeddings.patch_embedding.weight"] = self.take("visual.conv1.weight")
        self.put("visual.class_embedding", f"{theirs}embeddings.class_embedding")
        self.put("visual.positional_embedding", f"{theirs}embeddings.position_embedding.weight")
        self.put("visual.ln_pre", f"{theirs}pre_layrnorm")
        self.put("visual.ln_post", f"{theirs}post_layernorm")
        self._blocks("visual.transformer.resblocks", theirs, layers)

    def text(self, layers: int) -> None:
        """The text transformer."""
        self.put("token_embedding.weight", "text_model.embeddings.token_embedding.weight")
        self.put("positional_embedding", "text_model.embeddings.position_embedding.weight")
        self.put("ln_final", "text_model.final_layer_norm")
        self._blocks("transformer.resblocks", "text_model.", layers)

    def clip_projections(self, text: Any) -> None:
        """Both projections, matrices that stand the other way round."""
        self.moved["visual_projection.weight"] = self.take("visual.proj").T
        if "text_projection.weight" in self.left:
            self.moved["text_projection.weight"] = self.take("text_projection.weight")
        elif text.text_projection is None:
            self.moved["text_projection.weight"] = torch.eye(text.token_embedding.weight.shape[1])
        else:
            self.moved["text_projection.weight"] = self.take("text_projection").T

    def timm_image(self, layers: int) -> None:
        """timm's ViT with SigLIP's pooling by attention."""
        ours, theirs = "visual.trunk.", "vision_model."
        self.put(f"{ours}patch_embed.proj", f"{theirs}embeddings.patch_embedding")
        self.moved[f"{theirs}embeddings.position_embedding.weight"] = self.take(f"{ours}pos_embed")[0]
        self.put(f"{ours}norm", f"{theirs}post_layernorm")
        self._blocks(f"{ours}blocks", theirs, layers)
        head = f"{theirs}head."
        self.put(f"{ours}attn_pool.latent", f"{head}probe")
        for part in ("weight", "bias"):
            self.moved[f"{head}attention.in_proj_{part}"] = torch.cat([self.take(f"{ours}attn_pool.{name}.{part}")
                                                                       for name in ("q", "kv")])
        for name, there in (("proj", "attention.out_proj"), ("norm", "layernorm"), ("mlp.fc1", "mlp.fc1"),
                            ("mlp.fc2", "mlp.fc2")):
            self.put(f"{ours}attn_pool.{name}", head + there)

    def _blocks(self, ours: str, theirs: str, layers: int) -> None:
        """The transformer's blocks, of open_clip's or timm's names."""
        timm = f"{ours}.0.norm1.weight" in self.left
        names = {"norm1": "layer_norm1", "norm2": "layer_norm2", "attn.proj": "self_attn.out_proj", "mlp.fc1": "mlp.fc1",
                 "mlp.fc2": "mlp.fc2"} if timm else \
                {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "attn.out_proj": "self_attn.out_proj", "mlp.c_fc": "mlp.fc1",
                 "mlp.c_proj": "mlp.fc2"}
        together = "attn.qkv." if timm else "attn.in_proj_"
        for i in range(layers):
            here, there = f"{ours}.{i}.", f"{theirs}encoder.layers.{i}."
            for name, other in names.items():
                self.put(here + name, there + other)
            for part in ("weight", "bias"):
                for letter, tensor in zip("qkv", self.take(here + together + part).chunk(3), strict=True):
                    self.moved[f"{there}self_attn.{letter}_proj.{part}"] = tensor

    def into(self, theirs: Any) -> Any:
        """Their model with these tensors; every one of ours and every one of theirs has its place."""
        if self.left:
            raise _no(self._loaded, f"theirs has no place for {', '.join(sorted(self.left)[:3])}")
        theirs.load_state_dict({name: tensor.clone().contiguous() for name, tensor in self.moved.items()})
        return theirs.eval()


def _state(model: Any) -> dict[str, Tensor]:
    """The tensors, the text tower's under the names that it has in open_clip's plain CLIP."""
    return {name.removeprefix("text."): tensor.detach().cpu() for name, tensor in model.state_dict().items()}


def _tower(transformer: Any, norm: Any) -> dict[str, Any]:
    """What CLIPConfig and SiglipConfig want to know of a transformer of open_clip's."""
    block = transformer.resblocks[0]
    return {"hidden_size": transformer.width, "num_hidden_layers": len(transformer.resblocks),
            "num_attention_heads": block.attn.num_heads, "intermediate_size": block.mlp.c_fc.out_features,
            "hidden_act": _activation(block.mlp.gelu), "layer_norm_eps": norm.eps}


def _activation(module: nn.Module) -> str:
    if isinstance(module, open_clip.transformer.QuickGELU):
        return "quick_gelu"
    if isinstance(module, nn.GELU):
        return "gelu_pytorch_tanh" if module.approximate == "tanh" else "gelu"
    return {"GELUTanh": "gelu_pytorch_tanh", "GELU": "gelu"}.get(type(module).__name__, type(module).__name__)


def _tokenizer(ours: Any) -> Any:
    """CLIP's byte pair encoding from open_clip's own tables."""
    from transformers import CLIPTokenizer

    special = {ours.sot_token_id: START, ours.eot_token_id: END}
    vocabulary = {special.get(number, token): number for token, number in ours.encoder.items()}
    merges = [pair for pair, _ in sorted(ours.bpe_ranks.items(), key=lambda item: item[1])]
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=ours.context_length)


def image_processor(loaded: Loaded) -> Any:
    """How pictures become pixels, in transformers' words. Raises WeightsError where they have none."""
    from transformers import CLIPImageProcessor

    said: dict[str, Any] = loaded.model.visual.preprocess_cfg
    size = said["size"] if isinstance(said["size"], int) else said["size"][0]
    whole = {"height": size, "width": size}
    sizes: dict[str, dict[str, Any]] = {"squash": {"size": whole, "do_center_crop": False},
                                        "shortest": {"size": {"shortest_edge": size}, "crop_size": whole}}
    if said["resize_mode"] not in sizes:
        raise _no(loaded, f"its pictures are resized by '{said['resize_mode']}'")
    resample = {"bicubic": 3, "bilinear": 2}.get(said["interpolation"], 3)
    return CLIPImageProcessor(resample=resample, image_mean=list(said["mean"]), image_std=list(said["std"]),
                              **sizes[said["resize_mode"]])


def _no(loaded: Loaded, why: str) -> WeightsError:
    return WeightsError(f"{loaded.name} cannot be a CLIPModel or SiglipModel of transformers: {why}")
