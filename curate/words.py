"""Captions as words, and lists of words that a user hands in."""

import json
import string
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from curate.errors import UserError


class Words(NamedTuple):
    """The words of many texts, in order: word i stands in text `row[i]`, and is `kinds[kind[i]]`."""

    row: NDArray[np.int64]
    kind: NDArray[np.int64]
    kinds: pa.Array
    """the distinct words"""


def words_of(texts: pa.Array, *, lower: bool = True) -> Words:
    """What Unicode whitespace separates, in lower case, ASCII punctuation stripped from both ends; empty ones are left out.

    Every distinct piece is folded once, so a text costs little more than its split.
    """
    pieces = pc.utf8_split_whitespace(texts)
    row = np.repeat(np.arange(len(texts)), pc.list_value_length(pieces).to_numpy(zero_copy_only=False))
    raw = pc.list_flatten(pieces).dictionary_encode()
    encoded = (folded(raw.dictionary) if lower else pc.utf8_trim(raw.dictionary, string.punctuation)).dictionary_encode()
    kind = encoded.indices.to_numpy().astype(np.int64)[raw.indices.to_numpy()]
    nothing = pc.index(encoded.dictionary, "").as_py()
    if nothing >= 0:
        real = kind != nothing
        row, kind = row[real], kind[real]
    return Words(row, kind, encoded.dictionary)


def folded(words: pa.Array) -> pa.Array:
    """Words as `words_of` gives them: lower case, without the ASCII punctuation around them."""
    return pc.utf8_trim(pc.utf8_lower(words), characters=string.punctuation)


def read_list(step: str, path: Path) -> list[tuple[str, str]]:
    """(`file:line`, entry) of a list: one entry a line, or a JSON list of texts in a file `.json`; empty ones are left out.

    Raises UserError, which names the step, where it cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        lines = json.loads(text) if path.suffix == ".json" else text.split("\n")
    except (OSError, ValueError) as error:
        raise UserError(f"step '{step}': cannot read the list {path}: {error}") from None
    if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
        raise UserError(f"step '{step}': {path} is no JSON list of texts")
    return [(f"{path}:{n}", line.strip()) for n, line in enumerate(lines, 1) if line.strip()]
