"""Several sources: their shares, their epochs, their order, all without looking at the steps before."""

from pathlib import Path

import numpy as np
import pytest

from tests.train.toys import config, pairs, uid_pairs, write_tar
from train.data import open_data
from train.data_settings import Data
from train.draws import bits
from train.errors import ConfigError
from train.index import Index, joined
from train.mix import Mix, whole_parts
from train.order import Order, make_order
from train.walk import Growth, Walk


def made(sizes: list[int], weights: list[float], batch: int, mix: str = "pair", **settings: object) -> Order:
    """The order over sources of so many pictures."""
    parts = [Index(("x",), np.stack([np.full(n, s), np.arange(n), np.ones(n)], 1).astype(np.int64), np.arange(n + 1), b"a" * n,
                   np.arange(n + 1), str(s), identity=bits(0, s, np.arange(n))) for s, n in enumerate(sizes)]
    named = [Index(**{**vars(part), "files": (f"source{s}",), "pictures": part.pictures * [0, 1, 1]})
             for s, part in enumerate(parts)]
    return make_order(joined(named, weights), config(data="x", batch=batch, mix=mix, **settings))


def sources(order: Order, sizes: list[int], steps: int) -> np.ndarray:
    """(steps, sources): how many pictures of each source every step shows."""
    edges = np.cumsum([0, *sizes])
    return np.array([np.histogram(order.pictures(step), edges)[0] for step in range(steps)])


@pytest.mark.parametrize(("shares", "expected"), [
    ([2, 1], (2, 1)), ([1.0], (1,)), ([0.37, 0.63], (37, 63)), ([1, 1, 2.5], (2, 2, 5)), ([1, 3.14159], (241, 759)),
    ([1e6, 1], (1000, 1))])
def test_shares_as_whole_numbers(shares: list[float], expected: tuple[int, ...]) -> None:
    assert whole_parts(shares) == expected


def test_every_batch_has_its_share_and_no_picture_twice() -> None:
    sizes = [40, 13, 25]
    order = made(sizes, [2, 1, 0.5], 10)
    found = sources(order, sizes, 140)
    assert (found.sum(1) == 10).all() and found.sum(0).tolist() == [800, 400, 200]
    assert (np.abs(found - np.array([20, 10, 5]) / 3.5) < 2).all()
    assert all(len(set(order.pictures(step).tolist())) == 10 for step in range(140))


def test_a_batch_of_one_source() -> None:
    sizes = [40, 13, 25]
    found = sources(made(sizes, [2, 1, 0.5], 10, "batch"), sizes, 140)
    assert (np.sort(found, 1) == [0, 0, 10]).all() and found.sum(0).tolist() == [800, 400, 200]
    cycles = [found[at : at + 7].argmax(1).tolist() for at in range(0, 140, 7)]
    assert all(sorted(cycle) == [0, 0, 0, 0, 1, 1, 2] for cycle in cycles) and len({tuple(cycle) for cycle in cycles}) > 5


@pytest.mark.parametrize("mix", ["pair", "batch"])
def test_no_step_needs_the_steps_before(mix: str) -> None:
    def order() -> Order:
        return made([40, 13, 25], [2, 1, 0.5], 10, mix)

    walked = order()
    expected = [[values.tolist() for values in walked.shown(step)] for step in range(50)]
    assert [[values.tolist() for values in order().shown(step)] for step in range(50)] == expected
    assert [[values.tolist() for values in walked.shown(step)] for step in (49, 3, 17)] == [expected[s] for s in (49, 3, 17)]


@pytest.mark.parametrize("mix", ["pair", "batch"])
def test_each_source_is_walked_epoch_by_epoch(mix: str) -> None:
    order, seen = made([40, 13, 25], [2, 1, 1], 8, mix), dict[tuple[int, int], int]()
    for step in range(200):
        for picture, epoch in zip(*(values.tolist() for values in order.shown(step)), strict=True):
            seen[picture, epoch] = seen.get((picture, epoch), 0) + 1
    assert set(seen.values()) == {1}
    whole = [epoch for epoch in range(20) if sum((p, epoch) in seen for p in range(40)) >= 40 - 8]
    assert len(whole) >= 15


def test_one_source_is_as_it_always_was() -> None:
    for batch in (4, 7):
        plain, one = Order(40, batch, 3), made([40], [1], batch, seed=3)
        assert [one.pictures(s).tolist() for s in range(30)] == [plain.pictures(s).tolist() for s in range(30)]
    assert Mix((1,), 7, 0).before(9).tolist() == [63]


@pytest.mark.parametrize(("sizes", "weights", "batch", "mix", "message"), [
    ([40, 40], [100, 1], 8, "pair", "data: source 2 would have 0.079 pairs in a batch; take a larger batch, or mix: batch"),
    ([40, 4], [1, 1], 8, "pair",
     "batch: source 2 has 4 pictures at the start, and a batch may take 5 of them, so one would stand twice in a batch"),
    ([40, 7], [1, 1], 8, "batch",
     "batch: source 2 has 7 pictures at the start, and a batch may take 8 of them, so one would stand twice in a batch")])
def test_what_cannot_be_mixed(sizes: list[int], weights: list[float], batch: int, mix: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        made(sizes, weights, batch, mix)
    assert str(error.value) == message


def test_a_picture_of_two_sources_is_refused_where_it_could_meet_itself(tmp_path: Path) -> None:
    first, second = (str(write_tar(tmp_path / name, pairs(range(12)))) for name in ("a.tar", "b.tar"))
    apart = Data(sources=(Data(shards=(first,)), Data(shards=(second,), weight=2)))
    index = open_data(apart)
    assert (index.starts, index.shares, index.num_shared, len(index)) == ((0, 12), (1.0, 2), 0, 24)
    assert index.captions(13) == index.captions(1) and index.read(13) == index.read(1)
    again = open_data(Data(sources=(Data(shards=(first,)), Data(shards=(second, first)))))
    assert again.num_shared == 12
    with pytest.raises(ConfigError) as error:
        make_order(again, config(data="x"))
    assert str(error.value) == ("data: 12 pictures stand in two sources, so one would stand twice in a batch; "
                                "take mix: batch, or give them a weight in a score table")
    assert make_order(again, config(data="x", mix="batch")).steps_per_epoch == 4


def test_the_weights_of_sources_are_part_of_the_data(tmp_path: Path) -> None:
    files = [str(write_tar(tmp_path / f"{n}.tar", uid_pairs(range(n, n + 3)))) for n in (0, 3)]
    digests = {open_data(Data(sources=tuple(Data(shards=(f,), weight=w) for f, w in zip(files, weights, strict=True)))).digest
               for weights in ((1, 1), (2, 1), (1, 2))}
    assert len(digests) == 3


def test_weights_say_how_often() -> None:
    weight = np.array([4.0, 2, 1, 1, 0.5, 4, 4, 3.5])
    walk = Walk(0, 8, 5, lambda step: 2 * step, weight=weight)
    assert walk.size(0) == 5
    steps = [walk.pictures(step).tolist() for step in range(1600)]
    assert all(len(set(batch)) == 2 for batch in steps)
    seen = np.bincount(np.concatenate(steps), minlength=8)
    assert np.abs(seen / seen.sum() - weight / weight.sum()).max() < 0.01
    fresh = Walk(0, 8, 5, lambda step: 2 * step, weight=weight)
    assert [fresh.pictures(step).tolist() for step in (1599, 7)] == [steps[1599], steps[7]]


def test_a_curriculum_grows_from_the_best_to_all() -> None:
    rank = np.arange(100.0)
    rank[::10] = np.nan
    walk = Walk(0, 100, 1, lambda step: 5 * step, rank=rank, growth=Growth(0.2, 60))
    epochs: dict[int, set[int]] = {}
    for step in range(160):
        epochs.setdefault(walk.epoch(step), set()).update(walk.pictures(step).tolist())
    assert epochs[0] == set(np.argsort(np.where(np.isnan(rank), 1e9, -rank), kind="stable")[:20].tolist())
    drawn = [len(pictures) for pictures in epochs.values()][:-1]
    assert drawn[0] == 20 and drawn == sorted(drawn) and drawn[-1] == 100
    assert [walk.size(step) for step in (0, 15, 30, 60, 1000)] == [20, 40, 60, 100, 100]
