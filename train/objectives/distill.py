"""A teacher's part of the loss, beside any objective that makes embeddings."""

from torch import Tensor

from train.caching import Embedded
from train.choices import Distill
from train.dist import Ranks
from train.losses import distill_loss
from train.objectives.base import single


def taught_part(distill: Distill, embedded: Embedded, taught_N2E: Tensor, ranks: Ranks) -> Tensor:
    """`distill_loss` of this process's pairs, times its weight. The teacher's embeddings come in half precision."""
    images, texts = single(embedded.image_ND), single(embedded.text_ND)
    found = distill_loss(images, texts, embedded.scale, taught_N2E.to(images.dtype), distill.scale, gather=ranks.gather)
    return distill.weight * found
