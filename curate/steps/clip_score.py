"""How well a picture and a text belong together, by any CLIP."""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from curate.errors import UserError
from curate.step import float32, step


@step(adds={"clip_cos": float32}, batch=10_000, follows=True)
def clip_score(image_emb: NDArray[np.float32], text_emb: NDArray[np.float32]) -> pa.Array:
    """Cosine of image and text embedding, -1 to 1; null where one of them is all zeros or not finite.

    Named after the embeddings: `clip_score: {of: ref}` reads ref_image_emb and ref_text_emb and adds ref_clip_cos. LAION-400M
    keeps >= 0.3 and LAION-5B >= 0.28 (English) by openai's ViT-B/32, DataComp (baselines/apply_filter.py) the best 30 % by its
    ViT-L/14: a threshold means something for one set of weights only.
    """
    if image_emb.shape != text_emb.shape:
        raise UserError(f"step 'clip_score': image_emb has {image_emb.shape[-1]} numbers a row, text_emb {text_emb.shape[-1]}: "
                        "they are not of one model")
    lengths = np.stack([np.linalg.norm(matrix, axis=1) for matrix in (image_emb, text_emb)])
    usable = (np.isfinite(lengths) & (lengths > 0)).all(axis=0)
    with np.errstate(invalid="ignore"):
        cosine = np.einsum("rd,rd->r", image_emb, text_emb) / np.where(usable, lengths, 1).prod(axis=0)
    return pa.array(np.clip(cosine, -1, 1), float32, mask=~usable)
