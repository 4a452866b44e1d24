"""What a checkpoint's folder says without torch, which takes seconds to load: its card, and the hash of its tensors."""

import hashlib
import json
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from train.errors import WeightsError
from train.files import read_json

LIBRARIES = ("torch", "open_clip_torch", "transformers")
CARD = "train.json"
"""What a checkpoint folder of ours says of itself."""
WEIGHTS, SAFE = "open_clip_model.safetensors", "model.safetensors"
"""The tensors in it: open_clip's name, and transformers'."""


@cache
def versions() -> str:
    """Of all that makes a model of a name, random weights included: the libraries, and what lies beside this file."""
    ours = hashlib.sha256()
    for path in sorted(path for path in Path(__file__).parent.iterdir() if path.suffix in (".py", ".json")):
        ours.update(f"{path.name} {path.stat().st_size}\n".encode() + path.read_bytes())
    return " ".join([*(f"{name} {metadata.version(name)}" for name in LIBRARIES), f"models {ours.hexdigest()[:12]}"])


def weights_digest(model: str, pretrained: str) -> str:
    """The hash of the tensors that `train.models.weights.load` would give, as hex. Raises WeightsError of one line."""
    folder = Path(pretrained)
    if (folder / CARD).is_file():
        check_name(folder, model)
        for name in (WEIGHTS, SAFE):
            if (folder / name).is_file():
                return file_digest(folder / name)
    from train.models.weights import load

    return load(model, pretrained).digest


def learnt(name: str) -> str | None:
    """The loss that the weights of a folder last learnt by here; None of others'."""
    try:
        settings = (read_json(Path(name) / CARD) or {}).get("settings")
    except ValueError:
        return None
    return settings.get("loss") if isinstance(settings, dict) else None     # a card does not say `clip`, the default


def check_name(folder: Path, model: str) -> None:
    """Raises WeightsError where the folder's card says that it is another model."""
    card = read_json(folder / CARD)
    found = (card or {}).get("model", model)
    if found != model:
        raise WeightsError(f"{folder} is a {found}, not a {model}")


def file_digest(path: Path) -> str:
    """`train.models.weights.tensors_digest` of a safetensors file. Raises WeightsError where it is none."""
    found = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header: dict[str, dict[str, Any]] = json.loads(file.read(length))
            header.pop("__metadata__", None)
            for name, entry in sorted(header.items()):
                start, end = entry["data_offsets"]
                found.update(head(name, entry["dtype"], entry["shape"]))
                file.seek(8 + length + start)
                data = file.read(end - start)
                if len(data) != end - start:
                    raise WeightsError(f"{path}: cut short")
                found.update(data)
    except (ValueError, KeyError, TypeError, AttributeError, OSError, MemoryError, OverflowError) as error:
        raise WeightsError(f"{path}: not a safetensors file: {one_line(error)}") from None
    return found.hexdigest()


def head(name: str, dtype: str, shape: list[int]) -> bytes:
    """What goes into the hash before a tensor's bytes; `dtype` as safetensors calls it."""
    return f"{name} {dtype} {shape}\n".encode()


def one_line(error: BaseException) -> str:
    """Its message as one line, or its name."""
    return " ".join(str(error).split())[:200] or type(error).__name__
