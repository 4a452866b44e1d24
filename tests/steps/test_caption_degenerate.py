"""What counts as a degenerate caption, at its boundaries."""

from typing import Any

import pyarrow as pa
import pytest

from curate.step import Chunks
from curate.steps.caption_degenerate import caption_degenerate


def run(shards: list[list[list[str | None]]], **settings: Any) -> tuple[list[list[str | None]], list[int], dict[str, Any]]:
    """Faults and numbers of sound captions of all rows, and the facts."""
    captions = Chunks(lambda: iter([pa.array(rows, pa.list_(pa.string())) for rows in shards]))
    steps, faults, sound = caption_degenerate(captions, **settings), [], []
    while True:
        try:
            columns = next(steps)
        except StopIteration as end:
            return faults, sound, end.value
        faults += columns["synthetic_faults"]
        sound += columns["num_sound_captions"]


@pytest.mark.parametrize(("text", "fault"), [
    ("a dog on the beach", None),
    ("a dog", "too_short"), ("", "too_short"), ("a dog .", "too_short"), ("a dog runs", None),
    ("a very very small dog", None), ("a very very very small dog", "loop"),
    ("the cat and the cat", None), ("the cat the cat the dog", None), ("the cat the cat the cat", "loop"),
    ("a man with a hat with a hat with a hat", "loop"),
    ("a man in a suit and a man in a tie and a man in a hat", None),
    ("a cat and a dog and a cat and a dog and a", "repetitive"),
    ("a picture of a red circle", None), ("A picture of: dogs on grass", None), ("Picture of a dog on grass", None),
    ("a dog in a picture of a dog", None), ("a picture of", "too_short+prompt"), ("A picture of .", "too_short+prompt"),
    ("a picture of a dog", "too_short"), ("a picture of a", "too_short"),
    ("a picture of a picture of a red circle", "prompt"), ("a picture of dogs, a picture of cats", "prompt"),
    ("dogs in a picture of a picture of a picture of grass", "loop+prompt"),
    ("12 34 56 78 9", "garbage"), ("a dog, 3 cats", None), ("a dog on the qwertyuiopasdfghjklzxcvbnmq", "garbage"),
    ("a dog [UNK] the grass", "garbage"), ("a dog ##s the grass", "garbage"), ("ein Hund läuft über Straßen", None),
    ("собака на пляже", None), ("a state-of-the-art well-thought-out kitchen", None)])
def test_faults(text: str, fault: str | None) -> None:
    assert run([[[text]]], prompt="a picture of ")[0] == [[fault]]


def test_without_a_prompt_no_words_are_one() -> None:
    assert run([[["a picture of", "a picture of a picture of"]]])[0] == [[None, None]]


def test_nothing_made_is_a_fault_and_no_candidates_are_none() -> None:
    assert run([[[None, "a dog on the beach"], []]])[:2] == ([["too_short", None], []], [1, 0])


def test_what_too_many_pictures_are_said_to_show_says_nothing() -> None:
    """More than max_share of the rows and more than min_rows; case and spaces do not matter, nor two in one row."""
    rows = [[f"a dog on beach {'abcdefghijklmnopqrst'[n]}"] for n in range(17)]
    often = [["A black background"], ["a black  background", "a black background"], ["a black background"]]
    found = run([rows, often], max_share=0.1, min_rows=2)[0]
    assert found[:17] == [[None]] * 17
    assert found[17:] == [["frequent"], ["frequent", "frequent"], ["frequent"]]
    assert run([rows, often], max_share=0.15, min_rows=2)[0][17:] == [[None], [None, None], [None]]
    assert run([rows, often], max_share=0.1, min_rows=3)[0][17:] == [[None], [None, None], [None]]


def test_facts_count_captions_and_reasons() -> None:
    _, _, facts = run([[["a dog", "dog dog dog dog"]], [["a dog on the beach"]]])
    assert facts == {"rows": 2, "captions": 3, "degenerate": 2, "faults": {"loop": 1, "too_short": 1}}
    assert run([])[2] == {"rows": 0, "captions": 0, "degenerate": 0, "faults": {}}
