"""How captions are drawn: nucleus sampling of our own, with transformers' rules about scores, whatever the decoder.

Every draw is a pure function of (seed, uid of the row, number of the candidate, place of the token).
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TopPLogitsWarper,
)

BATCH = {"cpu": 16, "cuda": 128}
"""Rows that go through a captioner at once; a row of ViT-B at 384 px holds 21 MB of keys and values in bf16."""


@dataclass(frozen=True)
class Decoding:
    """How captions are made. Where BLIP has numbers for CapFilt (arXiv 2201.12086, section 3.3, and its code) they are these."""

    candidates: int = 1
    top_p: float = 0.9
    beams: int | None = None
    """beam search of that width instead of sampling"""
    min_tokens: int = 5
    max_tokens: int = 30
    """new tokens, without the prompt; a word has one or more"""
    repetition_penalty: float = 1.1
    prompt: str = "a picture of "
    """what the caption begins with while it is made; it is not part of it"""
    seed: int = 0

    @property
    def said(self) -> str:
        """The same in words, for the record of each caption."""
        way = f"nucleus p {self.top_p:g}, seed {self.seed}" if self.beams is None else f"beam {self.beams}"
        return (f"{way}, {self.min_tokens} to {self.max_tokens} tokens, repetition penalty {self.repetition_penalty:g}, "
                f"prompt '{self.prompt.strip()}'")


def rules(how: Decoding, num_prompt: int, end: int, never: Sequence[int], device: torch.device) -> LogitsProcessorList:
    """What transformers' `generate` does to the scores of tokens under the same settings and `top_k=0`, in its order.

    `num_prompt` tokens are given; `end` ends a caption, not before `min_tokens`; those in `never` are not drawn.
    """
    return LogitsProcessorList([
        RepetitionPenaltyLogitsProcessor(how.repetition_penalty),
        MinNewTokensLengthLogitsProcessor(num_prompt, how.min_tokens, end, device=str(device)),
        SuppressTokensLogitsProcessor(list(never), device=str(device)),
        TopPLogitsWarper(how.top_p)])


def uniforms(seed: int, uid: str, candidate: int, count: int) -> NDArray[np.float64]:
    """`count` numbers from 0 to below 1 that are this candidate's alone: SHAKE-128 of (seed, uid, candidate)."""
    data = hashlib.shake_128(f"{seed}\0{uid}\0{candidate}".encode()).digest(8 * count)
    found: NDArray[np.float64] = (np.frombuffer(data, "<u8") >> np.uint64(11)).astype(np.float64) / 2**53
    return found


def draw(scores_BV: Tensor, uniform_B: Tensor) -> Tensor:
    """One token a row with the probability that its score has, by the inverse of their sum; -inf is never drawn."""
    sums_BV = scores_BV.double().softmax(dim=-1).cumsum(dim=-1)
    found = torch.searchsorted(sums_BV, (uniform_B * sums_BV[:, -1])[:, None], right=True)[:, 0]
    return found.clamp(max=scores_BV.shape[1] - 1)
