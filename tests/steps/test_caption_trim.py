import time

import pytest

from curate.steps.caption_trim import CaptionTrim


def trimmed(caption: str) -> tuple[str, int]:
    found = CaptionTrim()([caption])
    return found["caption_trim"][0], found["num_trims"][0]  # type: ignore[return-value]


@pytest.mark.parametrize(("caption", "expected", "cuts"), [
    ("Dogs on the beach in June 2011", "Dogs on the beach", 1),
    ("Rome on 5th March 2012", "Rome", 1),
    ("Sunset, Saturday, May 5, 2012, Rome", "Sunset, Rome", 1),
    ("a shop since the late 1960s", "a shop", 1),
    ("He may go in May", "He may go", 1),
    ("March of the penguins", "March of the penguins", 0),
    ("taken 2011-08-05 at 10:30 am", "taken", 2),
    ("We waited for 3 hours", "We waited", 1),
    ("after three weeks of rain", "after weeks of rain", 1),
    ("Fans at the 19th century tower", "Fans at the tower", 1),
    ("the 1960s house", "the house", 1),
    ("a dog (2011)", "a dog", 1),
    ("Photo taken in 2015.", "Photo taken.", 1),
    ("a stadium for 20150 people", "a stadium for people", 1),
    ("item 1499", "item 1499", 0),
    ("item 1500", "item", 1),
    ("item 2099", "item", 1),
    ("item 2100", "item 2100", 0),
    ("no. 1963.679", "no. 1963.679", 0),
    ("May 2010", "", 1),
])
def test_dates_and_durations(caption: str, expected: str, cuts: int) -> None:
    assert trimmed(caption) == (expected, cuts)


@pytest.mark.parametrize(("caption", "expected", "cuts"), [
    ("A Nikon camera on the table", "A camera on the table", 1),
    ("Harrison Ford movie poster", "movie poster", 1),
    ("the Eiffel Tower", "the Eiffel Tower", 0),
    ("Two dogs", "dogs", 1),
    ("two of them", "two of them", 0),
    ("2 or more dogs", "2 or more dogs", 0),
    ("3 red balloons", "red balloons", 1),
    ("the 10th anniversary", "the 10th anniversary", 0),
    ("a 5-year-old boy", "a boy", 1),
    ("a 12 megapixel camera", "a camera", 1),
    ("a 50mm lens", "a lens", 1),
    ("100% cotton shirt", "cotton shirt", 1),
    ("in 4, dogs", "in 4, dogs", 0),
    ("chapter 4", "chapter 4", 0),
    ("a dog on a mat", "a dog on a mat", 0),
    ("", "", 0),
    ("null\0 5 dogs", "null\0 dogs", 1),
])
def test_modifiers_of_nouns(caption: str, expected: str, cuts: int) -> None:
    assert trimmed(caption) == (expected, cuts)


def test_what_a_cut_leaves_behind_is_tidied_and_nothing_else() -> None:
    assert trimmed("no  cut ,  here") == ("no  cut ,  here", 0)
    assert trimmed("In 2011 , a  dog") == ("a dog", 1)


def test_linear_time() -> None:
    begin = time.perf_counter()
    CaptionTrim()(["5 " * 10_000, "the last " * 4_000, " " * 40_000 + "5", "1" * 40_000, "March 5" + " " * 40_000,
                   "Nikon " * 5_000 + "dog", "(" * 40_000, "10:" * 10_000])
    assert time.perf_counter() - begin < 5
