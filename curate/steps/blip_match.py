"""Whether picture and text belong together, by a BLIP that was trained to tell: the filter of CapFilt."""

from typing import Annotated, Any, Literal

import pyarrow as pa
from PIL.Image import Image
from pydantic import Field

from curate.step import BlipWeights, float32, step

SCORES = pa.list_(float32)


@step(adds={"itm_web": float32, "itc_web": float32, "itm_synthetic": SCORES, "itc_synthetic": SCORES}, gpus=1, batch=128)
class BlipMatch:
    """Probability that caption and picture match (ITM), 0 to 1, and cosine of BLIP's two towers (ITC), -1 to 1.

    Of the web's text, `caption`, and of each synthetic caption where there are some. ITM is the softmax of the matching head, on
    which CapFilt decides at 0.5 (BLIP, arXiv 2201.12086, section 3.3; the threshold by its author, issue 46 of its repository).
    It is not the score that BLIP ranks by in retrieval, which adds logit and cosine. Texts are cut at `max_tokens`, 35 as in
    BLIP's retrieval code. Null where there is no text.

    `first_token: enc` puts [ENC] in the first place, as the head was trained; `cls` leaves [CLS] there, as transformers' class
    and BLIP's own blip_itm.py do. `model` is a name of Hugging Face's or a folder that transformers' BlipForImageTextRetrieval
    loads. Fine-tune it apart from the captioner: where they share weights it no longer rejects the captioner's errors (section
    4.4: 8 % of the synthetic captions against 25 %).
    """

    def __init__(self, *, model: Annotated[BlipWeights, "judges"] = "Salesforce/blip-itm-base-coco",
                 first_token: Literal["enc", "cls"] = "enc", max_tokens: Annotated[int, Field(ge=3, le=512)] = 35) -> None:
        import torch

        from train.models.matcher import Matcher

        if torch.cuda.is_available():
            self._matcher = Matcher(model, first_token, max_tokens, "cuda", "bf16")
        else:
            torch.set_num_threads(1)   # one thread a worker: the numbers must not depend on how many workers there are
            self._matcher = Matcher(model, first_token, max_tokens)

    def __call__(self, image: list[Image], caption: list[str] | None, synthetic_captions: list[list[str]] | None,
                 ) -> dict[str, list[Any]]:
        places = {key: place for place, key in enumerate(dict.fromkeys(map(id, image)))}
        web = caption or [""] * len(image)
        made = synthetic_captions or [[]] * len(image)
        texts = [[text or "", *(one or "" for one in more or [])] for text, more in zip(web, made, strict=True)]
        pairs = list(dict.fromkeys((places[id(picture)], text) for picture, row in zip(image, texts, strict=True) for text in row
                                   if text.strip()))
        distinct = list({id(picture): picture for picture in image}.values())
        probs, cosines = ({pair: float(v) for pair, v in zip(pairs, scores, strict=True)}
                          for scores in self._matcher.match(distinct, pairs))
        rows = [[(places[id(picture)], text) for text in row] for picture, row in zip(image, texts, strict=True)]
        has = synthetic_captions if synthetic_captions is not None else [None] * len(image)
        found: dict[str, list[Any]] = {}
        for name, scores in (("itm", probs), ("itc", cosines)):
            found[f"{name}_web"] = [scores.get(row[0]) for row in rows]
            found[f"{name}_synthetic"] = [None if own is None else [scores.get(pair) for pair in row[1:]]
                                          for own, row in zip(has, rows, strict=True)]
        return found
