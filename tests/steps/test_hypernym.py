import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from curate.errors import UserError
from curate.steps.hypernym import Hypernym

TABLE = "Harrison Ford\tactor\nFord\tcar\nCalista Flockhart\tactor\nParis\tcity\nC++\tlanguage\n"
FAKE = '''
class Entity:
    def __init__(self, label, start, end):
        self.label_, self.start_char, self.end_char = label, start, end
class Doc:
    def __init__(self, text):
        names = [("PERSON", "Ann Lee"), ("GPE", "Rome"), ("DATE", "1999"), ("PERSON", "Harrison"), ("ORG", "Fiat")]
        self.ents = [Entity(label, text.index(name), text.index(name) + len(name)) for label, name in names if name in text]
class Model:
    def pipe(self, texts):
        return map(Doc, texts)
def load(name, disable):
    return Model()
'''


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "names.tsv"
    path.write_text(TABLE)
    return path


@pytest.fixture
def spacy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A package called spacy, that knows four names."""
    (tmp_path / "spacy.py").write_text(FAKE)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("spacy", None)


@pytest.mark.parametrize(("caption", "expected", "names"), [
    ("Harrison Ford in Paris", "actor in city", 2),
    ("a red Ford.", "a red car.", 1),
    ("Fords and Oxford", "Fords and Oxford", 0),
    ("harrison ford", "harrison ford", 0),
    ("Harrison Ford and Calista Flockhart at the opera", "actors at the opera", 2),
    ("Harrison Ford, Calista Flockhart and Harrison Ford", "actors", 3),
    ("day and day", "day and day", 0),
    ("day and day with Paris", "day and day with city", 1),
    ("C++ in Paris!", "language in city!", 2),
    ("Paris,Paris", "city,city", 2),
    ("", "", 0),
    ("null\0Paris", "null\0city", 1),
])
def test_a_table(table: Path, caption: str, expected: str, names: int) -> None:
    assert Hypernym(table=table)([caption]) == {"caption_hypernym": [expected], "num_names": [names]}


def test_person_of_cc12m(tmp_path: Path) -> None:
    path = tmp_path / "people.tsv"
    path.write_text("Ann Lee\t<PERSON>\n")
    assert Hypernym(table=path)(["Ann Lee at home"]) == {"caption_hypernym": ["<PERSON> at home"], "num_names": [1]}


@pytest.mark.usefixtures("spacy")
def test_a_model_and_a_table(table: Path) -> None:
    captions = ["Ann Lee in Rome, 1999", "Harrison Ford", "nothing"]
    assert Hypernym(ner="spacy:tiny", person="<PERSON>")(captions) == {
        "caption_hypernym": ["<PERSON> in place, 1999", "<PERSON> Ford", "nothing"], "num_names": [2, 1, 0]}
    assert Hypernym(ner="spacy:tiny", table=table)(captions[:2])["caption_hypernym"] == ["person in place, 1999", "actor"]


@pytest.mark.usefixtures("spacy")
def test_only_persons_of_a_model(table: Path) -> None:
    step = Hypernym(ner="spacy:tiny", types=["PERSON"], person="<PERSON>")
    assert step(["Ann Lee in Rome, by Fiat"]) == {"caption_hypernym": ["<PERSON> in Rome, by Fiat"], "num_names": [1]}


@pytest.mark.parametrize(("caption", "expected", "names"), [
    ("Harrison Ford in Paris", "actor", 2),
    ("A shop in Paris, France, at night", "A shop, at night", 2),
    ("Streets of Paris and Rome", "Streets and town", 2),
    ("In Paris a car waits", "a car waits", 1),
    ("Paris by night", "town by night", 1),
    ("a chain Paris likes", "a chain town likes", 1),
    ("from the Paris of old", "of old", 1),
    ("a lot in Fords", "a lot in Fords", 0),
    ("near Paris", "", 1),
])
def test_places_behind_a_preposition_are_cut(tmp_path: Path, caption: str, expected: str, names: int) -> None:
    """CC3M removes "in Los Angeles"; a place that is the subject is replaced."""
    (tmp_path / "t.tsv").write_text("Harrison Ford\tactor\nParis\ttown\nRome\ttown\nFrance\tcountry\n")
    step = Hypernym(table=tmp_path / "t.tsv", cut=["town", "country"])
    assert step([caption]) == {"caption_hypernym": [expected], "num_names": [names]}


def test_mistakes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="^step 'hypernym' needs names: table: FILE, ner: spacy:MODEL, or both$"):
        Hypernym()
    (tmp_path / "t.tsv").write_text("Paris\tcity\nRome\n")
    with pytest.raises(UserError, match="t.tsv:2: 'Rome' is no name, tab and hypernym$"):
        Hypernym(table=tmp_path / "t.tsv")


def test_linear_time(table: Path) -> None:
    begin = time.perf_counter()
    step = Hypernym(table=table)
    step(["Paris and " * 50_000, "a" + "\u0301" * 10**6, "x" * 10**6, "a and " * 100_000, "Paris" * 100_000])
    assert time.perf_counter() - begin < 5
