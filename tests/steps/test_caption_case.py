import time

import numpy as np
import pyarrow as pa
import pytest

from curate.steps import caption_case as module
from curate.steps.caption_case import caption_case

NAMES = ("upper_ratio", "first_upper", "capital_word_ratio", "alnum_ratio")


def one(caption: str) -> tuple[float, bool, float, float]:
    values = caption_case(pa.array([caption]))
    assert tuple(values) == NAMES
    upper, first, capital, alnum = (values[name][0].item() for name in NAMES)
    return upper, first, capital, alnum


@pytest.mark.parametrize(("caption", "expected"), [
    ("A dog runs", (1 / 8, True, 1 / 3, 8 / 10)),
    ("SALE SALE", (1, True, 1, 8 / 9)),
    ("a dog", (0, False, 0, 4 / 5)),
    ("", (0, False, 0, 0)),
    ("   ", (0, False, 0, 0)),
    ("1920x1080", (0, False, 0, 1)),
    ("3 Dogs", (1 / 4, False, 1, 5 / 6)),
    ('"Hello," (She) said', (2 / 12, True, 2 / 3, 12 / 19)),
    ("don't Panic", (1 / 9, False, 1 / 2, 9 / 11)),
    ("犬が走る", (0, False, 0, 1)),
    ("Ärger über Öl", (2 / 11, True, 2 / 3, 11 / 13)),
    ("ǅ ǆ", (1 / 2, True, 1 / 2, 2 / 3)),
    ("שלום Dog", (1 / 3, False, 1, 7 / 8)),
    ("\u202eDog", (1 / 3, True, 1, 3 / 4)),
    ("a\0B", (1 / 2, False, 0, 2 / 3)),
    ("e\u0301t", (0, False, 0, 2 / 3)),
    ("=cmd()|' /C calc'!A0", (2 / 9, False, 1 / 3, 10 / 20)),
    ("𝐁old 🐕", (1 / 4, True, 1, 4 / 6)),
])
def test_exact(caption: str, expected: tuple[float, bool, float, float]) -> None:
    assert one(caption) == expected


def test_rows_do_not_run_into_each_other() -> None:
    captions = ["", "Dog", "runs", "", "FAST a", ""]
    batch = caption_case(pa.array(captions))
    assert [tuple(batch[n][i].item() for n in NAMES) for i in range(len(captions))] == [one(c) for c in captions]


def test_a_batch_of_long_captions_is_taken_in_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    captions = pa.array(["Dog runs", "", "A B c", "x" * 50, "Y"])
    whole = caption_case(captions)
    monkeypatch.setattr(module, "CHARS_AT_ONCE", 10)
    parts = caption_case(captions)
    assert all(np.array_equal(whole[n], parts[n]) for n in NAMES)


def test_empty_batch() -> None:
    assert {n: len(v) for n, v in caption_case(pa.array([], pa.string())).items()} == dict.fromkeys(NAMES, 0)


def test_linear_time() -> None:
    begin = time.perf_counter()
    assert one("A" + "\u0301" * 10**6) == (1, True, 1, 1 / (10**6 + 1))
    assert time.perf_counter() - begin < 3
