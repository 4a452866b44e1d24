"""Whether the caption names something that the picture shows, by the likeliest labels of a long list."""

from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from curate.captions.words import folded, read_list, stem, words_of
from curate.errors import UserError
from curate.heads.use import embedder
from curate.step import File, Maker, Weights, int32, step, string

PROMPT = "a photo of a {}"
"""CLIP's own prompt (Radford et al. 2021, section 3.1.4)."""


def _completes(settings: Mapping[str, Any], makers: Mapping[str, Maker]) -> Mapping[str, Any]:
    """The text tower is that of the model whose embeddings are read."""
    maker = makers.get("image_emb")
    if maker is not None and maker.loop:
        raise UserError("step 'label_match' reads embeddings of the weights that the loop trains; it takes a frozen clip_embed")
    given = (settings["model"], settings["pretrained"]) if settings["model"] and settings["pretrained"] else None
    theirs = embedder(maker)
    if given and theirs and given != theirs:
        raise UserError(f"step 'label_match': labels by {' '.join(given)} for embeddings of {' '.join(theirs)}")
    if not (given or theirs):
        raise UserError("step 'label_match': nothing says whose embeddings these are; give model and pretrained")
    model, pretrained = given or theirs or ("", "")
    return {**settings, "model": model, "pretrained": pretrained}


@step(adds={"num_label_matches": int32, "label_match": string}, batch=256, completes=_completes)
class LabelMatch:
    """How many of the picture's `top` likeliest labels the caption names, 0 to top, and the likeliest of these, or null.

    The labels are your list, one a line; a label's score is the inner product of the image embedding with that of "a photo of a
    LABEL" by the same model's text tower. The caption names a label if it has all its words: in lower case, without ASCII
    punctuation at their ends, and without a plural s (Harman's S-stemmer).

    CC3M (ACL P18-1238, section 3) keeps a pair only if one of the 5 to 20 labels that a classifier with about 10^5 labels gives
    the picture is a stemmed word of the text, which some 60 % fail; CC12M (arXiv 2102.08981) does the same. The classifier was
    Google's; CLIP, the prompt, the stemmer and `top: 20` are our choices, and with a fixed `top` every picture has 20 labels.
    An embedding that is all zeros or not finite gives null. Each worker embeds the list once: some 100 labels a second and core
    with ViT-B-32, and then holds 100,000 of 512 numbers in 200 MB.
    """

    def __init__(self, *, labels: File, top: Annotated[int, Field(ge=1)] = 20, model: str | None = None,
                 pretrained: Weights | None = None) -> None:
        self._names = list(dict.fromkeys(name for _, name in read_list("label_match", labels)))
        if not self._names:
            raise UserError(f"step 'label_match': {labels} has no label")
        words = [folded(pa.array(name.split(), pa.string())).to_pylist() for name in self._names]
        self._stems = [frozenset(stem(word) for word in name if word) for name in words]
        self._top = min(top, len(self._names))
        self._emb = _embedded(self._names, str(model), str(pretrained))

    def __call__(self, image_emb: NDArray[np.float32], caption: pa.Array) -> dict[str, list[int | None] | list[str | None]]:
        usable = np.isfinite(image_emb).all(axis=1) & (image_emb != 0).any(axis=1)
        scores = np.where(usable[:, None], image_emb, np.float32(0)) @ self._emb.T
        best = _best(scores, self._top)
        said = _stems_of(caption)
        found = [[i for i in labels if self._stems[i] and self._stems[i] <= words] if good else None
                 for labels, words, good in zip(best.tolist(), said, usable.tolist(), strict=True)]
        return {"num_label_matches": [None if f is None else len(f) for f in found],
                "label_match": [self._names[f[0]] if f else None for f in found]}


def _embedded(names: list[str], model: str, pretrained: str) -> NDArray[np.float32]:
    import torch

    from train.models.clip import embed_texts
    from train.models.weights import load

    torch.set_num_threads(1)    # one thread a worker: the numbers must not depend on how many workers there are
    return embed_texts(load(model, pretrained), [PROMPT.format(name) for name in names])


def _best(scores: NDArray[np.float32], top: int) -> NDArray[np.int64]:
    """The places of the `top` largest of each row, the largest first; equal ones by place."""
    some = np.sort(np.argpartition(-scores, top - 1, axis=1)[:, :top], axis=1)
    order = np.argsort(-np.take_along_axis(scores, some, axis=1), axis=1, kind="stable")
    return np.take_along_axis(some, order, axis=1)


def _stems_of(caption: pa.Array) -> list[set[str]]:
    """The stems of each caption's words."""
    row, kind, kinds = words_of(caption)
    stems = [stem(word) for word in kinds.to_pylist()]
    found: list[set[str]] = [set() for _ in range(len(caption))]
    for r, k in zip(row.tolist(), kind.tolist(), strict=True):
        found[r].add(stems[k])
    return found
