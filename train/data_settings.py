"""The settings of what is learnt from: pairs, their sources and scores, and what comes first.

    data: shards/*.tar
    data: {shards: shards/*.tar, scores: scores.parquet}
    data: [{shards: web/*.tar, weight: 2, scores: scores.parquet}, {table: own.parquet, root: /photos, weight: 1}]
    curriculum: {by: clip_cos, from: 0.3, until: 0.5}
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from train.checks import number, paths, text, word
from train.errors import did_you_mean


@dataclass(frozen=True)
class Data:
    """Where pairs come from: webdataset tars, or tables of pictures (file, offset, length below `root`) with captions."""

    shards: tuple[str, ...] = ()
    """tars as webdataset and img2dataset write them"""
    table: tuple[str, ...] = ()
    """parquet with the columns caption (maybe a list captions too) and image {file, offset, length}, instead of tars"""
    root: str = "."
    """the folder that the files of a table start from"""
    scores: tuple[str, ...] = ()
    """parquet by uid: what is kept, how often it is seen, which caption it shows ([train.md](train.md#a-score-table))"""
    missing: str = "drop"
    """what happens to a row that the scores do not know: drop or keep"""
    weight: float = 1.0
    """in a list of sources: its share of the pairs seen, the weights of all together being the whole"""
    sources: tuple["Data", ...] = ()
    """the sources, where there is a list of them; then the rest says nothing"""

    @property
    def parts(self) -> tuple["Data", ...]:
        """The sources, be they one."""
        return self.sources or (self,)


@dataclass(frozen=True)
class Curriculum:
    """The best pairs first: a share of each source's pictures that grows to all of them. Our choice, after Bengio et al. 2009."""

    by: str
    """a column of numbers in the score table; larger is better, none is worst"""
    start: float = 0.3
    """`from`: the share of the pictures that the first epoch draws from"""
    until: float = 0.5
    """the share of all steps after which an epoch draws from all pictures"""


SOURCE_KEYS = ("shards", "table", "root", "scores", "missing", "weight")


def data(value: Any) -> Data:
    """Tars; or {shards: …} or {table: …, root: …}, with scores; or a list of such maps, with weights."""
    if isinstance(value, Data):
        return value
    if isinstance(value, Mapping):
        return _source(value, SOURCE_KEYS[:-1])
    if isinstance(value, Sequence) and any(isinstance(item, Mapping) for item in value):
        if not all(isinstance(item, Mapping) for item in value):
            raise ValueError("a list holds either paths or sources like {shards: a/*.tar, weight: 2}")
        return Data(sources=tuple(_numbered(n, item) for n, item in enumerate(value, 1)))
    return Data(shards=_files(value))


def curriculum(value: Any) -> Curriculum:
    """{by: clip_cos, from: 0.3, until: 0.5}."""
    if isinstance(value, Curriculum):
        return value
    if not isinstance(value, Mapping) or "by" not in value:
        raise ValueError(f"{value!r} is not a map like {{by: clip_cos, from: 0.3}}")
    shares = number(0, 1, above=True)
    checks: dict[str, tuple[str, Callable[[Any], Any]]] = {
        "by": ("by", text), "from": ("start", shares), "until": ("until", shares)}
    _known(value, checks)
    return Curriculum(**{checks[key][0]: _named(key, checks[key][1], found) for key, found in value.items()})


def _numbered(n: int, value: Mapping[str, Any]) -> Data:
    try:
        return _source(value, SOURCE_KEYS)
    except ValueError as error:
        raise ValueError(f"source {n}: {error}") from None


def _source(value: Mapping[str, Any], known: Sequence[str]) -> Data:
    _known(value, known)
    if ("shards" in value) == ("table" in value):
        raise ValueError("give either shards or a table")
    if "root" in value and "table" not in value:
        raise ValueError("root belongs to a table; the paths of shards are whole")
    if "missing" in value and "scores" not in value:
        raise ValueError("missing belongs to scores")
    checks: dict[str, Callable[[Any], Any]] = {"shards": _files, "table": _files, "root": text, "scores": _files,
                                               "missing": word("drop", "keep"), "weight": number(0, above=True)}
    return Data(**{key: _named(key, checks[key], found) for key, found in value.items()})


def _files(value: Any) -> tuple[str, ...]:
    """Paths and globs. A `pipe:`, which webdataset would run, and urls are refused."""
    found = paths(value)
    for path in found:
        if path.startswith("pipe:") or "://" in path:
            raise ValueError(f"'{path}' is no file; only files are read, commands never run")
    return found


def _known(value: Mapping[str, Any], known: Iterable[str]) -> None:
    for key in value:
        if key not in known:
            raise ValueError(f"no setting '{key}'{did_you_mean(str(key), known)}")


def _named(key: str, check: Callable[[Any], Any], value: Any) -> Any:
    try:
        return check(value)
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from None
