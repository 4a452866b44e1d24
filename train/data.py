"""From tars or tables, and what scores say of their rows, to an index of pictures and captions.

Rows that share a picture become one picture with several captions: rows of a table with the same (file, offset), samples of
tars with the same `image_id` in their json, or a json or a row with a list under `captions` or `caption`, and how often each is
shown under `caption_probs`. Without a list the caption is the txt member, else the json's or the row's. Blank captions and a
caption that stands twice at one picture are left out.
"""

import glob
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from train.config import Data
from train.errors import DataError, did_you_mean
from train.files import read_json
from train.index import Handle, joined
from train.index import Index as Index
from train.rows import Rows
from train.scores import Scores, checked_chances
from train.tars import Sample, samples

COLUMNS = ("caption", "image", "uid", "captions", "caption_probs")
"""What is read of a table; the first two are needed."""


def open_data(data: Data, rank: str | None = None, taught: Sequence[str] = ()) -> Index:
    """The index over `data`; `rank` names the column of the scores that a curriculum goes by, `taught` those of a teacher's
    embeddings.

    Raises DataError, before anything is used, for what is missing, cut short or mispaired.
    """
    parts = [_source(part, rank, taught, str(n) if n else "") for n, part in enumerate(data.parts)]
    return parts[0] if len(parts) == 1 else joined(parts, [part.weight for part in data.parts])


def _source(data: Data, rank: str | None, taught: Sequence[str], salt: str) -> Index:
    if rank is not None and not data.scores:
        raise DataError(f"no scores say '{rank}' of {', '.join(data.shards or data.table)}, which the curriculum goes by")
    if taught and not data.scores:
        where = ", ".join(data.shards or data.table)
        raise DataError(f"no scores have {' and '.join(taught)} of {where}, which distill learns from")
    scores = Scores(matches(data.scores), rank, data.missing, taught) if data.scores else None
    rows = Rows(scores, salt)
    if data.shards:
        files = [str(path) for path in matches(data.shards)]
        for number, file in enumerate(files):
            rows.start_file(f"{Path(file).name} {os.path.getsize(file)}")
            _add_tar(rows, number, Path(file))
    else:
        files = _add_tables(rows, matches(data.table), Path(data.root))
    if scores is not None:
        scores.check()
    index = rows.index(tuple(files))
    if not len(index):
        raise DataError(f"no picture with a caption in {', '.join(data.shards or data.table)}")
    return index


def decontaminated(data: Data) -> dict[str, Any]:
    """{"decontaminated": what the manifests beside all of the tars, and all tables of pairs, say of benchmarks}; nothing where
    they say nothing, or do not know one of the tars. Raises DataError where one says what nobody could read."""
    paths = [path for part in data.parts for path in matches(part.shards)]
    said = [_manifest_entries(folder, {path.name for path in paths if path.parent == folder})
            for folder in sorted({path.parent for path in paths})]
    said += [_table_entries(path) for part in data.parts for path in matches(part.table)]
    common = [entry for entry in (said[0] if said else []) if all(entry in entries for entries in said)]
    return {"decontaminated": common} if common else {}


def checked_entries(path: Path, found: Any) -> list[dict[str, Any]]:
    """What a file says under `decontaminated`: maps, each with a benchmark and its digest. Raises DataError for anything else."""
    named = [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []
    if found != named or not all(isinstance(entry.get(name), str) for entry in named for name in ("benchmark", "digest")):
        raise DataError(f"{path}: 'decontaminated' is no list of maps, each with a benchmark and its digest")
    return named


def _table_entries(path: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    try:
        return checked_entries(path, json.loads((pq.read_metadata(path).metadata or {}).get(b"decontaminated", b"[]")))
    except (ValueError, RecursionError):
        return checked_entries(path, None)


def _manifest_entries(folder: Path, names: set[str]) -> list[dict[str, Any]]:
    try:
        manifest = read_json(folder / "manifest.json") or {}
        listed = {entry["file"] for entry in manifest["shards"]}
    except (ValueError, TypeError, LookupError):
        return []       # none, or somebody else's
    return checked_entries(folder / "manifest.json", manifest.get("decontaminated", [])) if names <= listed else []


def _add_tar(rows: Rows, number: int, path: Path) -> None:
    found = samples(path)
    handle = Handle(str(path))
    for sample in found:
        meta = _json(path, sample, handle.read(sample.json.offset, sample.json.length)) if sample.json else {}
        txt = handle.read(sample.txt.offset, sample.txt.length).decode("utf-8", "replace") if sample.txt else None
        identity, uid = meta.get("image_id"), meta.get("uid")
        named = identity is not None and identity != ""
        rows.add(str(identity) if named else f"{number}:{sample.key}",
                 (number, sample.picture.offset, sample.picture.length), *_captions(f"{path}: '{sample.key}.json'", txt, meta),
                 uid=None if uid is None else str(uid), everywhere=named)


def _json(path: Path, sample: Sample, raw: bytes) -> dict[str, Any]:
    """The json member; refused where it speaks of another key, as a shuffled shard's does."""
    try:
        meta = json.loads(raw)
    except (ValueError, RecursionError):
        raise DataError(f"{path}: '{sample.key}.json' is not JSON") from None
    if not isinstance(meta, dict):
        raise DataError(f"{path}: '{sample.key}.json' is not a map")
    key = meta.get("key")
    if isinstance(key, str) and key != sample.key.rpartition("/")[2]:
        raise DataError(f"{path}: '{sample.key}.json' belongs to '{key}'")
    return meta


def _captions(where: str, txt: str | None, meta: Mapping[str, Any]) -> tuple[list[str], list[float] | None]:
    """A list in the json and how often each of it is shown, else the txt, else the json's one caption. A list without any says
    that there is none."""
    listed = meta.get("caption") if meta.get("captions") is None else meta["captions"]
    if not isinstance(listed, list):
        return [value for value in (txt, listed) if isinstance(value, str)][:1], None
    captions = [value if isinstance(value, str) else "" for value in listed]
    if not isinstance(meta.get("caption_probs"), list):
        return captions, None
    try:
        return captions, checked_chances(meta["caption_probs"], len(captions))
    except ValueError as error:
        raise DataError(f"{where}: {error}") from None


def _add_tables(rows: Rows, tables: Sequence[Path], root: Path) -> list[str]:
    numbers: dict[str, int] = {}
    for path in tables:
        rows.start_file(path.name)
        for row in _table_rows(path):
            image, uid = row["image"], row.get("uid")
            if image is None or image["file"] is None:
                continue
            number = numbers.setdefault(image["file"], len(numbers))
            place = (number, int(image["offset"] or 0), int(image["length"] or 0))
            captions = _captions(f"{path}: {image['file']} at {place[1]}", row["caption"] or "", row)
            rows.add(f"{image['file']}:{place[1]}", place, *captions, uid=None if uid is None else str(uid))
    return [str(root / file) for file in numbers]


def _table_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Every row of a parquet file, batch by batch: caption, image, and what else there is of COLUMNS."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            columns = file.schema_arrow.names
            for name in COLUMNS[:2]:
                if name not in columns:
                    raise DataError(f"{path} has no column '{name}'{did_you_mean(name, columns)}")
            image = file.schema_arrow.field("image").type
            if not pa.types.is_struct(image) or not {"file", "offset", "length"} <= {field.name for field in image}:
                raise DataError(f"{path}: column 'image' is {str(image)[:80]}, not file, offset and length of a picture")
            named = [name for name in COLUMNS if name in columns]
            for batch in file.iter_batches(columns=named):
                for row in zip(*(batch[name].to_pylist() for name in named), strict=True):
                    yield dict(zip(named, row, strict=True))
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path}: {str(error).splitlines()[0]}") from None


def matches(patterns: Sequence[str]) -> list[Path]:
    """The files that `patterns` name, sorted within each pattern, each once whatever it is called. Raises DataError for one that
    names none."""
    found: dict[str, Path] = {}
    for pattern in patterns:
        matches = sorted(glob.glob(pattern)) if glob.has_magic(pattern) else [pattern] if Path(pattern).is_file() else []
        if not matches:
            hint = f", a folder; name its files, as {Path(pattern) / '*.tar'}" if Path(pattern).is_dir() else ""
            raise DataError(f"no file matches {pattern}{hint}")
        for name in matches:
            found.setdefault(os.path.realpath(name), Path(name))
    return list(found.values())
