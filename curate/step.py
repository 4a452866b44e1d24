"""What a step is: a function or a class whose signature says which columns it reads and which settings it takes.

Positional parameters are the columns it reads, keyword-only parameters its settings in YAML, `adds` the typed columns it
writes. A step measures and never drops a row. Three kinds:

    @step    row-wise: batches of columns in, the same number of values out
    @whole   needs every row that is alive: a barrier; reads `Chunks`, yields one dict of columns a shard
    @fetch   asks the network for one url at a time; its columns belong to images, not to rows

How a column arrives is said by the annotation: `pa.Array` (Arrow, the fastest), `np.ndarray` (numbers; vectors as a float32
matrix), `list[str]` (Python values), `list[Image]` (decoded RGB pictures), `list[bytes]` (the stored file).
"""

import importlib
import importlib.util
import inspect
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from glob import has_magic
from pathlib import Path
from typing import Annotated, Any, Literal

import pyarrow as pa
from pydantic import AfterValidator, BeforeValidator, TypeAdapter, ValidationError

from curate.errors import UserError, did_you_mean

bool_ = pa.bool_()
int32 = pa.int32()
int64 = pa.int64()
float32 = pa.float32()
float64 = pa.float64()
string = pa.string()
vector = pa.list_(pa.float16())
"""An embedding: half precision on disk, a float32 matrix (rows, dimensions) in a step."""
image = pa.struct([("file", pa.string()), ("offset", pa.int64()), ("length", pa.int64())])
"""Where the bytes of a picture lie: a file (relative to the run's folder, or a path or url of its own), offset, length."""

File = Annotated[Path, "file"]
"""A setting that names a file; what counts for the identity of the column is the file's content, not its name."""
def _named(value: Any) -> Any:
    """`a/coco` or [a/coco, b.tar] as {coco: a/coco, b: b.tar}."""
    if isinstance(value, Mapping):
        return value
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not all(isinstance(v, str) for v in values):
        raise ValueError("should be a path, a list of them, or a map of names to paths")
    parts = [[part for part in Path(v).parts if not has_magic(part)] for v in values]
    names = [known[-1].partition(".")[0] if known else "" for known in parts]
    if len(set(names)) < len(names) or not all(names):
        raise ValueError("should be a map of names to paths, as the paths do not tell them apart")
    return dict(zip(names, values, strict=True))


NamedFiles = Annotated[dict[str, str], BeforeValidator(_named), "file"]
"""A setting that names files by a word for each: a map of names to files, folders or patterns, or paths whose last parts are the
names. Names and contents count for the column's identity, places and names of files do not."""
Operational = "operational"
"""`Annotated[int, Operational]`: a setting that changes how fast or how politely, never what; outside the column's id."""
Weights = Annotated[str, "weights"]
"""A pretrained tag of open_clip, a local checkpoint or a Hugging Face directory; its identity is the tensors' content."""


def _no_loop(value: str) -> str:
    if value == "loop":
        raise ValueError("should be a name of Hugging Face's or a folder: what the loop trains is a CLIP")
    return value


BlipWeights = Annotated[str, AfterValidator(_no_loop), "weights", "blip"]
"""A BLIP by its name on Hugging Face or its folder; its identity is the content of tensors, tokenizer and preprocessing."""

Kind = Literal["step", "whole", "fetch"]
Adds = Mapping[str, pa.DataType] | Callable[..., Mapping[str, pa.DataType]]
REQUIRED = inspect.Parameter.empty


@dataclass(frozen=True)
class Setting:
    """One keyword-only parameter: its annotation, its default (or REQUIRED), and how it enters the column's identity."""

    name: str
    annotation: Any
    default: Any

    @property
    def tags(self) -> tuple[str, ...]:
        """The marks in `Annotated[...]`: "file", "weights", "blip", "operational"."""
        options = typing.get_args(self.annotation) if _is_union(self.annotation) else (self.annotation,)
        return tuple(t for option in options for t in getattr(option, "__metadata__", ()))

    def check(self, value: Any) -> Any:
        """The value in the setting's own type; ValueError says what is allowed."""
        try:
            return TypeAdapter(self.annotation).validate_python(value, strict=False)
        except ValidationError as error:
            raise ValueError(error.errors()[0]["msg"].removeprefix("Input ")) from None


@dataclass(frozen=True)
class Maker:
    """The step in the pipeline that adds a column: its name, its checked settings, whether they depend on the loop's weights.

    Of a column that the source brings, the name is empty.
    """

    step: str
    settings: Mapping[str, Any]
    loop: bool


Completes = Callable[[Mapping[str, Any], Mapping[str, Maker]], Mapping[str, Any]]
"""(settings, parameter that is bound → who adds the column it reads) → settings; UserError where they do not fit."""


@dataclass(frozen=True)
class Spec:
    """Everything the engine knows of a step, read from its signature and decorator."""

    name: str
    target: Callable[..., Any]
    kind: Kind
    adds: Adds
    reads: Mapping[str, Any]
    settings: Mapping[str, Setting]
    optional: frozenset[str] = frozenset()
    volatile: frozenset[str] = frozenset()
    gpus: float = 0
    batch: int = 1000
    version: int = 1
    follows: bool = False
    completes: Completes | None = None

    @property
    def is_model(self) -> bool:
        """A class holds something built once a worker."""
        return inspect.isclass(self.target)

    @property
    def summary(self) -> str:
        """The first line of the docstring: what it measures, its range and unit."""
        return (inspect.getdoc(self.target) or "").split("\n")[0]

    def columns(self, settings: Mapping[str, Any]) -> dict[str, pa.DataType]:
        """The columns it adds under these settings."""
        return dict(self.adds(**settings) if callable(self.adds) else self.adds)


def step(*, adds: Adds, batch: int = 1000, version: int = 1, gpus: float = 0, follows: bool = False,
         volatile: tuple[str, ...] = (), completes: Completes | None = None,
         ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Mark a function, or a class with `__call__`, as a row-wise step.

    `version` is part of every column's id: raise it when results change. `volatile` columns (seconds, attempts) never enter
    shards, keeps or ids. `follows`: what it adds is named after the model it reads (`clip_score: {of: loop}` adds
    `loop_clip_cos`). `completes` is called while the pipeline is checked: it fills in settings that follow from the steps whose
    columns are read, and refuses what does not go together.
    """
    return _mark("step", adds=adds, batch=batch, version=version, gpus=gpus, follows=follows, volatile=frozenset(volatile),
                 completes=completes)


def whole(*, adds: Adds, version: int = 1,
          completes: Completes | None = None) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Mark a generator function that reads `Chunks` of every alive row and yields one dict of columns a shard.

    What it returns after the last one, a dict of plain data, is kept beside its columns as facts of the run. `completes` as in
    `step`.
    """
    return _mark("whole", adds=adds, version=version, completes=completes)


def fetch(*, adds: Adds, version: int = 1, volatile: tuple[str, ...] = ()) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Mark a class whose `async one(url)` answers (values of the added columns but `image`, the bytes to store or None).

    Further parameters of `one` are columns too, each a list with the values of all rows that hold the image; `| None`: None where
    there is no such column.
    `async start()` and `async close()`, where it has them, are called in the event loop that uses it.
    """
    return _mark("fetch", adds=adds, version=version, volatile=frozenset(volatile))


class Chunks:
    """One column of every alive row with a value, read shard by shard as often as wanted; never one array.

    Iterating gives one array a shard, in the form the annotation of the parameter asks for (`Chunks` alone: Arrow). All columns
    of one step have the same shards, and the same rows in each.
    """

    def __init__(self, read: Callable[[], Iterator[Any]]) -> None:
        self._read = read

    def __iter__(self) -> Iterator[Any]:
        return self._read()


def _mark(kind: Kind, **how: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def mark(target: Callable[..., Any]) -> Callable[..., Any]:
        name = _snake(target.__name__)
        reads, settings = _signature(target, kind)
        optional = frozenset(n for n, a in reads.items() if _is_union(a) and type(None) in typing.get_args(a))
        target.__curate_step__ = Spec(name=name, target=target, kind=kind, reads=reads, settings=settings,  # type: ignore[attr-defined]
                                      optional=optional, **how)
        return target
    return mark


def _signature(target: Callable[..., Any], kind: Kind) -> tuple[dict[str, Any], dict[str, Setting]]:
    """Columns and settings: of a function from its own signature, of a class from `__call__` (or `one`) and `__init__`."""
    if inspect.isclass(target):
        reader = target.one if kind == "fetch" else target.__call__  # type: ignore[attr-defined]
        both = [(inspect.signature(reader), typing.get_type_hints(reader, include_extras=True)),
                (inspect.signature(target), typing.get_type_hints(target.__init__, include_extras=True))]
    else:
        both = [(inspect.signature(target), typing.get_type_hints(target, include_extras=True))] * 2
    (read_signature, read_hints), (set_signature, set_hints) = both
    reads, settings = {}, {}
    for p in read_signature.parameters.values():
        if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
            raise TypeError(f"step {target.__name__}: no *args or **kwargs, the signature is the schema")
        if p.kind != p.KEYWORD_ONLY and p.name != "self":
            reads[p.name] = read_hints.get(p.name)
    for p in set_signature.parameters.values():
        if p.kind == p.KEYWORD_ONLY:
            settings[p.name] = Setting(p.name, set_hints.get(p.name, Any), p.default)
    return reads, settings


def _is_union(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (typing.Union, types.UnionType)


def _snake(name: str) -> str:
    """`ClipEmbed` → `clip_embed`: a class is named like its file."""
    return "".join("_" + c.lower() if c.isupper() and i else c.lower() for i, c in enumerate(name))


def known_steps() -> list[str]:
    """The names of the steps that ship: one file each in `curate/steps/`."""
    return sorted(p.stem for p in (Path(__file__).parent / "steps").glob("*.py") if not p.stem.startswith("_"))


def load_step(name: str, base: Path | None = None) -> Spec:
    """The step called `name`: a file in `curate/steps/`, `package.module:name`, or `./file.py:name` (relative to `base`).

    Raises UserError for a name that leads to no step.
    """
    module_name, _, attribute = name.rpartition(":")
    if not module_name:
        if name not in known_steps():
            raise UserError(f"no step '{name}'{did_you_mean(name, known_steps())}")
        return _spec_in(importlib.import_module(f"curate.steps.{name}"), name, name)
    if module_name.endswith(".py"):
        return _spec_in(_import_file(name, (base or Path()) / module_name), attribute, name)
    try:
        return _spec_in(importlib.import_module(module_name), attribute, name)
    except ModuleNotFoundError as error:
        raise UserError(f"step '{name}': {str(error).lower()}") from None


def _import_file(name: str, path: Path) -> types.ModuleType:
    path = path.resolve()
    if not path.is_file():
        raise UserError(f"step '{name}': no file {path}")
    module_name = f"curate_user_{path.stem}"
    found = importlib.util.spec_from_file_location(module_name, path)
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[module_name] = module
    found.loader.exec_module(module)
    return module


def _spec_in(module: types.ModuleType, wanted: str, name: str) -> Spec:
    specs = {s.name: s for s in (getattr(v, "__curate_step__", None) for v in vars(module).values()) if isinstance(s, Spec)}
    by_target = {s.target.__name__: s for s in specs.values()}
    spec = specs.get(wanted) or by_target.get(wanted)
    if spec is None:
        raise UserError(f"step '{name}': {module.__name__} has no step '{wanted}'{did_you_mean(wanted, specs)}")
    return spec
