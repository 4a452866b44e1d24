"""Zero-shot NSFW: which of two groups of prompts a picture is like, by the text tower of the model that embedded it.

The prompts are those of LAION-400M's filter (crawlingathome-worker, clip_filter.py), with its misspellings. There a comma is
missing between "animal, …" and "fashion, …", so that its list has 35 entries, while the code takes the first 19 for harmless:
the first pornographic prompt counted as harmless. Here a group is a group and no position in a list.
"""

import numpy as np
from numpy.typing import NDArray

from curate.errors import UserError
from curate.heads.head import Card, Head, Input, Op, Output
from curate.heads.layers import Linear, Matrix, Softmax

HARMLESS = (
    "neutral", "selfie", "illustration, drawing", "toys, play, kids, children", "teddy bear, puppet",
    "animal, bird, mammal, insect", "fashion, clothes", "logo, commercial, ad, advertisement", "drawing, painting",
    "anime, cartoon", "comedy, fun", "romance, love story", "thriller, suspense, crime story", "action, action movie",
    "horror, monster movie", "documentary", "news, journalism", "entertainment", "talk show",
)
NSFW = (
    ("porn, sex, sperm, nipples, breats, tits, boops, penis, dick, cock, clitoris, vagina, fuck, lust, horny, sexual, "
     "lick, licking"),
    "porn, sex, sperm, nipples", "porn, sex, sperm, penis, dick, cock", "nipples, breats, tits, boops, sexy", "penis, dick, cock",
    "clitoris, vagina", "sex, fuck, lust, horny, sexual, lick, licking", "porn, sex, sexy", "sexy, hot", "sperm, skin",
    "lust, horny, sexual", "lick, licking, body", "anime, hentai, sexy", "cartoon, sexy, sex", "hentai", "anime, sexy, breasts",
    "hentai",
)


def zero_shot(model: str, pretrained: str) -> Head:
    """The head of the prompts for a CLIP model; it is loaded for the prompts and let go. On the CPU, so all machines agree."""
    import torch

    from train.models.clip import embed_texts
    from train.models.weights import load

    torch.set_num_threads(1)    # one thread a worker: the numbers must not depend on how many workers there are
    loaded = load(model, pretrained)
    if getattr(loaded.model, "logit_scale", None) is None:
        raise UserError(f"step 'nsfw': {model} has no logit_scale, so it is no CLIP whose prompts can be compared")
    found, scale = embed_texts(loaded, [*HARMLESS, *NSFW]), float(loaded.model.logit_scale.detach().exp())
    return grouped(found[:len(HARMLESS)], found[len(HARMLESS):], scale, (model, pretrained))


def grouped(harmless: Matrix, meant: Matrix, scale: float, embedder: tuple[str, str]) -> Head:
    """The share of the softmax, over prompts of length 1 at the model's own scale, that falls on the group that is meant."""
    prompts = np.concatenate([harmless, meant])
    share: NDArray[np.float32] = np.repeat(np.array([0, 1], np.float32), [len(harmless), len(meant)])
    zero = np.zeros(len(prompts), np.float32)
    layers = (Linear(np.asarray(prompts * np.float32(scale), np.float32), zero), Softmax(), Linear(share[None, :], zero[:1]))
    card = Card(name="prompts", input=Input(model=embedder[0], pretrained=embedder[1], dim=prompts.shape[1], normalize=True),
                layers=(Op(op="linear"), Op(op="softmax"), Op(op="linear")),
                output=Output(activation="unit", column="nsfw_prob", meaning="share of the prompts' softmax, 0 to 1"))
    return Head(card, layers, np.empty((0, prompts.shape[1]), np.float32), zero[:0])
