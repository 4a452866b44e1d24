"""CLIP and SigLIP: two towers, and a loss over their embeddings."""

import torch
from torch import Tensor

from train.caching import Embedded
from train.config import Config
from train.dist import Ranks
from train.losses import clip_loss, siglip_loss
from train.models.weights import Loaded
from train.objectives.base import Objective, single
from train.optim import SCALE_MAX


class Clip(Objective):
    """Softmax over the batch, both ways (`train.losses.clip_loss`)."""

    def forward(self, pixels_NCHW: Tensor, tokens_NL: Tensor, pictures_N: Tensor) -> Embedded:
        """Embeddings of a chunk; there are no own parts."""
        image_ND = self.model.encode_image(pixels_NCHW, normalize=True)
        text_ND = self.model.encode_text(tokens_NL, normalize=True)
        return Embedded(image_ND, text_ND, self.model.logit_scale.exp(), self.model.logit_bias)

    def contrast(self, embedded: Embedded, ranks: Ranks) -> Tensor:
        """See `clip_loss`."""
        images, texts = single(embedded.image_ND), single(embedded.text_ND)
        return clip_loss(images, texts, embedded.scale, first_row=ranks.rank * len(images), gather=ranks.gather)

    @torch.no_grad()
    def after_step(self) -> None:
        """The scale stays at 100 or less."""
        self.model.logit_scale.clamp_(0, SCALE_MAX)


class Siglip(Clip):
    """A sigmoid a pair (`train.losses.siglip_loss`); the scale knows no limit."""

    def __init__(self, loaded: Loaded, config: Config) -> None:
        super().__init__(loaded, config)
        assert self.model.logit_bias is not None, "with_bias comes first: the bias belongs to the checkpoint"

    def contrast(self, embedded: Embedded, ranks: Ranks) -> Tensor:
        """See `siglip_loss`."""
        images, texts = single(embedded.image_ND), single(embedded.text_ND)
        assert embedded.bias is not None
        return siglip_loss(images, texts, embedded.scale, embedded.bias, first_row=ranks.rank * len(images), gather=ranks.gather)

    def after_step(self) -> None:
        """Nothing."""
