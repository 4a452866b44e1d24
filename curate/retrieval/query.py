"""What a search asks and what it answers: the words between whoever searches (the command line, the server) and the index."""

import hashlib
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from curate import files
from curate.errors import UserError

MAX_PARTS, MAX_TEXT, MAX_K, MAX_IMAGE_BYTES = 16, 1000, 1000, 16 << 20
"""Parts of a query; characters of a text; hits of a page; bytes of a picture that is asked about."""
MAX_WEIGHT, MAX_DIMS, MAX_NUMBER = 1000.0, 65536, 1e300


class BadQuery(UserError):
    """What whoever asked did wrong, in one line that may be shown to them. Says nothing about rows that they may not see."""


@dataclass(frozen=True)
class Part:
    """One term of a query and its weight, negative to lead away from it. Exactly one of the four is given."""

    text: str | None = None
    image: bytes | None = None
    uid: str | None = None
    vector: tuple[float, ...] | None = None
    weight: float = 1.0


@dataclass(frozen=True)
class Request:
    """A search. Without parts it browses in the order of uids. `after` is the cursor of the page before, or empty."""

    parts: tuple[Part, ...] = ()
    k: int = 40
    where: str = ""
    dropped: bool = False
    group: bool = True
    after: str = ""
    against: Literal["image", "text"] = "image"


@dataclass(frozen=True)
class Hit:
    """One row found. `score` is the cosine of query and embedding, -1 to 1 (0 in browsing).

    `group` are the uids of the near-duplicates folded into it, at most 100; `group_size` counts all of them and itself.
    """

    uid: str
    score: float
    caption: str | None
    url: str | None
    width_px: int | None
    height_px: int | None
    state: str
    reason: str | None
    group_size: int = 1
    group: tuple[str, ...] = ()


@dataclass(frozen=True)
class Page:
    """Hits, best first, and what stood before the last of them and is not among them."""

    hits: tuple[Hit, ...]
    left_out: dict[str, int] = field(default_factory=dict)
    """policy, where, dropped, same_picture → rows that rank before the last hit (from the first page on) and were left out, each
    counted under the first that applies: policy, dropped, where. Counted among the vectors that were looked at"""
    searched: int = 0
    """vectors that were looked at: all of them in an exact index, else those in the lists nearest to the query"""
    exhausted: bool = False
    """whether there is nothing after this page"""
    after: str = ""
    """the cursor of the next page; empty where there is none"""
    milliseconds: dict[str, float] = field(default_factory=dict)
    """query (reading and embedding it), search, rows → how long it took"""


def check(request: Request) -> None:
    """Raises BadQuery for what is wrong whatever the index."""
    if not isinstance(request.k, int) or isinstance(request.k, bool) or not 1 <= request.k <= MAX_K:
        raise BadQuery(f"k is {request.k!r}, and must be a whole number from 1 to {MAX_K}")
    if len(request.parts) > MAX_PARTS:
        raise BadQuery(f"the query has {len(request.parts)} parts, and may have {MAX_PARTS}")
    if request.against not in ("image", "text"):
        raise BadQuery(f"against is {request.against!r}, and must be 'image' or 'text'")
    for part in request.parts:
        _check_part(part)
    said = [request.where, request.after, *(p.text or p.uid or "" for p in request.parts)]
    if any("\ud800" <= c <= "\udfff" for text in said for c in text):
        raise BadQuery("the query holds half a character (a lone surrogate)")


def _check_part(part: Part) -> None:
    if sum(given is not None for given in (part.text, part.image, part.uid, part.vector)) != 1:
        raise BadQuery("a part of a query is one of text, image, uid, vector")
    if not _is_number(part.weight) or abs(part.weight) > MAX_WEIGHT:
        raise BadQuery(f"a weight is a number from -{MAX_WEIGHT:.0f} to {MAX_WEIGHT:.0f}")
    if part.text is not None and (not part.text.strip() or len(part.text) > MAX_TEXT):
        raise BadQuery(f"a text has 1 to {MAX_TEXT:,} characters")
    if part.uid is not None and not 0 < len(part.uid) <= MAX_TEXT:
        raise BadQuery("a uid is not empty, and not as long as that")
    if part.image is not None and not 0 < len(part.image) <= MAX_IMAGE_BYTES:
        raise BadQuery(f"a picture has 1 to {MAX_IMAGE_BYTES:,} bytes")
    if part.vector is not None and not (0 < len(part.vector) <= MAX_DIMS and all(map(_is_number, part.vector))):
        raise BadQuery("a vector holds finite numbers")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= MAX_NUMBER   # NaN is not


def direction(vector: Sequence[float] | NDArray[np.float32], dims: int) -> NDArray[np.float64]:
    """A vector scaled to length 1. Raises BadQuery where it has none, or other dimensions than the index."""
    wide = np.asarray(vector, np.float64)
    if wide.shape != (dims,):
        raise BadQuery(f"the vector has {len(wide)} numbers, and the index has {dims}")
    largest = float(np.abs(wide).max())
    if not largest > 0:
        raise BadQuery("the vector has no direction: it is zero")
    wide = wide / largest
    unit: NDArray[np.float64] = wide / np.linalg.norm(wide)
    return unit


def combined(parts: Sequence[tuple[float, NDArray[np.float64]]]) -> NDArray[np.float32]:
    """The direction of the weighted sum of unit vectors. Raises BadQuery where they cancel out."""
    total = np.sum([weight * vector for weight, vector in parts], axis=0)
    length = float(np.linalg.norm(total))
    if length < 1e-6 * max(abs(weight) for weight, _ in parts) or length == 0:
        raise BadQuery("the parts of the query cancel each other out")
    unit: NDArray[np.float32] = (total / length).astype(np.float32)
    return unit


def identity(request: Request, index_id: str, policy: str) -> str:
    """What a list of hits depends on, as 32 hex digits: not how many hits a page has, nor which page."""
    parts = [[p.text, hashlib.sha256(p.image).hexdigest() if p.image is not None else None, p.uid,
              list(map(float, p.vector)) if p.vector is not None else None, float(p.weight)] for p in request.parts]
    return files.digest([index_id, policy, parts, request.where, request.dropped, request.group, request.against])


def cursor(position: int, whose: str) -> str:
    """An opaque name for "from this hit on" in the list `whose`."""
    number = position.to_bytes(8, "big")
    return urlsafe_b64encode(number + _seal(number, whose)).decode()


def position(after: str, whose: str) -> int:
    """What `cursor` put in. Raises BadQuery for one that is not of this list."""
    try:
        data = urlsafe_b64decode(after.encode("ascii"))
    except ValueError:
        data = b""
    if len(data) != 24 or data[8:] != _seal(data[:8], whose):
        raise BadQuery("this cursor belongs to another query, or to an index that has changed; search again from the start")
    return int.from_bytes(data[:8], "big")


def _seal(number: bytes, whose: str) -> bytes:
    return hashlib.blake2b(number, key=whose.encode(), digest_size=16).digest()
