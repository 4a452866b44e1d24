"""Results that stay: one line of JSON for each evaluation, appended to a file and never changed.

    {"config": "…", "model": "ViT-B-32", "checkpoint": "…", "data": {"imagenet1k": "…"}, "settings": {…},
     "figures": {…}, "versions": {…}, "date": "2026-11-21T09:30:00+00:00"}

`config` is the hash of model, checkpoint, data and settings, each by content: two lines with the same one are the same
evaluation, wherever the files lay. Only `date` differs between them, on one machine with the same versions.
"""

import datetime
import hashlib
import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from train.benchmarks import open_benchmark
from train.captioning import decoding
from train.config import Eval
from train.data import open_data
from train.errors import DataError
from train.evaluate import SUFFIXES, TEMPLATES, read_classes
from train.files import append_line
from train.models.weights import Loaded

LIBRARIES = ("torch", "open_clip_torch", "transformers", "numpy", "pillow")
COLUMNS = 6
"""Evaluations that stand side by side in the table: the last ones."""


def record(loaded: Loaded, settings: Eval, figures: Mapping[str, float]) -> dict[str, Any]:
    """The line for an evaluation that has just been done."""
    what = {"model": loaded.name, "checkpoint": loaded.digest, "data": dict(_data(settings)),
            "settings": {"probe": settings.probe, "probe_on_images": settings.images_train is not None,
                         "templates": _digest([TEMPLATES], TEMPLATES.parent), "precision": loaded.precision,
                         "device": loaded.device.type,
                         **({"decoding": decoding(settings).said} if settings.captions is not None else {})}}
    config = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()
    versions = {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}}
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {"config": config, **what, "figures": dict(figures), "versions": versions, "date": date}


def append(path: Path, line: Mapping[str, Any]) -> None:
    """The line at the end of the file at `path`."""
    append_line(path, json.dumps(line, ensure_ascii=False))


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a file of results, none where there is no file; a half-written one is left out.

    Raises DataError for a file that is something else.
    """
    try:
        texts = path.read_text("utf-8").splitlines()
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a file of results: {error}") from None
    found = [line for line in map(_line, texts) if line is not None]
    if texts and not found:
        raise DataError(f"{path}: not a file of results")
    return found


def table(lines: Sequence[Mapping[str, Any]], last: Mapping[str, Any]) -> Iterator[str]:
    """The figures of `last` beside those of earlier evaluations on the same data with the same settings, as text."""
    alike = [line for line in lines if line["data"] == last["data"] and line["settings"] == last["settings"]][-COLUMNS:]
    names = list(last["figures"])
    width = max(map(len, (*names, "checkpoint")))
    heads = [("", [str(line["model"]) for line in alike]), ("checkpoint", [line["checkpoint"][:8] for line in alike]),
             ("date", [line["date"][:10] for line in alike])]
    values = [(name, [_shown(line["figures"].get(name)) for line in alike]) for name in names]
    rows = [*heads, *values]
    widths = [max(len(cells[i]) for _, cells in rows) for i in range(len(alike))]
    for name, cells in rows:
        yield "  ".join([name.ljust(width), *(cell.rjust(w) for cell, w in zip(cells, widths, strict=True))]).rstrip()


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _line(text: str) -> dict[str, Any] | None:
    try:
        line = json.loads(text)
    except ValueError:
        return None
    kinds = {"model": str, "checkpoint": str, "date": str, "data": dict, "settings": dict, "figures": dict}
    whole = isinstance(line, dict) and all(isinstance(line.get(key), kind) for key, kind in kinds.items())
    return line if whole else None


def _data(settings: Eval) -> Iterator[tuple[str, str]]:
    """(name, digest of content) of everything that was evaluated on."""
    for name, held_out in (("retrieval", settings.retrieval), ("captions", settings.captions)):
        if held_out is not None:
            yield name, open_data(held_out).digest
    if settings.images is not None:
        names = read_classes(Path(settings.images), Path(settings.classes) if settings.classes else None)
        words = json.dumps(list(names.items())).encode()
        for name, place in (("images", settings.images), ("images_train", settings.images_train)):
            if place is not None:
                yield name, _digest(_pictures(Path(place), names), Path(place), words)
    for folder in map(Path, settings.benchmarks):
        parts = ("test", "train", "val") if settings.probe else ("test",)
        files = [*folder.glob("*.txt"), *(path for part in parts for path in (folder / part).glob("*.tar"))]
        yield open_benchmark(folder).name, _digest(files, folder)


def _pictures(images: Path, names: Mapping[str, str]) -> list[Path]:
    return [path for name in names for path in (images / name).rglob("*") if path.suffix.lower() in SUFFIXES]


def _digest(files: Sequence[Path], root: Path, words: bytes = b"") -> str:
    """sha256 over names below `root` and contents, sorted by name."""
    found = hashlib.sha256(words)
    for name, path in sorted((path.relative_to(root).as_posix(), path) for path in files):
        with open(path, "rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        found.update(f"{name}\n{content}\n".encode())
    return found.hexdigest()
