import numpy as np
import pyarrow as pa
import pytest

from curate.errors import UserError
from curate.steps.clip_score import clip_score


def matrix(*rows: list[float]) -> np.ndarray:
    return np.array(rows, np.float32)


def test_exact() -> None:
    image = matrix([3, 4], [1, 0], [1, 0], [2, 0], [1, 1])
    text = matrix([3, 4], [0, 5], [-7, 0], [1, 1], [0, 0.5])
    assert clip_score(image, text).to_pylist() == pytest.approx([1, 0, -1, 0.5**0.5, 0.5**0.5], abs=1e-7)


def test_nothing_to_compare_is_null() -> None:
    image = matrix([0, 0], [1, 1], [np.nan, 1], [np.inf, 1], [1, 0], [0, 0])
    text = matrix([1, 1], [0, 0], [1, 1], [1, 1], [1, 0], [np.inf, 0])
    assert clip_score(image, text).to_pylist() == [None, None, None, None, 1, None]


def test_never_above_one() -> None:
    vectors = np.random.default_rng(0).normal(size=(2000, 512)).astype(np.float16).astype(np.float32)
    values = clip_score(vectors, vectors * 3).to_numpy()
    assert values.max() <= 1
    assert values.min() > 1 - 1e-6


def test_a_row_has_one_answer_whatever_stands_beside_it() -> None:
    draw = np.random.default_rng(1)
    image, text = (draw.normal(size=(300, 512)).astype(np.float32) for _ in range(2))
    together = clip_score(image, text).to_pylist()
    assert [clip_score(image[i : i + 1], text[i : i + 1])[0].as_py() for i in range(300)] == together


def test_two_models() -> None:
    with pytest.raises(UserError) as caught:
        clip_score(np.ones((2, 512), np.float32), np.ones((2, 768), np.float32))
    assert str(caught.value) == ("step 'clip_score': image_emb has 512 numbers a row, text_emb 768: they are not of one model")


def test_empty_batch_and_type() -> None:
    none = np.empty((0, 0), np.float32)
    assert clip_score(none, none).equals(pa.array([], pa.float32()))
