"""Batches do not depend on who makes them, nor on where one begins."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.train.toys import caption, pairs, shard, table, write_tar
from train.config import Data
from train.data import Index, open_data
from train.loader import Batch, Loader
from train.order import Order
from train.pictures import TrainCrop


def tokenizer(texts: list[str]) -> torch.Tensor:
    return torch.tensor([[len(text), sum(text.encode())] for text in texts])


def loader(index: Index, **how: int) -> Loader:
    return Loader(index, Order(len(index), 6, 3), TrainCrop(16, (0.5, 1.0), flip=True), tokenizer, **how)


def same(a: Batch, b: Batch) -> bool:
    return (torch.equal(a.pixels_NHWC, b.pixels_NHWC) and torch.equal(a.tokens_NL, b.tokens_NL)
            and bool((a.pictures == b.pictures).all()))


@pytest.fixture
def index(tmp_path: Path) -> Index:
    shard(tmp_path / "0.tar", range(20))
    return open_data(Data(shards=(str(tmp_path / "0.tar"),)))


def test_a_batch(index: Index) -> None:
    first = next(iter(loader(index).batches(0, 1)))
    assert first.pixels_NHWC.shape == (6, 16, 16, 3) and first.pixels_NHWC.dtype == torch.uint8
    assert first.tokens_NL.tolist() == tokenizer([caption(n) for n in first.pictures.tolist()]).tolist()


@pytest.mark.parametrize("how", [{"workers": 1}, {"workers": 5}, {"cache_mb": 0}])
def test_neither_threads_nor_memory_matter(index: Index, how: dict[str, int]) -> None:
    expected = list(loader(index).batches(0, 8))
    assert all(same(a, b) for a, b in zip(expected, loader(index, **how).batches(0, 8), strict=True))


def test_neither_the_first_step_nor_the_number_of_processes_matters(index: Index) -> None:
    expected = list(loader(index).batches(0, 8))
    assert all(same(a, b) for a, b in zip(expected[5:], loader(index).batches(5, 8), strict=True))
    shares = [list(loader(index, rank=rank, num_ranks=3).batches(0, 8)) for rank in range(3)]
    for step, whole in enumerate(expected):
        parts = [share[step] for share in shares]
        assert torch.equal(torch.cat([p.pixels_NHWC for p in parts]), whole.pixels_NHWC)
        assert np.concatenate([p.pictures for p in parts]).tolist() == whole.pictures.tolist()


def test_epochs_show_other_crops_and_the_next_caption(tmp_path: Path) -> None:
    path = table(tmp_path, range(6), {n: [f"{n} a", f"{n} bb"] for n in range(6)})
    index = open_data(Data(table=(str(path),), root=str(tmp_path)))
    by_epoch = list(loader(index).batches(0, 4))
    lengths = [{int(p): int(t) for p, t in zip(b.pictures, b.tokens_NL[:, 0], strict=True)} for b in by_epoch]
    assert all({lengths[0][p], lengths[1][p]} == {3, 4} for p in range(6))
    assert lengths[0] == lengths[2] and lengths[1] == lengths[3]
    crops = [{int(p): b.pixels_NHWC[row] for row, p in enumerate(b.pictures)} for b in by_epoch]
    assert not torch.equal(crops[0][0], crops[1][0])


def test_stopping_early_leaves_no_thread_behind(index: Index) -> None:
    import threading

    before = threading.active_count()
    batches = loader(index).batches(0, 1000)
    next(batches)
    batches.close()
    assert threading.active_count() == before


def test_what_stands_for_a_broken_picture_is_not_in_its_batch(tmp_path: Path) -> None:
    """As long as the source has another one; never from another source."""
    broken = ("000000002.png", "000000003.png")
    members = [(name, b"no picture" if name in broken else content) for name, content in pairs(range(20))]
    for number, numbers in enumerate((range(10), range(10, 20))):
        wanted = {f"{n:09d}.{kind}" for n in numbers for kind in ("png", "txt")}
        write_tar(tmp_path / f"{number}.tar", [member for member in members if member[0] in wanted])
    index = open_data(Data(sources=tuple(Data(shards=(str(tmp_path / f"{n}.tar"),)) for n in range(2))))
    loading = loader(index)
    batch = frozenset({2, 4, 5, 9})
    assert [loading._picture(n, batch)[0] for n in (2, 9, 3)] == [6, 9, 6]
    assert loading._picture(3, frozenset(range(10)))[0] == 4, "there is no other"
    assert loading._picture(13, batch)[0] >= 10
