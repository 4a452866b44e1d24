"""Captions as words, and lists of words that a user hands in."""

import json
import re
import string
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from curate.captions.characters import word_starts
from curate.errors import UserError

ENDINGS = ((r"(?<![ea])ies$", "y"), (r"(?<![aeo])es$", "e"), (r"(?<![us])s$", ""))
"""Harman 1991 (How effective is suffixing?), the S-stemmer: the first that fits."""


class Words(NamedTuple):
    """The words of many texts, in order: word i stands in text `row[i]`, and is `kinds[kind[i]]`."""

    row: NDArray[np.int64]
    kind: NDArray[np.int64]
    kinds: pa.Array
    """the distinct words"""


def words_of(texts: pa.Array, *, lower: bool = True) -> Words:
    """What Unicode whitespace separates, in lower case, ASCII punctuation stripped from both ends; empty ones are left out.

    Pieces are cut without a copy, each with the white space behind it, and every distinct one is folded once.
    """
    starts, counts = word_starts(texts)
    row = np.repeat(np.arange(len(texts)), counts)
    raw = _cut(texts, starts).dictionary_encode()
    pieces = pc.utf8_trim_whitespace(raw.dictionary)
    encoded = (folded(pieces) if lower else pc.utf8_trim(pieces, string.punctuation)).dictionary_encode()
    kind = encoded.indices.to_numpy().astype(np.int64)[raw.indices.to_numpy()]
    nothing = pc.index(encoded.dictionary, "").as_py()
    if nothing >= 0:
        real = kind != nothing
        row, kind = row[real], kind[real]
    return Words(row, kind, encoded.dictionary)


def _cut(texts: pa.Array, starts: NDArray[np.int64]) -> pa.Array:
    """The bytes of texts, from each start to the next, as texts."""
    if not len(starts):
        return pa.array([], pa.string())
    _, ends, data = texts.buffers()
    first, last = np.frombuffer(ends, np.int32)[[texts.offset, texts.offset + len(texts)]]
    offsets = np.append(starts + first, last).astype(np.int32)
    return pa.StringArray.from_buffers(len(starts), pa.py_buffer(offsets), data)


def folded(words: pa.Array) -> pa.Array:
    """Words as `words_of` gives them: lower case, without the ASCII punctuation around them."""
    return pc.utf8_trim(pc.utf8_lower(words), characters=string.punctuation)


def stem(word: str) -> str:
    """A word in lower case without its plural s."""
    for ending, instead in ENDINGS:
        if len(word) > 3 and re.search(ending, word):
            return re.sub(ending, instead, word)
    return word


def counted(lists: Iterable[pa.ListArray]) -> pa.Table:
    """entry, num: in how many of many lists each entry stands, where none stands in one twice."""
    table = pa.table({"entry": pa.array([], pa.string()), "num": pa.array([], pa.int64())})
    for some in lists:
        found = pc.value_counts(pc.list_flatten(some))
        shard = pa.table({"entry": found.field("values"), "num": found.field("counts")})
        both = pa.concat_tables([table, shard]).group_by("entry", use_threads=False).aggregate([("num", "sum")])
        table = both.rename_columns(["entry", "num"])
    return table.combine_chunks()


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
