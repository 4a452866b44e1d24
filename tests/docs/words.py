"""Types, limits and defaults in plain words, the same in every generated page."""

import types
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from pydantic.fields import FieldInfo

from curate.step import REQUIRED, Setting
from tests.docs.markdown import code, listed

PLAIN: dict[Any, str] = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path"}
LIMITS = {"ge": "from {:g}", "gt": "above {:g}", "le": "to {:g}", "lt": "below {:g}"}


def type_in_words(annotation: Any) -> str:
    """`int | None` → "a whole number or null"; choices and limits are named."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        options = [type_in_words(a) for a in typing.get_args(annotation) if a is not type(None)]
        return listed([*options, "null"] if type(None) in typing.get_args(annotation) else options)
    if typing.get_origin(annotation) is typing.Annotated:
        kind, *marks = typing.get_args(annotation)
        if "weights" in marks or "file" in marks:
            if typing.get_origin(kind) is dict:
                return "a map of names to files, folders or patterns"
            if "blip" in marks:
                return "weights: a name on Hugging Face or a folder"
            return "weights: a published tag or a checkpoint" if "weights" in marks else "a file or a pattern"
        return " ".join([type_in_words(kind), *_limits(m for m in marks if isinstance(m, FieldInfo))])
    if typing.get_origin(annotation) is Literal:
        return listed([code(v) for v in typing.get_args(annotation)])
    if typing.get_origin(annotation) is list:
        inner = type_in_words(typing.get_args(annotation)[0])
        return {"text": "a list of texts", "a path": "a list of paths"}.get(inner, f"a list of {inner}")
    return PLAIN[annotation]


def _limits(fields: Iterable[FieldInfo]) -> Iterable[str]:
    for limit in (m for f in fields for m in f.metadata):
        yield from (words.format(getattr(limit, name)) for name, words in LIMITS.items() if hasattr(limit, name))


def setting_default(setting: Setting) -> str:
    """The default of a step's setting."""
    return "**required**" if setting.default is REQUIRED else default(setting.default)


def default(value: Any) -> str:
    """A default as it would stand in YAML."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return f"{value:,}".replace(",", "_") if isinstance(value, int) and value >= 10_000 else f"{value:g}"
    if isinstance(value, tuple):
        return f"[{', '.join(default(v) for v in value)}]"
    return code(value) if str(value) else '`""`'
