"""The order of samples is a pure function."""

import numpy as np

from train.draws import bits, uniform
from train.order import Order, caption_of, permutation


def test_known_values() -> None:
    """Never to change: old trainings are repeated and resumed by them."""
    assert permutation(8, 0, 0).tolist() == [5, 1, 6, 0, 3, 7, 2, 4]
    assert [hex(value) for value in bits(2, 7, 3, np.arange(2)).tolist()] == ["0x1024edc1fb284b6b", "0x47368da8decc00b8"]


def test_every_epoch_is_another_permutation() -> None:
    epochs = [permutation(50, 3, epoch).tolist() for epoch in range(3)]
    assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert permutation(50, 4, 0).tolist() != epochs[0]


def test_a_step_does_not_depend_on_the_steps_before() -> None:
    whole = Order(50, 8, 1)
    walked = [whole.pictures(step).tolist() for step in range(20)]
    assert [Order(50, 8, 1).pictures(step).tolist() for step in range(20)] == walked
    assert whole.steps_per_epoch == 6
    assert all(len(set(batch)) == 8 for batch in walked)
    assert all(len({n for batch in walked[at : at + 6] for n in batch}) == 48 for at in (0, 6, 12))


def test_captions_take_turns() -> None:
    first = np.array([0, 3, 4, 9])
    seen = [caption_of(np.arange(3), first, 5, epoch).tolist() for epoch in range(15)]
    assert {row[1] for row in seen} == {3}
    assert sorted(row[0] for row in seen) == sorted([0, 1, 2] * 5)
    assert sorted(row[2] for row in seen) == sorted([4, 5, 6, 7, 8] * 3)


def test_uniform_numbers_are_uniform() -> None:
    draws = uniform(2, 0, np.arange(20_000))
    assert draws.min() >= 0 and draws.max() < 1
    assert abs(draws.mean() - 0.5) < 0.01 and abs(draws.var() - 1 / 12) < 0.005
    crops = Order(100, 50, 0).crops(3)
    assert crops.shape == (50, 5) and len(np.unique(crops)) == 250
