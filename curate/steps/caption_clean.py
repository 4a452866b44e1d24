"""The caption without what is no description: broken characters, entities, "stock photo" and other boilerplate at its ends."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curate.captions.mend import mended
from curate.captions.words import read_list
from curate.step import File, bool_, step, string

HERE, ROUNDS = Path(__file__).parent, 8
GAP = r"[\s|:;,.\-–—·•]"


@step(adds={"caption_clean": string, "is_boilerplate": bool_}, batch=10_000)
class CaptionClean:
    """The caption mended and without boilerplate, maybe empty, and whether it begins or ends as captions that CC3M drops.

    In this order, again until nothing changes: entities (`&amp;`) become characters; ftfy mends mojibake, ligatures and quotes;
    characters that nobody sees go (controls, bidirectional overrides, zero width but joiners); white space becomes one space;
    phrases at the beginning or end that describe nothing are cut. What does not settle in 8 rounds, entities in entities, is
    null. Cleaning a clean caption changes nothing. HTML tags stay. Measure capitals (caption_case) on the caption as it came.

    CC3M (ACL P18-1238, section 3) crops "click to enlarge picture" and "stock photo" and drops texts that begin or end with
    "embedded image permalink" or "profile photo" (is_boilerplate); the other phrases are our choice and stand in
    caption_clean_prefixes.txt and _suffixes.txt beside the code. Files of your own take their place: a phrase a line, any case,
    `|` for any dividing mark, `!` before a phrase that drops. LAION's crawler runs ftfy over every text; here it runs over those
    with a character, or two neighbours, that it could change: 3 of 100 English alt texts, with the same result as for all.
    """

    def __init__(self, *, prefixes: File | None = None, suffixes: File | None = None) -> None:
        begins = [entry for _, entry in read_list("caption_clean", prefixes or HERE / "caption_clean_prefixes.txt")]
        ends = [entry for _, entry in read_list("caption_clean", suffixes or HERE / "caption_clean_suffixes.txt")]
        self._begin = rf"(?i)^(?:{_any(begins)}(?:{GAP}+|$))+"
        self._end = rf"(?i)(?:(?:^|{GAP}+){_any(ends)}{GAP}*)+$"
        self._drop = rf"(?i)^{_any(begins, '!')}(?:\W|$)|(?:^|\W){_any(ends, '!')}{GAP}*$"

    def __call__(self, caption: pa.Array) -> dict[str, pa.Array]:
        clean, left = caption, np.arange(len(caption))
        for _ in range(ROUNDS):
            before = clean.take(pa.array(left))
            after = self._once(before)
            moved = pc.not_equal(after, before)
            left = left[moved.to_numpy(zero_copy_only=False)]
            if not len(left):
                break
            clean = _put(clean, left, after.filter(moved))
        clean = _put(clean, left, pa.nulls(len(left), string))
        return {"caption_clean": clean, "is_boilerplate": pc.match_substring_regex(clean, self._drop)}

    def _once(self, texts: pa.Array) -> pa.Array:
        return pc.replace_substring_regex(pc.replace_substring_regex(mended(texts), self._begin, ""), self._end, "")


def _any(entries: Sequence[str], mark: str = "") -> str:
    """A regular expression for the entries with that mark before them, without one those that have none."""
    chosen = [entry.lstrip("!").split() for entry in entries if entry.startswith("!") == bool(mark)]
    words = [r"\s+".join(r"[|:\-–—·•]" if word == "|" else re.escape(word) for word in entry) for entry in chosen]
    return f"(?:{'|'.join(words)})" if words else r"[^\s\S]"


def _put(texts: pa.Array, rows: np.ndarray, values: pa.Array) -> pa.Array:
    mask = np.zeros(len(texts), bool)
    mask[rows] = True
    return pc.replace_with_mask(texts, pa.array(mask), values)
