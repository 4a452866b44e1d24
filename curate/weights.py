"""The identity of a model step's weights: a hash of tensor content, plus the class of device that computes with them.

Loading a model only to hash it costs seconds, so answers are remembered in the run's folder: a file's by size and time of
change, a published tag's and random ones' by the versions of the libraries and the content of `train.models`.
"""

from collections.abc import Callable, Mapping
from ctypes import CDLL
from importlib import metadata
from pathlib import Path
from typing import Any

from curate import files
from curate.errors import UserError
from curate.step import Spec
from curate.store import Store

DRIVER = "libcuda.so.1"
"""NVIDIA's, which is no part of torch."""


class WeightsIds:
    """Callable as `Binder` wants it."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._path = store.root / "weights.json"
        self._known: dict[str, str] = files.read_json(self._path, {})

    def __call__(self, spec: Spec, settings: Mapping[str, Any], name: str) -> list[str]:
        """[tensor digest, device class] of the weights that the setting `name` names."""
        model, pretrained = str(settings.get("model", "")), str(settings[name])
        if "blip" in spec.settings[name].tags:
            _check_learnt(spec, name, pretrained)
            digest = self._remembered(model, pretrained, lambda: _blip(pretrained))
        else:
            digest = self.digest(model, pretrained)
        return [digest, device_class()]

    def digest(self, model: str, pretrained: str) -> str:
        """The hash of the tensors of a model that is trained here, or embeds."""
        return self._remembered(model, pretrained, lambda: _clip(model, pretrained))

    def _remembered(self, model: str, pretrained: str, found: Callable[[], str]) -> str:
        key = f"{model} {pretrained} {_stamp(pretrained)}"
        if key not in self._known:
            self._known = {**files.read_json(self._path, {}), key: found()}     # another may have asked in the meantime
            files.write_json(self._path, self._known, self._store.attempt)
        return self._known[key]


def device_class() -> str:
    """cuda where torch has a GPU to compute with, else cpu.

    Torch takes seconds to import, so it is not asked where it would have none: without the driver that it looks for, in a build
    that is not AMD's.
    """
    try:
        CDLL(DRIVER)
    except OSError:
        if "rocm" not in metadata.version("torch"):
            return "cpu"
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _check_learnt(spec: Spec, setting: str, name: str) -> None:
    """Raises UserError for a captioner that is to judge, or a filter that is to write: its other half was left behind."""
    from train.models.folder import learnt

    loss = learnt(name)
    for purpose, unfit in (("writes", "blip_filter"), ("judges", "blip_captioner")):
        if purpose in spec.settings[setting].tags and loss == unfit:
            raise UserError(f"{spec.name}.{setting}: {name} learnt by loss: {unfit} last, and what {purpose} was left behind; "
                            "take one of loss: blip, or fine-tune that for this")


def _clip(model: str, pretrained: str) -> str:
    from train.models.folder import weights_digest

    return weights_digest(model, pretrained)


def _blip(name: str) -> str:
    from train.models.blip_folder import digest

    return digest(name)


def _stamp(pretrained: str) -> str:
    from train.models.folder import versions

    path = Path(pretrained)
    if not path.exists():
        return versions()
    found = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    return files.digest([[str(p), p.stat().st_size, p.stat().st_mtime_ns] for p in found])
