import html
import importlib.util
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from curate.errors import UserError
from curate.folder import Folder
from curate.pages.page import write
from curate.pipeline import load
from curate.searched import stand_ins
from curate.step import load_step
from curate.steps.caption_tags import CaptionTags
from tests.running import run_here, write_pipeline, write_pool

FAKE = '''
class Token:
    def __init__(self, text):
        self.pos_ = {"a": "DET", "dog": "NOUN", "Rex": "PROPN", "on": "ADP", ".": "PUNCT"}.get(text, "VERB")
class Model:
    def pipe(self, texts):
        return ([Token(word) for word in text.split()] for text in texts)
def load(name, disable):
    if name != "tiny":
        raise OSError("no such model")
    return Model()
'''


def tags(*captions: str, tagger: str = "stand_in") -> list[tuple[bool, bool, bool]]:
    """(determiner, noun, preposition) of each."""
    values = CaptionTags(tagger=tagger)(pa.array(captions, pa.string()))
    return list(zip(*(values[f"has_{name}"].tolist() for name in ("determiner", "noun", "preposition")), strict=True))


@pytest.mark.parametrize(("caption", "determiner", "noun", "preposition"), [
    ("A dog runs on the beach", True, True, True),
    ("dog", False, True, False),
    ("this is my best", True, False, False),
    ("running quickly", False, False, False),
    ("beautiful and spacious", False, False, False),
    ("in the building", True, True, True),
    ("on demand.", False, True, True),
    ("1920 x1080 300dpi", False, False, False),
    ("— & !!!", False, False, False),
    ("", False, False, False),
    ("THE END", True, True, False),
    ("Eiffel Tower, Paris", False, True, False),
    ("null\0byte", False, True, False),
])
def test_stand_in(caption: str, determiner: bool, noun: bool, preposition: bool) -> None:
    assert tags(caption) == [(determiner, noun, preposition)]


@pytest.mark.parametrize(("caption", "ratio", "nouns", "proper"), [
    ("a dog on a mat", 2 / 5, 2, 0), ("Rex the dog", 2 / 3, 2, 0), ("my dog Rex", 2 / 3, 2, 1),
    ("dog dog dog", 1, 3, 0), ("", 0, 0, 0), ("— 12", 0, 0, 0),
])
def test_nouns(caption: str, ratio: float, nouns: int, proper: int) -> None:
    values = CaptionTags()(pa.array([caption]))
    assert [values[name][0] for name in ("noun_ratio", "num_nouns", "num_proper_nouns")] == [ratio, nouns, proper]


def test_rows_do_not_run_into_each_other() -> None:
    captions = ["a dog", "", "on top", "the"]
    assert tags(*captions) == [tags(c)[0] for c in captions]
    assert tags() == []


def test_the_stand_in_is_named_in_the_run(tmp_path: Path) -> None:
    write_pool(tmp_path, ["a dog"])
    (use,) = load(write_pipeline(tmp_path, "caption_tags")).stages
    assert use.settings == {"tagger": "stand_in"}  # type: ignore[union-attr]
    run_here(write_pipeline(tmp_path, "caption_tags"), tmp_path / "run")
    (line,) = stand_ins(Folder.open(tmp_path / "run"))
    assert line == "caption_tags: lists and patterns stand in for a part-of-speech tagger; `tagger: spacy:MODEL` is one."
    assert line in html.unescape(write(tmp_path / "run", "test").read_text())


@pytest.fixture
def spacy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A package called spacy, that tags five words."""
    (tmp_path / "spacy.py").write_text(FAKE)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("spacy", None)


@pytest.mark.usefixtures("spacy")
def test_a_tagger_of_spacys() -> None:
    values = CaptionTags(tagger="spacy:tiny")(pa.array(["a dog .", "Rex sits on", ""]))
    assert {name: column.tolist() for name, column in values.items()} == {
        "has_determiner": [True, False, False], "has_noun": [True, True, False], "has_preposition": [False, True, False],
        "noun_ratio": [1 / 2, 1 / 3, 0], "num_nouns": [1, 1, 0], "num_proper_nouns": [0, 1, 0]}
    with pytest.raises(UserError, match="^step 'caption_tags': spaCy has no model 'big' here: python -m spacy download big$"):
        CaptionTags(tagger="spacy:big")


@pytest.mark.skipif(importlib.util.find_spec("spacy") is not None, reason="spaCy is installed")
def test_without_spacy_it_is_said_before_anything_runs(tmp_path: Path) -> None:
    write_pool(tmp_path, ["a dog"])
    with pytest.raises(UserError) as caught:
        load(write_pipeline(tmp_path, "caption_tags: {tagger: 'spacy:en_core_web_sm'}"))
    assert str(caught.value) == (f"{tmp_path}/pipeline.yaml:3: caption_tags.tagger: 'spacy:en_core_web_sm': spaCy is not "
                                 "installed: pip install spacy && python -m spacy download en_core_web_sm")


@pytest.mark.parametrize("value", ["nltk", "spacy", "spacy:", ""])
def test_other_taggers(value: str) -> None:
    with pytest.raises(ValueError, match="^there is stand_in, and spacy:MODEL with a model's name or folder$"):
        load_step("caption_tags").settings["tagger"].check(value)


def test_linear_time() -> None:
    begin = time.perf_counter()
    tags("a" + "\u0301" * 10**6, "the " * 250_000, "x" * 10**6, "aing" * 250_000, " ".join(map(str, range(100_000))))
    assert time.perf_counter() - begin < 5
