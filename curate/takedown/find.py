"""Which rows and pictures of a run go: those on the list, those that look like them, and all that are tied to these.

    seeds     rows and pictures on the list, by address, uid, image_id, hash of the file, phash or PDQ
    near      pictures whose phash lies within `bits` of a seed's
    tied      rows of one picture; pictures of one file or of the same pixels; copies (`same_as`) and duplicates (`dup_of`,
              `dup_group`) with their witness and its others: again and again until none comes any more

Only ties are followed on and on, looks are not: they drift.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from curate import block_list, tombstones
from curate.takedown.evidence import Evidence, ShardEvidence
from curate.takedown.wanted import Wanted, near

Mask = NDArray[np.bool_]
SAME = ("sha256", "image_sha256", "pixel_hash")
"""Columns whose equal values make pictures one."""


@dataclass
class Found:
    """What goes: rows by shard, and what names them anywhere."""

    rows: dict[int, list[int]] = field(default_factory=dict)
    image_ids: set[str] = field(default_factory=set)
    uids: set[str] = field(default_factory=set)
    same: set[str] = field(default_factory=set)
    """values of SAME that are theirs"""
    phashes: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    """image_id → its phash, mostly one"""
    files: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    """image_id → sha256 of its file, as it came and as it is stored"""
    seeds: int = 0
    near: int = 0

    @property
    def num_rows(self) -> int:
        """How many rows go."""
        return sum(len(rows) for rows in self.rows.values())

    def tombstones(self, bits: int) -> list[str]:
        """The lines that keep them from coming back."""
        lines = [f"uid_sha256:{block_list.sha256_of(uid)}" for uid in self.uids]
        for image_id in self.image_ids:
            of = {"sha256": self.files, "phash": self.phashes}
            hashes = [(kind, value) for kind, known in of.items() for value in known.get(image_id, ())]
            lines += tombstones.lines_for(image_id, hashes, bits)
        return sorted(set(lines))

    @property
    def size(self) -> tuple[int, ...]:
        """Grows while there is more to find."""
        return self.num_rows, len(self.image_ids), len(self.uids), len(self.same)


def find(evidence: Evidence, wanted: Wanted) -> Found:
    """All that goes, from the evidence of all shards: three times read at least, where anything goes at all."""
    found = Found()
    for shard in evidence.shards():
        if wanted.must_look or wanted.listed.sha256 or wanted.listed.by_looks:
            evidence.look(shard)
        _take(found, evidence, shard, _listed(evidence, shard, wanted))
    found.seeds = found.num_rows
    if not found.num_rows:
        return found
    seeds = sorted({h for hashes in found.phashes.values() for h in hashes})
    for shard in evidence.shards():
        evidence.look(shard)
        alike = _images_where(evidence, shard, lambda hashes: near(hashes, seeds, wanted.bits))
        _take(found, evidence, shard, _of_images(shard, alike))
    found.near = found.num_rows - found.seeds
    before: tuple[int, ...] = ()
    while before != found.size:
        before = found.size
        for shard in evidence.shards():
            _take(found, evidence, shard, _tied(found, evidence, shard))
    return found


def _listed(evidence: Evidence, shard: ShardEvidence, wanted: Wanted) -> Mask:
    """The rows that the list names itself."""
    listed = wanted.listed
    gone = _is_in(shard.image_ids, listed.image_id)
    if listed.uid_sha256:
        gone |= np.array([block_list.sha256_of(uid) in listed.uid_sha256 for uid in shard.uids.to_pylist()], bool)
    if listed.urls is not None:
        gone |= np.array([bool(url and listed.match_url(url)) for url in shard.urls] or [False] * len(gone), bool)
    for name, rows, values in shard.by_row:
        if name in ("sha256", "image_sha256"):
            gone[_rows(rows, _is_in(values, listed.sha256))] = True
    ids = {i for name, keys, values in shard.by_image if name == "sha256"
           for i in keys.filter(pa.array(_is_in(values, listed.sha256))).to_pylist()}
    ids |= {i for i in shard.refs if i in evidence.looks and evidence.looks[i].is_listed}
    if len(listed.phash):
        ids |= _images_where(evidence, shard, lambda hashes: _near_list(hashes, wanted))
    return gone | _of_images(shard, ids)


def _near_list(hashes: list[str], wanted: Wanted) -> Mask:
    found = np.zeros(len(hashes), bool)
    telling = [i for i, h in enumerate(hashes) if h and len(block_list.telling([h]))]
    if telling:
        found[telling] = wanted.listed.phash.any(block_list.telling([hashes[i] for i in telling]))
    return found


def _images_where(evidence: Evidence, shard: ShardEvidence, choose: Any) -> set[str]:
    """The pictures of a shard whose phash is chosen, as it was measured or as we looked at them."""
    ids, hashes = [], []
    for name, rows, values in shard.by_row:
        if name == "phash":
            ids += shard.image_ids.take(rows).to_pylist()
            hashes += values.to_pylist()
    looked = [i for i in shard.refs if i in evidence.looks]
    ids += looked
    hashes += [evidence.looks[i].phash for i in looked]
    chosen = choose([h or "" for h in hashes])
    return {i for i, yes in zip(ids, chosen.tolist(), strict=True) if yes and i is not None}


def _tied(found: Found, evidence: Evidence, shard: ShardEvidence) -> Mask:
    """The rows that are tied to what was found so far."""
    gone = _is_in(shard.image_ids, found.image_ids) | _is_in(shard.uids, found.uids)
    names = {"dup_of": found.uids, "dup_group": found.uids, "same_as": found.image_ids, **dict.fromkeys(SAME, found.same)}
    for name, rows, values in shard.by_row:
        if name in names:
            gone[_rows(rows, _is_in(values, names[name]))] = True
    ids = {i for name, keys, values in shard.by_image if name in SAME
           for i in keys.filter(pa.array(_is_in(values, found.same))).to_pylist()}
    ids |= {i for i in shard.refs if i in evidence.looks and evidence.looks[i].sha256 in found.same}
    return gone | _of_images(shard, ids)


def _take(found: Found, evidence: Evidence, shard: ShardEvidence, gone: Mask) -> None:
    """Note rows of a shard, and everything that names them or is theirs. A row without a picture or url goes by its uid alone."""
    known = found.rows.get(shard.number, [])
    gone[known] = True
    rows = np.flatnonzero(gone)
    if not len(rows):
        return
    found.rows[shard.number] = rows.tolist()
    mine = {i for i in shard.image_ids.take(pa.array(rows)).to_pylist() if i is not None}
    found.uids |= set(shard.uids.take(pa.array(rows)).to_pylist())
    found.image_ids |= mine
    for name, where, values in shard.by_row:
        here = pa.array(_is_in(where, rows.tolist()))
        said, ids = values.filter(here).to_pylist(), shard.image_ids.take(where.filter(here)).to_pylist()
        _note(found, name, ids, said)
    for name, keys, values in shard.by_image:
        here = pa.array(_is_in(keys, found.image_ids))
        _note(found, name, keys.filter(here).to_pylist(), values.filter(here).to_pylist())
    for image_id in mine & evidence.looks.keys():
        look = evidence.looks[image_id]
        _note(found, "image_sha256", [image_id], [look.sha256])
        _note(found, "phash", [image_id], [look.phash or None])


def _note(found: Found, name: str, ids: Iterable[str | None], values: Iterable[str | None]) -> None:
    """A column's values at rows that go."""
    for image_id, value in zip(ids, values, strict=True):
        if value is None:
            continue
        if name in ("dup_of", "dup_group"):
            found.uids.add(value)
        elif name == "same_as":
            found.image_ids.add(value)
        elif name == "phash" and image_id is not None:
            found.phashes[image_id].add(value)
        elif name in SAME:
            found.same.add(value)
            if name != "pixel_hash" and image_id is not None:
                found.files[image_id].add(value)


def _is_in(values: pa.Array, among: Iterable[Any]) -> Mask:
    """Which values are among these; a null never is."""
    wanted = list(among)
    if not wanted:
        return np.zeros(len(values), bool)
    mask: Mask = pc.is_in(values, pa.array(wanted, values.type), skip_nulls=True).to_numpy(zero_copy_only=False).copy()
    return mask


def _of_images(shard: ShardEvidence, ids: Iterable[str]) -> Mask:
    return _is_in(shard.image_ids, ids)


def _rows(rows: pa.Array, mask: Mask) -> NDArray[np.int64]:
    found: NDArray[np.int64] = rows.filter(pa.array(mask)).to_numpy().astype(np.int64)
    return found
