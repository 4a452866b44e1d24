"""Embeddings of picture and text, by any CLIP that open_clip knows or that was trained here."""

from typing import Any

from PIL.Image import Image

from curate.step import Weights, step, vector


@step(adds={"image_emb": vector, "text_emb": vector}, gpus=1, batch=256)
class ClipEmbed:
    """Embeddings of picture and text by one CLIP model, each of length 1; their cosine is what clip_score gives.

    `model` is a name of open_clip's or of ours (train/models/*.json); `pretrained` a published tag, a checkpoint file or folder,
    `random:SEED`, or `loop` with `first:`. Stored in half precision. Pictures and texts that stand several times in a batch are
    embedded once; chunks are padded, so a row's numbers do not depend on its neighbours.
    """

    def __init__(self, *, model: str = "ViT-B-32", pretrained: Weights = "laion2b_s34b_b79k") -> None:
        import torch

        from train.models.weights import load

        if torch.cuda.is_available():
            self._loaded = load(model, pretrained, "cuda", "bf16")
        else:
            torch.set_num_threads(1)   # one thread a worker: the numbers must not depend on how many workers there are
            self._loaded = load(model, pretrained)

    def __call__(self, image: list[Image], caption: list[str]) -> dict[str, Any]:
        from train.models.clip import embed_images, embed_texts

        pictures = {id(picture): picture for picture in image}
        texts = list(dict.fromkeys(caption))
        of_picture = dict(zip(pictures, embed_images(self._loaded, list(pictures.values())), strict=True))
        of_text = dict(zip(texts, embed_texts(self._loaded, texts), strict=True))
        return {"image_emb": [of_picture[id(picture)] for picture in image], "text_emb": [of_text[text] for text in caption]}
