"""Layers of the towers, counted from the pictures and words up: what learns less the deeper it lies, and what is locked.

Layer 0 are the embeddings (a ResNet's stem), layer i the i-th block (a ResNet's i-th stage), the layer above the last block
is the head: last norm, pooling and projection. Numbered so by BEiT (Bao et al. 2021, arXiv 2106.08254), whose fine-tuning
multiplies the learning rate by a factor for every layer below the head (ELECTRA's idea, Clark et al. 2020, arXiv 2003.10555,
section 3.1).
"""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from torch import nn

from train.choices import Held
from train.config import Config
from train.errors import ConfigError


class Family(NamedTuple):
    """Names of the parameters of one kind of tower: where its bottom, its blocks and its head are."""

    bottom: str
    block: str
    """has the block's number, from `first` on, as its group"""
    head: str
    first: int = 0


VIT = Family(r"visual\.(conv1|class_embedding|positional_embedding|ln_pre)\b", r"visual\.transformer\.resblocks\.(\d+)\.",
             r"visual\.(ln_post|proj|attn_pool|attn_pool_contrastive|ln_pool)\b")
RESNET = Family(r"visual\.(conv|bn)[123]\.", r"visual\.layer(\d+)\.", r"visual\.attnpool\.", first=1)
WORDS = Family(r"(text\.)?(token_embedding|positional_embedding|cls_emb)\b", r"(?:text\.)?transformer\.resblocks\.(\d+)\.",
               r"(text\.)?(ln_final|text_projection)\b|text_decoder\.")
BLIP_VIT = Family(r"vision_model\.embeddings\.", r"vision_model\.encoder\.layers\.(\d+)\.",
                  r"vision_model\.post_layernorm\.|vision_proj\.")
BLIP_WORDS = Family(r"text_(encoder|decoder\.bert)\.embeddings\.", r"text_(?:encoder|decoder\.bert)\.encoder\.layer\.(\d+)\.",
                    r"text_proj\.|itm_head\.|text_decoder\.cls\.")
FAMILIES = {"image": (VIT, RESNET, BLIP_VIT), "text": (WORDS, BLIP_WORDS)}
"""By tower: open_clip's VisionTransformer and ModifiedResNet; its text transformer, a CoCa's decoder counted to the head; BLIP's
vision tower, and its encoder and decoder, whose i-th blocks share their weights."""

IDLE = {"clip": r"logit_bias|text_decoder\.|itm_head\.|text_encoder\..*\.crossattention\.",
        "siglip": r"text_decoder\.|itm_head\.|text_encoder\..*\.crossattention\.",
        "blip": "logit_bias", "blip_filter": r"logit_bias|text_decoder\.",
        "blip_captioner": r"logit_|vision_proj\.|text_proj\.|itm_head\.|text_encoder\.encoder\.layer\.\d+\.attention\."}
"""Loss → how the names begin of parameters that it never reaches, and that would hold up processes which wait for gradients. A
SigLIP model's bias is one of CLIP's: a softmax is the same whatever is added to all its logits."""


def tower(name: str) -> str:
    """`image`, `text` or `both`, the part of an open_clip model or a BLIP that a parameter's name says."""
    if name.startswith(("visual.", "vision_model.", "vision_proj.")):
        return "image"
    return "both" if name in ("logit_scale", "logit_bias") else "text"


class Layers:
    """The layers of one tower."""

    def __init__(self, which: str, names: Iterable[str], setting: str) -> None:
        """Of the parameters `names`, of which those of tower `which` count. Raises ConfigError, which names the `setting` that
        needs to know, where they belong to no family that is known."""
        own = [name for name in names if tower(name) == which]
        unknown = ""
        for family in FAMILIES[which]:
            unknown = next((name for name in own if _layer(family, name) is None), "")
            if not unknown:
                break
        if unknown:
            raise ConfigError(f"{setting}: no layers are known of this model's {which} tower (it has {unknown}), only of "
                              "open_clip's own transformers and ResNets, and BLIP")
        self._family = family
        self.num_blocks = max((_block(family, name) for name in own), default=0)

    def of(self, name: str) -> int:
        """0 (bottom) to `num_blocks` + 1 (head)."""
        found = _layer(self._family, name)
        return self.num_blocks + 1 if found is None or found < 0 else found


def _layer(family: Family, name: str) -> int | None:
    """The number of the layer, -1 for the head; None for a name that the family does not have."""
    if re.match(family.bottom, name):
        return 0
    return _block(family, name) or (-1 if re.match(family.head, name) else None)


def _block(family: Family, name: str) -> int:
    """1 for the first block and so on; 0 for what is in none."""
    match = re.match(family.block, name)
    return int(match[1]) + 1 - family.first if match else 0


def shares(names: Sequence[str], config: Config) -> dict[str, float]:
    """Parameter → its part of the learning rate; 0 for what does not learn.

    The tower's own part, times `layer_decay` for every layer between the parameter's and the head, and nothing for the layers
    that are locked, nor for what the loss never reaches. Raises ConfigError for settings that need layers of a model without
    known ones.
    """
    of_tower = {"image": config.lr_image, "text": config.lr_text, "both": 1.0}
    found = {name: of_tower[tower(name)] for name in names}
    for which, held in (("image", config.lock.image), ("text", config.lock.text)):
        own = [name for name in names if tower(name) == which]
        if held == "all":
            found.update(dict.fromkeys(own, 0.0))
        elif held is not None or config.layer_decay != 1:
            layers = Layers(which, own, "layer_decay" if held is None else "lock")
            last_locked = _last_locked(layers, held, which)
            for name in own:
                below_head = layers.num_blocks + 1 - layers.of(name)
                found[name] *= 0.0 if layers.of(name) <= last_locked else config.layer_decay**below_head
    never = re.compile(IDLE.get(config.loss, "$"))
    return {name: 0.0 if never.match(name) else share for name, share in found.items()}


def _last_locked(layers: Layers, held: Held, which: str) -> int:
    """The highest layer that is locked; -1 for none."""
    if not isinstance(held, int):
        return -1
    if held > layers.num_blocks:
        raise ConfigError(f"lock: {which}: but_last: {held} is more than the tower's {layers.num_blocks} blocks")
    return layers.num_blocks - held


def still(model: nn.Module) -> None:
    """Put what is locked into evaluation mode: running statistics (batch normalisation) stay, and nothing in it is dropped."""
    for module in model.modules():
        parameters = list(module.parameters())
        if parameters and not any(p.requires_grad for p in parameters):
            module.eval()
