"""CLIP-like models at work: pictures and texts to normalised embeddings, and pixels to what a tower takes.

The chunks that a tower sees always have the same number of rows, the last one padded: what comes out for a picture depends on
nothing but the picture, the weights, and the machine with its number of threads.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from train.models.weights import Loaded

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
SIGLIP = {"init_logit_scale": math.log(10), "init_logit_bias": -10.0}
"""Where scale (its logarithm) and bias start: Zhai et al. 2023 (arXiv 2303.15343), section 3.3; by open_clip's names."""


def with_bias(loaded: Loaded, *, fresh: bool = False) -> Loaded:
    """The model with the `logit_bias` that the sigmoid loss needs; a SigLIP model keeps its own.

    Where the weights have none, or are `fresh` and their configuration says no scale, scale and bias start as published: a scale
    learnt or meant for a softmax is none for single pairs.
    """
    model = loaded.model
    if model.logit_bias is not None and not (fresh and "init_logit_scale" not in loaded.config):
        return loaded
    with torch.no_grad():
        model.logit_scale.fill_(SIGLIP["init_logit_scale"])
    model.logit_bias = nn.Parameter(torch.full_like(model.logit_scale, SIGLIP["init_logit_bias"]))
    return replace(loaded, config={**loaded.config, **SIGLIP})


def embed_images(loaded: Loaded, images: Sequence[Image.Image], batch: int = 64) -> NDArray[np.float32]:
    """Embeddings of length 1, (len(images), dimensions)."""
    def encode(chunk: Sequence[Image.Image]) -> Any:
        pixels_NCHW = torch.stack([loaded.preprocess_val(image) for image in chunk])
        return loaded.model.encode_image(to_device(padded(pixels_NCHW, batch), loaded.device), normalize=True)
    return _embed(loaded, images, batch, encode)


def embed_texts(loaded: Loaded, texts: Sequence[str], batch: int = 64) -> NDArray[np.float32]:
    """Embeddings of length 1, (len(texts), dimensions)."""
    def encode(chunk: Sequence[str]) -> Any:
        tokens_NL = loaded.tokenizer(list(chunk))
        return loaded.model.encode_text(padded(tokens_NL, batch).to(loaded.device), normalize=True)
    return _embed(loaded, texts, batch, encode)


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """Mixed precision for the block: fp32 (none), bf16 or fp16."""
    return torch.autocast(device.type, AUTOCAST.get(precision), enabled=precision in AUTOCAST)


def to_device(pixels_NCHW: Tensor, device: torch.device) -> Tensor:
    """Pixels where the model is, laid out as convolutions are fastest."""
    return pixels_NCHW.to(device, memory_format=torch.channels_last, non_blocking=True)


def normalised(pixels_NHWC: Tensor, model: Any, device: torch.device) -> Tensor:
    """Bytes of pixels → what the image tower takes: float, mean and deviation as its preprocessing says, (N, C, H, W)."""
    settings: dict[str, Any] = model.visual.preprocess_cfg
    mean, std = (torch.tensor(settings[k], device=device).view(1, 3, 1, 1) for k in ("mean", "std"))
    pixels_NCHW = to_device(pixels_NHWC.permute(0, 3, 1, 2), device)
    return (pixels_NCHW.float() / 255).sub_(mean).div_(std)


def image_size(model: Any) -> int:
    """Pixels a side that the image tower takes. Raises ValueError where it is not square."""
    size = model.visual.image_size
    width, height = size if isinstance(size, tuple | list) else (size, size)
    if width != height:
        raise ValueError(f"pictures of {width}x{height} pixels are not square")
    return int(width)


@torch.inference_mode()
def _embed(loaded: Loaded, items: Sequence[Any], batch: int, encode: Callable[[Sequence[Any]], Any]) -> NDArray[np.float32]:
    with autocast(loaded.device, loaded.precision):
        rows = [encode(chunk)[: len(chunk)].float().cpu().numpy() for chunk in _chunks(items, batch)]
    return np.concatenate(rows) if rows else np.empty((0, 0), np.float32)


def _chunks(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for at in range(0, len(items), size):
        yield items[at : at + size]


def padded(rows: Tensor, batch: int) -> Tensor:
    """`batch` rows: the last one repeated."""
    return torch.cat([rows, rows[-1:].expand(batch - len(rows), *rows.shape[1:])]) if len(rows) < batch else rows
