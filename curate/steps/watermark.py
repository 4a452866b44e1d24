"""Whether a picture bears a watermark."""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from curate.heads.head import read
from curate.heads.use import completes
from curate.step import File, float32, step


@step(adds={"watermark_prob": float32}, batch=4096, completes=completes("watermark", "watermark_prob"))
class Watermark:
    """Probability of a watermark, 0 to 1; null for an embedding that is all zeros or not finite.

    `file` is a head over the embeddings it is given: your own, by `curate head train`, as LAION publishes none over embeddings
    (its detector reads pixels). LAION's subsets take pwatermark < 0.8; another head needs a threshold of its own.
    """

    def __init__(self, *, file: File) -> None:
        self._head = read(file)

    def __call__(self, image_emb: NDArray[np.float32]) -> pa.Array:
        return pa.array(self._head.scores(image_emb), float32, from_pandas=True)
