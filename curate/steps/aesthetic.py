"""How much people like to look at a picture."""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from curate.heads.head import read
from curate.heads.use import completes
from curate.step import File, float32, step


@step(adds={"aesthetic_score": float32}, batch=4096, completes=completes("aesthetic", "aesthetic_score"))
class Aesthetic:
    """A head's guess of how people rate a picture, about 1 to 10; null for an embedding that is all zeros or not finite.

    `file` is a head over the embeddings it is given, like LAION's aesthetic predictors after `curate head convert`. LAION's
    subsets take >= 4.5 (1.2 B of 5 B pictures), 5 (600 M), 6 (12 M), 6.5 (0.6 M) by the linear head over openai's ViT-L/14.
    """

    def __init__(self, *, file: File) -> None:
        self._head = read(file)

    def __call__(self, image_emb: NDArray[np.float32]) -> pa.Array:
        return pa.array(self._head.scores(image_emb), float32, from_pandas=True)
