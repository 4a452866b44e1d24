"""The model of an index, asked about texts and pictures; loaded when the first of them comes."""

import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curate.decoding import images
from curate.errors import UserError
from curate.retrieval.query import BadQuery

MAX_PIXELS = 33_554_432
"""Of a picture that somebody asks about: fewer than of one that is curated, because strangers may send them."""


class Encoder:
    """Embeds with the weights that measured the run, or not at all. One query at a time."""

    def __init__(self, model: str, weights: str, digest: str, threads: int) -> None:
        self._model, self._weights, self._digest, self._threads = model, weights, digest, threads
        self._loaded: Any = None
        self._lock = threading.Lock()

    def text(self, text: str) -> NDArray[np.float32]:
        """The embedding of a text. Raises UserError where the model can't be had."""
        with self._lock:
            loaded = self._ready()
            from train.models.clip import embed_texts

            found: NDArray[np.float32] = embed_texts(loaded, [text], batch=1)[0]
            return found

    def image(self, data: bytes) -> NDArray[np.float32]:
        """The embedding of a picture's bytes. Raises BadQuery where they are none."""
        try:
            picture = images.decode(data, MAX_PIXELS)
        except images.BadImage as error:
            raise BadQuery(f"the picture can't be read: {error.status}") from None
        with self._lock:
            loaded = self._ready()
            from train.models.clip import embed_images

            found: NDArray[np.float32] = embed_images(loaded, [picture], batch=1)[0]
            return found

    def _ready(self) -> Any:
        if self._loaded is None:
            self._loaded = self._load()
        return self._loaded

    def _load(self) -> Any:
        if not self._model:
            raise BadQuery("this index knows no model for texts and pictures; search by uid or vector")
        import torch

        from train.errors import WeightsError
        from train.models.weights import load

        torch.set_num_threads(self._threads)
        try:
            loaded = load(self._model, self._weights)
        except WeightsError as error:
            raise UserError(f"the index needs {self._model}, which can't be loaded: {error}") from None
        if loaded.digest != self._digest:
            raise UserError(f"{self._weights} are not the weights that measured this index; build it anew")
        return loaded
