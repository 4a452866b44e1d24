"""Every caption step on captions that somebody wrote to break it: a value for each row, in time linear in its length."""

import time
import timeit
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from curate.step import Chunks
from curate.steps.blocklist import Blocklist
from curate.steps.caption_case import caption_case
from curate.steps.caption_clean import CaptionClean
from curate.steps.caption_count import caption_count
from curate.steps.caption_entities import CaptionEntities
from curate.steps.caption_length import caption_length
from curate.steps.caption_repetition import caption_repetition
from curate.steps.caption_tags import CaptionTags
from curate.steps.caption_trim import CaptionTrim
from curate.steps.concept_match import ConceptMatch
from curate.steps.hypernym import Hypernym
from curate.steps.private_data import private_data
from curate.steps.rare_words import rare_words
from curate.steps.word_list import WordList

Measure = Callable[[pa.Array], Any]

UNITS = {"nulls": "\0", "marks": "\u0301", "marks of two classes": "\u0301\u0323", "overrides": "\u202ea\u202d",
         "joiners": "\u200d", "spaces": " ", "entities": "&amp;", "cut entities": "amp;#38;", "html": "<script>",
         "formula": "=cmd()|' /C", "lines": "a\n", "regex": "aaa!", "digits": "1", "groups": "4111 ", "phones": "+1 ",
         "mails": "a@b.c", "phrases": "photo of ", "tags": "Ing ", "mojibake": "Ã©", "cjk": "犬", "emoji": "👩\u200d🚒",
         "replaced": "\ufffd", "capitals": "A"}
"""What a caption is made of, over and over."""


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Measure]:
    folder = tmp_path_factory.mktemp("lists")
    (folder / "words.txt").write_text("dog\nphoto\nAAA\n")
    (folder / "names.tsv").write_text("dog\tanimal\na\tletter\n")
    words: Path = folder / "words.txt"
    return {"blocklist": lambda c: Blocklist(words=words)(c, None), "caption_case": caption_case, "caption_clean": CaptionClean(),
            "caption_length": caption_length, "caption_repetition": caption_repetition, "caption_tags": CaptionTags(),
            "concept_match": ConceptMatch(entries=words), "private_data": private_data, "word_list": WordList(words=words),
            "caption_entities": lambda c: CaptionEntities()(c.to_pylist()),
            "caption_trim": lambda c: CaptionTrim()(c.to_pylist()),
            "hypernym": lambda c: Hypernym(table=folder / "names.tsv")(c.to_pylist()),
            "rare_words": lambda c: next(rare_words(Chunks(lambda: iter([c])), memory_gb=1)),
            "caption_count": lambda c: next(caption_count(Chunks(lambda: iter([c])), Chunks(lambda: iter([c])), memory_gb=1))}


NAMES = ("blocklist", "caption_case", "caption_clean", "caption_length", "caption_repetition", "caption_tags", "concept_match",
         "private_data", "word_list", "hypernym", "rare_words", "caption_count", "caption_entities", "caption_trim")


def captions(chars: int) -> pa.Array:
    return pa.array([unit * (chars // len(unit)) for unit in UNITS.values()], pa.string())


def seconds(measure: Measure, given: pa.Array) -> float:
    """Of processor time, the better of two: a garbage collection of all that other tests left is none of the step's."""
    return min(timeit.repeat(lambda: measure(given), timer=time.process_time, repeat=2, number=1))


@pytest.mark.parametrize("name", NAMES)
def test_a_value_for_every_row(steps: dict[str, Measure], name: str) -> None:
    given = captions(50)
    for column in steps[name](given).values():
        assert len(column) == len(given)


@pytest.mark.parametrize("name", NAMES)
def test_time_is_linear(steps: dict[str, Measure], name: str) -> None:
    """Eight times as long takes eight times as long, and not 64 times."""
    steps[name](captions(100))
    short, long = (seconds(steps[name], captions(chars)) for chars in (4_000, 32_000))
    assert long < 24 * short + .2
    assert long / len(UNITS) < 1


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("unit", ["a dog ", "a\u0301"])
def test_ten_megabytes(steps: dict[str, Measure], name: str, unit: str) -> None:
    steps[name](pa.array([unit * (10**7 // len(unit.encode())), "a dog"]))


def test_the_steps_named_are_those_made(steps: dict[str, Measure]) -> None:
    assert set(steps) == set(NAMES)


def test_a_lone_surrogate_never_reaches_a_step() -> None:
    """Arrow's strings hold none: the source puts U+FFFD in its place (`curate.columns.from_texts`)."""
    with pytest.raises(UnicodeEncodeError):
        pa.array(["\ud800"], pa.string())
    assert np.asarray(caption_length(pa.array(["\ufffd"]))["num_chars"]).tolist() == [1]
