"""A pipeline file: YAML in, frozen stages out, everything checked before anything runs.

A stage is one of three: a `StepUse` measures, a `KeepUse` decides by expression, a `TopUse` decides by rank. Every mistake is
one line `file:line: what is wrong, what there is, did you mean`. Later code never looks at YAML again.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from curate import step
from curate.document import TOP_KEYS, entry_of, override, read_yaml
from curate.errors import UserError, did_you_mean
from curate.expectation import Expectation, expectation
from curate.keep import Keep, parse
from curate.loop_settings import LoopSettings, loop_settings
from curate.sources import cut
from curate.sources.locations import matching_files, parse_source
from curate.stages import KeepUse, Stage, StepUse, TopUse
from curate.step import Spec, known_steps, load_step, vector

OWN_COLUMNS: Mapping[str, pa.DataType] = {"uid": step.string, "image_id": step.string}
OF_SOURCE = step.Maker("", {}, loop=False)


@dataclass(frozen=True)
class ShardSettings:
    """`shards:` in a pipeline: rows a tar, and how many source shards share a block that is packed by itself."""

    rows: int = 10_000
    """rows of a tar"""
    block: int = 64
    """source shards that are packed together: a row that changes rewrites the tars of its block only"""
    caption: str = "caption"
    """the column of texts that becomes .txt and `caption`; the source's own text then is `source_caption`"""
    vectors: tuple[str, ...] = ()
    """embeddings that go into the tables beside the tars, for `train`'s `distill`; the tars hold none"""
    write: bool = True


@dataclass(frozen=True)
class Pipeline:
    """A checked pipeline file."""

    path: Path
    source: Mapping[str, Any]
    """where the rows come from"""
    columns: Mapping[str, pa.DataType]
    """what the source brings"""
    stages: tuple[Stage, ...]
    """steps and keeps, in the order in which they happen"""
    shards: ShardSettings
    """how the kept rows are packed; `none` packs nothing and leaves subset.parquet and subset.npy, a table and the uids"""
    train: Mapping[str, Any] | None
    """the settings of a training on what is kept"""
    loop: LoopSettings | None
    """how often the trained model measures the raw pool again"""
    expect: Expectation | None
    """what should come out; a run in which it does not says so"""
    lines: Mapping[str, int]
    sets: tuple[str, ...] = ()
    """what `--set` changed in it"""

    def where(self, key: str) -> str:
        """`file:line` of a top-level key."""
        return f"{self.path}:{self.lines.get(key, 1)}"


def load(path: Path, overrides: Sequence[str] = (), until: str | None = None) -> Pipeline:
    """Read, override (`--set`), check. `until` cuts the list after the last stage of that step. Raises UserError."""
    document, lines = read_yaml(path)
    for text in overrides:
        override(document, text)
    unknown = [k for k in document if k not in TOP_KEYS]
    if unknown:
        raise UserError(f"no key '{unknown[0]}'{did_you_mean(unknown[0], TOP_KEYS)}", f"{path}:{lines[unknown[0],]}")
    for key in ("source", "steps"):
        if key not in document:
            raise UserError(f"'{key}:' is missing", f"{path}:1")
    top_lines = {k: lines.get((k,), 1) for k in document}
    columns = _source_columns(document["source"], path.parent, f"{path}:{top_lines['source']}")
    if not isinstance(document["steps"], list):
        raise UserError("'steps:' is a list of steps and keeps", f"{path}:{top_lines['steps']}")
    checker = _Checker(path, dict(OWN_COLUMNS) | columns)
    entries = [(entry, lines.get(("steps", i), top_lines["steps"])) for i, entry in enumerate(document["steps"])]
    stages = tuple(checker.stage(entry, line) for entry, line in entries)
    shard_settings = _shard_settings(document.get("shards"), f"{path}:{top_lines.get('shards', 1)}", checker.columns)
    settings = loop_settings(document.get("loop"), stages, path, top_lines)
    train = document.get("train")
    if settings is not None and not isinstance(train, Mapping):
        raise UserError("'loop:' needs 'train:', a map like {samples_seen: 50M}", f"{path}:{top_lines['loop']}")
    expect = _expectation(document.get("expect"), f"{path}:{top_lines.get('expect', 1)}")
    done = _cut(stages, until)
    return Pipeline(path, document["source"], columns, done, _with_caption(shard_settings, columns, done), train, settings,
                    None if until else expect, top_lines, tuple(overrides))


def _cut(stages: tuple[Stage, ...], until: str | None) -> tuple[Stage, ...]:
    if until is None:
        return stages
    names = {name: i for i, s in enumerate(stages) if isinstance(s, StepUse) for name in (s.spec.name, s.prefix, s.label) if name}
    if until not in names:
        raise UserError(f"--until {until}: no such step in the pipeline{did_you_mean(until, names)}")
    return stages[: names[until] + 1]


def _source_columns(settings: Any, base: Path, where: str) -> dict[str, pa.DataType]:
    if not isinstance(settings, Mapping):
        raise UserError("'source:' is a map, like {pairs: urls/*.parquet, url: URL, caption: TEXT}", where)
    try:
        return dict(cut.peek(parse_source(settings, base)))
    except UserError as error:
        raise UserError(str(error), where) from None


def _shard_settings(value: Any, where: str, columns: Mapping[str, pa.DataType]) -> ShardSettings:
    if value == "none":
        return ShardSettings(write=False)
    if value is None:
        return ShardSettings()
    if not isinstance(value, Mapping):
        raise UserError("'shards:' is a map like {rows: 10000}, or none", where)
    known = ("rows", "block", "caption", "vectors")
    for key, number in value.items():
        if key not in known:
            raise UserError(f"shards has no setting '{key}'{did_you_mean(str(key), known)}", where)
        if key == "caption":
            texts = [name for name, kind in columns.items() if pa.types.is_string(kind)]
            if number not in texts:
                hint = did_you_mean(number, texts) if isinstance(number, str) else ""
                raise UserError(f"shards.caption: {number!r} is not a column of texts{hint}", where)
        elif key == "vectors":
            if not isinstance(number, list):
                raise UserError(f"shards.vectors: {number!r} is not a list of columns of embeddings", where)
            check_vectors("shards.vectors", number, columns, where)
        elif not isinstance(number, int) or isinstance(number, bool) or number < 1:
            raise UserError(f"shards.{key}: {number!r} is not a whole number of 1 or more", where)
    return ShardSettings(**{**value, "vectors": tuple(value.get("vectors", ()))})


def check_vectors(what: str, names: Sequence[Any], columns: Mapping[str, pa.DataType], where: str = "") -> None:
    """Raises UserError for the first of these names, which stand under `what`, that is no column of embeddings."""
    there = [name for name, kind in columns.items() if kind == vector]
    for name in names:
        if name not in there:
            raise UserError(f"{what}: {name!r} is not a column of embeddings{did_you_mean(str(name), there)}", where)


def _with_caption(settings: ShardSettings, columns: Mapping[str, pa.DataType], done: tuple[Stage, ...]) -> ShardSettings:
    """Where `--until` ends the run before the samples' caption is there, the source's takes its place."""
    there = {*columns, *(c for s in done if isinstance(s, StepUse) for c in s.adds.values())}
    return settings if settings.caption in there else replace(settings, caption="caption")


def _expectation(value: Any, where: str) -> Expectation | None:
    try:
        return expectation(value)
    except UserError as error:
        raise UserError(str(error), where) from None


class _Checker:
    """Walks the list once, keeping track of which columns exist so far."""

    def __init__(self, path: Path, columns: dict[str, pa.DataType]) -> None:
        self.path = path
        self.columns = columns
        self.added_at: dict[str, int] = {}
        self.volatile: set[str] = set()
        self.loop: set[str] = set()
        self.makers: dict[str, step.Maker] = {}

    def stage(self, entry: Any, line: int) -> Stage:
        where = f"{self.path}:{line}"
        name, settings = entry_of(entry, where)
        try:
            if name == "keep":
                return self._keep(settings, line)
            return self._step(name, settings, line)
        except UserError as error:
            raise UserError(str(error), where) from None

    def _keep(self, settings: Any, line: int) -> Stage:
        if isinstance(settings, Mapping):
            return self._top(settings, line)
        if not isinstance(settings, str):
            raise UserError(f"keep takes an expression like \"num_words >= 3\", or {{top: 0.3, by: clip_cos}}, not {settings!r}")
        keep = self._parse(settings)
        for clause in keep.clauses:
            for column in clause.columns:
                if column in self.loop and _is_number(self.columns[column]):
                    raise UserError(f"'{column}' depends on the weights the loop trains, so a fixed threshold means something "
                                    f"else every round; use keep: {{top: 0.3, by: {column}}}")
        return KeepUse(keep, line)

    def _parse(self, text: str) -> Keep:
        try:
            return parse(text, self._decidable())
        except UserError as error:
            missing = re.match("no column '([^']+)'", str(error))
            if missing:
                self._require(missing[1], "keep", self._decidable())
            raise

    def _top(self, settings: Mapping[str, Any], line: int) -> TopUse:
        known = ("top", "by", "of")
        for key in settings:
            if key not in known:
                raise UserError(f"keep has no setting '{key}'{did_you_mean(str(key), known)}")
        fraction, by, of = settings.get("top"), settings.get("by"), settings.get("of")
        if isinstance(fraction, bool) or not isinstance(fraction, int | float) or not 0 < fraction <= 1:
            raise UserError(f"keep top: {fraction!r} is not a share above 0 and at most 1")
        if not isinstance(by, str):
            raise UserError("keep top needs 'by: column'")
        self._require(by, f"keep top {fraction:g}", self._decidable())
        if not _is_number(self.columns[by]):
            raise UserError(f"keep top: column '{by}' is {self.columns[by]}, not a number")
        if of not in (None, "source"):
            raise UserError(f"keep top: of: {of!r}; there is only 'source'")
        return TopUse(float(fraction), by, of == "source", line)

    def _step(self, name: str, settings: Any, line: int) -> StepUse:
        spec = load_step(name, self.path.parent)
        if settings is None:
            settings = {}
        if not isinstance(settings, Mapping):
            raise UserError(f"step '{name}': settings are a map, not {settings!r}")
        settings = dict(settings)
        prefix, of, reads = settings.pop("as", None), settings.pop("of", None), settings.pop("reads", None) or {}
        holds = [n for n, s in spec.settings.items() if "weights" in s.tags]
        first = settings.pop("first", None) if holds else None
        for key, value in (("as", prefix), ("of", of)):
            if value is not None and not (isinstance(value, str) and value.isidentifier()):
                raise UserError(f"step '{name}': {key}: {value!r} is not a name of letters, digits and _")
        checked = _check_settings(spec, settings)
        bound = self._bind(spec, of, reads)
        if spec.completes is not None:
            checked = dict(spec.completes(checked, {p: self.makers.get(c, OF_SOURCE) for p, c in bound.items()}))
        trained = any(checked[n] == "loop" for n in holds)
        if trained != (first is not None) or not isinstance(first, str | None):
            raise UserError(f"step '{spec.name}': 'pretrained: loop' and 'first:' belong together; first is raw (train on the "
                            "raw pool) or the weights to begin with")
        loop = trained or any(c in self.loop for c in bound.values())
        named_after = prefix if prefix else of if spec.follows and of else ""
        types = spec.columns(checked)
        adds = {own: f"{named_after}_{own}" if named_after else own for own in types}
        self._add(spec, adds, types, line, loop)
        self.makers |= dict.fromkeys(adds.values(), step.Maker(spec.name, checked, loop))
        return StepUse(name, spec, checked, bound, adds, types, named_after, line, loop, first or "")

    def _bind(self, spec: Spec, of: str | None, reads: Any) -> dict[str, str]:
        if not isinstance(reads, Mapping) or not all(isinstance(v, str) for v in reads.values()):
            raise UserError(f"step '{spec.name}': reads is a map like {{caption: caption_clean}}")
        for parameter in reads:
            if parameter not in spec.reads:
                raise UserError(f"step '{spec.name}' reads no column '{parameter}'{did_you_mean(parameter, spec.reads)}")
        bound = {}
        for parameter in spec.reads:
            column = reads.get(parameter) or parameter
            if of is not None and parameter not in reads and f"{of}_{parameter}" in self.columns:
                column = f"{of}_{parameter}"
            if column not in self.columns and parameter in spec.optional and parameter not in reads:
                continue
            self._require(column, f"step '{spec.name}'", self.columns)
            bound[parameter] = column
        if of is not None and not any(c.startswith(f"{of}_") for c in bound.values()):
            prefixes = {c.removesuffix(f"_{p}") for p in spec.reads for c in self.columns if c.endswith(f"_{p}")}
            raise UserError(f"step '{spec.name}': of: {of}: no column it reads has that prefix{did_you_mean(of, prefixes)}")
        return bound

    def _require(self, column: str, who: str, columns: Mapping[str, pa.DataType]) -> None:
        if column in columns:
            return
        if column in self.volatile:
            raise UserError(f"{who}: column '{column}' differs from run to run, so nothing may rest on it")
        makers = [n for n in known_steps() if column in _adds_of(n)]
        hint = f"; put {makers[0]} before it" if makers else did_you_mean(column, columns)
        raise UserError(f"{who} reads column '{column}', which nothing before it adds{hint}")

    def _add(self, spec: Spec, adds: Mapping[str, str], types: Mapping[str, pa.DataType], line: int, loop: bool) -> None:
        for own, column in adds.items():
            if column in self.columns or column in self.volatile:
                place = f"line {self.added_at[column]}" if column in self.added_at else "the source"
                raise UserError(f"step '{spec.name}' adds column '{column}', which {place} has already; give it 'as: prefix'")
            self.added_at[column] = line
            if own in spec.volatile:
                self.volatile.add(column)
            else:
                self.columns[column] = types[own]
            if loop:
                self.loop.add(column)

    def _decidable(self) -> dict[str, pa.DataType]:
        return {n: t for n, t in self.columns.items() if not pa.types.is_nested(t)}


def _adds_of(name: str) -> Mapping[str, pa.DataType]:
    spec = load_step(name)
    return {} if callable(spec.adds) else spec.adds


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _check_settings(spec: Spec, given: Mapping[str, Any]) -> dict[str, Any]:
    reserved = ("as", "of", "reads")
    for key in given:
        if key not in spec.settings:
            raise UserError(f"step '{spec.name}' has no setting '{key}'{did_you_mean(str(key), [*spec.settings, *reserved])}")
    checked = {}
    for name, setting in spec.settings.items():
        if name not in given:
            if setting.default is step.REQUIRED:
                raise UserError(f"step '{spec.name}' needs the setting '{name}'")
            checked[name] = setting.default
            continue
        try:
            checked[name] = setting.check(given[name])
            if "file" in setting.tags and checked[name] is not None:
                matching_files(checked[name])
        except ValueError as error:
            raise UserError(f"{spec.name}.{name}: {given[name]!r}: {error}") from None
        except UserError as error:
            raise UserError(f"{spec.name}.{name}: {error}") from None
    return checked
