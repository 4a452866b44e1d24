"""Whether a picture is not safe for work."""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from curate.heads.head import read
from curate.heads.prompts import zero_shot
from curate.heads.use import completes
from curate.step import File, Weights, float32, step


@step(adds={"nsfw_prob": float32}, batch=4096, completes=completes("nsfw", "nsfw_prob"))
class Nsfw:
    """Probability that a picture is not safe for work, 0 to 1; null for an embedding that is all zeros or not finite.

    By a head (`file`), or without one by prompts: LAION-400M's 19 harmless and 17 others (its filter's list, without the missing
    comma that put a pornographic one among the harmless), as the share of their softmax that falls on the 17. That share is ours;
    LAION took the two nearest prompts. The text tower is that of the model whose embeddings are read, found by itself unless they
    come from elsewhere. LAION-5B calls punsafe > 0.5 unsafe, by its head over openai's ViT-L/14. A filter like this misses some:
    published audits find explicit pictures behind it, so it is no replacement for a list of known hashes.
    """

    def __init__(self, *, file: File | None = None, model: str | None = None, pretrained: Weights | None = None) -> None:
        self._head = zero_shot(str(model), str(pretrained)) if file is None else read(file)

    def __call__(self, image_emb: NDArray[np.float32]) -> pa.Array:
        return pa.array(self._head.scores(image_emb), float32, from_pandas=True)
