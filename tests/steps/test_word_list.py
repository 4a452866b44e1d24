import time
from pathlib import Path

import pyarrow as pa
import pytest

from curate.errors import UserError
from curate.steps.word_list import WordList


def counts(step: WordList, *captions: str) -> list[tuple[int, int]]:
    values = step(pa.array(captions, pa.string()))
    return list(zip(values["num_list_words"].tolist(), values["num_unlisted_words"].tolist(), strict=True))


def test_words_of_a_list(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text("\ufeffDog\n\ncat.\nÉté\n")
    step = WordList(words=path)
    assert counts(step, "A dog, a DOG!", "cats", "(cat)", "été", "", " - ", "null\0 dog\0") == [
        (2, 2), (0, 1), (1, 0), (1, 0), (0, 0), (0, 0), (0, 2)]
    assert counts(step) == []


@pytest.mark.parametrize(("min_count", "expected"), [(5, (2, 1)), (6, (1, 2)), (20, (1, 2)), (21, (0, 3))])
def test_counts_of_elsewhere(tmp_path: Path, min_count: int, expected: tuple[int, int]) -> None:
    """CC3M keeps words that occur at least 5 times, CC12M at least 20 times."""
    path = tmp_path / "words.tsv"
    path.write_text("dog\t20\ncat\t5\n")
    assert counts(WordList(words=path, min_count=min_count), "dog cat bird") == [expected]


def test_a_json_list(tmp_path: Path) -> None:
    path = tmp_path / "words.json"
    path.write_text('["dog", ""]')
    assert counts(WordList(words=path), "dog cat") == [(1, 1)]


@pytest.mark.parametrize(("name", "text", "message"), [
    ("w.txt", "dog\nhot dog\n", "DIR/w.txt:2: 'hot dog' is more than one word; concept_match finds phrases"),
    ("w.txt", "dog\tmany\n", "DIR/w.txt:1: 'many' is no count; a line is a word, or a word, a tab and a count"),
    ("w.json", '{"dog": 1}', "step 'word_list': DIR/w.json is no JSON list of texts"),
    ("w.json", "[", "step 'word_list': cannot read the list DIR/w.json: Expecting value: line 1 column 2 (char 1)"),
])
def test_mistakes(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError) as caught:
        WordList(words=tmp_path / name)
    assert str(caught.value).replace(str(tmp_path), "DIR") == message


def test_linear_time(tmp_path: Path) -> None:
    (tmp_path / "w.txt").write_text("dog\n")
    begin = time.perf_counter()
    assert counts(WordList(words=tmp_path / "w.txt"), "dog " * 250_000, "a" + "\u0301" * 10**6) == [(250_000, 0), (0, 1)]
    assert time.perf_counter() - begin < 5
