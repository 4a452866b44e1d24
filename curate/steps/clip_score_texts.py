"""How well a picture and each of several texts belong together, by the CLIP that embedded the picture."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from curate.errors import UserError
from curate.heads.use import embedder
from curate.step import Maker, Weights, float32, step


def _completes(settings: Mapping[str, Any], makers: Mapping[str, Maker]) -> Mapping[str, Any]:
    """The text tower is that of the model whose embeddings are read."""
    maker = makers.get("image_emb")
    if maker is not None and maker.loop:
        raise UserError("step 'clip_score_texts' reads embeddings of the weights that the loop trains; it takes a frozen "
                        "clip_embed")
    given = (settings["model"], settings["pretrained"]) if settings["model"] and settings["pretrained"] else None
    theirs = embedder(maker)
    if given and theirs and given != theirs:
        raise UserError(f"step 'clip_score_texts': texts by {' '.join(given)} for embeddings of {' '.join(theirs)}")
    if not (given or theirs):
        raise UserError("step 'clip_score_texts': nothing says whose embeddings these are; give model and pretrained")
    model, pretrained = given or theirs or ("", "")
    return {**settings, "model": model, "pretrained": pretrained}


@step(adds={"clip_cos_synthetic": pa.list_(float32)}, gpus=1, batch=256, follows=True, completes=_completes)
class ClipScoreTexts:
    """Cosine of the image embedding with that of each synthetic caption, -1 to 1; null of an empty one or without a direction.

    What clip_score gives for one text, for a list of them; the text tower is that of the embeddings it reads, its embeddings are
    rounded to half precision as stored ones are, so a text has the same cosine here as there. Any column of lists of texts will
    do: `reads: {synthetic_captions: COLUMN}`. BLIP-2 (arXiv 2301.12597, section 3.4) ranks ten synthetic captions and the web's
    text so, Nguyen et al. 2023 (arXiv 2307.10350) choose between one and the web's.
    """

    def __init__(self, *, model: str | None = None, pretrained: Weights | None = None) -> None:
        import torch

        from train.models.weights import load

        if torch.cuda.is_available():
            self._loaded = load(str(model), str(pretrained), "cuda", "bf16")
        else:
            torch.set_num_threads(1)   # one thread a worker: the numbers must not depend on how many workers there are
            self._loaded = load(str(model), str(pretrained))

    def __call__(self, image_emb: NDArray[np.float32], synthetic_captions: list[list[str]]) -> dict[str, list[Any]]:
        from train.models.clip import embed_texts

        texts = list(dict.fromkeys(text for row in synthetic_captions for text in row if text and text.strip()))
        place = {text: number for number, text in enumerate(texts)}
        text_emb = embed_texts(self._loaded, texts).astype(np.float16).astype(np.float32)
        if texts and text_emb.shape[1] != image_emb.shape[1]:
            raise UserError(f"step 'clip_score_texts': image_emb has {image_emb.shape[1]} numbers a row, a text "
                            f"{text_emb.shape[1]}: they are not of one model")
        return {"clip_cos_synthetic": [[_cosine(of_image, text_emb[place[text]]) if text in place else None for text in row]
                                       for of_image, row in zip(image_emb, synthetic_captions, strict=True)]}


def _cosine(a: NDArray[np.float32], b: NDArray[np.float32]) -> float | None:
    lengths = np.linalg.norm(a) * np.linalg.norm(b)
    return float(np.clip(np.einsum("d,d->", a, b) / lengths, -1, 1)) if np.isfinite(lengths) and lengths > 0 else None
