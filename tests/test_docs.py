"""README.md and docs/ hold: pages are as generated, links lead somewhere, commands parse, pipelines load, the tutorial runs."""

import ast
import doctest
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer
import yaml

from curate.document import LOOP_KEYS, TOP_KEYS, entry_of
from curate.fetching.fetch import TOKEN
from curate.fetching.opt_out import DENY, opted_out
from curate.pipeline import load
from curate.sources.locations import ALL_KINDS, KINDS
from curate.step import known_steps, load_step
from tests.docs import PAGES
from tests.docs.commands import panels, verbs
from tests.docs.markdown import Block, anchor, anchors, blocks, links, spans
from tests.docs.steps import use_of
from tests.running import environment
from tests.site.make import make
from tests.site.server import serve
from tests.sources import PNG, write_pairs, write_tar
from train.config import Config, Eval

ROOT = Path(__file__).resolve().parents[1]
DOCS = sorted((ROOT / "docs").glob("*.md"))
WRITTEN = [ROOT / "README.md", *DOCS]
LINKED = [*WRITTEN, ROOT / "ARCHITECTURE.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "data_cards").rglob("*.md"))]
PIPELINES = sorted((ROOT / "pipelines").glob("*.yaml"))
COMMANDS = verbs()
OPERATORS = re.compile(r"[();<>|&]+")

SITE_ROWS = 200
SMALLER = {"samples_seen: 12000, batch: 128": "samples_seen: 96, batch: 32", "trainings: 2": "trainings: 1",
           "samples_seen: 9000": "samples_seen: 64", "batch: 128": "batch: 32",
           "--on local": "--on local --workers 0"}
"""What the tutorial's files and commands say → what they say in the test, where most of the time goes into imports of torch."""


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text()


# ---- generated pages


@pytest.mark.parametrize("name", PAGES)
def test_generated_pages_are_what_the_code_says_now(name: str) -> None:
    assert page(name) == PAGES[name](), f"docs/{name} is not what the code says now: run `make docs`, and commit what it writes"


def test_every_command_and_option_is_described() -> None:
    found = page("commands.md")
    for name, command in COMMANDS.items():
        assert panels()[name.split()[0]], f"curate {name} stands in no group"
        section = found.split(f"\n### curate {name}\n")[1].split("\n### ")[0]
        for option in (o for p in command.params for o in (*p.opts, *p.secondary_opts) if o.startswith("--") and o != "--help"):
            assert f"`{option}" in section, f"curate {name} {option}"


def test_every_step_column_and_setting_is_described() -> None:
    found = page("steps.md")
    for name in known_steps():
        spec, section = load_step(name), found.split(f"\n### {name}\n")[1].split("\n### ")[0]
        columns = () if callable(spec.adds) else spec.adds
        for word in (*spec.reads, *columns, *spec.settings):
            assert f"`{word}`" in section, f"{name}: {word}"


@pytest.mark.parametrize("name", known_steps())
def test_the_line_of_use_of_a_step_is_one(name: str) -> None:
    (entry,) = yaml.safe_load(use_of(name))
    step, settings = entry_of(entry, "")
    assert step == name
    assert set(settings or {}) <= {*load_step(name).settings, "as", "of", "reads", "first"}


def test_every_setting_is_described() -> None:
    found = page("settings.md")
    source = [*KINDS, *ALL_KINDS, *(k for keys in KINDS.values() for k in keys)]
    train = [*(f.name for f in fields(Config)), *(f"eval.{f.name}" for f in fields(Eval))]
    for word in (*source, *LOOP_KEYS, "top", "by", "of", "rows", "block", *train):
        assert f"`{word}`" in found, word
    assert {anchor(key) for key in (*TOP_KEYS, "keep", "top")} <= anchors(found)


def test_every_download_status_and_setting_is_described() -> None:
    found = page("download.md")
    for status in statuses():
        assert f"\n| `{status}` |" in found, status
    described = found.split("\n## Settings\n")[1]
    for name in load_step("download").settings:
        assert f"`{name}`" in described, name


def statuses() -> set[str]:
    """The words of the `status` column, wherever a download's code says one."""
    said = {"ok"}
    for name in ("fetching/fetch", "fetching/addresses", "decoding/images"):
        tree = ast.parse((ROOT / "curate" / f"{name}.py").read_text())
        said |= {str(node.args[0].value) for node in ast.walk(tree) if isinstance(node, ast.Call) and node.args
                 and ast.unparse(node.func) in ("Failure", "BadImage") and isinstance(node.args[0], ast.Constant)}
        if name == "fetching/fetch":
            said |= set((ast.get_docstring(tree) or "").split("one of:")[1].rstrip(".").split())
    return said


def test_there_are_statuses() -> None:
    assert {"ok", "http_404", "opt_out", "too_many_pixels", "bad_scheme", "slow"} <= statuses()


def test_opt_outs_are_read_as_the_page_says() -> None:
    rows = re.findall(r"^\| `X-Robots-Tag: (.+?)` \| (forbidden|allowed)", page("download.md"), re.M)
    assert [said == "forbidden" for _, said in rows] == [opted_out([header], TOKEN) is not None for header, _ in rows]
    assert {said for _, said in rows} == {"forbidden", "allowed"}
    named = re.search(r"These directives forbid: (.+?)\.", page("download.md"), re.S)
    assert named is not None
    assert set(re.findall(r"`(\w+)`", named[1])) == DENY


def test_every_pipeline_is_mentioned() -> None:
    said = "".join(path.read_text() for path in WRITTEN)
    assert not [name_of(p) for p in PIPELINES if name_of(p) not in said]


# ---- links


@pytest.mark.parametrize("path", LINKED, ids=name_of)
def test_links_lead_somewhere(path: Path) -> None:
    wrong = [f"{name_of(path)}:{line}: {target}" for target, line in links(path.read_text()) if not leads_somewhere(path, target)]
    assert not wrong, "\n".join(wrong)


def leads_somewhere(path: Path, target: str) -> bool:
    """Whether a relative link leads to a file, and its `#` to a heading there; links into the web are not followed."""
    if "://" in target or target.startswith("mailto:"):
        return True
    name, _, heading = target.partition("#")
    to = path.parent / name if name else path
    return to.exists() and (not heading or (to.is_file() and heading in anchors(to.read_text())))


def test_the_pages_of_docs_are_in_its_index() -> None:
    listed = {target for target, _ in links(page("README.md"))}
    assert not [p.name for p in DOCS if p.name not in listed and p.name != "README.md"]


# ---- commands


class Words(NamedTuple):
    """A `curate` command in a page, without the word curate, and where it stands."""

    words: list[str]
    where: str


@pytest.mark.parametrize("path", [*WRITTEN, ROOT / "CONTRIBUTING.md", *PIPELINES], ids=name_of)
def test_commands_in_blocks_are_commands(path: Path) -> None:
    wrong = [f"{c.where}: curate {' '.join(c.words)}: {error}" for c in written_commands(path) if (error := parsed(c.words))]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("path", [*WRITTEN, ROOT / "CONTRIBUTING.md"], ids=name_of)
def test_commands_in_sentences_are_commands(path: Path) -> None:
    for span, line in spans(path.read_text()):
        words = re.sub(r"[][]", "", span).split()
        if words[:1] == ["curate"] and len(words) > 1 and words[1] not in ("…", "COMMAND", "--help"):
            where = f"{name_of(path)}:{line}: `{span}`"
            name = name_in(words[1:])
            assert name in COMMANDS, where
            known = {o for p in COMMANDS[name].params for o in (*p.opts, *p.secondary_opts)}
            assert {w.split("=")[0] for w in words[2:] if w.startswith("--")} <= known | {"--help"}, where


def written_commands(path: Path) -> Iterator[Words]:
    """The commands in a page's sh blocks, or in the head of a pipeline."""
    if path.suffix == ".yaml":
        lines = re.findall(r"^#   (curate .*)$", path.read_text(), re.M)
        yield from (Words(words, name_of(path)) for line in lines for words in commands_of(re.sub(r"  +.*", "", line)))
        return
    for block in blocks(path.read_text()):
        if block.language == "sh":
            yield from (Words(words, f"{name_of(path)}:{block.line}") for words in commands_of(block.text))


def commands_of(script: str) -> Iterator[list[str]]:
    """The `curate` commands of a shell script: not what stands in its here-documents, and each up to the next operator."""
    script = re.sub(r"<<'?(\w+)'?\n.*?^\1$", "", script, flags=re.M | re.S).replace("\\\n", " ")
    for line in quoted_lines(script):
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        command: list[str] = []
        for word in [*lexer, ";"]:
            if OPERATORS.fullmatch(word):
                if command[:1] == ["curate"]:
                    yield command[1:]
                command = []
            else:
                command.append(word)


def quoted_lines(script: str) -> Iterator[str]:
    """Lines, where a quote may hold line breaks."""
    pending = ""
    for line in script.splitlines():
        pending += line + "\n"
        try:
            shlex.split(pending, comments=True)
        except ValueError:
            continue
        yield pending
        pending = ""
    assert not pending, f"a quote is not closed: {pending}"


def parsed(words: list[str]) -> str:
    """What is wrong with a command line, or nothing; it is not run."""
    if words[0] == "--help":
        return ""
    name = name_in(words)
    if name not in COMMANDS:
        return f"no such command; there is {', '.join(COMMANDS)}"
    try:
        COMMANDS[name].make_context(name, words[len(name.split()):])
    except typer.TyperException as error:
        return str(error.format_message())
    return ""


def name_in(words: list[str]) -> str:
    """The command that words begin with: of one word, or of two in a group like `head`."""
    return next((name for name in (" ".join(words[:2]), words[0]) if name in COMMANDS), words[0])


def test_a_wrong_command_would_be_found() -> None:
    script = ("X=$(curate why RUN 'a b')  # as it was\ncat > f <<'END'\ncurate nothing\nEND\n"
              "curate serv RUN | head -3; curate plan p.yaml --row 3\n")
    assert list(commands_of(script)) == [["why", "RUN", "a b"], ["serv", "RUN"], ["plan", "p.yaml", "--row", "3"]]
    assert [bool(parsed(words)) for words in commands_of(script)] == [False, True, True]


@pytest.mark.parametrize("path", [*WRITTEN, ROOT / "CONTRIBUTING.md"], ids=name_of)
def test_make_has_the_targets_named(path: Path) -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    text = path.read_text()
    code = [span for span, _ in spans(text)] + [line for b in blocks(text) if b.language == "sh" for line in b.text.splitlines()]
    named = {name for words in code for name in re.findall(r"^(?:\w+=\S+ )?make ([\w-]+)", words)}
    assert named <= targets


# ---- pipelines and steps


def pipelines_in(path: Path) -> list[Block]:
    return [b for b in blocks(path.read_text()) if b.language == "yaml" and re.match(r"(#.*\n)*source:", b.text)]


@pytest.mark.parametrize("path", WRITTEN, ids=name_of)
def test_pipelines_in_pages_load(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for block in blocks(path.read_text()):
        if is_step(block):
            Path("my_steps.py").write_text(block.text)
    for block in pipelines_in(path):
        write_source(yaml.safe_load(block.text)["source"])
        Path("p.yaml").write_text(block.text)
        assert load(Path("p.yaml")).stages, f"{name_of(path)}:{block.line}"


def test_pages_have_pipelines() -> None:
    assert pipelines_in(ROOT / "README.md")
    assert pipelines_in(ROOT / "docs" / "tutorial.md")


def write_source(source: dict[str, Any]) -> None:
    """Files that a `source:` finds, of one row."""
    kind = next(k for k in KINDS if k in source)
    file = Path(source[kind].replace("*", "0"))
    file.parent.mkdir(parents=True, exist_ok=True)
    if kind == "shards":
        write_tar(file, [("a.png", PNG), ("a.txt", b"a cat")])
    else:
        write_pairs(file, [{source.get("url", "url"): "http://a/1.jpg", source.get("caption", "caption"): "a cat on a mat"}])


def is_step(block: Block) -> bool:
    return block.language == "python" and "from curate.step import" in block.text and ">>>" not in block.text


@pytest.mark.parametrize("path", [*WRITTEN, ROOT / "CONTRIBUTING.md"], ids=name_of)
def test_python_in_pages_compiles_and_steps_load(path: Path, tmp_path: Path) -> None:
    for number, block in enumerate(b for b in blocks(path.read_text()) if b.language == "python" and ">>>" not in b.text):
        names = [n.name for n in ast.parse(block.text).body if isinstance(n, ast.FunctionDef | ast.ClassDef) and n.decorator_list]
        file = tmp_path / f"step_{path.stem.lower()}_{number}.py"
        file.write_text(block.text)
        assert names or not is_step(block)
        for name in names if is_step(block) else ():
            assert load_step(f"{file}:{name}").summary.endswith(".")


def test_examples_in_pages_give_what_they_say() -> None:
    runner = doctest.DocTestRunner(verbose=False)
    for path in WRITTEN:
        for block in (b for b in blocks(path.read_text()) if ">>>" in b.text):
            runner.run(doctest.DocTestParser().get_doctest(block.text, {}, name_of(path), str(path), block.line))
    assert runner.summarize(verbose=False) == doctest.TestResults(failed=0, attempted=runner.tries)
    assert runner.tries >= 8


# ---- the tutorial


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_tutorial_runs(tmp_path: Path) -> None:
    """Its marked files and commands in order, on a small web of the same kind. What `make demo` leaves is made first."""
    shutil.copytree(ROOT / "pipelines", tmp_path / "pipelines")
    quickstart = tmp_path / "pipelines" / "quickstart.yaml"
    quickstart.write_text(smaller(quickstart.read_text()))
    make(tmp_path / "runs" / "site", SITE_ROWS, mismatch=.22)
    shims(tmp_path / "bin")
    with serve(tmp_path / "runs" / "site"):
        shell(tmp_path, "curate run pipelines/quickstart.yaml --on local --workers 0")
        for block in blocks(page("tutorial.md")):
            if block.mark == "file":
                (tmp_path / block.said).write_text(smaller(block.text))
            elif block.mark == "run":
                said = shell(tmp_path, smaller(block.text))
                assert block.said in said, f"docs/tutorial.md:{block.line} should print '{block.said}':\n{said}"


def smaller(text: str) -> str:
    for before, after in SMALLER.items():
        text = text.replace(before, after)
    return text


def test_what_is_made_smaller_is_there() -> None:
    said = (ROOT / "pipelines" / "quickstart.yaml").read_text() + page("tutorial.md")
    assert not [words for words in SMALLER if words not in said]


def shims(folder: Path) -> None:
    """`curate` and `python`: this interpreter, whatever is installed."""
    folder.mkdir()
    for name, words in (("curate", "-m curate"), ("python", "")):
        (folder / name).write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {words} "$@"\n')
        (folder / name).chmod(0o755)


def shell(folder: Path, script: str) -> str:
    """What a script prints; it must end well."""
    env = {**environment(), "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    command = ["bash", "-euo", "pipefail", "-c", script]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{script}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout
