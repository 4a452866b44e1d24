"""Rows one after the other in flat buffers, then grouped into pictures with their captions."""

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from train.errors import DataError
from train.index import Floats, Halves, Index, Ints
from train.scores import Scores

Place = tuple[int, int, int]
"""Number of the file, offset, length."""


class Rows:
    """Collects (identity of the picture, place, captions) row by row, as the scores have it, then groups them by picture."""

    def __init__(self, scores: Scores | None = None, salt: str = "") -> None:
        self._scores, self._salt = scores, salt
        self._identity: list[int] = []
        self._place: list[Place] = []
        self._chance: list[float] = []
        self._score: list[int] = []
        self._text_end: list[int] = [0]
        self._text = bytearray()
        self._hash = hashlib.sha256()
        self._blank = 0
        self._has_chances = False
        self._done: list[tuple[NDArray[np.uint64], Ints, Ints, Floats, Ints]] = []

    def start_file(self, name: str) -> None:
        """What comes next lies in this file; its rows so far go into arrays."""
        self._flush()
        self._hash.update(f"file {name}\n".encode())

    def add(self, identity: str, place: Place, captions: Sequence[str], chances: Sequence[float] | None = None, *,
            uid: str | None = None, everywhere: bool = False) -> None:
        """One row: a picture's identity and place, its captions, and how often each is shown.

        `everywhere`: the identity is the picture's in every source, not its place in this one.
        """
        row = -1
        if self._scores is not None:
            row = self._scores.row(uid)
            if not self._scores.keeps(row):
                return
            captions, chances = self._scores.captions(row, captions, chances)
        self._has_chances |= chances is not None
        texts = [text.strip() for text in captions]
        alike = [1 / max(1, sum(map(bool, texts)))] * len(texts)
        kept = [(text, chance) for text, chance in zip(texts, chances or alike, strict=True) if text and chance > 0]
        self._blank += not kept
        salted = identity if everywhere else f"{self._salt}{identity}"
        number = int.from_bytes(hashlib.blake2b(salted.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
        for caption, chance in kept:
            encoded = caption.encode("utf-8", "replace")
            self._identity.append(number)
            self._place.append(place)
            self._chance.append(chance)
            self._score.append(row)
            self._text += encoded
            self._text_end.append(len(self._text))
            self._hash.update(f"{identity} {place[1]} {place[2]} {len(encoded)}\n".encode("utf-8", "surrogatepass") + encoded)

    def index(self, files: tuple[str, ...]) -> Index:
        """The rows grouped: pictures in the order of their first row, their captions in the order of rows, each once."""
        self._flush()
        identity, place, end, chance, score = self._columns()
        _, first_row, group = np.unique(identity, return_index=True, return_inverse=True)
        rank = np.argsort(np.argsort(first_row, kind="stable"), kind="stable")
        picture = rank[group]
        rows, text, text_end, caption = self._unique_captions(np.argsort(picture, kind="stable"), picture, end)
        counts = np.bincount(picture[rows], minlength=len(first_row))
        first = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        ordered = np.sort(first_row)
        weight: Floats | None = None
        rating: Floats | None = None
        shown: Floats | None = None
        if self._scores is not None:
            weight = _largest(self._scores.weight, score, picture, len(first_row), 1.0)
            rating = _largest(self._scores.rank, score, picture, len(first_row), np.nan)
            if self._scores.weight is not None:
                chance = chance * np.where(score < 0, 1.0, self._scores.weight[score])
        if self._has_chances or (weight is not None and len(rows) > len(first_row)):
            total = np.bincount(caption, weights=chance, minlength=len(rows))
            shown = np.asarray(total / np.repeat(np.bincount(picture[rows], total, len(first_row)), counts), np.float64)
        taught = None if self._scores is None else self._taught(self._scores, score[rows])
        for values in (shown, weight, rating, taught):
            if values is not None:
                self._hash.update(b"scores")
                self._hash.update(np.ascontiguousarray(values).view(np.uint8).data)    # no second copy of a teacher's gigabytes
        return Index(files, place[ordered], first, text, text_end, self._hash.hexdigest(), self._blank, identity[ordered], shown,
                     weight, rating, taught=taught, counts={} if self._scores is None else self._scores.counts)

    def _taught(self, scores: Scores, rows: Ints) -> Halves | None:
        """A teacher's embeddings of each caption and its picture: those of the row that it comes from."""
        if scores.taught is None:
            return None
        if (rows < 0).any():
            raise DataError(f"{int((rows < 0).sum()):,} captions are of rows that the scores do not know, and distill needs "
                            "embeddings of all; missing: drop leaves them out")
        return scores.taught[rows]

    def _columns(self) -> tuple[NDArray[np.uint64], Ints, Ints, Floats, Ints]:
        """(identity, place, end of the text, chance, row of the scores) of every caption collected."""
        if not self._done:
            return (np.empty(0, np.uint64), np.empty((0, 3), np.int64), np.zeros(1, np.int64), np.empty(0), np.empty(0, np.int64))
        identity, place, end, chance, score = (np.concatenate(column) for column in zip(*self._done, strict=True))
        return identity, place, np.concatenate([np.zeros(1, np.int64), end]), chance, score

    def _unique_captions(self, rows: Ints, picture: Ints, end: Ints) -> tuple[Ints, bytes, Ints, Ints]:
        """(rows without those that repeat a caption of their picture, the captions in that order, where each ends, which of
        them each of all rows shows)."""
        kept: list[int] = []
        parts: list[bytes] = []
        seen, current = dict[bytes, int](), -1
        shows = np.zeros(len(rows), np.int64)
        for row in rows.tolist():
            if picture[row] != current:
                seen, current = {}, int(picture[row])
            caption = bytes(self._text[end[row] : end[row + 1]])
            if caption not in seen:
                seen[caption] = len(kept)
                kept.append(row)
                parts.append(caption)
            shows[row] = seen[caption]
        ends = np.concatenate([[0], np.cumsum([len(p) for p in parts])]).astype(np.int64)
        return np.array(kept, np.int64), b"".join(parts), ends, shows

    def _flush(self) -> None:
        if self._identity:
            self._done.append((np.array(self._identity, np.uint64), np.array(self._place, np.int64),
                               np.array(self._text_end[1:], np.int64), np.array(self._chance), np.array(self._score, np.int64)))
        self._identity, self._place, self._chance, self._score, self._text_end = [], [], [], [], [len(self._text)]


def _largest(values: Floats | None, score: Ints, picture: Ints, num_pictures: int, unscored: float) -> Floats | None:
    """For each picture the largest value that the scores have for one of its rows, `unscored` for rows they do not know."""
    if values is None:
        return None
    of_row = np.where(score < 0, unscored, values[score])
    found = np.full(num_pictures, -np.inf)
    np.maximum.at(found, picture, np.where(np.isnan(of_row), -np.inf, of_row))
    return np.where(np.isneginf(found), np.nan, found)
