"""BLIP (Li et al. 2022, arXiv 2201.12086, section 3) out of transformers' parts, whole: what transformers has as two models, the
one that judges pairs and the one that writes captions, with one vision tower and one text transformer.

The text transformer is used in three ways. By itself ([CLS] first) it embeds a text; with the picture's patches in
cross-attention and [ENC] first it says whether both belong together; causal, with patches and [DEC] first, it writes. Encoder and
decoder share everything but their self-attention. The tensors have transformers' names.

Shapes: N rows, C, H, W channels and pixels, S patches and one more, L tokens, D dimensions, T words asked for, V ids.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize as of_length_1
from transformers import BlipConfig
from transformers.models.blip.modeling_blip import BlipVisionModel
from transformers.models.blip.modeling_blip_text import BlipTextLMHeadModel, BlipTextModel

from train.chosen import chosen
from train.errors import WeightsError

LOG_SCALE = math.log(1 / 0.07)
"""Where the contrastive scale starts; transformers' files hold none, because their models rank and do not learn."""
CLIP_PIXELS: dict[str, Any] = {"mean": [0.48145466, 0.4578275, 0.40821073], "std": [0.26862954, 0.26130258, 0.27577711]}


class Blip(nn.Module):
    """Both halves, or the one that published weights have. It embeds as open_clip's models do."""

    def __init__(self, config: BlipConfig, enc_id: int, *, judges: bool = True, writes: bool = True,
                 pixels: dict[str, Any] | None = None) -> None:
        super().__init__()
        vision, text = config.vision_config, config.text_config
        self.pad_id, self.dec_id, self.enc_id = int(text.pad_token_id), int(text.bos_token_id), enc_id
        self.vision_model = BlipVisionModel(vision)
        self.vision_model.image_size = vision.image_size
        self.vision_model.preprocess_cfg = {"size": vision.image_size, "mode": "RGB", **(pixels or CLIP_PIXELS),
                                            "interpolation": "bicubic", "resize_mode": "squash", "fill_color": 0}
        self.text_encoder = BlipTextModel(text, add_pooling_layer=False) if judges else None
        self.vision_proj = nn.Linear(vision.hidden_size, config.image_text_hidden_size) if judges else None
        self.text_proj = nn.Linear(text.hidden_size, config.image_text_hidden_size) if judges else None
        self.itm_head = nn.Linear(text.hidden_size, 2) if judges else None
        self.text_decoder = BlipTextLMHeadModel(text) if writes else None
        self.logit_scale = nn.Parameter(torch.tensor(LOG_SCALE))
        self.logit_bias: nn.Parameter | None = None
        if self.text_decoder is not None:
            _tie(self.text_decoder, self.text_encoder)

    @property
    def visual(self) -> Any:
        """The vision tower, by open_clip's name."""
        return self.vision_model

    def patches(self, pixels_NCHW: Tensor) -> Tensor:
        """What the vision tower sees: (N, S, D), the class token first."""
        found: Tensor = self.vision_model(pixel_values=pixels_NCHW).last_hidden_state
        return found

    def encode_image(self, pixels_NCHW: Tensor, normalize: bool = False) -> Tensor:
        """Embeddings of pictures, (N, D)."""
        return self.project(self.patches(pixels_NCHW), normalize)

    def project(self, patches_NSD: Tensor, normalize: bool = True) -> Tensor:
        """The same of pictures whose patches are known."""
        found: Tensor = _there(self.vision_proj, "embeddings")(patches_NSD[:, 0])
        return of_length_1(found, dim=-1) if normalize else found

    def encode_text(self, tokens_NL: Tensor, normalize: bool = False) -> Tensor:
        """Embeddings of texts that begin with [CLS], (N, D)."""
        states_NLD = _there(self.text_encoder, "embeddings")(input_ids=tokens_NL, attention_mask=self._mask(tokens_NL))
        found: Tensor = _there(self.text_proj, "embeddings")(states_NLD.last_hidden_state[:, 0])
        return of_length_1(found, dim=-1) if normalize else found

    def judge(self, patches_NSD: Tensor, tokens_NL: Tensor, first: int | None = None) -> Tensor:
        """Logits of "apart" and "together" of each picture and text, (N, 2).

        `first` stands in the place of [CLS]; None: [ENC], as BLIP trains. transformers' BlipForImageTextRetrieval leaves [CLS].
        """
        tokens_NL = _led_by(self.enc_id if first is None else first, tokens_NL)
        states_NLD = _there(self.text_encoder, "matching head")(input_ids=tokens_NL, attention_mask=self._mask(tokens_NL),
                                                               encoder_hidden_states=patches_NSD)
        found: Tensor = _there(self.itm_head, "matching head")(states_NLD.last_hidden_state[:, 0])
        return found

    def next_words(self, patches_NSD: Tensor, tokens_NL: Tensor, num_given: int = 1) -> tuple[Tensor, Tensor]:
        """(logits, ids) of every word behind the first `num_given` tokens, (T, V) and (T,), each from the words before it.

        [DEC] stands in the first place; padding is never asked for.
        """
        decoder = _there(self.text_decoder, "decoder")
        states_NLD = decoder.bert(input_ids=_led_by(self.dec_id, tokens_NL), attention_mask=self._mask(tokens_NL),
                                  encoder_hidden_states=patches_NSD, is_decoder=True).last_hidden_state
        words_NL = tokens_NL[:, num_given:]
        asked_NL = words_NL != self.pad_id
        return decoder.cls(chosen(states_NLD[:, num_given - 1 : -1], asked_NL)), chosen(words_NL, asked_NL)

    def _mask(self, tokens_NL: Tensor) -> Tensor | None:
        """Of what is no padding; None on the meta device, where transformers could not look whether there is any."""
        return None if tokens_NL.is_meta else (tokens_NL != self.pad_id).long()


def _tie(decoder: Any, encoder: Any | None) -> None:
    """The decoder writes with the embeddings that it reads with, and has the encoder's embeddings, cross-attention and
    feed-forward parts for its own (section 3.2, and the ablation of table 3)."""
    if encoder is not None:
        decoder.bert.embeddings = encoder.embeddings
        for own, shared in zip(decoder.bert.encoder.layer, encoder.encoder.layer, strict=True):
            own.crossattention, own.intermediate, own.output = shared.crossattention, shared.intermediate, shared.output
    head = decoder.cls.predictions
    head.decoder.weight, head.decoder.bias = decoder.bert.embeddings.word_embeddings.weight, head.bias


def _led_by(first: int, tokens_NL: Tensor) -> Tensor:
    found = tokens_NL.clone()
    found[:, 0] = first
    return found


def _there(part: Any | None, what: str) -> Any:
    if part is None:
        raise WeightsError(f"these weights of BLIP have no {what}: they are the other half of the model")
    return part
