import time

import pyarrow as pa
import pytest

from curate.steps.caption_length import caption_length


def lengths(*captions: str) -> list[tuple[int, int]]:
    values = caption_length(pa.array(captions, pa.string()))
    return list(zip(values["num_chars"].to_pylist(), values["num_words"].to_pylist(), strict=True))


@pytest.mark.parametrize(("caption", "num_chars", "num_words"), [
    ("a dog runs", 10, 3),
    ("", 0, 0),
    (" ", 1, 0),
    (" \t a \n dog \r\n", 13, 2),
    ("犬が走る", 4, 1),
    ("e\u0301", 2, 1),
    ("\u00e9", 1, 1),
    ("\U0001f415\u200d\U0001f9ba dog", 7, 2),
    ("null\0byte here", 14, 2),
    ("\u202eright to left", 14, 3),
    ("no\u00a0break\u3000space\u2028line\u0085next\x1cfile", 29, 6),
    ("zero\u200bwidth", 10, 1),
    ("=cmd()|' /C calc'!A0", 20, 3),
])
def test_exact(caption: str, num_chars: int, num_words: int) -> None:
    assert lengths(caption) == [(num_chars, num_words)]
    assert (num_chars, num_words) == (len(caption), len(caption.split()))


def test_every_whitespace_of_python_separates() -> None:
    captions = [f"a{chr(code)}b" for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    assert lengths(*captions) == [(3, len(c.split())) for c in captions]


def test_empty_batch_and_types() -> None:
    values = caption_length(pa.array([], pa.string()))
    assert {n: (str(v.type), len(v)) for n, v in values.items()} == {"num_chars": ("int32", 0), "num_words": ("int32", 0)}


def test_a_part_of_an_array() -> None:
    assert caption_length(pa.array(["x", "a b", "c"])[1:])["num_words"].to_pylist() == [2, 1]


def test_linear_time() -> None:
    begin = time.perf_counter()
    assert lengths("a" + "\u0301" * 10**6, "a " * 10**6) == [(10**6 + 1, 1), (2 * 10**6, 10**6)]
    assert time.perf_counter() - begin < 3
