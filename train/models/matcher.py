"""A BLIP that judges whether a picture and a text belong together: its matching head (ITM) and the cosine of its towers (ITC).

The matching head was trained on the state of a token of its own, [ENC], in the place of the first one. BLIP's training and its
retrieval evaluation put it there; its stand-alone `blip_itm.py`, and transformers' class after it, leave [CLS], which the head
has never seen.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from train.models.blip_folder import enc_id, load
from train.models.clip import autocast, padded
from train.models.vocabulary import Tokens

BATCH = {"cpu": 16, "cuda": 128}
"""Pairs that go through the model at once."""

Floats = NDArray[np.float32]


class Matcher:
    """A loaded matcher. Raises WeightsError of one line where the weights are none, or know no [ENC] though it is asked for.

    Texts are cut at `max_tokens`, [CLS] and [SEP] included: 35 in BLIP's retrieval code; or before that, where the model was
    trained with fewer. "[SEP]" in a text is five characters: whoever wrote it has no say in where it ends.
    """

    def __init__(self, name: str, first_token: Literal["enc", "cls"] = "enc", max_tokens: int = 35, device: str = "cpu",
                 precision: str = "fp32") -> None:
        self._blip = load("BlipForImageTextRetrieval", name, device, precision)
        self._batch = BATCH[self._blip.device.type]
        self._first = enc_id(name, self._blip.tokenizer, self._blip.model.config) if first_token == "enc" else None
        tokenizer = self._blip.tokenizer
        self._tokens = Tokens(tokenizer, min(max_tokens, tokenizer.model_max_length))

    @torch.inference_mode()
    def match(self, images: Sequence[Image.Image], pairs: Sequence[tuple[int, str]]) -> tuple[Floats, Floats]:
        """Of each (number of the picture, text): the probability of "matched", 0 to 1, and the cosine, -1 to 1."""
        if not pairs:
            return np.empty(0, np.float32), np.empty(0, np.float32)
        states_NPD = self._blip.states(images, self._batch)
        chunks = [self._chunk(states_NPD, pairs[at : at + self._batch]) for at in range(0, len(pairs), self._batch)]
        probs, cosines = zip(*chunks, strict=True)
        return np.concatenate(probs), np.concatenate(cosines)

    def _chunk(self, states_NPD: Tensor, pairs: Sequence[tuple[int, str]]) -> tuple[Floats, Floats]:
        model, device = self._blip.model, self._blip.device
        tokens_BL = padded(self._tokens([text for _, text in pairs]), self._batch).to(device)
        mask_BL = (tokens_BL != self._blip.tokenizer.pad_token_id).long()
        states_BPD = padded(states_NPD[torch.tensor([number for number, _ in pairs], device=device)], self._batch)
        with autocast(device, self._blip.precision):
            alone_BLD = model.text_encoder(input_ids=tokens_BL, attention_mask=mask_BL).last_hidden_state
            of_text = normalize(model.text_proj(alone_BLD[:, 0]).float(), dim=-1)
            of_picture = normalize(model.vision_proj(states_BPD[:, 0]).float(), dim=-1)
            if self._first is not None:
                tokens_BL = torch.cat([torch.full_like(tokens_BL[:, :1], self._first), tokens_BL[:, 1:]], dim=1)
            both_BLD = model.text_encoder(input_ids=tokens_BL, attention_mask=mask_BL,
                                          encoder_hidden_states=states_BPD).last_hidden_state
            probs_B = model.itm_head(both_BLD[:, 0]).float().softmax(dim=-1)[:, 1]
        found = probs_B[: len(pairs)], (of_text * of_picture).sum(dim=-1)[: len(pairs)].clamp(-1, 1)
        return found[0].cpu().numpy(), found[1].cpu().numpy()
