"""The same picture with the same text once more, under another url."""

from collections.abc import Iterator
from hashlib import blake2b

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from curate.step import Chunks, bool_, whole


@whole(adds={"is_same_pair": bool_})
def same_pair(phash: Chunks, caption: Chunks) -> Iterator[dict[str, NDArray[np.bool_]]]:
    """Whether a row before it, in the source's order, has the same phash and the same caption; true or false.

    Over the rows alive here. COYO-700M (README) keeps one of the rows with equal (pHash, text), so a picture may stay with
    several captions; `same_image` lets every copy of a picture go, and also those that are only alike. Captions are compared as
    they are: let it read `caption_clean` to compare what white space and broken characters hide. That any two different pairs
    of a billion share one of its hashes of 64 bits has a probability of 3 %. Memory: some 50 bytes a row.
    """
    found = [_keys(*shard) for shard in zip(phash, caption, strict=True)]
    keys = np.concatenate([np.empty(0, np.uint64), *found])
    again = np.ones(len(keys), np.bool_)
    again[np.unique(keys, return_index=True)[1]] = False
    at = 0
    for shard in found:
        yield {"is_same_pair": again[at : at + len(shard)]}
        at += len(shard)


def _keys(phash: pa.Array, caption: pa.Array) -> NDArray[np.uint64]:
    pairs = zip(phash.to_pylist(), caption.to_pylist(), strict=True)
    return np.frombuffer(b"".join([blake2b(f"{a}\0{b}".encode(), digest_size=8).digest() for a, b in pairs]), np.uint64)
