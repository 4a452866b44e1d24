import time
from pathlib import Path

import pyarrow as pa
import pytest

from curate.errors import UserError
from curate.steps.concept_match import ConceptMatch

ENTRIES = "dog\nhot dog\nhot\ncat\nNew York\nphoto of\nSt. Louis\nC++\n犬\n"


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("list") / "entries.txt"
    path.write_text(ENTRIES)
    return path


def match(path: Path, *captions: str, ignore_case: bool = False) -> list[list[str]]:
    values = ConceptMatch(entries=path, ignore_case=ignore_case)(pa.array(captions, pa.string()))
    found = values["concepts"].to_pylist()
    assert values["num_concepts"].tolist() == [len(names) for names in found]
    return list(found)


@pytest.mark.parametrize(("caption", "expected"), [
    ("a dog", ["dog"]),
    ("dog", ["dog"]),
    ("a hot dog", ["dog", "hot dog", "hot"]),
    ("dogs and hotdog", []),
    ("Dog", []),
    ("dog.", ["dog"]), ("dog,cat", ["dog", "cat"]), ("hot:dog;cat?", ["dog", "hot", "cat"]), ("dog!`cat`", ["dog", "cat"]),
    ("dog-cat", []), ("(dog)", []), ("dog's", []),
    ("dog\tcat\nhot\r", ["dog", "hot", "cat"]),
    ("hot  dog", ["dog", "hot"]),
    ("hot\ndog", ["dog", "hot dog", "hot"]),
    ("dog dog dog", ["dog"]),
    ("New York", ["New York"]), ("new york", []),
    ("St. Louis", []),
    ("C++ code", ["C++"]),
    ("a 犬 b", ["犬"]), ("犬が走る", []),
    ("null\0dog", []), ("\u202edog", []), ("=dog()", []),
    ("", []), (" ", []),
])
def test_the_rule_of_metaclip(path: Path, caption: str, expected: list[str]) -> None:
    assert match(path, caption) == [expected]


def test_without_case(path: Path) -> None:
    assert match(path, "A DOG in new york", "", ignore_case=True) == [["dog", "New York"], []]


def test_rows_do_not_run_into_each_other(path: Path) -> None:
    captions = ["hot", "dog", "", "New", "York", "𝐁 dog", "photo of", "cat"]
    assert match(path, *captions) == [match(path, c)[0] for c in captions] == [
        ["hot"], ["dog"], [], [], [], ["dog"], ["photo of"], ["cat"]]
    assert match(path) == []


def test_a_json_list(tmp_path: Path) -> None:
    (tmp_path / "e.json").write_text('["hot  dog", "dog", "dog", ""]')
    assert match(tmp_path / "e.json", "a hot dog") == [["hot  dog", "dog"]]


def test_a_list_without_entries(tmp_path: Path) -> None:
    (tmp_path / "e.txt").write_text("\n")
    with pytest.raises(UserError, match="^step 'concept_match': .*e.txt has no entry$"):
        ConceptMatch(entries=tmp_path / "e.txt")


def test_linear_time(path: Path) -> None:
    begin = time.perf_counter()
    assert match(path, "hot dog " * 100_000, "a" + "\u0301" * 10**6, "." * 300_000) == [["dog", "hot dog", "hot"], [], []]
    assert time.perf_counter() - begin < 5
