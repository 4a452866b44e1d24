"""A score table: what is said of rows by their uid, laid over the data as it is read. No tar is written anew.

Columns of its parquet files, all but uid optional; others are left alone:

    uid            of the row: `uid` in a sample's json, or in the table of pictures
    keep           bool: false or null leaves the row out
    weight         number of 0 or more: how often the row is seen, relative to the others; 0 leaves it out
    caption        whole number: which of the row's captions it shows, from 0; text, or a list of texts: these instead
    caption_probs  list of numbers: how often each of the captions is shown

A curriculum names one more column of numbers, `distill` two of embeddings.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from train.errors import DataError, did_you_mean
from train.index import Floats, Halves

CHOICES = ("caption", "caption_probs")
TAUGHT = ("taught_image", "taught_text")
"""What the columns of a teacher's embeddings are called here."""


def uid_hash(uid: str) -> int:
    """64 bits of a uid: what rows are joined on."""
    return int.from_bytes(hashlib.blake2b(uid.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


class Scores:
    """One table in flat arrays, a number a row; texts stay in Arrow's buffers."""

    def __init__(self, paths: Sequence[Path], rank: str | None, missing: str, taught: Sequence[str] = ()) -> None:
        """Read the columns there are, the column `rank` that a curriculum goes by, and a teacher's embeddings of pictures and of
        texts, the columns `taught`.

        Raises DataError for a table without uids, a uid that stands twice, and values that are no scores.
        """
        self._paths, self._missing = paths, missing
        columns = _read(paths, {**({"rank": rank} if rank else {}), **(dict(zip(TAUGHT, taught, strict=True)) if taught else {})})
        self._order = np.argsort(columns["uid"], kind="stable")
        self._hashes = columns["uid"][self._order]
        twice = np.flatnonzero(self._hashes[1:] == self._hashes[:-1])
        if len(twice):
            uids = "a uid stands" if len(twice) == 1 else f"{len(twice)} uids stand"
            raise DataError(f"{_names(paths)}: {uids} twice, first in row {int(self._order[twice[0] + 1])}")
        self.weight: Floats | None = columns.get("weight")
        """by row, 0 or more; None where there is no such column"""
        self.rank: Floats | None = columns.get("rank")
        """by row, NaN where there is none"""
        self.taught: Halves | None = self._one_width([columns[name] for name in TAUGHT]) if taught else None
        """by row, (rows, 2E): the teacher's embedding of the picture beside that of the text"""
        self._keep = columns.get("keep")
        if self.weight is not None:
            bad = np.flatnonzero(~(np.isfinite(self.weight) & (self.weight >= 0)))
            if len(bad):
                raise DataError(f"{_names(paths)}: weight: {self.weight[bad[0]]} in row {bad[0]} is not a number of 0 or more")
            self._keep = (self.weight > 0) if self._keep is None else self._keep & (self.weight > 0)
        self._captions, self._probs = columns.get("caption"), columns.get("caption_probs")
        self._joined = np.zeros(len(self._hashes), bool)
        self._num = dict.fromkeys(("scored", "unscored", "not_kept"), 0)

    def _one_width(self, halves: Sequence[Halves]) -> Halves:
        if halves[0].shape[1] != halves[1].shape[1]:
            widths = " and ".join(str(half.shape[1]) for half in halves)
            raise DataError(f"{_names(self._paths)}: a teacher's embeddings of pictures and texts have {widths} numbers")
        return np.concatenate(halves, axis=1)

    def __len__(self) -> int:
        return len(self._hashes)

    @property
    def counts(self) -> dict[str, int]:
        """Rows of the data that are scored, that are not, that the scores leave out; and scores of no row of the data."""
        return {**self._num, "unused_scores": len(self) - int(self._joined.sum())}

    def row(self, uid: str | None) -> int:
        """The table's row of `uid`, -1 where there is none."""
        if uid is None:
            return -1
        wanted = np.uint64(uid_hash(uid))
        at = int(np.searchsorted(self._hashes, wanted))
        return int(self._order[at]) if at < len(self) and self._hashes[at] == wanted else -1

    def keeps(self, row: int) -> bool:
        """Whether the data's row that belongs to this one is trained on; counts it."""
        self._num["scored" if row >= 0 else "unscored"] += 1
        if row < 0:
            return self._missing == "keep"
        self._joined[row] = True
        kept = self._keep is None or bool(self._keep[row])
        self._num["not_kept"] += not kept
        return kept

    def captions(self, row: int, own: Sequence[str], own_chances: Sequence[float] | None,
                 ) -> tuple[Sequence[str], Sequence[float] | None]:
        """(captions, how often each is shown) of a row that by itself has `own`."""
        chosen = None if row < 0 or self._captions is None else self._captions[row].as_py()
        if isinstance(chosen, int):
            if not 0 <= chosen < len(own):
                raise DataError(f"{_names(self._paths)}: caption {chosen} in row {row}, and the sample has {len(own)}")
            own, own_chances = [own[chosen]], None
        elif chosen is not None:
            own, own_chances = [chosen] if isinstance(chosen, str) else [text or "" for text in chosen], None
        chances = None if row < 0 or self._probs is None else self._probs[row].as_py()
        if chances is None:
            return own, own_chances
        try:
            return own, checked_chances(chances, len(own))
        except ValueError as error:
            raise DataError(f"{_names(self._paths)}: row {row}: {error}") from None

    def check(self) -> None:
        """Raises DataError where no row of the data is in the table: it belongs to other data."""
        if not self._joined.any():
            raise DataError(f"{_names(self._paths)} knows the uid of none of the {self._num['unscored']:,} rows")


def checked_chances(chances: Iterable[object], num_captions: int) -> list[float]:
    """How often each caption of a row is shown, 1 in all. Raises ValueError where these are no numbers of 0 or more, one a
    caption."""
    found = [float(c) if isinstance(c, int | float) and not isinstance(c, bool) else np.nan for c in chances]
    if len(found) != num_captions:
        raise ValueError(f"{len(found)} caption_probs for {num_captions} captions")
    if not all(0 <= c < np.inf for c in found) or not sum(found):
        raise ValueError(f"caption_probs {found} are not numbers of 0 or more, one of them above 0")
    return [c / sum(found) for c in found]


def _read(paths: Sequence[Path], named: Mapping[str, str]) -> dict[str, Any]:
    """uid as hashes; keep, weight, the curriculum's column (as `rank`) and embeddings as arrays; captions and their probabilities
    as Arrow arrays. Only the columns that are there, and those of `named`, which must be."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    parts: dict[str, list[Any]] = {}
    for path in paths:
        try:
            with pq.ParquetFile(path) as file:
                wanted = _wanted(path, file.schema_arrow, named)
                if parts and parts.keys() != wanted.keys():
                    only_one = ", ".join(sorted(parts.keys() ^ wanted.keys()))
                    raise DataError(f"{path} has other columns than {paths[0]}: {only_one}")
                for batch in file.iter_batches(columns=[*dict.fromkeys(wanted.values())]):
                    for name, column in wanted.items():
                        parts.setdefault(name, []).append(_values(path, name, batch[column]))
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{path}: {str(error).splitlines()[0]}") from None
    if not parts:
        raise DataError(f"{_names(paths)} has no rows")
    for name in CHOICES:
        if len(kinds := {str(found.type) for found in parts.get(name, [])}) > 1:
            raise DataError(f"{_names(paths)}: column '{name}' is {' in one file and '.join(sorted(kinds))} in another")
    for name in TAUGHT:
        if len(widths := {found.shape[1] for found in parts.get(name, [])}) > 1:
            raise DataError(f"{_names(paths)}: a teacher's embeddings have {' and '.join(map(str, sorted(widths)))} numbers")
    return {name: pa.chunked_array(found).combine_chunks() if name in CHOICES else np.concatenate(found)
            for name, found in parts.items()}


def _wanted(path: Path, schema: Any, named: Mapping[str, str]) -> dict[str, str]:
    """What is read → the column it is read from. Raises DataError for a column that lacks or is of another type."""
    import pyarrow.types as is_

    def is_list(kind: Any, inner: Any) -> bool:
        return bool((is_.is_list(kind) or is_.is_large_list(kind) or is_.is_fixed_size_list(kind)) and inner(kind.value_type))

    def is_text(kind: Any) -> bool:
        return bool(is_.is_string(kind) or is_.is_large_string(kind))

    def is_number(kind: Any) -> bool:
        return bool(is_.is_integer(kind) or is_.is_floating(kind))

    takes = {"uid": (lambda k: is_text(k) or is_.is_integer(k), "text"), "keep": (is_.is_boolean, "bool"),
             "weight": (is_number, "number"),
             "caption": (lambda k: is_.is_integer(k) or is_text(k) or is_list(k, is_text), "whole number, text or list of texts"),
             "caption_probs": (lambda k: is_list(k, is_number), "list of numbers"), "rank": (is_number, "number"),
             **dict.fromkeys(TAUGHT, (lambda k: is_list(k, is_.is_floating), "list of numbers"))}
    needed = {"uid": "uid", **named}
    for column in needed.values():
        if column not in schema.names:
            raise DataError(f"{path} has no column '{column}'{did_you_mean(column, schema.names)}")
    wanted = {**{name: name for name in takes if name in schema.names and name not in ("rank", *TAUGHT)}, **needed}
    for name, column in wanted.items():
        accepts, said = takes[name]
        if not accepts(schema.field(column).type):
            raise DataError(f"{path}: column '{column}' is {schema.field(column).type}, not {said}")
    return wanted


def _values(path: Path, name: str, column: Any) -> Any:
    """A batch of a column as it is kept."""
    import pyarrow as pa

    if name == "uid":
        if column.null_count:
            raise DataError(f"{path}: a row has no uid")
        return np.fromiter((uid_hash(str(uid)) for uid in column.to_pylist()), np.uint64, len(column))
    if name == "keep":
        kept: NDArray[np.bool_] = column.fill_null(False).to_numpy(zero_copy_only=False)
        return kept
    if name in TAUGHT:
        return _embeddings(path, name, column)
    if name in CHOICES:
        return column.cast(_one_type(column.type))
    return column.cast(pa.float64()).fill_null(float("nan")).to_numpy(zero_copy_only=False)


def _one_type(kind: Any) -> Any:
    """What captions or their chances are kept as, in whatever widths each file has them."""
    import pyarrow as pa

    if pa.types.is_integer(kind):
        return pa.int64()
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return pa.large_string()
    is_text = pa.types.is_string(kind.value_type) or pa.types.is_large_string(kind.value_type)
    return pa.large_list(pa.large_string() if is_text else pa.float64())


def _embeddings(path: Path, name: str, column: Any) -> Halves:
    """(rows, E) in half precision, of length 1."""
    import pyarrow.compute as pc

    values = column.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
    width = len(values) // max(1, len(column))
    if not width or not pc.all(pc.equal(pc.list_value_length(column), width), skip_nulls=False).as_py():
        raise DataError(f"{path}: the teacher's embeddings of {name.removeprefix('taught_')}s: a row has none, or one of another "
                        "length; keep: false leaves no such row out, take it out of the table")
    rows = values.reshape(len(column), width)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    if not (np.isfinite(lengths) & (lengths > 0)).all():
        raise DataError(f"{path}: a teacher's embedding is no vector of finite numbers")
    found: Halves = (rows / lengths).astype(np.float16)
    return found


def _names(paths: Sequence[Path]) -> str:
    return ", ".join(str(path) for path in paths)
