"""A CoCa that says what pictures show: the sampling of `train.models.sampling` over open_clip's decoder.

open_clip 3.3's own `CoCa.generate` refuses to run beside transformers 5, so the few lines of a loop are here.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from train.errors import ConfigError
from train.models.clip import autocast, padded, to_device
from train.models.coca import has_decoder, words_of
from train.models.sampling import BATCH, Decoding, draw, rules, uniforms
from train.models.weights import Loaded


class CocaCaptioner:
    """Captions by a CoCa model. Raises ConfigError where the model has no decoder, or where beams are asked for."""

    def __init__(self, loaded: Loaded, decoding: Decoding) -> None:
        if not has_decoder(loaded.model):
            raise ConfigError(f"{loaded.name} writes no captions; coca_ViT-B-32 does, and a BLIP with a decoder")
        if decoding.beams:
            raise ConfigError("a CoCa samples its captions; beams are for BLIP")
        self._loaded, self._how = loaded, decoding
        self._batch = BATCH[loaded.device.type]
        self._tokenizer: Any = loaded.tokenizer
        self._pad = int(loaded.model.pad_id)
        first, self._end = (int(loaded.tokenizer([""])[0, place]) for place in (0, 1))
        prompt = loaded.tokenizer([decoding.prompt.strip()])[0]
        self._prompt = prompt[: int((prompt == self._end).nonzero()[0, 0])].to(loaded.device)
        self._most = min(decoding.max_tokens, loaded.model.text.context_length - len(self._prompt))
        if self._most < decoding.min_tokens:
            raise ConfigError(f"a prompt of {len(self._prompt)} tokens leaves {max(0, self._most)} of the {loaded.name}'s "
                              f"{loaded.model.text.context_length} for a caption of at least {decoding.min_tokens}")
        self._never = [self._pad, first]

    @torch.inference_mode()
    def captions(self, images: Sequence[Image.Image], uids: Sequence[str]) -> list[list[str]]:
        """`candidates` captions of each picture, by the uid of its row; the same picture may stand there several times."""
        count, how = self._how.candidates, self._how
        jobs = [(image, uid, number) for image, uid in zip(images, uids, strict=True) for number in range(count)]
        texts: list[str] = []
        for at in range(0, len(jobs), self._batch):
            chunk = jobs[at : at + self._batch]
            pixels = torch.stack([self._loaded.preprocess_val(image) for image, _, _ in chunk])
            draws = np.stack([uniforms(how.seed, uid, number, how.max_tokens) for _, uid, number in chunk])
            tokens_BT = self._sample(to_device(padded(pixels, self._batch), self._loaded.device),
                                     padded(torch.from_numpy(draws).to(self._loaded.device), self._batch))
            texts += [self._text(row) for row in tokens_BT[: len(chunk)].tolist()]
        return [texts[at : at + count] for at in range(0, len(texts), count)]

    def _sample(self, pixels_BCHW: Tensor, draws_BT: Tensor) -> Tensor:
        """New tokens of each row, up to the longest; a row that has ended goes on with padding."""
        model, how = self._loaded.model, self._how
        scores = rules(how, len(self._prompt), self._end, self._never, self._loaded.device)
        tokens_BL = self._prompt.expand(len(pixels_BCHW), -1)
        ended_B = torch.zeros(len(pixels_BCHW), dtype=torch.bool, device=self._loaded.device)
        only_last = words_of(model.text_decoder, lambda states_BLD: states_BLD[:, -1:])
        with only_last, autocast(self._loaded.device, self._loaded.precision):
            _, states_BPD = model._encode_image(pixels_BCHW)
            for place in range(self._most):
                _, embedded_BLD = model._encode_text(tokens_BL)
                logits_BV = model.text_decoder(states_BPD, embedded_BLD)[:, 0]
                drawn_B = draw(scores(tokens_BL, logits_BV.float()), draws_BT[:, place])
                tokens_BL = torch.cat([tokens_BL, torch.where(ended_B, self._pad, drawn_B)[:, None]], dim=1)
                ended_B |= drawn_B == self._end
                if ended_B.all():
                    break
        return tokens_BL[:, len(self._prompt) :]

    def _text(self, tokens: list[int]) -> str:
        """A row up to its end, in words."""
        ended = tokens[: tokens.index(self._end)] if self._end in tokens else tokens
        return str(self._tokenizer.decode([token for token in ended if token != self._pad])).strip()
