"""Losses as pure functions of embeddings; what is shared between processes comes in as an argument.

Shapes: N pairs of this process, M >= N pairs of all, D dimensions. Embeddings are normalised, float32.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from train.chosen import chosen

Gather = Callable[[Tensor], Tensor]
"""Rows of this process → rows of all, this process's among them; gradients flow back to where a row came from."""


def clip_loss(image_ND: Tensor, text_ND: Tensor, scale: Tensor, *, first_row: int = 0, gather: Gather | None = None) -> Tensor:
    """The contrastive loss of CLIP (Radford et al. 2021, figure 3): cross entropy both ways, its mean over this process's pairs.

    With `gather` every process ranks its own rows against all, starting at `first_row`; the mean of the processes' losses, and
    the mean of their gradients, are those of one process holding all pairs.
    """
    image_MD, text_MD = (gather(image_ND), gather(text_ND)) if gather else (image_ND, text_ND)
    labels_N = torch.arange(len(image_ND), device=image_ND.device) + first_row
    image_logits_NM = scale * image_ND @ text_MD.T
    text_logits_NM = scale * text_ND @ image_MD.T
    return (F.cross_entropy(image_logits_NM, labels_N) + F.cross_entropy(text_logits_NM, labels_N)) / 2


def siglip_loss(image_ND: Tensor, text_ND: Tensor, scale: Tensor, bias: Tensor, *, first_row: int = 0,
                gather: Gather | None = None) -> Tensor:
    """The sigmoid loss of SigLIP (Zhai et al. 2023, arXiv 2303.15343, algorithm 1): each of the M * M pairs of a picture and a
    text is asked by itself whether they belong together; the sum over all texts, its mean over this process's pictures.

    `bias` moves all logits, so that the many wrong pairs do not drown the few right ones at the start. Only texts are gathered:
    a process has the logits of its own pictures. Means over processes are exact, as in `clip_loss`.
    """
    text_MD = gather(text_ND) if gather else text_ND
    own_N = torch.arange(len(image_ND), device=image_ND.device)
    logits_NM = scale * image_ND @ text_MD.T + bias
    signs_NM = torch.full_like(logits_NM, -1.0)
    signs_NM[own_N, own_N + first_row] = 1.0
    return -F.logsigmoid(signs_NM * logits_NM).sum() / len(image_ND)


def distill_loss(image_ND: Tensor, text_ND: Tensor, scale: Tensor, taught_N2E: Tensor, taught_scale: float, *,
                 gather: Gather | None = None) -> Tensor:
    """How far the similarities of a batch's pictures and texts are from those a teacher sees: cross entropy of the softmax of
    ours under that of the teacher's, both ways, its mean over this process's pairs.

    TinyCLIP's affinity mimicking (Wu et al. 2023, arXiv 2309.12314, section 3.1). `taught_N2E` are the teacher's embeddings, the
    picture's beside the text's, each of length 1; its width need not be ours. Means over processes are exact, as in `clip_loss`.
    """
    image_MD, text_MD, taught_M2E = map(gather, (image_ND, text_ND, taught_N2E)) if gather else (image_ND, text_ND, taught_N2E)
    (own_image, own_text), (all_image, all_text) = taught_N2E.chunk(2, dim=1), taught_M2E.chunk(2, dim=1)
    of_images = F.cross_entropy(scale * image_ND @ text_MD.T, (taught_scale * own_image @ all_text.T).softmax(dim=1))
    of_texts = F.cross_entropy(scale * text_ND @ image_MD.T, (taught_scale * own_text @ all_image.T).softmax(dim=1))
    return (of_images + of_texts) / 2


def caption_loss(logits_TV: Tensor, labels_NL: Tensor, pad_id: int) -> Tensor:
    """Cross entropy of each caption's next tokens, its mean over the caption's tokens, and the mean of those over the captions.

    CoCa's captioning loss (arXiv 2205.01917, equation 3). The mean is taken a caption at a time (our choice; open_clip's is over
    all tokens of a batch), so that the loss of a batch is the mean over its chunks. `labels_NL` is 0 to V - 1, `pad_id` where a
    caption has ended; every caption has a token. `logits_TV` are of the T labels that are no padding, row by row.
    """
    there_NL = labels_NL != pad_id
    share_NL = there_NL.to(logits_TV.dtype) / there_NL.sum(1, keepdim=True)
    lost_T = F.cross_entropy(logits_TV, chosen(labels_NL, there_NL), reduction="none")
    return (lost_T * chosen(share_NL, there_NL)).sum() / len(labels_NL)
