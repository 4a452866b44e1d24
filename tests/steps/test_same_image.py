import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.step import Chunks, load_step
from curate.steps import same_image as module
from curate.steps.same_image import same_image

GREY = "80" * 48


class Row(NamedTuple):
    """One row; `pixels` stands for the pixels, and for the bytes too where `sha` is not given."""

    image_id: str
    phash: int
    pixels: int
    size: int = 100
    thumb: str = GREY
    sha: int | None = None


class Answer(NamedTuple):
    is_same_image: bool
    same_as: str | None
    same_bits: int | None
    same_how: str | None


KEPT = Answer(False, None, None, None)


def measure(shards: Sequence[Sequence[Row]], max_bits: int = 4, max_levels: int = 24) -> list[list[Answer]]:
    def strings(text: str, value: str) -> Chunks:
        return Chunks(lambda: (pa.array([format(getattr(r, value), text) for r in rows], pa.string()) for rows in shards))
    shas = Chunks(lambda: (pa.array([f"{r.pixels if r.sha is None else r.sha:016x}".ljust(64, "0") for r in rows], pa.string())
                           for rows in shards))
    pixels = Chunks(lambda: (pa.array([f"{r.pixels:016x}".ljust(32, "0") for r in rows], pa.string()) for rows in shards))
    sizes = Chunks(lambda: (np.array([r.size for r in rows], np.int64) for rows in shards))
    found = same_image(strings("", "image_id"), shas, pixels, strings("016x", "phash"), strings("", "thumb"), sizes,
                       max_bits=max_bits, max_levels=max_levels)
    columns = ([shard[name].to_pylist() for name in Answer._fields] for shard in found)
    return [[Answer(*values) for values in zip(*shard, strict=True)] for shard in columns]


def test_exact() -> None:
    rows = [
        Row("a", 0xFF00, 1, 100),
        Row("b", 0xFF00, 1, 100),                               # the same bytes
        Row("c", 0xFF00, 1, 100, sha=77),                       # the same pixels in other bytes
        Row("d", 0xFF03, 2, 90),                                # two bits away
        Row("e", 0xFF1F, 3, 80),                                # five bits away
        Row("f", 0xFF00, 4, 70, thumb="a0" * 48),               # the same structure in other colours
        Row("g", 0xFFFF_0000_0000_0000, 5, 300),
        Row("h", 0xFFFF_0000_0000_0001, 6, 400),                # larger than g
    ]
    assert measure([rows]) == [[
        KEPT, Answer(True, "a", 0, "bytes"), Answer(True, "a", 0, "pixels"), Answer(True, "a", 2, "phash"), KEPT, KEPT,
        Answer(True, "h", 1, "phash"), KEPT]]


def test_several_captions_of_one_image_stay() -> None:
    a, b = Row("a", 1, 1), Row("b", 1, 1)
    assert measure([[a, a, b], [b, a]]) == [
        [KEPT, KEPT, Answer(True, "a", 0, "bytes")], [Answer(True, "a", 0, "bytes"), KEPT]]


def test_a_chain_of_drift_keeps_a_witness_for_each() -> None:
    """0 - 1 - 2 - 3, neighbours four bits apart: components would keep one picture of four, 12 bits from the last."""
    chain = [Row(name, (1 << bits) - 1, i, 100 - i) for i, (name, bits) in enumerate([("a", 0), ("b", 4), ("c", 8), ("d", 12)])]
    assert measure([chain]) == [[KEPT, Answer(True, "a", 4, "phash"), KEPT, Answer(True, "c", 4, "phash")]]


def test_a_copy_of_a_removed_copy_names_the_kept_one() -> None:
    """b leads the pixels of b and c, and is itself a copy of the larger a."""
    assert measure([[Row("a", 0, 1, 200), Row("b", 3, 2, 100), Row("c", 3, 2, 100)]]) == [
        [KEPT, Answer(True, "a", 2, "phash"), Answer(True, "a", 2, "phash")]]


def test_the_nearest_kept_picture_is_named() -> None:
    rows = [Row("a", 0b0, 1, 300), Row("b", 0b11111, 2, 200), Row("c", 0b111, 3, 100)]
    assert measure([rows]) == [[KEPT, KEPT, Answer(True, "b", 2, "phash")]]


@pytest.mark.parametrize(("apart", "same"), [(0, True), (24, True), (25, False)])
def test_colours(apart: int, same: bool) -> None:
    rows = [Row("a", 0, 1, thumb="80" * 48), Row("b", 0, 2, thumb="80" * 47 + f"{0x80 + apart:02x}")]
    assert [a.is_same_image for a in measure([rows])[0]] == [False, same]


@pytest.mark.parametrize("max_bits", range(9))
def test_every_distance_up_to_max_bits_is_found_wherever_the_bits_lie(max_bits: int) -> None:
    draw = np.random.default_rng(max_bits)
    rows = []
    for i in range(200):
        base, far = int(draw.integers(0, 2**63)), max_bits + i % 2
        flips = sum(1 << int(bit) for bit in draw.choice(64, far, replace=False))
        rows += [Row(f"{i:04}a", base, 2 * i, 200), Row(f"{i:04}b", base ^ flips, 2 * i + 1, 100)]
    answers = measure([rows], max_bits)[0]
    assert answers[::2] == [KEPT] * 200
    assert answers[1::4] == [Answer(True, f"{i:04}a", max_bits, "phash") for i in range(0, 200, 2)]
    assert answers[3::4] == [KEPT] * 100


def greedily(rows: Sequence[Row], max_bits: int) -> dict[str, Answer]:
    """The definition, every picture against every kept one."""
    kept: list[Row] = []
    answers = {}
    for row in sorted({r.image_id: r for r in rows}.values(), key=lambda r: (-r.size, r.image_id)):
        exact = [k for k in kept if k.pixels == row.pixels]
        near = [((k.phash ^ row.phash).bit_count(), i) for i, k in enumerate(kept)]
        if exact:
            answers[row.image_id] = Answer(True, exact[0].image_id, 0, "bytes")
        elif near and min(near)[0] <= max_bits:
            answers[row.image_id] = Answer(True, kept[min(near)[1]].image_id, min(near)[0], "phash")
        else:
            answers[row.image_id] = KEPT
            kept.append(row)
    return answers


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.builds(lambda i, h: Row(f"{i:02}", h << 28, h, 1), st.integers(0, 60), st.integers(0, 255)), max_size=40),
       st.sampled_from([0, 1, 2, 4]), st.integers(1, 5))
def test_the_definition_whatever_the_shards(rows: list[Row], max_bits: int, shards: int) -> None:
    rows = list({r.image_id: r for r in rows}.values())
    expected = greedily(rows, max_bits)
    for order in (rows, rows[::-1]):
        parts = [order[i::shards] for i in range(shards)]
        assert measure(parts, max_bits) == [[expected[r.image_id] for r in part] for part in parts]


def test_blocks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(0)
    rows = [Row(f"{i:03}", int(draw.integers(0, 2**10)) << 20, i, int(draw.integers(1, 9))) for i in range(150)]
    expected = greedily(rows, 2)
    for block in (1, 7, 1024):
        monkeypatch.setattr(module, "BLOCK", block)
        assert measure([rows], 2) == [[expected[r.image_id] for r in rows]]


def test_no_rows_and_no_shards() -> None:
    assert measure([]) == []
    assert measure([[], [Row("a", 0, 1)], []]) == [[], [KEPT], []]
    assert measure([[], []]) == [[], []]


def test_one_picture_thirty_thousand_times() -> None:
    """No bucket grows with the number of copies: only what is kept is looked at."""
    rows = [Row(f"{i:06}", 0b111 << (i % 40), i) for i in range(30_000)]
    begin = time.perf_counter()
    answers = measure([rows], max_bits=6)[0]
    assert sum(not a.is_same_image for a in answers) == 1
    assert time.perf_counter() - begin < 10


def test_settings_are_checked() -> None:
    setting = load_step("same_image").settings["max_bits"]
    assert setting.check(8) == 8
    with pytest.raises(ValueError, match="less than or equal to 8"):
        setting.check(9)
