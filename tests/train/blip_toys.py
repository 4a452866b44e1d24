"""A BLIP of a hundred thousand weights by name, `blip-toy-32`, and pictures for it."""

from pathlib import Path

import torch
from torch import Tensor

from tests.train.toys import caption, scene
from train.checkpoint import write_model
from train.files import write_json
from train.models import blip_weights
from train.models.folder import CARD
from train.models.weights import Loaded, load

blip_weights.FOLDERS.append(Path(__file__).parent / "models")
TOY = "blip-toy-32"


def toy(seed: int = 0) -> Loaded:
    """With random weights, larger than those a training starts from: what it says differs from picture to picture."""
    loaded = load(TOY, f"random:{seed}")
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(5)
    return loaded


def saved(loaded: Loaded, folder: Path) -> Path:
    """A folder as a training leaves it."""
    folder.mkdir()
    write_model(folder, loaded)
    write_json(folder / CARD, {"model": loaded.name})
    return folder


def chunk(loaded: Loaded, num: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels, tokens and numbers of pictures 0 to `num` - 1."""
    pixels = torch.stack([loaded.preprocess_val(scene(n)) for n in range(num)])
    return pixels, loaded.tokenizer([caption(n) for n in range(num)]), torch.arange(num)
