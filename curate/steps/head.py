"""Any classifier over embeddings, from a file."""

from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from curate.heads.head import read
from curate.heads.use import completes
from curate.step import File, float32, step


def _column(*, file: Path) -> dict[str, pa.DataType]:
    """What the head's own file says that it gives."""
    return {read(file).card.output.column: float32}


@step(adds=_column, batch=4096, completes=completes("head", None))
class Head:
    """What a head says of an embedding, in its own unit and under its own name; null for one that is all zeros or not finite.

    `file` is a folder with head.json and head.safetensors (docs/heads.md): from `curate head convert`, `curate head train` or
    somebody else. The head is checked before anything runs: its hash, its probes, and that it takes the embeddings it is given.
    """

    def __init__(self, *, file: File) -> None:
        self._head = read(file)

    def __call__(self, image_emb: NDArray[np.float32]) -> pa.Array:
        return pa.array(self._head.scores(image_emb), float32, from_pandas=True)
