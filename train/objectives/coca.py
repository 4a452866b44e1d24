"""CoCa (Yu et al. 2022, arXiv 2205.01917): CLIP's loss, and a decoder over the text tower that writes the picture's caption."""

import torch
from torch import Tensor

from train.caching import Embedded
from train.chosen import chosen, longest
from train.config import Config
from train.errors import ConfigError
from train.losses import caption_loss
from train.models.coca import has_decoder, words_of
from train.models.weights import Loaded
from train.objectives.base import single
from train.objectives.contrastive import Clip


class Coca(Clip):
    """`contrastive + caption_weight * caption` (section 3.2); open_clip's CoCa models learn by it."""

    own_parts = ("caption",)

    def __init__(self, loaded: Loaded, config: Config) -> None:
        super().__init__(loaded, config)
        if not has_decoder(self.model) or not hasattr(self.model, "_encode_image"):
            lacks = "is a BLIP, which learns by loss: blip" if has_decoder(self.model) else "has no decoder"
            raise ConfigError(f"loss: coca needs a model that writes captions, like coca_ViT-B-32 or curate-coca-64; "
                              f"{loaded.name} {lacks}")
        self._weight = config.caption_weight

    def forward(self, pixels_NCHW: Tensor, tokens_NL: Tensor, pictures_N: Tensor) -> Embedded:
        """Embeddings of a chunk, and the mean loss of its captions.

        The decoder is causal, so it is asked as far as the longest caption goes; and for words, of which there are so many that
        they are most of the work, only where a caption has one.
        """
        image_ND, image_tokens = self.model._encode_image(pixels_NCHW)
        text_ND, embedded_NLD = self.model._encode_text(tokens_NL)
        end, pad = longest(tokens_NL, self.model.pad_id), self.model.pad_id     # a `!` has the padding's number
        labels_NL = tokens_NL[:, 1:end]
        with words_of(self.model.text_decoder, lambda states_NLD: chosen(states_NLD, labels_NL != pad)):
            logits_TV = self.model.text_decoder(image_tokens, embedded_NLD[:, : end - 1])
        found = caption_loss(single(logits_TV), labels_NL, pad)
        return Embedded(image_ND, text_ND, self.model.logit_scale.exp(), self.model.logit_bias,
                        torch.stack([self._weight * found]))
