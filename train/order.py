"""Which picture, which caption and which crop come when: pure functions of seed and step, nothing else.

No random state is kept anywhere. So a killed training goes on with the very same samples, whatever the number of processes and
of loader threads, and two trainings with one seed see the same.
"""

from collections.abc import Callable, Sequence

import numpy as np

from train.config import Config
from train.draws import CAPTION, CROP, MODEL, SHUFFLE, SLOT, Floats, Ints, bits, shuffled, uniform
from train.errors import ConfigError
from train.index import Index
from train.mix import Mix, whole_parts
from train.walk import Growth, Walk


class Order:
    """The batches of a training: each step's pairs out of every source's walk."""

    def __init__(self, num_pictures: int, batch: int, seed: int, walks: Sequence[Walk] | None = None) -> None:
        """Over `num_pictures` pictures, by the walks through their sources; without, they are one source and all alike."""
        self.num_pictures, self.batch, self.seed = num_pictures, batch, seed
        self._walks = walks or [Walk(0, num_pictures, seed, lambda step: step * batch)]
        self.steps_per_epoch = max(1, num_pictures // batch)

    def epoch(self, step: int) -> int:
        """The epoch, from 0, that `step`, from 0, belongs to: as many pairs as there are pictures."""
        return step // self.steps_per_epoch

    def pictures(self, step: int) -> Ints:
        """The pictures of one step's batch, (batch,)."""
        return self.shown(step)[0]

    def shown(self, step: int) -> tuple[Ints, Ints]:
        """(pictures, how often their source was walked through before), each (batch,)."""
        parts = [walk.pictures(step) for walk in self._walks]
        pictures = np.concatenate(parts)
        epochs = np.repeat([walk.epoch(step) for walk in self._walks], [len(part) for part in parts]).astype(np.int64)
        if len(parts) > 1:
            slots = shuffled(SLOT, self.seed, step, np.arange(len(pictures), dtype=np.int64))
            pictures, epochs = pictures[slots], epochs[slots]
        return pictures, epochs

    def crops(self, step: int) -> Floats:
        """The random numbers of one step's crops, (batch, 5) in [0, 1): area, shape, left, top, flip."""
        slots = np.arange(self.batch, dtype=np.int64)[:, None]
        return uniform(CROP, self.seed, step, slots, np.arange(5, dtype=np.int64)[None])

    def model_seed(self, step: int, rank: int) -> int:
        """The seed of the model's own randomness (dropout) at one step on one rank."""
        return int(bits(MODEL, self.seed, step, rank)[0] >> np.uint64(1))


def make_order(index: Index, config: Config) -> Order:
    """The order in which the settings have `index` seen. Raises ConfigError where a picture would stand twice in a batch."""
    if config.batch > len(index):
        raise ConfigError(f"batch: {config.batch} is more than the {len(index)} pictures, so one would stand twice in a batch")
    mix = Mix(whole_parts(index.shares), config.batch, config.seed, config.mix == "batch")

    def walked(growth: Growth | None) -> Order:
        walks = [Walk(a, b - a, config.seed, _pairs_of(n, mix), weight=None if index.weight is None else index.weight[a:b],
                      rank=None if index.rank is None else index.rank[a:b], growth=growth)
                 for n, (a, b) in enumerate(index.bounds)]
        _check(index, mix, walks)
        return Order(len(index), config.batch, config.seed, walks)

    order = walked(None)
    if config.curriculum is None:
        return order
    num_steps = config.samples_seen.steps(config.batch, order.steps_per_epoch)
    return walked(Growth(config.curriculum.start, config.curriculum.until * num_steps))


def _pairs_of(source: int, mix: Mix) -> Callable[[int], int]:
    return lambda step: int(mix.before(step)[source])


def _check(index: Index, mix: Mix, walks: Sequence[Walk]) -> None:
    several = len(walks) > 1
    for n, walk in enumerate(walks):
        name, size = f"source {n + 1}" if several else "an epoch", walk.size(0)
        if several and not mix.whole and mix.least(n) < 1:
            raise ConfigError(f"data: {name} would have {mix.least(n):.2g} pairs in a batch; take a larger batch, or mix: batch")
        if size < mix.most(n):
            raise ConfigError(f"batch: {name} has {size} pictures at the start, and a batch may take {mix.most(n)} of them, so "
                              "one would stand twice in a batch")
    if not mix.whole and index.num_shared:
        raise ConfigError(f"data: {index.num_shared} pictures stand in two sources, so one would stand twice in a batch; take "
                          "mix: batch, or give them a weight in a score table")


def permutation(num: int, seed: int, epoch: int) -> Ints:
    """0 .. num-1 in the order of this epoch."""
    return shuffled(SHUFFLE, seed, epoch, np.arange(num, dtype=np.int64))


def caption_of(pictures: Ints, first: Ints, seed: int, epoch: int | Ints, chance: Floats | None = None) -> Ints:
    """Which caption each of `pictures` shows in this epoch: its captions take turns, from a random one on.

    `first` (num_pictures + 1,): the captions of picture i are first[i] .. first[i + 1] - 1. With `chance` (num_captions,), 1 over
    the captions of a picture, each epoch draws one instead.
    """
    if chance is None:
        counts = first[pictures + 1] - first[pictures]
        start = (bits(CAPTION, seed, pictures) >> np.uint64(1)).astype(np.int64)
        return np.asarray(first[pictures] + (start % counts + epoch) % counts, np.int64)
    draws = uniform(CAPTION, seed, epoch, pictures)
    drawn = [a + np.searchsorted(np.cumsum(chance[a:b]), draw, side="right") for a, b, draw in
             zip(first[pictures].tolist(), first[pictures + 1].tolist(), draws.tolist(), strict=True)]
    return np.minimum(np.array(drawn, np.int64), first[pictures + 1] - 1)
