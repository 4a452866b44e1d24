"""The text rules of the papers at their boundaries, as a pipeline says them: papers differ by one, and in < and <=."""

import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from curate.keep import parse
from curate.step import load_step
from tests.running import run_here, write_pipeline, write_pool


def words(count: int) -> str:
    """So many different words of six letters."""
    return " ".join(f"word{chr(97 + i // 26 % 26)}{chr(97 + i % 26)}" for i in range(count))


def kept(tmp_path: Path, captions: list[str], *entries: str) -> list[bool]:
    """Which captions pass the last entry, a keep."""
    write_pool(tmp_path, captions, number=list(range(len(captions))))
    run_here(write_pipeline(tmp_path, *entries), tmp_path / "out")
    alive = set(pq.read_table(tmp_path / "out" / "subset.parquet")["number"].to_pylist())
    return [i in alive for i in range(len(captions))]


@pytest.mark.parametrize(("rule", "captions", "expected"), [
    # LAION-400M: at least 5 characters. DataComp and COYO: more than 5.
    ("num_chars >= 5", ["abcd", "abcde"], [False, True]),
    ("num_chars > 5", ["abcde", "abcdef"], [False, True]),
    # COYO: at most 1000 characters.
    ("num_chars <= 1000", ["x" * 1000, "x" * 1001], [True, False]),
    # DataComp: more than 2 words. ALIGN: 3 to 20. CC12M and COYO: 3 to 256.
    ("num_words > 2", [words(2), words(3)], [False, True]),
    ("num_words between 3 and 20", [words(2), words(3), words(20), words(21)], [False, True, True, False]),
    ("num_words between 3 and 256", [words(2), words(3), words(256), words(257)], [False, True, True, False]),
])
def test_lengths(tmp_path: Path, rule: str, captions: list[str], expected: list[bool]) -> None:
    assert kept(tmp_path, captions, "caption_length", f"keep: {rule}") == expected


def test_cc12m_word_repetition(tmp_path: Path) -> None:
    """At most 0.2 of the words are there again: 2 of 10 stay, 2 of 9 go."""
    ten, nine = words(8) + " wordaa wordaa", words(7) + " wordaa wordaa"
    assert kept(tmp_path, [ten, nine], "caption_repetition", "keep: unique_word_ratio >= 0.8") == [True, False]


def test_align_and_coyo_texts_of_many_images(tmp_path: Path) -> None:
    """More than 10 images go, 10 stay."""
    captions = ["ten times"] * 10 + ["eleven times"] * 11
    assert kept(tmp_path, captions, "caption_count", "keep: text_images <= 10") == [True] * 10 + [False] * 11


@pytest.mark.parametrize(("min_count", "expected"), [(2, [True, True, True]), (3, [False, False, True])])
def test_align_rare_words(tmp_path: Path, min_count: int, expected: list[bool]) -> None:
    captions = ["dog runs", "runs dog", "dog"]
    assert kept(tmp_path, captions, f"rare_words: {{min_count: {min_count}}}", "keep: num_rare_words = 0") == expected


def test_cc3m_and_cc12m_parts_of_speech(tmp_path: Path) -> None:
    captions = ["a dog on the beach", "a dog", "dog on beach"]
    cc3m = "has_determiner and has_noun and has_preposition"
    assert kept(tmp_path, captions, "caption_tags", f"keep: {cc3m}") == [True, False, False]
    (tmp_path / "cc12m").mkdir()
    assert kept(tmp_path / "cc12m", captions, "caption_tags", "keep: has_determiner and has_noun") == [True, True, False]


def rules() -> list[tuple[str, str]]:
    """(step, keep) of the table of docs/rules.md."""
    page = (Path(__file__).resolve().parents[2] / "docs" / "rules.md").read_text()
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| ")][1:]
    return [(step, keep) for _, _, step, keep in rows]


@pytest.mark.parametrize(("step", "keep"), rules())
def test_the_table_of_rules_names_steps_and_columns_that_are(step: str, keep: str) -> None:
    specs = [load_step(name) for name in re.findall(r"`(\w+)", step)]
    columns = {name: kind for spec in specs for name, kind in spec.columns({}).items()}
    for said in re.findall(r"`([^`]+)`", keep):
        assert said in columns or parse(said, columns).clauses
