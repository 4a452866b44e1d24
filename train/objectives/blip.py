"""BLIP: a contrastive loss, a judge of pairs and a writer of captions in one model; and the two fine-tunings that CapFilt takes.

Li et al. 2022 (arXiv 2201.12086), section 3.2: the three losses count alike. With `micro_batch` the contrastive part is that of
the whole batch by gradient caching; wrong pairs are then sought, and words averaged, within each part.

Shapes: N pairs of a chunk, S patches, L tokens, D dimensions, K wrong pairs.
"""

import math
from typing import Any

import torch
from torch import Tensor

from train.caching import Embedded
from train.chosen import chosen, longest
from train.config import Config
from train.dist import Ranks
from train.errors import ConfigError
from train.matching import NONE, itm_loss, lm_loss, wrong_partners
from train.models.weights import Loaded
from train.objectives.base import single
from train.objectives.contrastive import Clip
from train.objectives.momentum import Momentum

RAMP_EPOCHS = 2
"""Epochs in which soft labels grow to their part, in a straight line (BLIP's code)."""
SCALE = (math.log(1 / 0.5), math.log(1 / 0.001))
"""logit_scale stays between these: BLIP keeps its temperature from 0.001 to 0.5 (its code)."""


class Blip(Clip):
    """`loss: blip`: all three, from scratch or on."""

    own_parts: tuple[str, ...] = ("itm", "lm")

    def __init__(self, loaded: Loaded, config: Config) -> None:
        super().__init__(loaded, config)
        _check(loaded, config, self.own_parts)
        self.momentum = Momentum(self.model, config) if config.momentum is not None else None

    def forward(self, pixels_NCHW: Tensor, tokens_NL: Tensor, pictures_N: Tensor) -> Embedded:
        """Embeddings of a chunk, and its own parts. Padding behind the longest caption is cut off."""
        tokens_NL = self._cut(tokens_NL)
        patches_NSD = self.model.patches(pixels_NCHW)
        image_ND, text_ND = self.model.project(patches_NSD), self.model.encode_text(tokens_NL, normalize=True)
        scale = self.model.logit_scale.exp()
        parts = []
        if "itm" in self.own_parts:
            logits_NN = (scale * image_ND @ text_ND.T).detach().float()
            parts.append(self._matching(patches_NSD, tokens_NL, logits_NN, pictures_N))
        if "lm" in self.own_parts:
            parts.append(self._writing(patches_NSD, tokens_NL))
        steady = self.momentum.steady(pixels_NCHW, tokens_NL, pictures_N) if self.momentum is not None else ()
        return Embedded(image_ND, text_ND, scale, self.model.logit_bias, torch.stack(parts), steady)

    def contrast(self, embedded: Embedded, ranks: Ranks) -> Tensor:
        """`clip_loss`, or with `momentum` ALBEF's."""
        if self.momentum is None:
            return super().contrast(embedded, ranks)
        return self.momentum.contrast(embedded, ranks, RAMP_EPOCHS * self.steps_per_epoch)

    @torch.no_grad()
    def after_step(self) -> None:
        """The scale within its bounds; the copy follows."""
        self.model.logit_scale.clamp_(*SCALE)
        if self.momentum is not None:
            self.momentum.after_step()

    def _matching(self, patches_NSD: Tensor, tokens_NL: Tensor, logits_NN: Tensor, pictures_N: Tensor) -> Tensor:
        """Each pair, its picture with a wrong text and its text with a wrong picture, judged in one pass."""
        texts_N, images_N = wrong_partners(logits_NN, pictures_N), wrong_partners(logits_NN.T, pictures_N)
        own_N = torch.arange(len(tokens_NL), device=tokens_NL.device)
        own_K, texts_K, images_K = (chosen(rows_N, texts_N != NONE) for rows_N in (own_N, texts_N, images_N))
        images, texts = torch.cat([own_N, own_K, images_K]), torch.cat([own_N, texts_K, own_K])
        logits_P2 = single(self.model.judge(patches_NSD[images], tokens_NL[texts]))
        return itm_loss(logits_P2[: len(own_N)], logits_P2[len(own_N) :])

    def _writing(self, patches_NSD: Tensor, tokens_NL: Tensor) -> Tensor:
        logits_TV, words_T = self.model.next_words(patches_NSD, tokens_NL)
        return lm_loss(single(logits_TV), words_T)

    def _cut(self, tokens_NL: Tensor) -> Tensor:
        return tokens_NL[:, : longest(tokens_NL, self.model.pad_id)]


class BlipFilter(Blip):
    """`loss: blip_filter`: contrastive and matching, the fine-tuning of what sorts captions out."""

    own_parts = ("itm",)


class BlipCaptioner(Blip):
    """`loss: blip_captioner`: only writing, behind the setting `prompt`, the fine-tuning of what makes captions."""

    own_parts = ("lm",)

    def __init__(self, loaded: Loaded, config: Config) -> None:
        super().__init__(loaded, config)
        tokens: Any = loaded.tokenizer
        self._prompt: list[int] = tokens.words(config.prompt)
        self.num_given = 1 + len(self._prompt)

    def forward(self, pixels_NCHW: Tensor, tokens_NL: Tensor, pictures_N: Tensor) -> Embedded:
        """The loss of the captions' words; in the place of embeddings there is nothing."""
        patches_NSD, tokens_NL = self.model.patches(pixels_NCHW), self._cut(tokens_NL)
        prompt_NL = tokens_NL.new_tensor(self._prompt).expand(len(tokens_NL), -1)
        logits_TV, words_T = self.model.next_words(patches_NSD, torch.cat([tokens_NL[:, :1], prompt_NL, tokens_NL[:, 1:]], dim=1),
                                                   num_given=self.num_given)
        nothing = patches_NSD.new_zeros(len(patches_NSD), 0)
        return Embedded(nothing, nothing, self.model.logit_scale.exp(), own_P=lm_loss(single(logits_TV), words_T)[None])

    def contrast(self, embedded: Embedded, ranks: Ranks) -> Tensor:
        """There is no contrastive part."""
        return embedded.scale * 0


def _check(loaded: Loaded, config: Config, parts: tuple[str, ...]) -> None:
    """Raises ConfigError where the model lacks a half that the loss teaches."""
    for part, needed, what in (("itm", "itm_head", "matching head"), ("lm", "text_decoder", "decoder")):
        if not hasattr(loaded.model, needed) or not hasattr(loaded.model, "next_words"):
            raise ConfigError(f"loss: {config.loss} needs a BLIP, like curate-blip-64 or hf-blip:NAME; {loaded.name} is none")
        if part in parts and getattr(loaded.model, needed) is None:
            raise ConfigError(f"loss: {config.loss} needs a {what}, which {config.init or loaded.name} does not have")
