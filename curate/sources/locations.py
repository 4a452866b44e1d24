"""What a source is: its settings in YAML, and the files they name.

A file, a pattern, a folder or a list of them, on this machine or on any store fsspec opens. A relative path is looked for in the
current folder, then in the folder of the pipeline file. Files come in the order of their names, those of a list in its order.
"""

import glob
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, NamedTuple

from curate import files, remote
from curate.errors import UserError, did_you_mean

TABLES = {".parquet": "parquet", ".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json"}
TARS = {".tar": "tar"}
PICTURES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"})
SIDECARS = frozenset({".txt", ".json"})
FOLDER = "folder"

KINDS = {"pairs": ("url", "caption", "uid", "header"), "shards": ("url", "caption", "uid"),
         "images": ("path", "root", "url", "caption", "uid", "header")}
COUNTS = ("shard_rows", "limit")
ALL_KINDS = (*COUNTS, "ignore")


class Names(NamedTuple):
    """What the user calls the columns that mean something to us; None for what there is not."""

    url: str | None
    caption: str | None
    uid: str | None


@dataclass(frozen=True)
class SourceSettings:
    """The `source:` map of a pipeline. `kind` is pairs, shards or images; the names are those of the user's own columns."""

    kind: str
    where: tuple[str, ...]
    base: Path
    url: str | None = None
    """the column of image urls; of tars, the key in each .json"""
    caption: str | None = None
    """the column of captions; of tars and pictures, the key or column to take instead of the text beside each picture"""
    uid: str | None = None
    """the column of the rows' own uids (of tars and pictures `uid`, if there is one); else a hash of url or bytes, and caption"""
    path: str | None = None
    """the column of a table that names a picture on this machine"""
    root: str | None = None
    """the folder that names in `path` start from; without it the table's own"""
    header: tuple[str, ...] = ()
    """the names of the columns of csv and tsv files that have no first line with names"""
    ignore: tuple[str, ...] = ()
    """columns of the user's that stay out, because a step measures what is called the same"""
    shard_rows: int = 10_000
    """rows of a source shard, which is the unit of work and of retry"""
    limit: int | None = None
    """only the first rows of the source; `--limit` does the same"""

    @property
    def meaning(self) -> dict[str, Any]:
        """What may not change between two runs into one folder: everything but where the files lie."""
        found = {n: v for n, v in asdict(self).items() if n not in ("where", "base", "ignore")}
        return {**found, "header": list(self.header), "uid": self.names.uid,
                **({"ignore": sorted(self.ignore)} if self.ignore else {})}

    @property
    def names(self) -> Names:
        """The columns of a chunk that mean something. A sample's own `uid` is its uid, if it has one (DataComp's, and ours)."""
        return Names(self.url, self.caption or "caption", self.uid or (None if self.kind == "pairs" else "uid"))


def parse_source(settings: Mapping[str, Any], base: Path = Path()) -> SourceSettings:
    """The typed form of a `source:` map; `base` is the pipeline's folder, the second place where relative paths are looked for.

    Raises UserError for what is unknown, missing or of the wrong type.
    """
    kinds = [k for k in KINDS if k in settings]
    if len(kinds) > 1:
        raise UserError(f"source needs one of {' and '.join(kinds)}, not both")
    kind = kinds[0] if kinds else "pairs"
    known = {kind, *KINDS[kind], *ALL_KINDS} if kinds else {*KINDS, *KINDS[kind], *ALL_KINDS}
    for name in settings:
        if name not in known:
            raise UserError(f"source has no setting '{name}'{did_you_mean(str(name), known)}")
    if not kinds:
        raise UserError("source needs pairs, shards or images: where the rows come from")
    where = _texts(settings, kind)
    if not where:
        raise UserError(f"source: {kind} must be a path, a pattern or a list of them")
    if kind == "images" and any("://" in w for w in where):
        raise UserError("source: images must lie on this machine; a table of urls is read with pairs")
    defaults: dict[str, Any] = {"pairs": {"url": "url", "caption": "caption"}, "shards": {"url": "url"},
                                "images": {"path": "path"}}[kind]
    named = {name: _text(settings, name) for name in ("url", "caption", "uid", "path", "root") if settings.get(name) is not None}
    counts = {name: _count(settings, name) for name in COUNTS if settings.get(name) is not None}
    return SourceSettings(kind=kind, where=where, base=base, header=_texts(settings, "header"), ignore=_texts(settings, "ignore"),
                          **{**defaults, **named, **counts})


def _text(settings: Mapping[str, Any], name: str) -> str:
    value = settings[name]
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"source: {name} must be the name of a {'folder' if name == 'root' else 'column'}, not {value!r}")
    return value


def _texts(settings: Mapping[str, Any], name: str) -> tuple[str, ...]:
    value = settings.get(name) or []
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list | tuple) or not all(isinstance(v, str) and v for v in values):
        raise UserError(f"source: {name} must be text or a list of texts, not {value!r}")
    return tuple(values)


def _count(settings: Mapping[str, Any], name: str) -> int:
    value = settings[name]
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UserError(f"source: {name} must be a number from 1, not {value!r}")
    return value


class Stamp(NamedTuple):
    """What tells cheaply that a file is the one read before: size in bytes, time of change (local), version (remote, folder)."""

    bytes: int
    mtime_ns: int | None
    version: str | None


_BUFFER = 2**18
"""Bytes read at once: the headers of a tar of pictures lie some 10 kB apart, and a seek inside the buffer costs nothing."""


@dataclass(frozen=True)
class SourceFile:
    """One file of a source by absolute path or url, or one folder of pictures; `format` names its reader."""

    path: str
    format: str

    @property
    def is_remote(self) -> bool:
        """Not a file of this machine's file system."""
        return "://" in self.path

    @property
    def is_gzip(self) -> bool:
        """Packed by gzip as a whole."""
        return self.path.endswith(".gz")

    @property
    def shown(self) -> str:
        """The path as a message shows it: relative to the current folder where it lies in it."""
        here = os.getcwd() + os.sep
        return self.path.removeprefix(here)

    def open(self) -> IO[bytes]:
        """The file's bytes as they lie there, seekable."""
        if not self.is_remote:
            return open(self.path, "rb", buffering=_BUFFER)
        return remote.open_object(self.path)

    def stamp(self, anew: bool = False) -> Stamp:
        """Size and time of the file as it is now; of an object as it was listed, unless it is to be asked for `anew`.

        Raises FileNotFoundError, of an object UserError.
        """
        if self.is_remote:
            size, version = remote.version(self.path, anew)
            return Stamp(size, None, version)
        if self.format != FOLDER:
            stat = os.stat(self.path)
            return Stamp(stat.st_size, stat.st_mtime_ns, None)
        stats = [(name, os.stat(Path(self.path, name))) for name in names_in(Path(self.path))]
        lines = (f"{name}\0{s.st_size}\0{s.st_mtime_ns}\n" for name, s in stats)
        listing = hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()
        return Stamp(sum(s.st_size for _, s in stats), max((s.st_mtime_ns for _, s in stats), default=0), listing)


def names_in(folder: Path) -> list[str]:
    """The pictures of one folder and the files with their captions, sorted; hidden ones are no part of it."""
    return sorted(e.name for e in os.scandir(folder)
                  if not e.name.startswith(".") and e.is_file() and Path(e.name).suffix.lower() in PICTURES | SIDECARS)


def find(patterns: Sequence[str], base: Path, formats: Mapping[str, str], pictures: bool = False) -> list[SourceFile]:
    """The files of a source, each once. With `pictures` a folder stands for itself and the folders below that hold pictures.

    Raises UserError for a pattern without a file, a file of no known format and a folder of several.
    """
    found: dict[str, SourceFile] = {}
    for pattern in patterns:
        for file in _remote(pattern, formats) if "://" in pattern else _local(pattern, base, formats, pictures):
            found.setdefault(file.path, file)
    return list(found.values())


def find_folder(name: str, base: Path) -> Path:
    """A local folder, looked for where files are looked for. Raises UserError where there is none."""
    for root in (Path.cwd(), Path(os.path.abspath(base))):
        path = Path(os.path.normpath(root / Path(name).expanduser()))
        if path.is_dir():
            return path
    raise UserError(f"no folder '{name}'")


def _local(pattern: str, base: Path, formats: Mapping[str, str], pictures: bool) -> Iterator[SourceFile]:
    for root in (Path.cwd(), Path(os.path.abspath(base))):
        path = Path(os.path.normpath(root / Path(pattern).expanduser()))
        if path.is_dir():
            return iter(_picture_folders(path, pattern) if pictures else _of_one_format(_below(path), pattern, formats))
        if path.is_file():
            return iter([_file(str(path), formats)])
        names = sorted(glob.glob(str(Path(pattern).expanduser()), root_dir=root, recursive=True))
        files = [p for p in (os.path.normpath(root / name) for name in names) if os.path.isfile(p)]
        if files:
            return (_file(p, formats) for p in files)
    raise UserError(f"no file matches '{pattern}'")


def _remote(pattern: str, formats: Mapping[str, str]) -> Iterator[SourceFile]:
    file_system, path = remote.file_system_of(pattern)
    url, is_folder = file_system.unstrip_protocol, False
    with remote.told(f"read '{pattern}'"):
        file_system.invalidate_cache()
        if glob.has_magic(path):
            files = [url(p) for p in sorted(file_system.glob(path))]
        elif _format(path, formats):
            files = [url(path)] if file_system.exists(path) else []
        else:
            files, is_folder = [url(p) for p in sorted(file_system.find(path))], True
    if not files:
        remote.check_bucket(file_system, path, pattern)
    if is_folder:
        return iter(_of_one_format(iter(files), pattern, formats))
    if not files:
        raise UserError(f"no file matches '{pattern}'")
    return (_file(f, formats) for f in files)


def _below(folder: Path) -> Iterator[str]:
    for at, folders, names in os.walk(folder):
        folders[:] = sorted(f for f in folders if not f.startswith((".", "_")))
        yield from (os.path.join(at, n) for n in sorted(names) if not n.startswith((".", "_")))


def _of_one_format(paths: Iterator[str], pattern: str, formats: Mapping[str, str]) -> list[SourceFile]:
    files = [SourceFile(p, f) for p in paths if (f := _format(p, formats))]
    kinds = sorted({f.format for f in files})
    if not files:
        raise UserError(f"'{pattern}' holds no {_listed(formats)} file")
    if len(kinds) > 1:
        raise UserError(f"'{pattern}' holds {' and '.join(kinds)} files; say which, as in '{pattern.rstrip('/')}/*.{kinds[-1]}'")
    return files


def _picture_folders(folder: Path, pattern: str) -> list[SourceFile]:
    folders = dict.fromkeys(os.path.dirname(p) for p in _below(folder) if Path(p).suffix.lower() in PICTURES)
    if not folders:
        raise UserError(f"'{pattern}' holds no picture")
    return [SourceFile(f, FOLDER) for f in folders]


def _format(path: str, formats: Mapping[str, str]) -> str | None:
    name = path.lower()
    suffix = os.path.splitext(name if formats is TARS else name.removesuffix(".gz"))[1]
    return formats.get(suffix)


def _file(path: str, formats: Mapping[str, str]) -> SourceFile:
    kind, shown = _format(path, formats), SourceFile(path, "").shown
    if kind is None and path.endswith((".tar.gz", ".tgz")):
        raise UserError(f"'{shown}' is a compressed tar, which cannot be read in place; unpack it with gunzip first")
    if kind is None:
        suffix = os.path.splitext(path)[1]
        raise UserError(f"'{shown}' is no {_listed(formats)} file{did_you_mean(suffix, formats) if suffix else ''}")
    return SourceFile(path, kind)


def _listed(formats: Mapping[str, str]) -> str:
    *names, last = dict.fromkeys(formats.values())
    return f"{', '.join(names)} or {last}" if names else last


def matching_files(pattern: Any) -> list[Path]:
    """The files that a file setting names, sorted: a file, a pattern, all below a folder; of a map those of all its values.

    UserError where there is none.
    """
    if isinstance(pattern, Mapping):
        return [path for value in pattern.values() for path in matching_files(value)]
    named = (Path(p) for p in glob.glob(str(pattern)))
    found = sorted(f for p in named for f in (map(Path, _below(p)) if p.is_dir() else [p]))
    if not found:
        raise UserError(f"no file {pattern}")
    return found


def content(value: Any) -> Any:
    """What the files of a file setting hold, whatever they are called: their hashes; of a map a hash under each of its names."""
    if isinstance(value, Mapping):
        return {name: files.digest(sorted(content(pattern))) for name, pattern in value.items()}
    stats = ((path, path.stat()) for path in matching_files(value))
    return [_digest(path, stat.st_size, stat.st_mtime_ns) for path, stat in stats]


@lru_cache(maxsize=1 << 17)
def _digest(path: Path, _bytes: int, _mtime_ns: int) -> str:
    """A file's sha256; one that has not changed is read once."""
    return files.file_digest(path)
