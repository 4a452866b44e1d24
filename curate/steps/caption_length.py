"""How long a caption is. Nearly every published recipe starts with a rule on it."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curate.captions.characters import word_starts
from curate.step import int32, step


@step(adds={"num_chars": int32, "num_words": int32}, batch=10_000)
def caption_length(caption: pa.Array) -> dict[str, pa.Array]:
    """Length of the caption in characters (Unicode code points) and words (what Unicode whitespace separates), 0 or more.

    Rules that read it, each with its own boundary: DataComp `basic_filter`, baselines/apply_filter.py: more than 5 characters
    and more than 2 words by `str.split`, which is counted here. LAION-400M: 5 characters or more. ALIGN (arXiv 2102.05918,
    section 3): 3 to 20 words. CC12M (arXiv 2102.08981): 3 to 256 words. COYO-700M: 3 to 256 words, more than 5 and at most 1000
    characters. Scripts written without spaces count as few, long words.
    """
    return {"num_chars": pc.utf8_length(caption).cast(int32), "num_words": pa.array(word_starts(caption)[1].astype(np.int32))}
