"""What a BLIP says that the picture shows: captions to put beside, or in the place of, the web's text."""

from collections.abc import Mapping
from typing import Annotated, Any

import pyarrow as pa
from PIL.Image import Image
from pydantic import Field

from curate.errors import UserError
from curate.step import BlipWeights, Maker, step, string

ADDS = {"synthetic_captions": pa.list_(string), "synthetic_model": string, "synthetic_decoding": string}


def _completes(settings: Mapping[str, Any], _: Mapping[str, Maker]) -> Mapping[str, Any]:
    """Refuses numbers that contradict each other."""
    if settings["min_tokens"] > settings["max_tokens"]:
        raise UserError(f"blip_caption: min_tokens {settings['min_tokens']} is above max_tokens {settings['max_tokens']}")
    if settings["beams"] is not None and settings["candidates"] > settings["beams"]:
        raise UserError(f"blip_caption: {settings['candidates']} candidates of {settings['beams']} beams: a search ends with as "
                        "many captions as it has beams")
    return settings


@step(adds=ADDS, gpus=1, batch=128, completes=_completes)
class BlipCaption:
    """Captions that a BLIP makes of the picture, as many as `candidates`; the hash of the model; how they were decoded.

    Nucleus sampling as CapFilt does (BLIP, arXiv 2201.12086, sections 3.3 and 4.3; Holtzman et al. 2019): p 0.9, repetition
    penalty 1.1 and one caption as in BLIP's released code; 5 to 30 new tokens: ours (its code says 10 to 30 with the prompt). The
    nucleus is all there is, as in the paper: transformers' `generate`, which BLIP's code calls, also looks at the 50 likeliest
    tokens only, unless told otherwise. The paper finds that sampled captions, of which the filter rejects more, train better than
    those of a beam. `beams` searches instead. `prompt` is what the captioner was trained to go on from; it is no part of the
    caption. Special tokens but [SEP] are never drawn: ours.

    `model` is a name of Hugging Face's or a folder that transformers' BlipForConditionalGeneration loads, such as one trained
    here. What is drawn is a pure function of (seed, uid, candidate, place): the same for any workers, order and neighbours; rows
    that share a picture get captions of their own.
    """

    def __init__(self, *, model: Annotated[BlipWeights, "writes"] = "Salesforce/blip-image-captioning-base",
                 candidates: Annotated[int, Field(ge=1, le=100)] = 1, top_p: Annotated[float, Field(gt=0, le=1)] = 0.9,
                 beams: Annotated[int, Field(ge=2, le=32)] | None = None, min_tokens: Annotated[int, Field(ge=0)] = 5,
                 max_tokens: Annotated[int, Field(ge=1, le=200)] = 30,
                 repetition_penalty: Annotated[float, Field(gt=0)] = 1.1, prompt: str = "a picture of ", seed: int = 0) -> None:
        import torch

        from train.models.blip_folder import digest, load
        from train.models.captioner import Captioner
        from train.models.sampling import Decoding

        decoding = Decoding(candidates, top_p, beams, min_tokens, max_tokens, repetition_penalty, prompt, seed)
        self._said, self._digest = decoding.said, digest(model)
        if torch.cuda.is_available():
            blip = load("BlipForConditionalGeneration", model, "cuda", "bf16")
        else:
            torch.set_num_threads(1)   # one thread a worker: the numbers must not depend on how many workers there are
            blip = load("BlipForConditionalGeneration", model)
        self._captioner = Captioner(blip, decoding)

    def __call__(self, image: list[Image], uid: list[str]) -> dict[str, list[Any]]:
        return {"synthetic_captions": self._captioner.captions(image, uid), "synthetic_model": [self._digest] * len(uid),
                "synthetic_decoding": [self._said] * len(uid)}
