"""A name or a file → a model, its preprocessing, its tokenizer and a hash of its tensors.

Most models are open_clip's, `FORMATS` names the others. `pretrained` is a tag of open_clip (`laion2b_s34b_b79k`), a checkpoint
folder (ours, or Hugging Face's with `open_clip_config.json`), a checkpoint file, or `random` or `random:SEED` for seeded random
weights. Nothing is unpickled that is more than tensors.
"""

import hashlib
import importlib
import logging
import pickle
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import open_clip
import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor

from train.errors import WeightsError, did_you_mean
from train.files import write_json
from train.models.coca import has_decoder, start_decoder
from train.models.folder import CARD, WEIGHTS, check_name, head, one_line

MODEL_CONFIG = "open_clip_config.json"
"""What a model is built from, beside its tensors, as open_clip's `local-dir:` reads it."""
RESIZE = dict.fromkeys(("curate-conv-64", "curate-vit-64", "curate-coca-64"), "squash")
"""How our own models take pictures that are not square; a checkpoint folder says it itself."""
DTYPES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
          torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL"}

BAD_WEIGHTS = (RuntimeError, ValueError, KeyError, OSError, EOFError, AttributeError, pickle.UnpicklingError, SafetensorError)
"""What open_clip, torch and safetensors raise on files that are missing, broken, unsafe or another model's."""

open_clip.add_model_config(Path(__file__).parent)


@dataclass(frozen=True)
class Loaded:
    """A model ready to embed or to train, on its device, in evaluation mode."""

    name: str
    model: Any
    """an open_clip module, or one that is used like it: `encode_image`, `encode_text`, `visual`, `logit_scale`, `logit_bias`"""
    preprocess_val: Callable[[Image.Image], Tensor]
    tokenizer: Callable[[list[str]], Tensor]
    device: torch.device
    config: dict[str, Any]
    """what the model is built from: open_clip's model_cfg, or transformers' configuration"""
    precision: str = "fp32"
    """fp32, or bf16 or fp16 for autocast; the weights themselves stay as they are"""

    @property
    def squash(self) -> bool:
        """Whether pictures are pressed into a square, not cropped to one."""
        return bool(self.model.visual.preprocess_cfg["resize_mode"] == "squash")

    @cached_property
    def digest(self) -> str:
        """Hash of the tensors at the first asking; for a model in training ask `tensors_digest`."""
        return tensors_digest(self.model.state_dict())


@dataclass(frozen=True)
class Format:
    """How models of one kind lie in a folder."""

    weights: str
    """the file of the tensors"""
    load: Callable[[str, str], Loaded]
    """(name, weights) → the model on the CPU; raises WeightsError of one line"""
    write: Callable[[Path, Loaded], None]
    """puts all but the tensors into a folder"""


FORMATS = {r"(hf-blip:|(curate-)?blip-).*": "train.models.blip_weights"}
"""Names of models → the module whose FORMAT reads and writes them; all others are open_clip's."""


def format_of(model: str) -> Format:
    """How the model called `model` is read and written."""
    for names, module in FORMATS.items():
        if re.fullmatch(names, model):
            found: Format = importlib.import_module(module).FORMAT
            return found
    return Format(WEIGHTS, _load, _write)


def load(model: str, pretrained: str, device: str | torch.device = "cpu", precision: str = "fp32") -> Loaded:
    """The model called `model` with the weights `pretrained`. Raises WeightsError of one line."""
    check_name(Path(pretrained), model)
    found = format_of(model).load(model, pretrained)
    found.model.visual.to(memory_format=torch.channels_last)
    found.model.to(device).eval()
    return replace(found, device=torch.device(device), precision=precision)


def _load(model: str, pretrained: str) -> Loaded:
    """One of open_clip's."""
    folder = Path(pretrained)
    if (folder / MODEL_CONFIG).is_file():
        name, tag = f"local-dir:{folder}", None
    else:
        name, tag = _checked(model, pretrained)
    try:
        with _quietly(), seeded(pretrained):
            net, _, preprocess = open_clip.create_model_and_transforms(name, pretrained=tag, pretrained_text=False,
                                                                       image_resize_mode=RESIZE.get(name))
            if has_decoder(net) and pretrained.startswith("random"):
                start_decoder(net)
            tokenizer = open_clip.get_tokenizer(name) if tag is None and ":" in name else _tokenizer(name)
    except pickle.UnpicklingError:  # torch's own message says how to run the payload
        raise WeightsError(f"{pretrained}: holds more than tensors, which could run a program, or is broken") from None
    except BAD_WEIGHTS as error:
        raise WeightsError(f"{pretrained}: not weights of {model}: {one_line(error)}") from None
    return Loaded(model, net, preprocess, tokenizer, torch.device("cpu"), open_clip.get_model_config(name))


@lru_cache(maxsize=4)
def _tokenizer(name: str) -> Any:
    """Of a named model; reading open_clip's vocabulary takes longer than making a small model. A folder's may change."""
    return open_clip.get_tokenizer(name)


def _write(folder: Path, loaded: Loaded) -> None:
    """open_clip's configuration, and the tokenizer where the model brings its own."""
    settings = loaded.model.visual.preprocess_cfg
    write_json(folder / MODEL_CONFIG, {"model_cfg": loaded.config, "preprocess_cfg": dict(settings)})
    if isinstance(loaded.tokenizer, open_clip.tokenizer.HFTokenizer):
        loaded.tokenizer.save_pretrained(folder)


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over the tensors sorted by name: name, type, shape, bytes."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(head(name, DTYPES[tensor.dtype], list(tensor.shape)))
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        found.update(flat.view(torch.uint8).numpy().data)
    return found.hexdigest()


def _checked(model: str, pretrained: str) -> tuple[str, str | None]:
    """open_clip's (model name, pretrained) for something that is no checkpoint folder."""
    if model.startswith("hf-hub:"):
        return model, None
    name = model.replace("/", "-")
    if name not in open_clip.list_models():
        raise WeightsError(f"no model '{model}'{_near(model, open_clip.list_models())}")
    if re.fullmatch(r"random(:\d+)?", pretrained):
        return name, None
    if Path(pretrained).is_file():
        return name, pretrained
    tags = open_clip.list_pretrained_tags_by_model(name)
    if (Path(pretrained) / "model" / CARD).is_file():
        raise WeightsError(f"{pretrained} is a training; its model is {Path(pretrained) / 'model'}")
    if not open_clip.is_pretrained_cfg(name, pretrained):
        raise WeightsError(f"no file, checkpoint folder or pretrained tag '{pretrained}' of {model}"
                           f"{did_you_mean(pretrained, tags)}")
    return name, pretrained


def _near(name: str, known: list[str]) -> str:
    """A near miss only: open_clip knows some 150 names."""
    hint = did_you_mean(name, known)
    return hint if hint.startswith("; did") else "; `python -m train --models` lists them"


@contextmanager
def seeded(pretrained: str) -> Iterator[None]:
    """Random weights come from the seed alone; the caller's random state stays as it is."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(pretrained.partition(":")[2] or 0) if pretrained.startswith("random") else 0)
        yield


@contextmanager
def _quietly() -> Iterator[None]:
    """Without open_clip's remarks to the root logger; its errors arrive as exceptions."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)
