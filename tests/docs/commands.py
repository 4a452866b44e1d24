"""docs/commands.md: every verb of the command line, from the typer app itself."""

import re
from collections.abc import Iterator
from typing import Any

import typer

from curate import cli
from curate.errors import RunStopped, UserError
from tests.docs.markdown import NOTICE, anchor, code, table
from tests.docs.words import default, type_in_words

TOP = """\
# Commands

`curate COMMAND --help` says the same in the terminal. RUN is always a run's folder, like `runs/quickstart`. `python -m curate` is
the same as `curate`. The trainer also runs without `curate`: `python -m train FILE`, `torchrun --nproc-per-node N -m train FILE`.
`python -m train --models` lists the models there are.

"""
CODES = [
    (0, "done"),
    (1, "`verify` or `card --check` found something, one line each; or a fault of the program itself, with a traceback"),
    (UserError.exit_code, "a mistake in a file or in the command: one line says which, and nothing was written"),
    (RunStopped.exit_code, "the run had to stop (memory, disk, or every row failed): it says why; the same command goes on"),
    (cli.INTERRUPTED, "interrupted with Ctrl-C; the same command goes on. A SIGTERM ends alike, with 143"),
]


def commands_page() -> str:
    """The whole page."""
    commands = verbs()
    linked = {name: f"[{code(name)}](#{anchor(f'curate {name}')})" for name in commands}
    parts = [f"{NOTICE}\n{TOP}", table(["group", "commands"], (
        [group, ", ".join(linked[name] for name in names)] for group, names in groups(commands).items()))]
    parts.append("\n## Exit codes\n\n" + table(["code", "meaning"], ([str(number), what] for number, what in CODES)))
    for group, names in groups(commands).items():
        parts.append(f"\n## {group}\n" + "".join(_section(name, commands[name]) for name in names))
    return "".join(parts)


def verbs() -> dict[str, Any]:
    """Every command by its words, those of groups too: `head convert`."""
    top: dict[str, Any] = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
    return {" ".join(words): command for name, found in top.items()
            for words, command in ([((name, n), c) for n, c in found.commands.items()] if hasattr(found, "commands")
                                   else [((name,), found)])}


def panels() -> dict[str, str]:
    """The first word of a command → its group in `curate --help`."""
    return {n: c.rich_help_panel for n, c in typer.main.get_command(cli.app).commands.items()}  # type: ignore[attr-defined]


def groups(commands: dict[str, Any]) -> dict[str, list[str]]:
    """Group → its commands, in the order of `curate --help`."""
    panel_of = panels()
    return {panel: [n for n in commands if panel_of[n.split()[0]] == panel] for panel in (cli.BUILD, cli.LOOK, cli.MAINTAIN)}


def _section(name: str, command: Any) -> str:
    usage = " ".join(["curate", name, *_usage(command), *["[OPTIONS]"] * any(_may_be_given(p) for p in command.params)])
    rows = [[_names(p), _takes(p), _default(p), _help(p)[0]] for p in command.params if p.name != "help"]
    return f"\n### curate {name}\n\n{' '.join(command.help.split())}\n\n```text\n{usage}\n```\n\n" + table(
        ["", "takes", "default", "what"], rows)


def _usage(command: Any) -> Iterator[str]:
    for parameter in command.params:
        if not _is_option(parameter):
            yield parameter.metavar or parameter.name.upper()
        elif parameter.required:
            yield f"{parameter.opts[0]} {parameter.metavar or 'VALUE'}"


def _may_be_given(parameter: Any) -> bool:
    return _is_option(parameter) and not parameter.required and parameter.name != "help"


def _is_option(parameter: Any) -> bool:
    return bool(parameter.opts[0].startswith("-"))


def _names(parameter: Any) -> str:
    if not _is_option(parameter):
        return code((parameter.metavar or parameter.name.upper()).strip("[]."))
    placeholder = parameter.metavar or ("N" if _is_number(parameter) else "TEXT")
    value = "" if parameter.is_flag else f" {placeholder}"
    return ", ".join(code(name + value) for name in [*parameter.opts, *parameter.secondary_opts])


def _is_number(parameter: Any) -> bool:
    return parameter.type_descriptor.annotation in (int, float)


def _takes(parameter: Any) -> str:
    if _is_option(parameter) and parameter.is_flag:
        return "nothing"
    found = type_in_words(parameter.type_descriptor.annotation)
    limits = [f"{word} {limit:g}" for word, limit in (("from", parameter.min), ("to", parameter.max)) if limit is not None]
    often = ", as often as wanted" if parameter.multiple else ""
    found = {"a list of texts": "text" if parameter.multiple else found}.get(found, found)
    return " ".join([found, *limits]) + often


def _default(parameter: Any) -> str:
    said = _help(parameter)[1]
    if parameter.required:
        return "**required**"
    if said or parameter.default in (None, "", []):
        return code(said) if "<" in said else said
    if _is_option(parameter) and parameter.is_flag:
        return code(parameter.secondary_opts[0]) if parameter.secondary_opts and not parameter.default else "no"
    return default(str(parameter.default) if not isinstance(parameter.default, int | float) else parameter.default)


def _help(parameter: Any) -> tuple[str, str]:
    """The sentence, and the default that it says itself."""
    match = re.fullmatch(r"(.*?)(?: *\[default: (.*)\])?", parameter.help or "")
    assert match is not None
    return match[1], match[2] or ""
