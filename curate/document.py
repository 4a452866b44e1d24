"""A pipeline file as plain data: YAML with the line of every key, and `--set` applied to it before anything is checked."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from curate.errors import UserError, did_you_mean

TOP_KEYS = ("source", "steps", "shards", "train", "loop", "expect")
LOOP_KEYS = ("trainings", "promote_if", "truth", "mismatched")


def read_yaml(path: Path) -> tuple[dict[str, Any], dict[tuple[Any, ...], int]]:
    """The document and the line of every key and list item."""
    try:
        text = path.read_text()
    except FileNotFoundError:
        raise UserError(f"no pipeline file {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read pipeline file {path}: {error}") from None
    lines: dict[tuple[Any, ...], int] = {}
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        value = _construct(node, (), lines) if node is not None else None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UserError(f"not YAML: {error.problem}", f"{path}:{line}") from None
    if not isinstance(value, dict):
        raise UserError("a pipeline is a map with 'source:' and 'steps:'", f"{path}:1")
    return value, lines


def override(document: dict[str, Any], text: str) -> None:
    """Apply one `--set a.b=value`: a top-level key, or a step by its name or its `as`, then keys inside it."""
    key, equals, raw = text.partition("=")
    path = key.strip().split(".")
    if not equals or not all(path):
        raise UserError(f"--set {text}: write it as key=value, like download.image_size=384")
    try:
        value = yaml.safe_load(raw)
    except yaml.YAMLError:
        raise UserError(f"--set {text}: '{raw}' is not YAML") from None
    steps: list[Any] = document["steps"] if isinstance(document.get("steps"), list) else []
    found = [i for i, entry in enumerate(steps) if path[0] in _names_of(entry)]
    meant_for_step = path[0] == "loop" and found and path[1:] and path[1] not in LOOP_KEYS   # `as: loop` is a common name
    if path[0] in TOP_KEYS and path[0] != "steps" and not meant_for_step:
        _put(document, path, value, text)
        return
    if not found:
        names = [n for entry in steps for n in _names_of(entry)] + [k for k in TOP_KEYS if k != "steps"]
        raise UserError(f"--set {text}: no step or key '{path[0]}'{did_you_mean(path[0], names)}")
    if len(found) > 1:
        raise UserError(f"--set {text}: '{path[0]}' stands {len(found)} times in the pipeline; name one by its 'as'")
    if len(path) == 1:
        raise UserError(f"--set {text}: say which setting of '{path[0]}', like {path[0]}.NAME=value")
    name, settings = entry_of(steps[found[0]], "")
    settings = dict(settings or {})
    _put(settings, path[1:], value, text)
    steps[found[0]] = {name: settings}


def _names_of(entry: Any) -> Iterator[str]:
    if isinstance(entry, str):
        entry = {entry: None}
    name, settings = next(iter(entry.items()), ("", None)) if isinstance(entry, dict) else ("", None)
    if name and name != "keep":
        yield str(name)
        if isinstance(settings, Mapping) and settings.get("as"):
            yield str(settings["as"])


def _put(target: dict[str, Any], path: list[str], value: Any, text: str) -> None:
    for key in path[:-1]:
        inner = target.get(key)
        if inner is None:
            inner = {}
        if not isinstance(inner, dict):
            raise UserError(f"--set {text}: '{key}' holds {inner!r}, nothing can be set inside it")
        target[key] = dict(inner)
        target = target[key]
    target[path[-1]] = value


def entry_of(entry: Any, where: str) -> tuple[str, Any]:
    """`language` or `{language: settings}` → (name, settings)."""
    if isinstance(entry, str):
        return entry, None
    if isinstance(entry, Mapping) and len(entry) == 1:
        name, settings = next(iter(entry.items()))
        if isinstance(name, str):
            return name, settings
    raise UserError(f"one step or keep a list item, like '- language' or '- keep: num_words >= 3', not {entry!r}", where)


def _construct(node: yaml.Node, at: tuple[Any, ...], lines: dict[tuple[Any, ...], int]) -> Any:
    lines.setdefault(at, node.start_mark.line + 1)
    if isinstance(node, yaml.SequenceNode):
        return [_construct(child, (*at, i), lines) for i, child in enumerate(node.value)]
    if isinstance(node, yaml.MappingNode):
        result: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            is_word = key_node.tag == "tag:yaml.org,2002:bool"       # YAML 1.1 takes the `on` of `join: {on: uid}` for true
            key = key_node.value if is_word else _construct(key_node, (*at, "<key>"), {})
            if key in result:
                raise yaml.MarkedYAMLError(problem=f"'{key}' stands twice", problem_mark=key_node.start_mark)
            lines[(*at, key)] = key_node.start_mark.line + 1
            result[key] = _construct(value_node, (*at, key), lines)
        return result
    loader = yaml.SafeLoader("")
    try:
        return loader.construct_object(node, deep=True)
    finally:
        loader.dispose()
