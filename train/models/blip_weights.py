"""BLIP models by name, and their folders, which transformers' BlipForConditionalGeneration and BlipForImageTextRetrieval load.

A name is one of ours (`*blip-*.json` beside this file; `random:SEED`, or a folder that a training left) or `hf-blip:` with a
repository or folder of Hugging Face's (`hf-blip:Salesforce/blip-itm-base-coco`), whose own weights are taken unless a folder is
given. Nothing is unpickled that is more than tensors, and no code comes with a model.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import open_clip
import torch
from torch import Tensor
from transformers import BlipConfig

from train.errors import WeightsError, did_you_mean
from train.files import read_json, write_json
from train.matching import SMOOTHING
from train.models.blip import CLIP_PIXELS, LOG_SCALE, Blip
from train.models.blip_folder import BAD, enc_id, tensors_of, tokenizer_of, weights_file
from train.models.folder import SAFE, one_line
from train.models.vocabulary import ENC, Tokens, small_tokenizer
from train.models.weights import Format, Loaded, seeded

CONTEXT = 40
"""Tokens that published models, which have room for 512, see of a text: as BLIP's fine-tuning of the captioner (its code)."""
PREFIX = "hf-blip:"
CONFIG, PIXELS = "config.json", "preprocessor_config.json"
BICUBIC = 3
NO_ENC = -1
"""The id of [ENC] in a model without a matching head, which has no use for it."""
TIED = {"text_decoder.cls.predictions.decoder.weight": "text_decoder.bert.embeddings.word_embeddings.weight",
        "text_decoder.cls.predictions.decoder.bias": "text_decoder.cls.predictions.bias"}
"""Tensors that a file may leave out, and those that they are the same as."""
FOLDERS = [Path(__file__).parent]
"""Where `*blip-*.json` lie."""


def load(model: str, pretrained: str) -> Loaded:
    """The model on the CPU. Raises WeightsError of one line."""
    folder = pretrained if (Path(pretrained) / CONFIG).is_file() else model.removeprefix(PREFIX)
    if not model.startswith(PREFIX) and folder == model:
        return _new(model, pretrained)
    file = weights_file(folder)
    try:
        config = BlipConfig.from_pretrained(folder)
        tokenizer = tokenizer_of(folder, config)
        tensors = tensors_of(file)
        judges = "itm_head.weight" in tensors
        net = Blip(config, enc_id(folder, tokenizer, config) if judges else NO_ENC, judges=judges,
                   writes="text_decoder.cls.predictions.bias" in tensors, pixels=_pixels(file.parent / PIXELS))
        _fill(net, tensors)
    except BAD as error:
        raise WeightsError(f"{folder}: not weights of {model}: {one_line(error)}") from None
    return _loaded(model, net, config, Tokens(tokenizer, min(tokenizer.model_max_length, CONTEXT)))


def write(folder: Path, loaded: Loaded) -> None:
    """Configuration, tokenizer and preprocessing: all but the tensors."""
    tokens: Any = loaded.tokenizer
    write_json(folder / CONFIG, loaded.config)
    tokens.tokenizer.save_pretrained(folder)
    side, pixels = loaded.model.visual.image_size, loaded.model.visual.preprocess_cfg
    write_json(folder / PIXELS, {
        "image_processor_type": "BlipImageProcessor", "processor_class": "BlipProcessor", "do_convert_rgb": True,
        "do_resize": True, "size": {"height": side, "width": side}, "resample": BICUBIC, "do_rescale": True,
        "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": list(pixels["mean"]), "image_std": list(pixels["std"])})


def names() -> list[str]:
    """Our own."""
    return sorted(path.stem for folder in FOLDERS for path in folder.glob("*blip-*.json"))


def _new(model: str, pretrained: str) -> Loaded:
    """One of our own architectures with random weights."""
    path = next((path for folder in FOLDERS if (path := folder / f"{model}.json").is_file()), None)
    if path is None:
        raise WeightsError(f"no model '{model}'{did_you_mean(model, names())}, and {PREFIX}NAME for Hugging Face's")
    if not pretrained.startswith("random"):
        raise WeightsError(f"no checkpoint folder '{pretrained}' of {model}")
    settings: dict[str, Any] = json.loads(path.read_text())
    tokenizer = small_tokenizer(settings["num_merges"], settings["context_length"])
    special = {"vocab_size": len(tokenizer), "bos_token_id": tokenizer.bos_token_id, "pad_token_id": tokenizer.pad_token_id,
               "sep_token_id": tokenizer.sep_token_id, "eos_token_id": tokenizer.sep_token_id}
    config = BlipConfig(
        image_text_hidden_size=settings["image_text_hidden_size"],
        vision_config={"initializer_range": _spread(settings["vision_config"]), **settings["vision_config"]},
        text_config={"initializer_range": _spread(settings["text_config"]), "label_smoothing": SMOOTHING,
                     **settings["text_config"], **special})
    with seeded(pretrained):
        net = Blip(config, tokenizer.convert_tokens_to_ids(ENC))
    places_SD = net.visual.embeddings.position_embedding.data[0, 1:]
    places_SD.copy_(waves(math.isqrt(len(places_SD)), places_SD.shape[1]))
    return _loaded(model, net, config, Tokens(tokenizer, settings["context_length"]))


def waves(side: int, width: int, longest: float = 100.0) -> Tensor:
    """Where the position embeddings of a grid of side × side patches start, (side², width), row by row: sine and cosine of x and
    of y at width / 4 wave lengths, so that a small model need not learn first which patches lie together.

    Beyer et al. 2022 (arXiv 2205.01580), section 2, who go to a `longest` of 10,000; over a grid of 8 all but the shortest fourth
    of those waves are flat (our choice).
    """
    rates = longest ** -torch.linspace(0, 1, width // 4)
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    angles = [place.flatten()[:, None] * rates for place in (x, y)]
    return torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], dim=1)


def _spread(tower: Mapping[str, Any]) -> float:
    """Deviation of the weights at the start: BERT's 0.02 at its width of 768, and at smaller ones so much more that what comes
    out is alike (our choice). transformers would take 1e-10 for a vision tower, where every picture looks the same."""
    return float(0.02 * (768 / tower["hidden_size"]) ** 0.5)


def _loaded(model: str, net: Blip, config: BlipConfig, tokens: Tokens) -> Loaded:
    transform = open_clip.transform
    preprocess = transform.image_transform_v2(transform.PreprocessCfg(**net.visual.preprocess_cfg), is_train=False)
    return Loaded(model, net.eval(), preprocess, tokens, torch.device("cpu"), json.loads(config.to_json_string()))


def _fill(net: Blip, tensors: Mapping[str, Tensor]) -> None:
    """Every tensor into its place. Raises ValueError where one is missing, or where two differ that are one in this model."""
    if "logit_bias" in tensors:
        net.logit_bias = torch.nn.Parameter(torch.zeros(()))
    own = net.state_dict()
    given = {**{name: tensors[twin] for name, twin in TIED.items() if twin in tensors}, "logit_scale": torch.tensor(LOG_SCALE),
             **tensors}
    lacking = sorted(own.keys() - given.keys())
    if lacking:
        raise ValueError(f"it lacks {len(lacking)} tensors, first {lacking[0]}")
    net.load_state_dict({name: given[name] for name in own})
    apart = [name for name, tensor in own.items() if not torch.equal(tensor, given[name].to(tensor.dtype))]
    if apart:
        raise ValueError(f"its encoder and decoder do not share {apart[0]}")


def _pixels(path: Path) -> dict[str, Any]:
    found = read_json(path)
    return CLIP_PIXELS if found is None else {"mean": list(found["image_mean"]), "std": list(found["image_std"])}


FORMAT = Format(SAFE, load, write)
