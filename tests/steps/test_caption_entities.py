import pyarrow as pa
import pytest

from curate.step import string
from curate.steps.caption_entities import CaptionEntities


@pytest.mark.parametrize(("caption", "entities"), [
    ("actors and a dog with two dogs", ["actor", "dog"]),
    ("the ladies on a bus", ["bus", "lady"]),
    ("Rex the Dog", ["rex"]),
    ("running quickly", []),
    ("", []),
])
def test_the_nouns_each_once(caption: str, entities: list[str]) -> None:
    found = CaptionEntities()([caption])
    assert found["entities"].type == pa.list_(string)
    assert (found["entities"].to_pylist(), found["num_entities"].to_pylist()) == ([entities], [len(entities)])
