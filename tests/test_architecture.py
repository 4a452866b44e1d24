"""The rules of the house that a machine can check. A rule is one test, and every exception stands in a dict with its reason."""

import ast
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]

LAYERS = """
    __main__
    cli
    head_cli model_cli
    planning links takedown
    start
    loop
    judge
    deciding gc scorers
    ray_train
    cluster reshard cards pages retrieval fit
    local report progress searched recaptioned
    training pairs evaluation
    run
    folder subset
    schedule
    work
    barrier shards pace heal verdict beside needs
    measure
    pictures
    plan funnel certificate
    pipeline
    loop_settings expectation
    stages
    ingest
    cut keep source weights
    samples readers rows
    steps
    collect alike benchmark
    heads
    recall
    engine_img2dataset
    step store index fetch vectors tombstones
    gate places block_list
    decode convert
    opt_out opt_out_list tdmrep breaker resolver
    mend tagger
    tar images addresses robots columns words spacy_models locations owners document sketch fingerprint turns choosing
    remote
    files blur decoder lossless shrink characters
    errors units lean
"""
"""`curate`, from the top: a module imports from lower lines only, never upwards nor from its own line."""

SIDEWAYS: dict[tuple[str, str], str] = {
}
"""(importer, imported) on the same line, with the reason."""

STEPS_MAY_IMPORT = {"step", "heads", "columns", "characters", "words", "mend", "tagger", "spacy_models", "images", "blur",
                    "convert",
                    "decode", "engine_img2dataset", "fetch", "opt_out", "opt_out_list", "block_list", "index", "vectors", "alike",
                    "fingerprint", "benchmark", "choosing", "errors"}
"""What a step may know of `curate`; `train.models` besides, but only inside a function."""

MAX_FILE_LINES, MAX_FUNCTION_LINES = 400, 60
LONG: dict[str, str] = {
}
"""`file` or `file:function` over the limit, with the reason."""

BLIND_EXCEPT: dict[str, str] = {
    "curate/ray_train.py": "a training's fault crosses Ray and is raised again in the driver",
    "curate/measure.py": "whatever a step raises on a row becomes the reason for that row's quarantine",
    "curate/training.py": "a training's fault crosses the pipe and is raised again in the driver",
    "curate/work.py": "a worker's fault travels to the driver and is raised again there",
}
"""Files that catch everything and do not raise it again there, with the reason. A bare `except:` has none."""

EVERYTHING = {"except:", "Exception", "BaseException"}

WRITERS: dict[str, str] = {
    "curate/files.py": "the one helper that writes",
    "curate/store.py": "opens its lock files, which hold no data",
    "curate/cards/target.py": "publishes to object stores, which know no rename: a file appears there when it is closed",
}
"""Files of `curate` that open something for writing, with the reason."""

WRITING_METHODS = {"write_text", "write_bytes", "to_parquet", "to_csv", "to_json", "savetxt", "copyfile", "copytree", "move"}
"""Methods that write a file by its name, whatever they belong to (but `curate.files`)."""

HEAVY = {"torch", "torchvision", "ray", "faiss", "transformers", "open_clip", "webdataset", "img2dataset", "duckdb"}
"""What `curate --help` must not load."""


class Module(NamedTuple):
    """One source file of ours, parsed."""

    path: str
    """Relative to the repository: `curate/steps/language.py`."""
    lines: int
    tree: ast.Module

    @property
    def name(self) -> str:
        """`curate.steps.language`."""
        return self.path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


@cache
def modules(*packages: str) -> list[Module]:
    paths = sorted(p for package in packages for p in (ROOT / package).rglob("*.py"))
    texts = {p.relative_to(ROOT).as_posix(): p.read_text() for p in paths}
    return [Module(path, text.count("\n"), ast.parse(text, path)) for path, text in texts.items()]


def imports(module: Module) -> Iterator[tuple[str, int]]:
    """Every name a module imports, anywhere in it, in full (`from curate import step` is `curate.step`), with its line."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = parent(module, node.level) + (node.module or "") if node.level else node.module or ""
            yield from ((f"{base}.{alias.name}".lstrip("."), node.lineno) for alias in node.names)


def parent(module: Module, level: int) -> str:
    """What the dots of a relative import stand for, with a dot at the end."""
    package = module.name if module.path.endswith("/__init__.py") else module.name.rpartition(".")[0]
    return ".".join(package.split(".")[:len(package.split(".")) - level + 1]) + "."


def imports_of_curate() -> Iterator[tuple[str, str, str]]:
    """(importing part, imported part, `file:line`) for every import inside `curate` that crosses parts."""
    for module in modules("curate"):
        importer = module.path.split("/")[1].removesuffix(".py")
        for name, line in imports(module):
            package, _, rest = name.partition(".")
            imported = rest.split(".")[0]
            if package == "curate" and imported not in ("", importer):
                yield importer, imported, f"{module.path}:{line}"


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))


def step_modules() -> list[Module]:
    return [m for m in modules("curate/steps") if not Path(m.path).name.startswith("_")]


LEVEL = {name: level for level, line in enumerate(LAYERS.split("\n")) for name in line.split()}


def test_every_part_of_curate_has_its_layer() -> None:
    parts = {module.path.split("/")[1].removesuffix(".py") for module in modules("curate")} - {"__init__"}
    assert parts <= LEVEL.keys(), f"give {sorted(parts - LEVEL.keys())} a line in LAYERS, and a word in ARCHITECTURE.md"


def test_imports_point_downwards() -> None:
    wrong = [f"{where}: {importer} must not import {imported}" for importer, imported, where in imports_of_curate()
             if LEVEL.get(imported, -1) <= LEVEL.get(importer, -1) and (importer, imported) not in SIDEWAYS]
    assert not wrong, "upwards, sideways, or of no known line:\n" + "\n".join(wrong)


def test_the_package_itself_imports_nothing() -> None:
    assert not list(imports(next(m for m in modules("curate") if m.name == "curate")))


def test_sideways_imports_stay_on_their_line() -> None:
    assert all(LEVEL[importer] == LEVEL[imported] for importer, imported in SIDEWAYS), "upwards is never an exception"


def test_train_knows_neither_curate_nor_ray() -> None:
    wrong = [f"{m.path}:{line}: {name}" for m in modules("train") for name, line in imports(m)
             if name.split(".")[0] in ("curate", "ray")]
    assert not wrong, "\n".join(wrong)


def test_ray_is_imported_in_two_files() -> None:
    wrong = [f"{m.path}:{line}" for m in modules("curate") for name, line in imports(m)
             if name.split(".")[0] == "ray" and m.path not in ("curate/cluster.py", "curate/ray_train.py")]
    assert not wrong, "\n".join(wrong)


def test_a_step_knows_only_columns() -> None:
    wrong = []
    for module in modules("curate/steps"):
        for name, line in imports(module):
            package, _, rest = name.partition(".")
            part = rest.split(".")[0]
            at_top = any(node.lineno == line for node in module.tree.body)
            if (package == "curate" and part not in STEPS_MAY_IMPORT) or (package == "train" and (part != "models" or at_top)):
                wrong.append(f"{module.path}:{line}: {name}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("module", step_modules(), ids=lambda m: Path(m.path).stem)
def test_one_step_a_file_named_like_the_file(module: Module) -> None:
    marked = [n.name for n in ast.walk(module.tree) if isinstance(n, ast.FunctionDef | ast.ClassDef) and is_step(n)]
    stem = Path(module.path).stem
    expected = (stem, "".join(word.capitalize() for word in stem.split("_")))
    assert len(marked) == 1, f"{module.path} holds {marked}"
    assert marked[0] in expected, f"{module.path} holds {marked[0]}, and should hold {' or '.join(expected)}"


def is_step(node: ast.FunctionDef | ast.ClassDef) -> bool:
    calls = [d.func if isinstance(d, ast.Call) else d for d in node.decorator_list]
    return any((c.attr if isinstance(c, ast.Attribute) else getattr(c, "id", "")) in ("step", "whole", "fetch") for c in calls)


def test_steps_take_no_open_ended_arguments() -> None:
    wrong = [f"{m.path}:{f.lineno}: {f.name}" for m in modules("curate/steps") for f in functions(m.tree) if f.args.kwarg]
    assert not wrong, "\n".join(wrong)


def test_settings_of_steps_are_typed() -> None:
    wrong = [f"{m.path}:{f.lineno}: {a.arg}" for m in modules("curate/steps") for f in functions(m.tree)
             for a in f.args.kwonlyargs if a.annotation is None]
    assert not wrong, "\n".join(wrong)


def test_no_blind_except() -> None:
    wrong = [f"{m.path}:{line}: {what}" for m in modules("curate", "train") for line, what in blind(m.tree)
             if what == "except:" or m.path not in BLIND_EXCEPT]
    assert not wrong, "\n".join(wrong)


def blind(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Handlers of everything that do not end in `raise`, and `suppress` of everything."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler):
            last = node.body[-1]
            if not (isinstance(last, ast.Raise) and last.exc is None):
                yield from ((node.lineno, name) for name in catches(node.type) if name in EVERYTHING)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("suppress"):
            yield from ((node.lineno, "suppress") for a in node.args if ast.unparse(a) in EVERYTHING)


def catches(handled: ast.expr | None) -> list[str]:
    if handled is None:
        return ["except:"]
    return [ast.unparse(e) for e in (handled.elts if isinstance(handled, ast.Tuple) else [handled])]


def test_one_helper_writes() -> None:
    wrong = [f"{m.path}:{line}: {what}" for m in modules("curate") if m.path not in WRITERS for line, what in writes(m.tree)]
    assert not wrong, "files come into being by curate.files only:\n" + "\n".join(wrong)


def writes(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Calls that open a file for writing by name: `open(p, "w")`, `p.open("wb")`, `p.write_text(…)`, `tarfile.open(p, "w")`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            owner, _, method = ast.unparse(node.func).rpartition(".")
            arguments = [*node.args, *(keyword.value for keyword in node.keywords)]
            opens = method == "open" and any(writing_mode(a) for a in arguments)
            if opens or (owner not in ("", "files") and method in WRITING_METHODS):
                yield node.lineno, ast.unparse(node)[:80]


def writing_mode(argument: ast.expr) -> bool:
    """Whether an argument is a mode such as "wb", "a", "x" or "r+"."""
    return isinstance(argument, ast.Constant) and isinstance(argument.value, str) \
        and re.fullmatch(r"[rwaxbt+|:]{1,3}(gz)?", argument.value) is not None and bool(set(argument.value) & set("wax+"))


def test_files_and_functions_are_short() -> None:
    found = [(m.path, m.lines, MAX_FILE_LINES) for m in modules("curate", "train")]
    found += [(f"{m.path}:{f.name}", (f.end_lineno or f.lineno) - f.lineno + 1, MAX_FUNCTION_LINES)
              for m in modules("curate", "train") for f in functions(m.tree)]
    wrong = [f"{name}: {lines} lines, and at most {limit}" for name, lines, limit in found if lines > limit and name not in LONG]
    assert not wrong, "\n".join(wrong)


def pipelines() -> list[Path]:
    return sorted((ROOT / "pipelines").glob("**/*.yaml"))


@pytest.mark.parametrize("path", pipelines(), ids=lambda p: p.stem)
def test_a_pipeline_opens_with_its_command(path: Path) -> None:
    lines = path.read_text().splitlines()
    header = [line for i, line in enumerate(lines) if all(earlier.startswith("#") for earlier in lines[:i + 1])]
    command = re.compile(rf"\bcurate \w+ .*\b{re.escape(path.relative_to(ROOT).as_posix())}\b")
    wanted = f"`curate run {path.relative_to(ROOT)}`"
    assert any(command.search(line) for line in header), f"{path.name} must open with a comment that says {wanted}"


HELP = """
import sys
from curate.cli import main
sys.argv = ["curate", "--help"]
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
print(sorted({name.split(".")[0] for name in sys.modules}), file=sys.stderr)
"""


def test_help_is_light() -> None:
    runs = [helped() for _ in range(3)]
    loaded = set(ast.literal_eval(runs[0][1]))
    assert not loaded & HEAVY, f"curate --help loads {sorted(loaded & HEAVY)}"
    assert min(seconds for seconds, _ in runs) < 1


def helped() -> tuple[float, str]:
    """Seconds of CPU that `curate --help` takes in a fresh interpreter, its start included, and its last line on standard error.

    On an idle machine that is also how long it takes; the clock on the wall would tell of whatever else is running.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", HELP], cwd=ROOT, capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stderr.splitlines()[-1]
