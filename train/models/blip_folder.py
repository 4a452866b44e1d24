"""A BLIP by its name on Hugging Face or its folder → transformers' own model, its tokenizer, its preprocessing, its digest.

A folder holds config.json, model.safetensors (or pytorch_model.bin with nothing but tensors), the tokenizer's files and
preprocessor_config.json. One that was trained here holds the tensors of the captioner and of the matcher; a published one those
of either. Nothing is unpickled that is more than tensors, and no code comes with a model.
"""

import hashlib
import logging
import pickle
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers.utils import cached_file

from train.errors import WeightsError
from train.files import read_json
from train.models.clip import autocast, padded
from train.models.folder import SAFE, file_digest, one_line
from train.models.vocabulary import ENC
from train.models.weights import tensors_digest

Kind = Literal["BlipForConditionalGeneration", "BlipForImageTextRetrieval"]
"""The captioner, and the matcher with its two heads."""
PICKLED = "pytorch_model.bin"
BESIDE = ("config.json", "preprocessor_config.json", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json",
          "vocab.txt")
"""What else decides the numbers: they are part of the digest."""
BAD = (RuntimeError, ValueError, KeyError, TypeError, AttributeError, OSError, EOFError, pickle.UnpicklingError, SafetensorError,
       StrictDataclassError)
"""What transformers, torch and safetensors raise on files that are missing, broken, unsafe or another model's."""
REPOSITORY = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


@dataclass(frozen=True)
class Blip:
    """A BLIP ready for use, on its device, in evaluation mode."""

    name: str
    model: Any
    tokenizer: Any
    pixels: Callable[[Image.Image], Tensor]
    """a picture as the vision tower takes it, (C, H, W)"""
    device: torch.device
    precision: str
    """fp32, or bf16 for autocast; the weights themselves stay as they are"""

    def states(self, images: Sequence[Image.Image], batch: int) -> Tensor:
        """What the vision tower makes of each picture: (len(images), patches + 1, width), on the device.

        The tower always sees `batch` pictures, the last chunk padded, so a picture's numbers do not depend on its neighbours.
        """
        rows = [self._encoded(images[at : at + batch], batch) for at in range(0, len(images), batch)]
        return torch.cat(rows)

    def _encoded(self, chunk: Sequence[Image.Image], batch: int) -> Tensor:
        pixels_NCHW = torch.stack([self.pixels(image) for image in chunk])
        with autocast(self.device, self.precision):
            found: Tensor = self.model.vision_model(pixel_values=padded(pixels_NCHW, batch).to(self.device)).last_hidden_state
        return found[: len(chunk)]


def load(kind: Kind, name: str, device: str | torch.device = "cpu", precision: str = "fp32") -> Blip:
    """The model of that kind. Raises WeightsError of one line for what is missing, broken, unsafe or of another kind."""
    file = weights_file(name)
    try:
        _check_config(name)
        with _quietly():
            model, info = getattr(transformers, kind).from_pretrained(
                name, use_safetensors=file.suffix == ".safetensors", weights_only=True, output_loading_info=True,
                dtype=torch.float32)
            tokenizer = tokenizer_of(name, model.config)
            processor = transformers.BlipImageProcessor.from_pretrained(name)
        seen = int(processor.size["height"])
        if seen != model.config.vision_config.image_size:
            raise ValueError(f"its preprocessor_config.json makes pictures of {seen} pixels, and it sees "
                             f"{model.config.vision_config.image_size}")
    except BAD as error:
        raise WeightsError(f"{name}: not weights of a {kind}: {one_line(error)}") from None
    lacking = sorted(info["missing_keys"])
    if lacking or info["mismatched_keys"]:
        raise WeightsError(f"{name}: not weights of a {kind}: "
                           + (f"it lacks {len(lacking)} tensors, first {lacking[0]}" if lacking else "tensors of other shapes"))
    return Blip(name, model.to(device).eval(), tokenizer,
                lambda image: processor(images=[image], return_tensors="pt")["pixel_values"][0], torch.device(device), precision)


def weights_file(name: str) -> Path:
    """model.safetensors of a folder or repository, or else pytorch_model.bin. Raises WeightsError where there is neither."""
    if Path(name).is_dir():
        found = next((path for file in (SAFE, PICKLED) if (path := Path(name) / file).is_file()), None)
    elif not REPOSITORY.fullmatch(name):
        raise WeightsError(f"no folder {name}, and no name of Hugging Face's")
    else:
        found = _cached(name, SAFE) or _cached(name, PICKLED)
    if found is None:
        missing = "holds" if Path(name).is_dir() else "is no folder, and Hugging Face gives"
        raise WeightsError(f"{name} {missing} neither {SAFE} nor {PICKLED}")
    return found


def digest(name: str) -> str:
    """sha256, as hex, over the tensors' content and the files that say how texts and pictures become numbers. Raises
    WeightsError where there is no BLIP."""
    file = weights_file(name)
    try:
        _check_config(name)
    except BAD as error:
        raise WeightsError(f"{name}: no BLIP: {one_line(error)}") from None
    tensors = file_digest(file) if file.name == SAFE else tensors_digest(tensors_of(file))
    found = hashlib.sha256(tensors.encode())
    for beside in BESIDE:
        path = Path(name) / beside if Path(name).is_dir() else _cached(name, beside)
        if path is not None and path.is_file():
            found.update(f"\n{beside} {hashlib.sha256(path.read_bytes()).hexdigest()}".encode())
    return found.hexdigest()


def _check_config(name: str) -> None:
    """Raises ValueError for a config.json that is no BLIP's: transformers would build one of its own default size."""
    path = Path(name) / "config.json" if Path(name).is_dir() else _cached(name, "config.json")
    config = read_json(path) if path is not None else None
    if not config or config.get("model_type") != "blip":
        raise ValueError("its config.json is missing, or no BLIP's")


def tokenizer_of(name: str, config: Any) -> Any:
    """The tokenizer beside the weights. Raises ValueError where its words are not the model's: without its files transformers
    makes one that knows five."""
    found = transformers.BertTokenizer.from_pretrained(name)
    if len(found) < config.text_config.vocab_size - 2:      # [DEC] and [ENC], which published tokenizers do not name
        raise ValueError(f"its tokenizer knows {len(found)} words and the model {config.text_config.vocab_size}; tokenizer.json "
                         "or vocab.txt is missing, or another model's")
    return found


def enc_id(name: str, tokenizer: Any, config: Any) -> int:
    """The id of [ENC] of the weights called `name`: the tokenizer's, or the one after [DEC], as BLIP adds them; published
    tokenizers do not name it. Raises WeightsError where the vocabulary has no place for it."""
    known = tokenizer.get_vocab().get(ENC)
    found = int(known) if known is not None else int(config.text_config.bos_token_id) + 1
    if not 0 <= found < config.text_config.vocab_size:
        raise WeightsError(f"{name}: its vocabulary has no [ENC]; 'first_token: cls' does without, as transformers' class does")
    return found


def _cached(name: str, file: str) -> Path | None:
    """A file of a repository, downloaded where it is not there yet; None where the repository has none."""
    try:
        found = cached_file(name, file, _raise_exceptions_for_missing_entries=False)
    except BAD as error:
        raise WeightsError(f"no folder {name}, and Hugging Face does not give it: {one_line(error)}") from None
    return None if found is None else Path(found)


def tensors_of(file: Path) -> dict[str, Tensor]:
    """The tensors of a file of either kind. Raises WeightsError for one that is broken or holds more than tensors."""
    try:
        found = load_file(file) if file.name == SAFE else torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:  # torch's own message says how to run the payload
        raise WeightsError(f"{file}: holds more than tensors, or is broken") from None
    except BAD as error:
        raise WeightsError(f"{file}: holds more than tensors, or is broken: {one_line(error)}") from None
    if not isinstance(found, dict) or not all(isinstance(v, Tensor) for v in found.values()):
        raise WeightsError(f"{file}: holds more than tensors")
    return found


@contextmanager
def _quietly() -> Iterator[None]:
    """Without transformers' table of tensors of the other kind; what is wrong arrives as an exception or in the loading info."""
    logger = logging.getLogger("transformers")
    before, bars = logger.level, transformers.utils.logging.is_progress_bar_enabled()
    logger.setLevel(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        logger.setLevel(before)
        if bars:
            transformers.utils.logging.enable_progress_bar()
