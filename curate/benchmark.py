"""The pictures of benchmarks, from folders and tars on this machine, and which pictures are like them."""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice, repeat
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

from curate.decoding.images import BadImage, decode
from curate.errors import UserError
from curate.fingerprint import phash, thumb
from curate.sources.locations import PICTURES, matching_files
from curate.tar import BadTar, members
from curate.vectors import SLACK, cosines

Ints = NDArray[np.int64]
Halves = NDArray[np.float16]
NONE = np.iinfo(np.int64).max
"""The number of no picture: larger than all."""
TOGETHER = 64
"""Pictures that are decoded, and rows that are compared, at once."""
BLOCK = 8192


@dataclass(frozen=True)
class Pictures:
    """All pictures of all benchmarks, numbered: `names[of[i]]` is where picture i belongs."""

    names: tuple[str, ...]
    of: Ints
    sha256: list[str]
    phash: NDArray[np.uint64]
    thumb: NDArray[np.uint8]
    """(pictures, 48), 4x4 pixels of 3 bytes"""
    emb: Mapping[str, Halves]
    """(pictures, dims) of each benchmark that was embedded"""


Embed = Callable[[list[Image]], NDArray[np.float32]]


def read(where: Mapping[str, str], looks: bool, embed: Mapping[str, Embed]) -> Pictures:
    """Read, hash and, where `embed` knows how for a benchmark, embed its pictures. Without `looks` nothing need be a picture.

    Raises UserError for a benchmark without pictures, and for one that cannot be decoded: it could not be found again.
    """
    of, hashes, embs = list[int](), list[tuple[str, str, str]](), {name: list[Halves]() for name in embed}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for number, (name, path) in enumerate(where.items()):
            found, embedder = pictures(path), embed.get(name)
            before = len(of)
            while together := list(islice(found, TOGETHER)):
                told = list(pool.map(_hashed, together, repeat(looks), repeat(embedder is not None)))
                hashes += [found for found, _ in told]
                of += [number] * len(told)
                if embedder is not None:
                    embs[name].append(embedder([picture for _, picture in told if picture is not None]).astype(np.float16))
            if len(of) == before:
                raise UserError(f"benchmark '{name}': {path} holds no picture")
    thumbs = np.frombuffer(bytes.fromhex("".join(t for _, _, t in hashes)), np.uint8).reshape(-1, 48)
    return Pictures(tuple(where), np.array(of, np.int64), [s for s, _, _ in hashes], as_bits([p for _, p, _ in hashes]), thumbs,
                    {name: np.concatenate(parts) for name, parts in embs.items()})


def pictures(where: str) -> Iterator[tuple[str, bytes]]:
    """(name, bytes) of every picture of a benchmark: files, and members of tars, that are called like pictures."""
    for path in matching_files(where):
        if path.suffix.lower() in PICTURES:
            yield str(path), path.read_bytes()
        elif path.suffix == ".tar":
            yield from _in_tar(path)


def _in_tar(path: Path) -> Iterator[tuple[str, bytes]]:
    try:
        with open(path, "rb") as file:
            for member in members(file):
                if Path(member.name).suffix.lower() in PICTURES:
                    yield f"{path}/{member.name}", os.pread(file.fileno(), member.length, member.offset)
    except BadTar as error:
        raise UserError(f"{path}: {error}") from None


def _hashed(named: tuple[str, bytes], looks: bool, embed: bool) -> tuple[tuple[str, str, str], Image | None]:
    name, data = named
    sha256 = hashlib.sha256(data).hexdigest()
    if not looks and not embed:
        return (sha256, "0" * 16, "0" * 96), None
    try:
        picture = decode(data)
    except BadImage as error:
        raise UserError(f"{name} cannot be decoded ({error.status}), so nothing like it could be found; take it away, or compare "
                        "bytes alone") from None
    return (sha256, phash(picture), thumb(picture)), picture if embed else None


def as_bits(hashes: list[str]) -> NDArray[np.uint64]:
    """16 hex digits each as a number."""
    return np.frombuffer(bytes.fromhex("".join(hashes)), ">u8").astype(np.uint64)


class Looks:
    """Pictures by bands of their phash: of two that differ in `max_bits` bits, one of max_bits + 1 bands is equal."""

    def __init__(self, pictures: Pictures, max_bits: int, max_levels: int) -> None:
        self._phash, self._thumb = pictures.phash, pictures.thumb.astype(np.int16)
        self._max_bits, self._max_levels = max_bits, max_levels
        edges = np.linspace(0, 64, max_bits + 2).astype(int).tolist()
        self._masks = [np.uint64((1 << high) - (1 << low)) for low, high in zip(edges, edges[1:], strict=False)]
        self._orders = [np.argsort(self._phash & mask, kind="stable") for mask in self._masks]

    def first(self, hashes: NDArray[np.uint64], thumbs: NDArray[np.uint8]) -> Ints:
        """For each row the first picture at most max_bits and max_levels away, else NONE."""
        found = np.full(len(hashes), NONE)
        for start in range(0, len(hashes), TOGETHER):
            rows = np.arange(start, min(start + TOGETHER, len(hashes)))
            for mask, order in zip(self._masks, self._orders, strict=True):
                keys, wanted = (self._phash & mask)[order], hashes[rows] & mask
                low, high = (np.searchsorted(keys, wanted, side) for side in ("left", "right"))
                row = np.repeat(rows, high - low)
                picture = order[np.arange(len(row)) - np.repeat(np.cumsum(high - low) - high, high - low)]
                near = np.bitwise_count(self._phash[picture] ^ hashes[row]) <= self._max_bits
                row, picture = row[near], picture[near]
                alike = np.abs(self._thumb[picture] - thumbs[row]).max(axis=1, initial=0) <= self._max_levels
                np.minimum.at(found, row[alike], picture[alike])
        return found


class Embedded:
    """Pictures by their embeddings, each compared with every row."""

    def __init__(self, emb: Halves, cos: float) -> None:
        self._emb, self._cos, self.dims = emb, np.float32(cos), emb.shape[1]

    def first(self, rows: Halves) -> Ints:
        """For each row (with a direction) the first picture at least `cos` near by the exact cosine, else NONE."""
        found, unit = np.full(len(rows), NONE), _unit(rows)
        for at in range(0, len(self._emb), BLOCK):
            part = self._emb[at : at + BLOCK]
            with np.errstate(invalid="ignore"):
                row, picture = np.nonzero(unit @ _unit(part).T >= self._cos - SLACK)
            near = cosines(rows[row], part[picture]) >= self._cos
            np.minimum.at(found, row[near], at + picture[near])
        return found


def _unit(vectors: Halves) -> NDArray[np.float32]:
    """Rows of length 1; NaN, which is near to nothing, for those without a direction."""
    wide = vectors.astype(np.float32)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(wide / np.linalg.norm(wide, axis=1, keepdims=True))


def stored_embeddings(where: str) -> Halves:
    """Embeddings that somebody made: .npy files of (pictures, dims), or a folder as clip-retrieval writes it (img_emb/*.npy)."""
    files = [path for path in matching_files(where) if path.suffix == ".npy"]
    files = [path for path in files if path.parent.name == "img_emb"] or files
    try:
        parts = [np.load(path, allow_pickle=False) for path in files]
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None
    if not parts or any(p.ndim != 2 or p.dtype.kind != "f" or p.shape[1] != parts[0].shape[1] for p in parts):
        raise UserError(f"{where} holds no embeddings: .npy files of as many rows as pictures, all with as many numbers")
    return np.concatenate(parts).astype(np.float16)
