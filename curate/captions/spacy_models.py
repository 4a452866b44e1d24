"""spaCy, where a step is told to use it: an extra that nothing needs otherwise. `spacy:MODEL` is a setting's form of it."""

import importlib.util
from collections.abc import Sequence
from typing import Any

from pydantic_core import PydanticCustomError

from curate.errors import UserError

PREFIX = "spacy:"


def checked(value: str, otherwise: str) -> str:
    """For a pydantic AfterValidator: `otherwise`, or `spacy:MODEL` with spaCy installed; the complaint says which is wanting."""
    if value != otherwise and not (value.startswith(PREFIX) and value != PREFIX):
        raise PydanticCustomError("spacy", f"there is {otherwise}, and spacy:MODEL with a model's name or folder")
    if value != otherwise and importlib.util.find_spec("spacy") is None:
        raise PydanticCustomError("spacy", "spaCy is not installed: pip install spacy && python -m spacy download en_core_web_sm")
    return value


def load(value: str, step: str, disable: Sequence[str]) -> Any:
    """The model that a checked `spacy:MODEL` names, without some of its parts. Raises UserError where it is not installed."""
    import spacy  # type: ignore[import-not-found]

    model = value.removeprefix(PREFIX)
    try:
        return spacy.load(model, disable=list(disable))
    except OSError:
        raise UserError(f"step '{step}': spaCy has no model '{model}' here: python -m spacy download {model}") from None
