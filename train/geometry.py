"""How a model's embeddings lie on the sphere: whether pairs meet, whether the space is used, how far apart the two kinds are.

Pure functions of embeddings of length 1, (N, D) in torch, on any device. They compute in the precision that they are given, half
precision in float32. Row i of pictures and row i of texts are a pair.
"""

import math

import torch
from torch import Tensor

CHUNK_BYTES = 64 << 20
"""Memory for one chunk of distances."""


def alignment(image_emb: Tensor, text_emb: Tensor, power: float = 2.0) -> float:
    """Mean distance of a picture and its text, to the `power`: 0 (they meet) to 4 (opposite), lower is better.

    Wang & Isola 2020 (arXiv 2005.10242), section 4.1.1, with their power of 2.
    """
    return float((_plain(image_emb) - _plain(text_emb)).norm(dim=1).pow(power).mean())


def uniformity(emb: Tensor, scale: float = 2.0) -> float:
    """Logarithm of the mean of exp(-`scale` * squared distance) over all pairs of different rows: 0 (all in one point) down to
    about -2 * `scale` (evenly over a sphere of many dimensions), lower is better; NaN for fewer than two rows.

    Wang & Isola 2020 (arXiv 2005.10242), section 4.1.2, with their scale of 2.
    """
    emb = _plain(emb)
    if len(emb) < 2:
        return math.nan
    rows = max(1, CHUNK_BYTES // (emb.element_size() * len(emb)))
    norms, total = emb.square().sum(1), emb.new_zeros((), dtype=torch.float64)
    for at in range(0, len(emb), rows):
        chunk = slice(at, at + rows)
        squared = (norms[chunk, None] + norms[None] - 2 * emb[chunk] @ emb.T).clamp_min(0)
        kernel = squared.mul(-scale).exp()
        kernel.diagonal(at).zero_()
        total += kernel.sum(dtype=torch.float64)
    return math.log(float(total) / (len(emb) * (len(emb) - 1)))


def modality_gap(image_emb: Tensor, text_emb: Tensor) -> float:
    """Distance between the mean picture and the mean text: 0 (same place) to 2 (opposite points).

    Liang et al. 2022 (arXiv 2203.02053), section 2.
    """
    return float((_plain(image_emb).mean(0) - _plain(text_emb).mean(0)).norm())


def effective_rank(emb: Tensor) -> float:
    """exp of the entropy of the singular values, taken as shares of their sum: 1 (a line) to min(N, D).

    Roy & Vetterli 2007 ("The effective rank", EUSIPCO), of the embeddings as they are, not centred, as in RankMe (Garrido et al.
    2023, arXiv 2210.02885). 0 where all are zero, NaN without rows.
    """
    if not len(emb):
        return math.nan
    values: Tensor = torch.linalg.svdvals(_plain(emb))
    total = values.sum()
    if not total > 0:
        return 0.0
    return float(torch.special.entr(values / total).sum().exp())


def geometry(image_emb: Tensor, text_emb: Tensor) -> dict[str, float]:
    """All of the above by name, the ones of a single kind for each kind."""
    return {"alignment": alignment(image_emb, text_emb), "modality_gap": modality_gap(image_emb, text_emb),
            "image_uniformity": uniformity(image_emb), "text_uniformity": uniformity(text_emb),
            "image_effective_rank": effective_rank(image_emb), "text_effective_rank": effective_rank(text_emb)}


def _plain(emb: Tensor) -> Tensor:
    """Without gradients; half precision as float32."""
    emb = emb.detach()
    return emb if emb.dtype in (torch.float32, torch.float64) else emb.float()
