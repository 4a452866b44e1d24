"""A list of what must not be here: by hash, address or row. `download` matches it before anything is stored, `curate takedown`
in what is there. One entry a line; a word in front says what an entry is where that is not plain.

    # a comment, only as a line of its own
    <64 hex digits>                sha256 of a picture's file, as it came or as it is stored
    <32 hex digits>                md5, likewise
    <16 hex digits>[/BITS]         phash, as `image_hash` has it; so many of its 64 bits may differ, 4 by default
    pdq:<64 hex digits>[/BITS]     PDQ (needs the package pdqhash); 31 of 256 bits, pictures of quality 50 or more
    example.com, https://example.com/a.jpg, https://example.com/u42*     addresses, as in the opt-out list
    image_id:<32 hex digits>   uid:<a row's uid>   uid_sha256:<sha256 of one>

`sha256:`, `md5:`, `phash:` and `url:` may be written too. An entry is never shown, not even where it cannot be read.
"""

import hashlib
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

from curate import files
from curate.errors import UserError
from curate.fetching.opt_out_list import ALLOWED, OptOutList
from curate.fingerprint import phash

PHASH_BITS, MOST_BITS = 4, 8
"""As `same_image`: 4 bits found all re-encoded photos again, and no two different ones of 6.8 million pairs."""
PDQ_BITS, PDQ_QUALITY = 31, 50
"""Facebook's threatexchange: two PDQ hashes match within 31 bits; below quality 50 a hash says nothing."""
LEAST_SET = 16
"""A phash with fewer bits set is one of a blank picture, which looks like every other: compared by bytes alone (our choice)."""
_HEX = {"sha256": 64, "md5": 32, "phash": 16, "pdq": 64, "image_id": 32, "uid_sha256": 64}
_BARE = {64: "sha256", 32: "md5", 16: "phash"}
_KIND = re.compile(rf"({'|'.join([*_HEX, 'uid', 'url'])}):(.*)", re.DOTALL)
_BITS = re.compile(r"([0-9a-f]+)(?:/(\d{1,2}))?")
SAYS = f"a line is a hash of 64, 32 or 16 hex digits, an address, or kind:value with {', '.join([*_HEX, 'uid', 'url'])}"

Bits = NDArray[np.uint64]


@dataclass(frozen=True)
class Near:
    """Hashes that match within so many bits each: (n, words) of 64 bits, (n,) bits."""

    hashes: Bits
    bits: NDArray[np.int64]

    @classmethod
    def of(cls, entries: Sequence[tuple[str, int]], digits: int) -> "Near":
        """Of (hex digits, bits)."""
        found = np.frombuffer(bytes.fromhex("".join(h for h, _ in entries)), ">u8").astype(np.uint64)
        return cls(found.reshape(-1, digits // 16), np.array([b for _, b in entries], np.int64))

    def any(self, hashes: Bits) -> NDArray[np.bool_]:
        """Which of (n, words) hashes match one of these."""
        found = np.zeros(len(hashes), np.bool_)
        for entry, bits in zip(self.hashes, self.bits, strict=True):
            found |= np.bitwise_count(hashes ^ entry).sum(axis=1) <= bits
        return found

    def __len__(self) -> int:
        return len(self.bits)


@dataclass(frozen=True)
class BlockList:
    """The entries of a list, by kind, and its digest, by which notes call it."""

    sha256: frozenset[str]
    md5: frozenset[str]
    image_id: frozenset[str]
    uid_sha256: frozenset[str]
    phash: Near
    pdq: Near
    urls: OptOutList | None
    digest: str

    @property
    def by_looks(self) -> bool:
        """Whether pictures have to be decoded to be compared."""
        return bool(len(self.phash) or len(self.pdq))

    def match_url(self, url: str) -> str:
        """`url` or `image_id` where an address is listed, else nothing."""
        if self.urls is not None and self.urls.match_text(url):
            return "url"
        return "image_id" if self.image_id and image_id_of(url) in self.image_id else ""

    def match_bytes(self, data: bytes) -> str:
        """`sha256` or `md5` where a file is listed, else nothing."""
        if self.sha256 and hashlib.sha256(data).hexdigest() in self.sha256:
            return "sha256"
        return "md5" if self.md5 and md5_of(data) in self.md5 else ""

    def match_picture(self, picture: Image) -> str:
        """`phash` or `pdq` where a picture looks like a listed one, else nothing."""
        if len(self.phash) and self.phash.any(telling([phash(picture)])).any():
            return "phash"
        return "pdq" if len(self.pdq) and self.pdq.any(_pdq_of(picture)).any() else ""


def read(path: Path, bits: int = PHASH_BITS) -> BlockList:
    """The list in a file; `bits` is how far a phash may be off that does not say. UserError for what cannot be read."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the list {path}: {getattr(error, 'strerror', None) or 'it is no UTF-8 text'}") from None
    return of_lines(lines, path, bits)


def of_lines(lines: Sequence[str], path: Path = Path("the list"), bits: int = PHASH_BITS) -> BlockList:
    """The list of these lines; `path` is where messages say they stand."""
    found: dict[str, list[Any]] = defaultdict(list)
    for number, line in enumerate(lines, 1):
        entry = line.strip()
        if entry and not entry.startswith("#"):
            kind, value = _parsed(entry, f"{path}:{number}", bits)
            found[kind].append((number, value) if kind == "url" else value)
    if found["pdq"] and find_spec("pdqhash") is None:
        raise UserError(f"{path} holds PDQ hashes, which need the package pdqhash: pip install pdqhash")
    digest = files.digest({kind: sorted({repr(v[1] if kind == "url" else v) for v in values}) for kind, values in found.items()})
    sha256, md5, image_id, uid_sha256 = (frozenset(found[kind]) for kind in ("sha256", "md5", "image_id", "uid_sha256"))
    looks, pdq = (Near.of(sorted(set(found[kind])), _HEX[kind]) for kind in ("phash", "pdq"))
    addresses = _addresses(found["url"], path) if found["url"] else None
    return BlockList(sha256, md5, image_id, uid_sha256, looks, pdq, addresses, digest)


def _parsed(entry: str, where: str, bits: int) -> tuple[str, Any]:
    """(kind, value) of a line: hex digits, (hex digits, bits), or an address."""
    named = _KIND.fullmatch(entry)
    kind, value = (named[1], named[2].strip()) if named else ("", entry)
    hashed = _BITS.fullmatch(value.lower())
    if not kind:
        kind = _BARE.get(len(hashed[1]), "url") if hashed else "url"
    if kind == "uid":
        return "uid_sha256", sha256_of(value)
    if kind == "url":
        return kind, value
    plain = kind not in ("phash", "pdq")
    if not hashed or len(hashed[1]) != _HEX[kind] or (plain and hashed[2]):
        raise UserError(SAYS, where)
    if plain:
        return kind, hashed[1]
    most, default = (MOST_BITS, bits) if kind == "phash" else (PDQ_BITS, PDQ_BITS)
    off = int(hashed[2]) if hashed[2] else default
    if off > most:
        raise UserError(f"a {kind} may be off by at most {most} bits", where)
    return kind, (hashed[1], off)


def _addresses(entries: Sequence[tuple[int, str]], path: Path) -> OptOutList:
    for number, entry in entries:
        try:
            OptOutList(path, [(number, entry)])
        except UserError:
            raise UserError(ALLOWED, f"{path}:{number}") from None     # its own words would show the entry
    return OptOutList(path, entries)


def telling(hashes: Sequence[str]) -> Bits:
    """Hashes of 16 hex digits as (n, 1) words; those of blank pictures left out."""
    found = np.frombuffer(bytes.fromhex("".join(hashes)), ">u8").astype(np.uint64)
    return found[np.bitwise_count(found) >= LEAST_SET].reshape(-1, 1)


def sha256_of(text: str) -> str:
    """sha256 of a text's UTF-8 bytes, as hex."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def md5_of(data: bytes) -> str:
    """md5 as hex: what other people's lists have."""
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def image_id_of(url: str) -> str:
    """The image_id of an address (see `curate.sources.rows`)."""
    return hashlib.blake2b(url.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def _pdq_of(picture: Image) -> Bits:
    """(1, 4) words of a picture's PDQ hash; (0, 4) where its quality is too low to say anything."""
    bits, quality = import_module("pdqhash").compute(np.asarray(picture.convert("RGB")))
    if quality < PDQ_QUALITY:
        return np.empty((0, 4), np.uint64)
    return np.packbits(np.asarray(bits, np.uint8)).view(">u8").astype(np.uint64).reshape(1, 4)
