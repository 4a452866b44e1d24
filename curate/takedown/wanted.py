"""What is to be taken down: an operator's list, a picture, uids; all of it as one list of hashes and addresses."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from curate import block_list
from curate.block_list import MOST_BITS, BlockList, md5_of
from curate.decoding import images
from curate.decoding.images import BadImage
from curate.errors import UserError
from curate.fingerprint import phash


@dataclass(frozen=True)
class Looks:
    """A stored picture: its file's hashes, its phash (empty where it cannot be decoded), and whether the list knows it."""

    sha256: str
    phash: str
    is_listed: bool


@dataclass(frozen=True)
class Wanted:
    """The list, and how many bits a phash may be off."""

    listed: BlockList
    bits: int

    @cached_property
    def must_look(self) -> bool:
        """Whether every stored picture has to be read: columns do not tell all that the list asks for."""
        return bool(self.listed.md5 or len(self.listed.pdq))

    def look(self, data: bytes) -> Looks:
        """What a stored picture is."""
        listed = bool(self.listed.match_bytes(data))
        try:
            picture = images.decode(data)
        except BadImage:
            return Looks(hashlib.sha256(data).hexdigest(), "", listed)
        return Looks(hashlib.sha256(data).hexdigest(), phash(picture), listed or bool(self.listed.match_picture(picture)))


def wanted(file: Path | None, image: Path | None, uids: Sequence[str], bits: int) -> Wanted:
    """Of the options of the command. Raises UserError for nothing, for a broken list, for a file that is no picture."""
    if not 0 <= bits <= MOST_BITS:
        raise UserError(f"--near {bits}: 0 to {MOST_BITS} bits of 64")
    if file is None and image is None and not uids:
        raise UserError("say what to take down: --list FILE, --image FILE or --uid UID")
    lines = [f"uid:{uid}" for uid in uids]
    if image is not None:
        lines += _of_image(image, bits)
    if file is not None:
        block_list.read(file, bits)       # mistakes are told with the line of the file
        lines += file.read_text(encoding="utf-8-sig").split("\n")
    return Wanted(block_list.of_lines(lines, file or Path("the list"), bits), bits)


def _of_image(path: Path, bits: int) -> list[str]:
    try:
        data = path.read_bytes()
        found = phash(images.decode(data))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except BadImage as error:
        raise UserError(f"{path} is no picture that can be decoded ({error.status})") from None
    return [f"sha256:{hashlib.sha256(data).hexdigest()}", f"md5:{md5_of(data)}", f"phash:{found}/{bits}"]


def near(hashes: Sequence[str], seeds: Sequence[str], bits: int) -> NDArray[np.bool_]:
    """Which phashes (16 hex digits; empty for none) lie within `bits` of one of `seeds`; blank pictures are near to none."""
    found = np.zeros(len(hashes), np.bool_)
    there = np.flatnonzero([bool(h) and len(block_list.telling([h])) > 0 for h in hashes])
    if len(there) and len(seeds):
        words = block_list.telling([hashes[i] for i in there.tolist()])
        found[there] = block_list.Near.of([(s, bits) for s in seeds], 16).any(words)
    return found
