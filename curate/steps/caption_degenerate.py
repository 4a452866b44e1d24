"""Synthetic captions that are no descriptions: what captioners are known to say when they fail."""

import re
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from hashlib import blake2b
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from curate.step import Chunks, Maker, int32, string, whole

MOST_TIMES, LONGEST_LOOP = 3, 4
"""A run of up to 4 words that stands 3 times in a row is a loop (our choice)."""
DISTINCT_2, ENOUGH_BIGRAMS = 0.5, 6
"""Below this share of different bigrams a text of at least so many is repetitive (our choice)."""
LETTERS, LONGEST_WORD = 0.7, 25
"""Below this share of letters among what is no white space, or with a longer word, a text is garbage (our choice)."""
WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
MARKS = ("[unk]", "##", "\ufffd")


def _completes(settings: Mapping[str, Any], makers: Mapping[str, Maker]) -> Mapping[str, Any]:
    """The prompt is that of the step that made the captions, where it says one."""
    maker = makers.get("synthetic_captions")
    theirs = maker.settings.get("prompt") if maker else None
    return {**settings, "prompt": settings["prompt"] if settings["prompt"] is not None else theirs or ""}


@whole(adds={"synthetic_faults": pa.list_(string), "num_sound_captions": int32}, completes=_completes, version=2)
def caption_degenerate(synthetic_captions: Chunks, *, min_words: Annotated[int, Field(ge=0)] = 3, prompt: str | None = None,
                       max_share: Annotated[float, Field(gt=0, le=1)] = 0.01,
                       min_rows: Annotated[int, Field(ge=1)] = 100) -> Generator[dict[str, list[Any]], None, dict[str, Any]]:
    """What is wrong with each synthetic caption, in words joined by +, null where nothing is; and how many are sound.

    too_short: fewer than min_words words, the prompt at its beginning aside: a captioner that learnt from texts which begin so
    says it again. loop: up to 4 words that stand three times in a row. repetitive: less than half of its bigrams are different,
    of 6 or more. prompt: it says the prompt twice, or nothing else; null takes the captioner's. garbage: less than 0.7 letters, a
    word of more than 25, or signs of a broken decoder. frequent: the text of more than max_share of the rows and of more than
    min_rows, case and spaces aside: it says nothing of this picture.

    Captioners fail in these ways after fine-tuning (BLIP's issues 183, 51 and 88; LAVIS's 713; open_clip's 751); nobody published
    thresholds, all are our choice. Over the rows alive here. Some 25,000 captions a second on a
    loaded core; memory: 8 bytes a caption.
    """
    hashes = [_hashes(rows.to_pylist()) for rows in synthetic_captions]
    frequent, rows = _frequent(hashes, max_share, min_rows), sum(number for _, number in hashes)
    opening, found, texts = _words(prompt or ""), Counter[str](), 0
    for shard in synthetic_captions:
        faults = [[_faults(text, min_words, opening, frequent) for text in row] for row in shard.to_pylist()]
        found.update(fault for row in faults for one in row for fault in one)
        found["any"] += sum(bool(one) for row in faults for one in row)
        texts += sum(map(len, faults))
        yield {"synthetic_faults": [["+".join(one) or None for one in row] for row in faults],
               "num_sound_captions": [sum(not one for one in row) for row in faults]}
    return {"rows": rows, "captions": texts, "degenerate": found.pop("any", 0), "faults": dict(sorted(found.items()))}


def _faults(text: str | None, min_words: int, opening: Sequence[str], frequent: frozenset[int]) -> list[str]:
    words = _words(text or "")
    own = words[len(opening) :] if words[: len(opening)] == opening else words
    checks = (("too_short", len(own) < min_words), ("loop", _loops(words)), ("repetitive", _repeats(words)),
              ("prompt", bool(opening) and (words == opening or _times(words, opening) > 1)),
              ("garbage", _is_garbage(text or "")), ("frequent", bool(frequent) and _hash(text) in frequent))
    return [fault for fault, is_so in checks if is_so]


def _words(text: str) -> list[str]:
    return WORD.findall(text.lower())


def _loops(words: Sequence[str]) -> bool:
    """Whether some run of 1 to 4 words stands three times in a row."""
    for length in range(1, LONGEST_LOOP + 1):
        same = 0
        for a, b in zip(words, words[length:], strict=False):
            same = same + 1 if a == b else 0
            if same == length * (MOST_TIMES - 1):
                return True
    return False


def _repeats(words: Sequence[str]) -> bool:
    bigrams = list(zip(words, words[1:], strict=False))
    return len(bigrams) >= ENOUGH_BIGRAMS and len(set(bigrams)) < DISTINCT_2 * len(bigrams)


def _times(words: Sequence[str], opening: Sequence[str]) -> int:
    """How often the words hold these."""
    return sum(words[at : at + len(opening)] == opening for at in range(len(words)))


def _is_garbage(text: str) -> bool:
    signs = "".join(text.split())
    letters = sum(sign.isalpha() for sign in signs)
    longest = max((len(piece) for word in text.split() for piece in word.split("-")), default=0)
    return bool(signs) and (letters < LETTERS * len(signs) or longest > LONGEST_WORD or any(m in text.lower() for m in MARKS))


def _hash(text: str | None) -> int:
    return int.from_bytes(blake2b(" ".join((text or "").lower().split()).encode(), digest_size=8).digest(), "little")


def _hashes(rows: Sequence[Sequence[str | None]]) -> tuple[NDArray[np.uint64], int]:
    """The hashes of a shard's texts, each once a row, and its number of rows."""
    return np.array([h for row in rows for h in dict.fromkeys(map(_hash, row))], np.uint64), len(rows)


def _frequent(hashes: Sequence[tuple[NDArray[np.uint64], int]], max_share: float, min_rows: int) -> frozenset[int]:
    """The hashes of texts that too many rows have."""
    kinds, counts = np.unique(np.concatenate([np.empty(0, np.uint64), *(found for found, _ in hashes)]), return_counts=True)
    most = max(max_share * sum(rows for _, rows in hashes), min_rows)
    return frozenset(kinds[counts > most].tolist())
