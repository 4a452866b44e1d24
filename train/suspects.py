"""OUT/suspects.jsonl: the batches that a training passed over, each with the uids of its pictures, for whoever curates them.

    {"step": 412, "reason": "the loss is nan", "epoch": 0, "pictures": [{"uids": ["…"], "place": "shards/00003.tar@51200"}, …], …}
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from train.config import Config, Data
from train.data import matches
from train.errors import Diverged
from train.files import write_bytes
from train.index import Index
from train.tars import samples
from train.watch import Suspect

Place = tuple[str, int]
"""A file, and where in it a picture starts."""


class Suspects:
    """The lines of one training; those of another one in the same folder do not count."""

    def __init__(self, out: Path, purpose: Mapping[str, Any]) -> None:
        """`purpose`: what tells this training from others, as plain data."""
        self.path = out / "suspects.jsonl"
        self._training = hashlib.sha256(json.dumps(purpose, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def steps(self) -> list[int]:
        """The steps, from 0, that are passed over, the earliest first."""
        return sorted(entry["step"] - 1 for entry in self._own())

    def check(self, config: Config) -> None:
        """Raises Diverged where there are more suspect batches than the settings let pass."""
        found = self._own()
        if len(found) > config.rollbacks:
            after = f" after {config.rollbacks} rollback{'s' * (config.rollbacks != 1)}" if config.rollbacks else ""
            raise Diverged(f"step {found[-1]['step']}: {found[-1]['reason']}{after}; its pictures are in {self.path}; try a "
                           f"lower lr than {config.lr:g} or a longer warmup than {config.warmup:g}")

    def add(self, suspect: Suspect, epoch: int, pictures: Sequence[Mapping[str, Any]]) -> None:
        """One more line; the file is whole at any time."""
        line = {"step": suspect.step + 1, "reason": suspect.reason, "epoch": epoch, "pictures": list(pictures),
                "training": self._training}
        write_bytes(self.path, b"".join(self._lines()) + (json.dumps(line, ensure_ascii=False) + "\n").encode("utf-8", "replace"))

    def _own(self) -> list[dict[str, Any]]:
        found = (json.loads(line) for line in self._lines())
        return [entry for entry in found if entry["training"] == self._training]

    def _lines(self) -> list[bytes]:
        return self.path.read_bytes().splitlines(keepends=True) if self.path.exists() else []


def named(data: Data, index: Index, pictures: Sequence[int]) -> list[dict[str, Any]]:
    """Of each picture the uids of its rows, as table or json have them (of tars without one their key), and where it lies."""
    places = [(index.files[file], offset) for file, offset, _ in index.pictures[list(pictures)].tolist()]
    uids: dict[Place, list[str]] = {place: [] for place in places}
    for part in data.parts:
        for place, uid in (_of_tables(part) if part.table else _of_tars(sorted({file for file, _ in places}), part)):
            if place in uids:
                uids[place].append(uid)
    return [{"uids": uids[file, offset], "place": f"{file}@{offset}"} for file, offset in places]


def _of_tars(files: Sequence[str], part: Data) -> Iterator[tuple[Place, str]]:
    """(place, uid) of the samples of those of `files` that belong to `part`."""
    of_part = set(map(str, matches(part.shards)))
    for file in files:
        if file not in of_part:
            continue
        with open(file, "rb") as tar:
            for sample in samples(Path(file)):
                uid = None
                if sample.json is not None:
                    tar.seek(sample.json.offset)
                    uid = json.loads(tar.read(sample.json.length)).get("uid")
                yield (file, sample.picture.offset), sample.key if uid is None else str(uid)


def _of_tables(part: Data) -> Iterator[tuple[Place, str]]:
    """(place, uid) of the rows of tables that have uids."""
    import pyarrow.parquet as pq

    for path in matches(part.table):
        with pq.ParquetFile(path) as table:
            if "uid" not in table.schema_arrow.names:
                continue
            for batch in table.iter_batches(columns=["image", "uid"]):
                for image, uid in zip(batch["image"].to_pylist(), batch["uid"].to_pylist(), strict=True):
                    if image is not None and image["file"] is not None and uid is not None:
                        yield (str(Path(part.root) / image["file"]), int(image["offset"] or 0)), str(uid)
