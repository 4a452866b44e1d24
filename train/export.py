"""A checkpoint as others read it, with the largest difference from the original measured and recorded.

    OUT/export.json     format, model, digest of the tensors, differences, what was left out; beside it the training's train.json
    safetensors         open_clip_model.safetensors, open_clip_config.json: open_clip's `local-dir:OUT`
    huggingface         config.json, model.safetensors, tokenizer, preprocessor_config.json: transformers' `from_pretrained(OUT)`

ONNX is not among them: torch.onnx needs onnxscript, and a check of its result onnxruntime; neither is a dependency.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from train.checkpoint import write_model
from train.errors import ConfigError, WeightsError, did_you_mean
from train.files import new_folder, write_json
from train.huggingface import save_preprocessing, to_transformers, without_bars
from train.models.folder import CARD
from train.models.weights import Loaded, load

RECORD = "export.json"
TOLERANCE = 1e-4
"""Largest difference of any number of an embedding of length 1 that an export may have: float32 in another order gives 1e-6."""
TEXTS = ("a photo of a cat", "Two black dogs run through the snow.", "red", "3 people, one umbrella & a bus at 12:30!",
         "the quick brown fox jumps over the lazy dog", "ein Haus am See", "A man isn't there", "x" * 300)
"""Fixed texts to compare on: short and too long, with signs and letters of other languages."""
NUM_PICTURES = 8
Written = tuple[dict[str, Any], dict[str, float]]
"""What export.json says besides, and the largest differences."""


def export(loaded: Loaded, out: Path, kind: str, tolerance: float = TOLERANCE,
           card: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Write the model into `out`, read it back, compare; the content of export.json. `card` is what train.json says of it.

    Raises WeightsError, and leaves nothing, where the architecture cannot be expressed or what is read back differs by more
    than `tolerance`.
    """
    if kind not in FORMATS:
        raise ConfigError(f"no format '{kind}'{did_you_mean(kind, FORMATS)}")
    if out.exists() and not (out / RECORD).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} is there and is no export; choose another place, or remove it")
    with new_folder(out) as folder, torch.inference_mode():
        write_json(folder / CARD, {"model": loaded.name, **(card or {})})
        written, differences = FORMATS[kind](loaded, folder)
        for name, value in differences.items():
            if not value <= tolerance:
                raise WeightsError(f"{loaded.name} as {kind}: {name} embeddings differ by {value:.2g} from the original, and at "
                                   f"most {tolerance:g} is allowed; nothing was written")
        record = {"format": kind, "model": loaded.name, "weights": loaded.digest, "largest_difference": differences,
                  "tolerance": tolerance, **written}
        write_json(folder / RECORD, record)
    return record


def lines(record: Mapping[str, Any], out: Path) -> list[str]:
    """What an export says of itself."""
    said = [f"largest difference of {name} embeddings: {value:.3g}" for name, value in record["largest_difference"].items()]
    if "image_by_processor" in record:
        said.append(f"with its own image processor, which resizes pictures otherwise: {record['image_by_processor']:.3g}")
    said += [f"left out: {name}, which {record['class']} has not; embeddings do not depend on it" for name in record["left_out"]]
    return [*said, f"{out}: {record['class']}, {record['format']}"]


def _safetensors(loaded: Loaded, folder: Path) -> Written:
    """The folder that a training writes: open_clip's, or transformers' of a BLIP."""
    write_model(folder, loaded)
    again = load(loaded.name, str(folder))
    image, text = _embedded(loaded, *inputs(loaded))
    image_again, text_again = _embedded(again, *inputs(again))
    whose = "transformers' BLIP" if hasattr(loaded.model, "vision_model") else "open_clip"
    return {"class": whose, "left_out": []}, {"image": _apart(image, image_again), "text": _apart(text, text_again)}


def _huggingface(loaded: Loaded, folder: Path) -> Written:
    """transformers' folder, with its own tokenizer and image processor. Theirs fills texts up with another token, behind the last
    that counts, so embeddings are compared and not tokens."""
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    theirs, left_out = to_transformers(loaded)
    with without_bars():
        theirs.save_pretrained(folder)
        again = AutoModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32).eval()
    save_preprocessing(loaded, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
    pixels, tokens = inputs(loaded)
    words = tokenizer(list(TEXTS), padding="max_length", truncation=True, max_length=tokens.shape[1], return_tensors="pt")
    resized = processor(images=pictures(loaded), return_tensors="pt")
    image, text = _embedded(loaded, pixels, tokens)
    plain = again(pixel_values=pixels, input_ids=tokens)
    own = again(pixel_values=resized["pixel_values"], input_ids=words["input_ids"])
    differences = {"image": _apart(image, plain.image_embeds), "text": _apart(text, plain.text_embeds),
                   "tokenized text": _apart(text, own.text_embeds)}
    said = {"class": type(again).__name__, "left_out": left_out, "image_by_processor": _apart(image, own.image_embeds)}
    return said, differences


FORMATS: Mapping[str, Callable[[Loaded, Path], Written]] = {"huggingface": _huggingface, "safetensors": _safetensors}


def pictures(loaded: Loaded) -> list[Image.Image]:
    """Fixed pictures to compare on: colours in blocks and in gradients, wider than high, 1.5 times as large as the model's."""
    draws = np.random.default_rng(0)
    size = loaded.model.visual.preprocess_cfg["size"]
    side = size if isinstance(size, int) else size[0]
    small = [Image.fromarray(draws.integers(0, 256, (6, 9, 3), np.uint8)) for _ in range(NUM_PICTURES)]
    return [picture.resize((9 * side // 4, 3 * side // 2), Image.Resampling(i % 4)) for i, picture in enumerate(small)]


def inputs(loaded: Loaded) -> tuple[Tensor, Tensor]:
    """The fixed pictures and texts as pixels (N, C, H, W) and tokens (N, L)."""
    return torch.stack([loaded.preprocess_val(picture) for picture in pictures(loaded)]), loaded.tokenizer(list(TEXTS))


def _embedded(loaded: Loaded, pixels: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    return loaded.model.encode_image(pixels, normalize=True), loaded.model.encode_text(tokens, normalize=True)


def _apart(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference of any number; infinite where one is not finite."""
    apart = (ours - theirs).abs().max()
    return float(apart) if torch.isfinite(apart) else float("inf")
