"""A BLIP that says what pictures show: the sampling of `train.models.sampling` over transformers' decoder, or its beam search.

`captioner` finds who writes for a model, be it this or a CoCa.

What the model sees always has the same number of rows, so a row's caption depends neither on its neighbours nor on order, shards
or workers.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache

from train.errors import WeightsError
from train.models.blip import Blip as Model
from train.models.blip_folder import Blip
from train.models.clip import autocast, padded
from train.models.coca import has_decoder
from train.models.coca_captioner import CocaCaptioner
from train.models.sampling import BATCH, Decoding, draw, rules, uniforms
from train.models.weights import Loaded


def captioner(loaded: Loaded, decoding: Decoding) -> "Captioner | CocaCaptioner":
    """What writes captions with a model that is loaded to embed or to train; its weights are read when it writes.

    Raises ConfigError where the model writes none, or not in that way, WeightsError where its texts are too short for it.
    """
    if not (isinstance(loaded.model, Model) and has_decoder(loaded.model)):
        return CocaCaptioner(loaded, decoding)      # which refuses what has no decoder
    tokens: Any = loaded.tokenizer
    return Captioner(Blip(loaded.name, loaded.model, tokens.tokenizer, loaded.preprocess_val, loaded.device, loaded.precision),
                     decoding)


class Captioner:
    """Captions by a BLIP. Raises WeightsError of one line where it takes too few tokens."""

    def __init__(self, blip: Blip, decoding: Decoding) -> None:
        self._blip, self._how = blip, decoding
        self._batch = BATCH[self._blip.device.type]
        config, tokenizer = self._blip.model.text_decoder.config, self._blip.tokenizer
        self._end, self._pad = config.sep_token_id, config.pad_token_id
        words = tokenizer(decoding.prompt.strip(), add_special_tokens=False)["input_ids"]
        self._prompt = torch.tensor([config.bos_token_id, *words], device=self._blip.device)
        if len(self._prompt) + decoding.max_tokens > config.max_position_embeddings:
            raise WeightsError(f"{blip.name} takes texts of {config.max_position_embeddings} tokens, too few for a prompt of "
                               f"{len(words)} and {decoding.max_tokens} more")
        strange = {*tokenizer.all_special_ids, *range(len(tokenizer), config.vocab_size)} - {self._end}
        self._never = sorted(strange)

    @torch.inference_mode()
    def captions(self, images: Sequence[Image.Image], uids: Sequence[str]) -> list[list[str]]:
        """`candidates` captions of each picture, one for each uid; the same picture may stand there several times."""
        distinct = {id(image): image for image in images}
        places = {key: place for place, key in enumerate(distinct)}
        states_NPD = self._blip.states(list(distinct.values()), self._batch) if distinct else torch.empty(0)
        of_row = [places[id(image)] for image in images]
        return self._beams(states_NPD, of_row) if self._how.beams else self._samples(states_NPD, of_row, uids)

    def _samples(self, states_NPD: Tensor, of_row: Sequence[int], uids: Sequence[str]) -> list[list[str]]:
        count = self._how.candidates
        jobs = [(place, uid, number) for place, uid in zip(of_row, uids, strict=True) for number in range(count)]
        texts: list[str] = []
        for at in range(0, len(jobs), self._batch):
            chunk = jobs[at : at + self._batch]
            which = torch.tensor([place for place, _, _ in chunk], device=self._blip.device)
            draws = np.stack([uniforms(self._how.seed, uid, number, self._how.max_tokens) for _, uid, number in chunk])
            tokens_BT = self._sample(padded(states_NPD[which], self._batch),
                                     padded(torch.from_numpy(draws).to(self._blip.device), self._batch))
            texts += self._texts(tokens_BT[: len(chunk)])
        return [texts[at : at + count] for at in range(0, len(texts), count)]

    def _sample(self, states_BPD: Tensor, draws_BT: Tensor) -> Tensor:
        """New tokens of each row, up to the longest; a row that has ended goes on with padding."""
        prompt_BL = self._prompt.expand(len(states_BPD), -1)
        scores = rules(self._how, len(self._prompt), self._end, self._never, self._blip.device)
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        tokens_BL, last_BL = prompt_BL, prompt_BL
        ended_B = torch.zeros(len(states_BPD), dtype=torch.bool, device=self._blip.device)
        for place in range(self._how.max_tokens):
            with autocast(self._blip.device, self._blip.precision):
                logits_BLV = self._blip.model.text_decoder(input_ids=last_BL, encoder_hidden_states=states_BPD, use_cache=True,
                                                           past_key_values=cache, logits_to_keep=1).logits
            drawn_B = draw(scores(tokens_BL, logits_BLV[:, -1].float()), draws_BT[:, place])
            last_BL = torch.where(ended_B, self._pad, drawn_B)[:, None]
            tokens_BL = torch.cat([tokens_BL, last_BL], dim=1)
            ended_B |= drawn_B == self._end
            if ended_B.all():
                break
        return tokens_BL[:, prompt_BL.shape[1] :]

    def _beams(self, states_NPD: Tensor, of_row: Sequence[int]) -> list[list[str]]:
        """transformers' own beam search: the `candidates` best of each picture, whatever the uid."""
        how, found = self._how, list[list[str]]()
        pictures = max(1, self._batch // (how.beams or 1))
        for at in range(0, len(states_NPD), pictures):
            chunk = states_NPD[at : at + pictures]
            states = padded(chunk, pictures)
            with autocast(self._blip.device, self._blip.precision):
                tokens = self._blip.model.text_decoder.generate(
                    input_ids=self._prompt.expand(pictures, -1), encoder_hidden_states=states, do_sample=False,
                    encoder_attention_mask=torch.ones(states.shape[:2], dtype=torch.long, device=self._blip.device),
                    attention_mask=torch.ones((pictures, len(self._prompt)), dtype=torch.long, device=self._blip.device),
                    num_beams=how.beams, num_return_sequences=how.candidates, min_new_tokens=how.min_tokens,
                    max_new_tokens=how.max_tokens, repetition_penalty=how.repetition_penalty, suppress_tokens=self._never,
                    eos_token_id=self._end, pad_token_id=self._pad)
            texts = self._texts(tokens[: len(chunk) * how.candidates, len(self._prompt) :])
            found += [texts[i : i + how.candidates] for i in range(0, len(texts), how.candidates)]
        return [found[place] for place in of_row]

    def _texts(self, tokens_BT: Tensor) -> list[str]:
        """Each row up to its end, in words."""
        rows = [row[: row.index(self._end)] if self._end in row else row for row in tokens_BT.tolist()]
        return [str(self._blip.tokenizer.decode(row, skip_special_tokens=True)).strip() for row in rows]
