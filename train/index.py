"""Pictures and their captions: where the bytes lie and what is said of them, held as flat arrays, never an object a row."""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from train.errors import DataError

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Halves = NDArray[np.float16]


@dataclass(frozen=True)
class Index:
    """All pictures of a data set, and where their bytes and their captions lie."""

    files: tuple[str, ...]
    """what the pictures lie in: tars, or any files"""
    pictures: Ints
    """(num_pictures, 3): number of the file, offset, length"""
    first: Ints
    """(num_pictures + 1,): the captions of picture i are first[i] .. first[i + 1] - 1"""
    text: bytes
    """every caption, utf-8, one behind the other"""
    text_end: Ints
    """(num_captions + 1,): caption j is text[text_end[j] : text_end[j + 1]]"""
    digest: str
    """of the rows, their captions and scores: what was trained on, wherever it lies"""
    num_blank: int = 0
    """rows left out because they have no caption"""
    identity: NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, np.uint64))
    """(num_pictures,) equal for two that are one by their `image_id`, or by where they lie"""
    chance: Floats | None = None
    """(num_captions,) how often each caption of a picture is shown, 1 over a picture; None: they take turns"""
    weight: Floats | None = None
    """(num_pictures,) how often each picture is seen, above 0, relative to each other; None: all alike"""
    rank: Floats | None = None
    """(num_pictures,) the column that a curriculum goes by; NaN where there is none"""
    starts: tuple[int, ...] = (0,)
    """the first picture of each source"""
    shares: tuple[float, ...] = (1.0,)
    """the weight of each source"""
    taught: Halves | None = None
    """(num_captions, 2E) a teacher's embedding of the picture beside that of the caption; None: nobody teaches"""
    counts: Mapping[str, int] = field(default_factory=dict)
    """what became of the rows under the scores; empty without scores"""
    _open: Callable[[str], "Handle"] = field(default_factory=lambda: lru_cache(maxsize=256)(Handle), repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.pictures)

    @property
    def num_captions(self) -> int:
        """Captions of all pictures together."""
        return len(self.text_end) - 1

    @property
    def card(self) -> dict[str, object]:
        """What a checkpoint says of the data it was trained on."""
        return {"digest": self.digest, "pictures": len(self), "captions": self.num_captions,
                **({"without_caption": self.num_blank} if self.num_blank else {}),
                **({"scores": dict(self.counts)} if self.counts else {})}

    @property
    def said(self) -> list[str]:
        """What a person should know of the rows that are left out, a line each."""
        blank = [f"{self.num_blank:,} rows have no caption and are left out"] if self.num_blank else []
        if not self.counts:
            return blank
        n = {name: f"{count:,}" for name, count in self.counts.items()}
        said = (f"scores: {n['scored']} rows have one, {n['unscored']} have none; {n['not_kept']} are not kept; "
                f"{n['unused_scores']} scores belong to no row")
        return [*blank, said]

    @property
    def bounds(self) -> list[tuple[int, int]]:
        """(first picture, the one behind the last) of each source."""
        return list(zip(self.starts, (*self.starts[1:], len(self)), strict=True))

    def caption(self, j: int) -> str:
        """The text of caption `j`."""
        return self.text[self.text_end[j] : self.text_end[j + 1]].decode()

    def captions(self, i: int) -> list[str]:
        """All captions of picture `i`."""
        return [self.caption(j) for j in range(self.first[i], self.first[i + 1])]

    def read(self, i: int) -> bytes:
        """The stored bytes of picture `i`. Raises DataError where the file is gone or shorter than the index says."""
        number, offset, length = self.pictures[i].tolist()
        try:
            found = self._open(self.files[number]).read(offset, length)
        except OSError as error:
            raise DataError(f"{self.files[number]}: {error.strerror or error}") from None
        if len(found) != length:
            raise DataError(f"{self.files[number]}: {length} bytes wanted at {offset}, {len(found)} there")
        return found

    def name(self, i: int) -> str:
        """Where picture `i` lies, for messages: `file@offset`."""
        return f"{self.files[self.pictures[i, 0]]}@{self.pictures[i, 1]}"

    @property
    def num_shared(self) -> int:
        """Pictures of a source that an earlier source has too, by their `image_id` or by where they lie."""
        if len(self.starts) == 1:
            return 0
        known: dict[str, int] = {}
        numbers = np.array([known.setdefault(os.path.realpath(name), len(known)) for name in self.files], np.int64)
        lying = (numbers[self.pictures[:, 0]] << 44) + self.pictures[:, 1]
        return len(self) - min(len(np.unique(self.identity)), len(np.unique(lying)))


def joined(parts: Sequence[Index], shares: Sequence[float]) -> Index:
    """The sources one behind the other, each with its share of the pairs seen."""
    files = sum((part.files for part in parts), ())
    num_files = np.cumsum([0, *(len(part.files) for part in parts)])
    starts = np.cumsum([0, *(len(part) for part in parts)])
    captions = np.cumsum([0, *(part.num_captions for part in parts)])
    texts = np.cumsum([0, *(len(part.text) for part in parts)])
    digest = hashlib.sha256("".join(f"{part.digest} {share:g}\n" for part, share in zip(parts, shares, strict=True)).encode())
    counts: dict[str, int] = {}
    for part in parts:
        counts = {name: counts.get(name, 0) + part.counts.get(name, 0) for name in (*counts, *part.counts)}
    return Index(
        files, np.concatenate([part.pictures + [number, 0, 0] for part, number in zip(parts, num_files, strict=False)]),
        np.concatenate([[0], *(part.first[1:] + at for part, at in zip(parts, captions, strict=False))]),
        b"".join(part.text for part in parts),
        np.concatenate([[0], *(part.text_end[1:] + at for part, at in zip(parts, texts, strict=False))]), digest.hexdigest(),
        sum(part.num_blank for part in parts), np.concatenate([part.identity for part in parts]),
        _filled([part.chance for part in parts], [1 / np.repeat(np.diff(p.first), np.diff(p.first)) for p in parts]),
        _filled([part.weight for part in parts], [np.ones(len(part)) for part in parts]),
        _filled([part.rank for part in parts], [np.full(len(part), np.nan) for part in parts]),
        tuple(starts[:-1].tolist()), tuple(shares), _taught(parts), counts)


def _taught(parts: Sequence[Index]) -> Halves | None:
    """The teacher's embeddings one behind the other; whoever has some, all have."""
    found = [part.taught for part in parts if part.taught is not None]
    if len({taught.shape[1] for taught in found}) > 1:
        widths = " and ".join(str(taught.shape[1] // 2) for taught in found)
        raise DataError(f"the sources' embeddings to learn from have {widths} numbers: several teachers")
    return np.concatenate(found) if found else None


def _filled(given: Sequence[Floats | None], without: Sequence[Floats]) -> Floats | None:
    """The arrays one behind the other, those of `without` for None; None where all are None."""
    if all(values is None for values in given):
        return None
    return np.concatenate([w if g is None else g for g, w in zip(given, without, strict=True)])


class Handle:
    """An open file, closed when nobody holds it any more: dropped from the cache or not, a reader keeps it alive."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def read(self, offset: int, length: int) -> bytes:
        """`length` bytes from `offset`, fewer at the file's end; safe from many threads."""
        return os.pread(self._file, length, offset)

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            os.close(self._file)
