"""Losses as pure functions of embeddings; what is shared between processes comes in as an argument.

Shapes: N pairs of this process, M >= N pairs of all, D dimensions. Embeddings are normalised, float32.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

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
