"""The steps that talk to spaCy, with spaCy itself and a pipeline that is trained here; where it is not installed these skip.

    uv pip install 'spacy>=3.8,<4', then pytest tests/steps/test_spacy.py
"""

import importlib.util
import random
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from curate.errors import UserError
from curate.steps.caption_entities import CaptionEntities
from curate.steps.caption_tags import CaptionTags
from curate.steps.caption_trim import CaptionTrim
from curate.steps.hypernym import Hypernym

pytestmark = pytest.mark.skipif(importlib.util.find_spec("spacy") is None, reason="spaCy is not installed: it is an extra")
TAGGED = (
    "A/DET red/ADJ dog/NOUN runs/VERB on/ADP the/DET beach/NOUN ./PUNCT",
    "Two/NUM dogs/NOUN play/VERB with/ADP a/DET ball/NOUN in/ADP June/PROPN 2011/NUM ./PUNCT",
    "Harrison/PROPN Ford/PROPN sits/VERB in/ADP Paris/PROPN",
    "A/DET Nikon/PROPN camera/NOUN on/ADP a/DET table/NOUN",
    "The/DET actors/NOUN wait/VERB in/ADP the/DET old/ADJ city/NOUN on/ADP Monday/PROPN",
    "beautiful/ADJ and/CCONJ spacious/ADJ",
    "Calista/PROPN Flockhart/PROPN holds/VERB a/DET red/ADJ ball/NOUN near/ADP Rome/PROPN",
    "A/DET summer/NOUN day/NOUN in/ADP the/DET city/NOUN",
)
NAMES = {"Harrison Ford": "PERSON", "Calista Flockhart": "PERSON", "Paris": "GPE", "Rome": "GPE", "June 2011": "DATE",
         "Monday": "DATE", "A summer day": "DATE", "Nikon": "ORG"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A folder with a tagger that has learned these sentences by heart, and a list of names: `spacy:FOLDER`."""
    import spacy
    from spacy.tokens import Doc
    from spacy.training import Example

    nlp = spacy.blank("en")
    examples = []
    for line in TAGGED:
        words, tags = zip(*(pair.rsplit("/", 1) for pair in line.split()), strict=True)
        examples.append(Example(nlp.make_doc(" ".join(words)), Doc(nlp.vocab, words=list(words), pos=list(tags))))
    nlp.add_pipe("morphologizer")
    optimizer = nlp.initialize(lambda: examples)
    random.seed(0)
    for _ in range(30):
        nlp.update(examples, sgd=optimizer)
    nlp.add_pipe("entity_ruler").add_patterns([{"label": label, "pattern": name} for name, label in NAMES.items()])
    folder = tmp_path_factory.mktemp("models") / "en_tiny"
    nlp.to_disk(folder)
    yield f"spacy:{folder}"


def test_tags(model: str) -> None:
    captions = ["A red dog runs on the beach .", "beautiful and spacious", "Harrison Ford sits in Paris", ""]
    found = CaptionTags(tagger=model)(pa.array(captions))
    assert {name: column.tolist() for name, column in found.items()} == {
        "has_determiner": [True, False, False, False], "has_noun": [True, False, True, False],
        "has_preposition": [True, False, True, False], "noun_ratio": [2 / 7, 0, 3 / 5, 0], "num_nouns": [2, 0, 3, 0],
        "num_proper_nouns": [0, 0, 3, 0]}


def test_names_become_hypernyms(model: str) -> None:
    captions = ["Harrison Ford sits in Paris", "Calista Flockhart holds a red ball near Rome", ""]
    assert Hypernym(ner=model)(captions) == {
        "caption_hypernym": ["person sits in place", "person holds a red ball near place", ""], "num_names": [2, 2, 0]}
    assert Hypernym(ner=model, cut=["place"])(captions)["caption_hypernym"] == ["person sits", "person holds a red ball", ""]
    assert Hypernym(ner=model, types=["PERSON"], person="<PERSON>")(captions)["caption_hypernym"] == [
        "<PERSON> sits in Paris", "<PERSON> holds a red ball near Rome", ""]


@pytest.mark.parametrize(("caption", "expected", "cuts"), [
    ("Two dogs play with a ball in June 2011 .", "dogs play with a ball.", 2),
    ("The actors wait in the old city on Monday", "The actors wait in the old city", 1),
    ("A Nikon camera on a table", "A camera on a table", 1),
    ("Harrison Ford sits in Paris", "Harrison Ford sits in Paris", 0),
    ("A summer day in the city", "A summer day in the city", 0),
])
def test_dates_and_modifiers(model: str, caption: str, expected: str, cuts: int) -> None:
    """What the model calls a date goes where a digit or a preposition says that it is one."""
    assert CaptionTrim(tagger=model)([caption]) == {"caption_trim": [expected], "num_trims": [cuts]}


def test_entities_are_its_common_nouns(model: str) -> None:
    found = CaptionEntities(tagger=model)(["The actors wait in the old city on Monday", "A Nikon camera on a table"])
    assert found["entities"].to_pylist() == [["actor", "city"], ["camera", "table"]]


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="^step 'caption_tags': spaCy has no model 'gone' here: python -m spacy download gone$"):
        CaptionTags(tagger="spacy:gone")
