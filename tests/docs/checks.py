"""What the code says of its own settings: the docstring under a field, and what a check says when it gets something wrong."""

import ast
import dataclasses
import inspect
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from curate.errors import UserError
from curate.pipeline import load
from curate.sources.locations import parse_source


def defaults_of(kind: Any) -> dict[str, Any]:
    """Field → default."""
    return {f.name: f.default for f in dataclasses.fields(kind)}


@cache
def docs_of(kind: Any) -> Mapping[str, str]:
    """Field → the docstring under it."""
    (body,) = ast.parse(inspect.getsource(kind)).body
    assert isinstance(body, ast.ClassDef)
    return dict(_documented(body.body))


def _documented(body: list[ast.stmt]) -> Iterator[tuple[str, str]]:
    for field, text in zip(body, body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            assert isinstance(field.target, ast.Name)
            yield field.target.id, " ".join(str(text.value.value).split())


def source_takes(kind: str, key: str, wrong: Any) -> str:
    """What the check of a key of `source:` says that it takes."""
    try:
        parse_source({kind: "x", key: wrong})
    except UserError as error:
        match = re.fullmatch(rf"source: {key} must be (.+?)(?:, not .*)?", str(error))
        assert match is not None, str(error)
        return match[1]
    raise AssertionError(f"source.{key} takes {wrong!r}")


def pipeline_takes(after: str, *, keep: str = "num_chars >= 1", more: str = "") -> str:
    """What the check of a pipeline file with something wrong in it says behind `after`."""
    with _in_a_folder() as folder:
        pq.write_table(pa.table({"url": ["http://a/1.jpg"], "caption": ["a"]}), folder / "pool.parquet")
        file = folder / "p.yaml"
        file.write_text(f"source: {{pairs: pool.parquet}}\nsteps:\n  - caption_length\n  - keep: {keep}\n{more}\n")
        try:
            load(file)
        except UserError as error:
            _, found, said = str(error).partition(after)
            assert found, str(error)
            return said
    raise AssertionError(f"{keep} {more}: nothing is wrong with it")


@contextmanager
def _in_a_folder() -> Iterator[Path]:
    before = os.getcwd()
    with tempfile.TemporaryDirectory() as name:
        os.chdir(name)
        try:
            yield Path(name)
        finally:
            os.chdir(before)


def check_takes(check: Any) -> str:
    """What a check of the trainer says that it takes."""
    try:
        check(object())
    except ValueError as error:
        said = re.sub(r"^(?:\w+: )?<object object at \w+>(?:; there)? is (?:not |neither )?", "", str(error))
        words = said.replace(" nor of ", " or of ").replace("true nor false", "true or false")
        return words + (", or null" if _takes_null(check) else "")
    raise AssertionError(f"{check} takes anything")


def _takes_null(check: Any) -> bool:
    try:
        return check(None) is None
    except ValueError:
        return False
