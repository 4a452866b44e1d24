"""Batches for a model: decoded, cropped and tokenised by threads, a few batches ahead, in an order that is fixed before.

Threads, not processes: Pillow decodes and resizes without the interpreter's lock, and pictures reduced once are shared. What a
batch holds never depends on how many threads there are.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from train.data import Index
from train.errors import DataError
from train.index import Halves
from train.order import Order, caption_of
from train.pictures import BrokenPicture, TrainCrop

AHEAD = 3
"""Batches prepared while the model computes."""
MAX_BROKEN = 0.01
"""Share of broken pictures above which a training stops; ten are always let pass."""
TOKENS_KEPT = 1_000_000
"""Captions whose tokens stay in memory between epochs."""

Ints = NDArray[np.int64]
Tokenizer = Callable[[list[str]], torch.Tensor]


@dataclass(frozen=True)
class Batch:
    """What one process trains on in one step."""

    pixels_NHWC: torch.Tensor
    """uint8, (batch, size, size, 3)"""
    tokens_NL: torch.Tensor
    """int64, (batch, context)"""
    pictures: NDArray[np.int64]
    """(batch,) the pictures shown; not those asked for where one is broken"""
    taught_N2E: torch.Tensor | None = None
    """half precision, (batch, 2E): a teacher's embeddings of the pictures beside those of the texts"""


class Loader:
    """The batches of one process out of `num_ranks`: its share of every step's pictures."""

    def __init__(self, index: Index, order: Order, crop: TrainCrop, tokenizer: Tokenizer, *, workers: int = 2,
                 cache_mb: int = 1024, rank: int = 0, num_ranks: int = 1) -> None:
        self.index, self.order, self.crop, self.tokenizer = index, order, crop, tokenizer
        self.broken: set[int] = set()
        self._workers = workers
        share = order.batch // num_ranks
        self._mine = slice(rank * share, (rank + 1) * share)
        self._tokens: dict[int, Ints] = {}
        needed = len(index) * (crop.reduced or 0) ** 2 * 3 * 1.5 / 2**20
        self._kept: dict[int, Image.Image] | None = {} if crop.reduced and needed <= cache_mb else None

    def pictures(self, step: int) -> Ints:
        """The pictures that this process is to show in one step, (batch / num_ranks,)."""
        return self.order.pictures(step)[self._mine]

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """The batches of steps `start` to `stop` - 1. Raises DataError where too many pictures are broken."""
        pool = ThreadPoolExecutor(self._workers, thread_name_prefix="loader")
        ready: deque[_Coming] = deque()
        try:
            for step in range(start, stop):
                ready.append(self._submit(pool, step))
                if len(ready) > AHEAD:
                    yield ready.popleft().batch()
            while ready:
                yield ready.popleft().batch()
        finally:
            pool.shutdown(cancel_futures=True)

    def _submit(self, pool: ThreadPoolExecutor, step: int) -> "_Coming":
        whole = self.order.shown(step)
        pictures, epochs = (of_all[self._mine] for of_all in whole)
        batch = frozenset(whole[0].tolist())
        draws = self.order.crops(step)[self._mine]
        pixels = np.empty((len(pictures), self.crop.size, self.crop.size, 3), np.uint8)
        cuts = np.linspace(0, len(pictures), min(self._workers, len(pictures)) + 1).astype(int)
        parts = [slice(a, b) for a, b in zip(cuts, cuts[1:], strict=False)]
        return _Coming(self.index.taught, pixels, [
            pool.submit(self._part, pixels[part], pictures[part], draws[part], epochs[part], batch) for part in parts])

    def _part(self, pixels: NDArray[np.uint8], wanted: Ints, draws: NDArray[np.float64], epochs: Ints,
              batch: frozenset[int]) -> tuple[Ints, Ints, Ints]:
        """Fill `pixels`; (tokens, the pictures shown, the captions)."""
        shown = wanted.copy()
        for row, picture in enumerate(wanted.tolist()):
            shown[row], image = self._picture(picture, batch)
            pixels[row] = self.crop(image, draws[row])
        captions = caption_of(shown, self.index.first, self.order.seed, epochs, self.index.chance)
        return self._tokenised(captions.tolist()), shown, captions

    def _picture(self, wanted: int, batch: frozenset[int]) -> tuple[int, Image.Image]:
        """Picture `wanted`, and its number; where it is broken the next one of its source that is not, and stands not in the
        batch, if there is one."""
        for at in self._instead(wanted, batch):
            if at in self.broken:
                continue
            if self._kept is not None and at in self._kept:
                return at, self._kept[at]
            try:
                image = self.crop.decode(self.index.read(at))
            except BrokenPicture as error:
                self._give_up_on(at, error)
                continue
            if self._kept is not None:
                self._kept[at] = image
            return at, image
        raise DataError("no picture can be decoded")

    def _instead(self, wanted: int, batch: frozenset[int]) -> Iterator[int]:
        yield wanted
        first, end = next(bounds for bounds in self.index.bounds if wanted < bounds[1])
        for in_batch in (False, True):
            yield from (at for at in chain(range(wanted + 1, end), range(first, wanted)) if (at in batch) is in_batch)

    def _give_up_on(self, at: int, error: BrokenPicture) -> None:
        self.broken.add(at)
        most = max(10, int(MAX_BROKEN * len(self.index)))
        if len(self.broken) > most:      # the limit and not the count, which other threads may raise meanwhile
            raise DataError(f"more than {most} of {len(self.index)} pictures cannot be decoded; "
                            f"one is {self.index.name(at)}: {error}")

    def _tokenised(self, captions: list[int]) -> Ints:
        """(len(captions), context); those not seen before go through the tokenizer together."""
        found = {j: self._tokens[j] for j in captions if j in self._tokens}
        new = [j for j in dict.fromkeys(captions) if j not in found]
        if new:
            made = dict(zip(new, self.tokenizer([self.index.caption(j) for j in new]).numpy(), strict=True))
            found |= made
            if len(self._tokens) < TOKENS_KEPT:
                self._tokens |= made
        return np.stack([found[j] for j in captions])


@dataclass(frozen=True)
class _Coming:
    """A batch that threads are filling."""

    taught: Halves | None
    pixels_NHWC: NDArray[np.uint8]
    parts: Sequence[Future[tuple[Ints, Ints, Ints]]]

    def batch(self) -> Batch:
        """The batch, once it is there."""
        tokens, shown, captions = (np.concatenate(found) for found in zip(*(part.result() for part in self.parts), strict=True))
        return Batch(torch.from_numpy(self.pixels_NHWC), torch.from_numpy(tokens), shown,
                     None if self.taught is None else torch.from_numpy(self.taught[captions]))
