"""A toy of two towers in float64, and its gradients by gradient caching in one process, or in one of two.

    python -m tests.train.halves RANK FOLDER

It imports no open_clip, so that two processes start quickly.
"""

import sys
from functools import partial
from pathlib import Path

import torch
import torch.distributed
from torch import Tensor, nn

from train.caching import Embedded, cached_backward
from train.dist import Ranks
from train.losses import clip_loss, distill_loss, siglip_loss

LOSSES = ("clip", "siglip", "distill")
NUM_PAIRS = 12


class Pair(nn.Module):
    """Rows of 6 numbers to embeddings of 5, once for pictures and once for texts."""

    def __init__(self, with_bias: bool, dropout: float = 0.0, normed: bool = False) -> None:
        super().__init__()
        torch.manual_seed(7)
        norm = nn.BatchNorm1d(8) if normed else nn.Identity()
        self.image = nn.Sequential(nn.Linear(6, 8), norm, nn.GELU(), nn.Dropout(dropout), nn.Linear(8, 5))
        self.text = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Dropout(dropout), nn.Linear(8, 5))
        self.logit_scale = nn.Parameter(torch.tensor(1.5))
        self.logit_bias = nn.Parameter(torch.tensor(-2.0)) if with_bias else None
        self.double()

    def forward(self, image: Tensor, text: Tensor) -> Embedded:
        """What a teacher made of a pair is what came in, of length 1."""
        found = [nn.functional.normalize(tower(rows), dim=-1) for tower, rows in ((self.image, image), (self.text, text))]
        taught = torch.cat([nn.functional.normalize(rows, dim=-1) for rows in (image, text)], dim=1)
        return Embedded(found[0], found[1], self.logit_scale.exp(), self.logit_bias, steady=(taught,))


def rows(seed: int) -> Tensor:
    """(NUM_PAIRS, 6) random numbers."""
    return torch.randn(NUM_PAIRS, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def loss_of(name: str, ranks: Ranks, embedded: Embedded) -> Tensor:
    """The loss of this process's share."""
    image, text, scale, bias = embedded[:4]
    if name == "distill":
        return distill_loss(image, text, scale, *embedded.steady, taught_scale=20.0, gather=ranks.gather)
    first_row = ranks.rank * len(image)
    if name == "siglip":
        assert bias is not None
        return siglip_loss(image, text, scale, bias, first_row=first_row, gather=ranks.gather)
    return clip_loss(image, text, scale, first_row=first_row, gather=ranks.gather)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """Name → gradient, of the parameters that have one."""
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def slices(num: int, size: int) -> list[slice]:
    """0 .. num in chunks, the last one what is left."""
    return [slice(at, min(at + size, num)) for at in range(0, num, size)]


def cached(name: str, ranks: Ranks, size: int) -> dict[str, Tensor]:
    """Gradients of the loss of all pairs, this process's share in chunks of `size`."""
    model = Pair(name == "siglip")
    wrapped, share = ranks.wrap(model), ranks.share(NUM_PAIRS)
    mine = slice(ranks.rank * share, (ranks.rank + 1) * share)
    image, text = rows(0)[mine], rows(1)[mine]
    for _ in range(2):      # the second time over gradients and buckets that were there before
        model.zero_grad()
        cached_backward(model, lambda chunk: wrapped(image[chunk], text[chunk]), slices(share, size),
                        partial(loss_of, name, ranks), lambda: ranks.apart(wrapped))
    return gradients(model)


def main(rank: int, folder: Path) -> None:
    """All losses' gradients in one of two processes, chunks of 4 and 2, into `folder`."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    ranks = Ranks(rank, 2, torch.device("cpu"))
    torch.save({name: cached(name, ranks, 4) for name in LOSSES}, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
