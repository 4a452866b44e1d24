"""A slowly following copy of the model, as ALBEF and BLIP have it: it remembers embeddings of earlier batches to compare with,
and says which wrong pairs are not so wrong.

Li et al. 2021 (arXiv 2107.07651, sections 3.2 and 3.3); BLIP takes it over with momentum 0.995, a queue of 57,600 and soft labels
of 0.4. The queue starts empty here (our choice; theirs starts with random vectors, against which nothing is learnt). A picture
that the queue still holds counts as right, as in BLIP's fine-tuning for retrieval.

Shapes: N pairs of this process, M of all with those in the queue, K places of the queue, D dimensions.
"""

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from train.caching import Embedded
from train.config import Config
from train.dist import Ranks
from train.matching import shares, soft_clip_loss
from train.objectives.base import single


class Momentum(nn.Module):
    """The copy, its queue, and the contrastive loss with both."""

    queue_KD: Tensor
    queue_pictures_K: Tensor
    num_queued: Tensor
    num_steps: Tensor

    def __init__(self, model: Any, config: Config) -> None:
        super().__init__()
        assert config.momentum is not None
        self._keeps, self._soft = config.momentum, config.soft_labels
        self._learning = [model]        # in a list: its parameters are not this module's
        self.teacher = deepcopy(model).requires_grad_(False)
        width = model.text_proj.out_features
        self.register_buffer("queue_KD", torch.zeros(config.queue, 2 * width, device=model.logit_scale.device))
        self.register_buffer("queue_pictures_K", torch.full((config.queue,), -1, device=model.logit_scale.device))
        self.register_buffer("num_queued", torch.zeros((), dtype=torch.long))
        self.register_buffer("num_steps", torch.zeros((), dtype=torch.long))
        self._fresh: tuple[Tensor, Tensor] | None = None

    @torch.no_grad()
    def steady(self, pixels_NCHW: Tensor, tokens_NL: Tensor, pictures_N: Tensor) -> tuple[Tensor, Tensor]:
        """What the copy makes of a chunk, picture beside text (N, 2D), and the numbers of the pictures (N,)."""
        self.teacher.eval()
        found = [single(self.teacher.encode_image(pixels_NCHW, normalize=True)),
                 single(self.teacher.encode_text(tokens_NL, normalize=True))]
        return torch.cat(found, dim=1), pictures_N

    def contrast(self, embedded: Embedded, ranks: Ranks, ramp_steps: int) -> Tensor:
        """The loss of this process's pairs against what the copy makes of all pairs and has made of those in the queue.

        Soft labels grow to their part in the first `ramp_steps` steps.
        """
        both_N2D, pictures_N = embedded.steady
        self._fresh = ranks.gather(both_N2D), ranks.gather(pictures_N)
        filled = min(int(self.num_queued), len(self.queue_KD))
        image_MD, text_MD = torch.cat([self._fresh[0], self.queue_KD[:filled]]).chunk(2, dim=1)
        right_NM = pictures_N[:, None] == torch.cat([self._fresh[1], self.queue_pictures_K[:filled]])[None]
        with torch.no_grad():
            image_ND, text_ND = both_N2D.chunk(2, dim=1)
            soft = self._soft * min(1.0, int(self.num_steps) / ramp_steps)
            of_text, of_image = (shares(embedded.scale * rows_ND @ found_MD.T, right_NM, soft)
                                 for rows_ND, found_MD in ((image_ND, text_MD), (text_ND, image_MD)))
        return soft_clip_loss(single(embedded.image_ND), single(embedded.text_ND), image_MD, text_MD, embedded.scale, of_text,
                              of_image)

    @torch.no_grad()
    def after_step(self) -> None:
        """The copy follows; this step's embeddings take the places of the oldest in the queue."""
        for old, new in zip(self.teacher.parameters(), self._learning[0].parameters(), strict=True):
            old.lerp_(new, 1 - self._keeps)
        self.num_steps += 1
        if self._fresh is None or not len(self.queue_KD):
            return
        rows_M2D, pictures_M = (rows[-len(self.queue_KD) :] for rows in self._fresh)
        places = (int(self.num_queued) + torch.arange(len(rows_M2D), device=rows_M2D.device)) % len(self.queue_KD)
        self.queue_KD[places], self.queue_pictures_K[places] = rows_M2D, pictures_M
        self.num_queued += len(rows_M2D)
