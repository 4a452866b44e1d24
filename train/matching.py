"""The losses of ALBEF and BLIP as pure functions: whether a pair belongs together, which wrong pairs to ask about, what a
caption's next word is, and a contrastive loss whose right answers are shared out.

Shapes: N pairs of this process, M >= N pairs that they are compared with, D dimensions, T words asked for, V ids. Embeddings are
normalised, at least float32.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

FLOOR = 1e-4
"""Smallest weight of a wrong pair (BLIP's code): without it all weights of a row may be 0, and drawing from it fails, as it did
for users of ALBEF (its issues 18 and 107)."""
SMOOTHING = 0.1
"""Share of the probability of a caption's word that goes to all words alike (Li et al. 2022, arXiv 2201.12086, section 3.2)."""
NONE = -1
"""In the place of a wrong partner where there is none."""


def wrong_weights(logits_NN: Tensor, pictures_N: Tensor) -> Tensor:
    """How often each column should be drawn as the wrong partner of each row, (N, N), not normalised.

    softmax(logits) + FLOOR (Li et al. 2021, arXiv 2107.07651, section 3.2: the more alike, the harder and the likelier), and 0
    where row and column show one picture. A model that has diverged still gets partners: its loss is what tells.
    """
    same_NN = pictures_N[:, None] == pictures_N[None]
    return (logits_NN.nan_to_num().softmax(dim=1) + FLOOR).masked_fill(same_NN, 0.0)


def wrong_partners(logits_NN: Tensor, pictures_N: Tensor) -> Tensor:
    """The column of a wrong partner for each row, (N,), drawn with torch's random numbers; NONE where all show one picture."""
    weights_NN = wrong_weights(logits_NN, pictures_N)
    none_N = weights_NN.sum(dim=1) == 0
    drawn_N = torch.multinomial(weights_NN.masked_fill(none_N[:, None], 1.0), 1)[:, 0]
    return drawn_N.masked_fill(none_N, NONE)


def itm_loss(right_N2: Tensor, wrong_K2: Tensor) -> Tensor:
    """Cross entropy of "apart" (0) and "together" (1), its mean over all pairs that were judged, right ones and wrong ones."""
    logits_P2 = torch.cat([right_N2, wrong_K2])
    together_P = torch.zeros(len(logits_P2), dtype=torch.long, device=logits_P2.device)
    together_P[: len(right_N2)] = 1
    return F.cross_entropy(logits_P2, together_P)


def lm_loss(logits_TV: Tensor, words_T: Tensor, *, smoothing: float = SMOOTHING, ignore: int = -100) -> Tensor:
    """Cross entropy of each word with its label smoothed, its mean over the words that are not `ignore`.

    Smoothed: the word has 1 - smoothing + smoothing / V of the probability, every other smoothing / V. Leading shapes may be any.
    """
    return F.cross_entropy(logits_TV.flatten(0, -2), words_T.flatten(), ignore_index=ignore, label_smoothing=smoothing)


def soft_clip_loss(image_ND: Tensor, text_ND: Tensor, image_MD: Tensor, text_MD: Tensor, scale: Tensor,
                   text_shares_NM: Tensor, image_shares_NM: Tensor) -> Tensor:
    """`clip_loss` with right answers shared out: cross entropy of each picture over the texts `text_MD` against
    `text_shares_NM`, of each text over the pictures against `image_shares_NM`, their mean (ALBEF, equation 6)."""
    to_text = F.cross_entropy(scale * image_ND @ text_MD.T, text_shares_NM)
    to_image = F.cross_entropy(scale * text_ND @ image_MD.T, image_shares_NM)
    return (to_text + to_image) / 2


def shares(teacher_logits_NM: Tensor, right_NM: Tensor, soft: float) -> Tensor:
    """Of each row's answers: `soft` of the probability as the teacher sees it, the rest to the right ones alike, (N, M)."""
    right_NM = right_NM.to(teacher_logits_NM.dtype)
    return soft * teacher_logits_NM.softmax(dim=1) + (1 - soft) * right_NM / right_NM.sum(dim=1, keepdim=True)
