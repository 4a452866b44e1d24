import os
import random
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pytest

from curate.step import Chunks
from curate.steps.caption_count import caption_count

Shards = Sequence[Sequence[tuple[str, str]]]


def count(shards: Shards, memory_gb: float = 1) -> list[list[tuple[int, int]]]:
    """(text_images, image_texts) of (caption, image_id) rows."""
    captions = Chunks(lambda: (pa.array([c for c, _ in rows], pa.string()) for rows in shards))
    images = Chunks(lambda: (pa.array([i for _, i in rows], pa.string()) for rows in shards))
    return [list(zip(values["text_images"].tolist(), values["image_texts"].tolist(), strict=True))
            for values in caption_count(captions, images, memory_gb=memory_gb)]


def test_exact() -> None:
    assert count([[("logo", "1"), ("logo", "2"), ("a dog", "1")], [], [("logo", "2"), ("A  Dog ", "3"), ("a cat", "1")]]) == [
        [(2, 3), (2, 1), (2, 3)], [], [(2, 1), (2, 1), (1, 3)]]


@pytest.mark.parametrize(("one", "other"), [
    ("a dog", "A DOG"), ("a dog", " a \t dog\n"), ("caf\u00e9", "cafe\u0301"), ("Äpfel", "ÄPFEL"), ("a\u00a0dog", "a dog"),
    ("ДОМ", "дом"),
])
def test_same_text(one: str, other: str) -> None:
    assert count([[(one, "1"), (other, "2")]]) == [[(2, 1), (2, 1)]]


@pytest.mark.parametrize(("one", "other"), [
    ("a dog", "a dog."), ("adog", "a dog"), ("null\0a", "null\0b"), ("a", "a\0"), ("dog", "\u202edog"), ("cafe", "café"),
    ("", "a"),
])
def test_other_text(one: str, other: str) -> None:
    assert count([[(one, "1"), (other, "2")]]) == [[(1, 1), (1, 1)]]


def test_no_rows_and_no_shards() -> None:
    assert count([[], []]) == [[], []]
    assert count([]) == []


def test_columns_are_int64() -> None:
    (values,) = caption_count(Chunks(lambda: iter([pa.array(["a"])])), Chunks(lambda: iter([pa.array(["1"])])))
    assert {name: str(column.dtype) for name, column in values.items()} == {"text_images": "int64", "image_texts": "int64"}


def test_many_rows_however_they_are_sharded() -> None:
    draw = random.Random(0)
    rows = [(f"text {draw.randrange(700)}", f"{draw.randrange(900):032x}") for _ in range(5000)]
    images, texts = defaultdict(set), defaultdict(set)
    for text, image in rows:
        images[text].add(image)
        texts[image].add(text)
    expected = [(len(images[t]), len(texts[i])) for t, i in rows]
    for size in (5000, 1000, 333):
        shards = [rows[i : i + size] for i in range(0, len(rows), size)]
        assert [pair for shard in count(shards) for pair in shard] == expected


def test_linear_time() -> None:
    begin = time.perf_counter()
    assert count([[("a" + "\u0301\u0323" * 500_000, "1"), ("=cmd()|' /C calc'!A0", "1")]]) == [[(1, 2), (1, 2)]]
    assert time.perf_counter() - begin < 5


def test_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    count([[("a", "1")]])
    begun = caption_count(*[Chunks(lambda: iter([pa.array(["a"]), pa.array(["b"])]))] * 2)
    next(begun)
    assert os.listdir(tmp_path)
    begun.close()
    assert os.listdir(tmp_path) == []


def test_a_fault_in_a_shard_arrives_as_it_is() -> None:
    def broken() -> Iterator[pa.Array]:
        yield pa.array(["a"])
        raise OSError("disk gone")
    with pytest.raises(OSError, match="disk gone"):
        list(caption_count(Chunks(broken), Chunks(broken)))
