"""Whether a caption has a word, or two words side by side, that hardly any other caption has."""

import tempfile
from collections.abc import Generator
from typing import TYPE_CHECKING, Annotated

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from curate.captions.words import words_of
from curate.step import Chunks, Operational, int32, int64, whole

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

Hashes = NDArray[np.uint64]
ADDS = {"num_rare_words": int32, "num_rare_bigrams": int32, "rarest_word_count": int64, "rarest_bigram_count": int64}
Answers = Generator[dict[str, NDArray[np.int64]], None, dict[str, int | bool]]
MIX = np.uint64(0x9E3779B97F4A7C15)
COUNTS = """
    create table counts as select gram, sum(num)::bigint as num from seen group by gram;
    create table totals as select shard, gram, counts.num from seen join counts using (gram) order by shard, gram;
"""
HISTOGRAM = "select num, count(*) as grams from counts group by num order by num desc"


@whole(adds=ADDS)
def rare_words(caption: Chunks, *, vocab_size: Annotated[int, Field(ge=1)] = 100_000_000,
               min_count: Annotated[int, Field(ge=1)] = 1,
               memory_gb: Annotated[float, Field(gt=0), Operational] = 2) -> Answers:
    """How many words and bigrams of the caption are rare, and how often its rarest word and bigram occur; 0 where it has none.

    Over the rows alive here. Rare is what occurs less than min_count times, or less often than the word or bigram at rank
    vocab_size of all of them together (equal counts are in). ALIGN (arXiv 2102.05918, section 3) drops a text with a word outside
    the 100 million most frequent unigrams and bigrams of the raw set: put this before every keep, then
    `keep: num_rare_words = 0 and num_rare_bigrams = 0`. On a pool with fewer than vocab_size of them nothing is rare, which
    the step's done.json then says (facts: nothing_is_rare): say min_count, or a smaller vocab_size; both are our choice there.

    Words are in lower case, without ASCII punctuation at their ends. Counted by their hashes of 64 bits in DuckDB within
    memory_gb, on disk beyond it: in the folder for temporary files, about 40 bytes a word.
    """
    import duckdb

    with tempfile.TemporaryDirectory(prefix="curate-") as folder, duckdb.connect(
            f"{folder}/counts.db", config={"memory_limit": f"{memory_gb}GB", "temp_directory": folder}) as database:
        database.execute("create table seen (shard int, gram ubigint, num bigint)")
        for shard, texts in enumerate(caption):
            grams, nums = np.unique(np.concatenate([hashes for _, hashes in _grams(database, texts)]), return_counts=True)
            database.register("part", pa.table({"gram": grams, "num": nums}))
            database.execute("insert into seen select ?, gram, num from part", [shard])
        database.execute(COUNTS)
        below = max(min_count, _count_at(vocab_size, database))
        for shard, texts in enumerate(caption):
            total = database.execute("select gram, num from totals where shard = ? order by gram", [shard]).fetchnumpy()
            values = {}
            for name, (row, hashes) in zip(("word", "bigram"), _grams(database, texts), strict=True):
                count = np.asarray(total["num"])[np.searchsorted(np.asarray(total["gram"]), hashes)]
                values[f"num_rare_{name}s"] = np.bincount(row[count < below], minlength=len(texts))
                values[f"rarest_{name}_count"] = _least(row, count, len(texts))
            yield values
        return {"rare_below": below, "nothing_is_rare": below <= 1}


def _count_at(rank: int, database: "DuckDBPyConnection") -> int:
    """How often the word or bigram at that rank occurs; 0 where there are fewer."""
    found = database.execute(HISTOGRAM).fetchnumpy()
    num, grams = np.asarray(found["num"]), np.asarray(found["grams"])
    place = np.searchsorted(np.cumsum(grams), rank)
    return int(num[place]) if place < len(num) else 0


def _grams(database: "DuckDBPyConnection", texts: pa.Array) -> tuple[tuple[NDArray[np.int64], Hashes], ...]:
    """(row, hash) of every word, and of every two neighbours, in order."""
    row, kind, kinds = words_of(texts)
    database.register("kinds", pa.table({"word": kinds}))
    of_kind = np.asarray(database.execute("select hash(word) as hashed from kinds").fetchnumpy()["hashed"], np.uint64)
    hashes = of_kind[kind]
    inside = row[1:] == row[:-1]
    both = (hashes[:-1] * MIX ^ (hashes[1:] + MIX)) * MIX
    return (row, hashes), (row[1:][inside], both[inside])


def _least(row: NDArray[np.int64], count: NDArray[np.int64], rows: int) -> NDArray[np.int64]:
    least = np.zeros(rows, np.int64)
    begins = np.flatnonzero(np.diff(row, prepend=-1))
    if len(begins):
        least[row[begins]] = np.minimum.reduceat(count, begins)
    return least
