"""Takedown in a folder of tars, ours or anybody's webdataset: samples leave their tar, their table, the stats and the manifest.

Of a tar that holds something of it a new one takes the place; what stays are the bytes it was. What goes is written down before
anything does (takedown.pending.json, keys only), so a takedown that was killed goes on; table and stats go first, the tar last.
"""

import glob
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curate import block_list, files
from curate.errors import UserError
from curate.store import alive_digest
from curate.takedown import journal
from curate.takedown.wanted import Looks, Wanted, near
from curate.tar import BadTar, Member, members, without
from curate.tombstones import PENDING

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".gif")
ENTRY = ("file", "rows", "bytes", "sha256", "parquet_sha256", "uid_digest")


@dataclass(frozen=True)
class Sample:
    """The members of one key, what its .json says, and what its picture is."""

    key: str
    names: tuple[str, ...]
    told: Mapping[str, Any]
    look: Looks | None


Gone = Mapping[str, Sequence[str]]
"""Tar → the sha256 of each key that goes."""


def takedown(target: str, asked: Callable[[], Wanted], dry_run: bool, attempt: str) -> Iterator[str]:
    """Take down in the tars of a folder or pattern; lines that say what went. One that was killed is ended first."""
    paths = _found(target)
    pending = paths[0].parent / PENDING
    known = files.read_json(pending)
    if known is not None and not dry_run:
        yield "going on with a takedown that did not come to its end"
        _carry_out(paths, known, attempt)
    wanted = asked()
    gone = _gone(paths, wanted)
    total = sum(map(len, gone.values()))
    if not total:
        yield f"{target} holds nothing of it"
        return
    yield f"{total:,} samples in {len(gone):,} of {len(paths):,} tars{' would go' if dry_run else ''}"
    if not dry_run:
        plan = {"list": wanted.listed.digest, "gone": gone}
        files.write_json(pending, plan, attempt)
        _carry_out(paths, plan, attempt)
    yield "not touched: trained models, copies elsewhere, backups"


def _gone(paths: Sequence[Path], wanted: Wanted) -> dict[str, list[str]]:
    """What the list names, and in a second reading what is or looks like the pictures of these."""
    seeds, same = set[str](), set[str]()
    for _, sample in _samples(paths, wanted):
        if _is_listed(sample, wanted) and sample.look is not None:
            same.add(sample.look.sha256)
            seeds |= {sample.look.phash} - {""}
    gone: dict[str, list[str]] = {}
    for path, sample in _samples(paths, wanted):
        if _is_listed(sample, wanted) or _is_like(sample, same, sorted(seeds), wanted.bits):
            gone.setdefault(str(path), []).append(block_list.sha256_of(sample.key))
    return gone


def _carry_out(paths: Sequence[Path], plan: Mapping[str, Any], attempt: str) -> None:
    gone: Gone = plan["gone"]
    for path, hashes in gone.items():
        _rewrite(Path(path), frozenset(hashes), attempt)
    for folder in sorted({p.parent for p in paths}):
        _manifest(folder, attempt)
    home = paths[0].parent
    told = {"list": plan["list"], "rows": sum(map(len, gone.values())), "files_rewritten": len(gone)}
    journal.record(home, told, attempt, files.digest(plan))
    (home / PENDING).unlink()
    files.sync_folder(home)


def _found(target: str) -> list[Path]:
    if "://" in target:
        raise UserError(f"{target}: tars are rewritten on this machine only; copy them here, and put them back")
    path = Path(target)
    found = sorted(path.glob("*.tar")) if path.is_dir() else sorted(Path(p) for p in glob.glob(target))
    if not found:
        raise UserError(f"{target} is no run and holds no tars")
    run = next((p.parent.parent for p in found if p.parent.name == "shards" and (p.parent.parent / "run.json").exists()), None)
    if run is not None:
        raise UserError(f"{target} are the shards of a run, which would make them again; take it down in the run: {run}")
    return found


def _samples(paths: Sequence[Path], wanted: Wanted) -> Iterator[tuple[Path, Sample]]:
    for path in paths:
        try:
            with open(path, "rb") as tar:
                by_key: dict[str, list[Member]] = {}
                for member in members(tar):
                    by_key.setdefault(_key(member.name), []).append(member)
                for key, found in by_key.items():
                    yield path, _sample(tar, key, found, wanted)
        except BadTar as error:
            raise UserError(f"{path}: {error}") from None


def _key(name: str) -> str:
    """What webdataset groups by: the path up to the first dot of its last part."""
    folder, slash, last = name.rpartition("/")
    return folder + slash + last.partition(".")[0]


def _sample(tar: IO[bytes], key: str, found: Sequence[Member], wanted: Wanted) -> Sample:
    def read(member: Member) -> bytes:
        tar.seek(member.offset)
        return tar.read(member.length)

    told = next((read(m) for m in found if m.name.endswith(".json")), b"{}")
    picture = next((m for m in found if m.name.lower().endswith(PICTURES)), None)
    try:
        value = json.loads(told)
    except ValueError:
        value = {}
    look = wanted.look(read(picture)) if picture else None
    return Sample(key, tuple(m.name for m in found), value if isinstance(value, dict) else {}, look)


def _is_listed(sample: Sample, wanted: Wanted) -> bool:
    """Whether the list names a sample: by its picture, or by what its .json says of it."""
    listed, told = wanted.listed, {k: v for k, v in sample.told.items() if isinstance(v, str)}
    uids = {told.get("uid", ""), sample.key.rpartition("/")[2]} - {""}
    return bool((sample.look is not None and sample.look.is_listed)
                or told.get("sha256", "") in listed.sha256 or told.get("md5", "") in listed.md5
                or told.get("image_id", "") in listed.image_id or listed.match_url(told.get("url", ""))
                or (listed.uid_sha256 and any(block_list.sha256_of(uid) in listed.uid_sha256 for uid in uids)))


def _is_like(sample: Sample, same: set[str], seeds: Sequence[str], bits: int) -> bool:
    if sample.look is None:
        return False
    return sample.look.sha256 in same or bool(near([sample.look.phash], seeds, bits)[0])


def _rewrite(path: Path, hashes: frozenset[str], attempt: str) -> None:
    """Table, stats, then the tar; the new one is on disk before any of them appears. A tar without the keys is done."""
    with open(path, "rb") as tar:
        names = [member.name for member in members(tar)]
        keys = {_key(name) for name in names}
        gone = frozenset(key for key in keys if block_list.sha256_of(key) in hashes)
        if not gone:
            return
        _write_anew(path, tar, gone, {name for name in names if _key(name) in gone}, len(keys - gone), attempt)


def _write_anew(path: Path, tar: IO[bytes], gone: frozenset[str], names: set[str], left: int, attempt: str) -> None:
    parquet, stats = path.with_suffix(".parquet"), path.with_name(f"{path.stem}_stats.json")
    with files.atomic(path, attempt) as file:
        out = files.Hashing(file)
        without(tar, out, names)  # type: ignore[arg-type]
        told: dict[str, Any] = {"bytes": out.bytes, "sha256": out.sha256.hexdigest()}
        if parquet.exists():
            told |= _rewrite_table(parquet, gone, attempt)
        if stats.exists():
            _rewrite_stats(stats, left, told, attempt)


def _rewrite_table(path: Path, gone: frozenset[str], attempt: str) -> dict[str, Any]:
    """Rows by their key, which is the sample's; what our stats say of the table."""
    table = pq.read_table(path, partitioning=None, memory_map=False)
    if "key" not in table.column_names:
        raise UserError(f"{path} has no column 'key', so nobody can say which rows belong to the samples that go")
    keys = sorted({key.rpartition("/")[2] for key in gone} | gone)
    table = table.filter(pc.invert(pc.is_in(table["key"].cast(pa.string()), pa.array(keys, pa.string()))))
    files.write_table(path, table, attempt)
    told: dict[str, Any] = {"parquet_sha256": files.file_digest(path), "rows": len(table)}
    return {**told, "uid_digest": alive_digest(table["uid"])} if "uid" in table.column_names else told


def _rewrite_stats(path: Path, left: int, told: Mapping[str, Any], attempt: str) -> None:
    """img2dataset's counts, with `left` samples in the tar; hashes where there were any (ours)."""
    stats = files.read_json(path)
    number = stats["successes"] - left if isinstance(stats.get("successes"), int) else 0
    for name in ("count", "successes"):
        if isinstance(stats.get(name), int):
            stats[name] -= number
    success = stats.get("status_dict", {}).get("success")
    if isinstance(success, int):
        stats["status_dict"]["success"] = success - number
    files.write_json(path, {**stats, **{k: v for k, v in told.items() if k in stats}}, attempt)


def _manifest(folder: Path, attempt: str) -> None:
    """The manifest of a set of ours, brought up to its stats."""
    path = folder / "manifest.json"
    manifest = files.read_json(path)
    if not isinstance(manifest, dict) or "layout" not in manifest or "shards" not in manifest:
        return
    shards = []
    for entry in manifest["shards"]:
        stats = folder / f"{Path(entry['file']).stem}_stats.json"
        told = files.read_json(stats)
        if told is None:
            return          # damaged before we came: `curate verify` says how
        shards.append({**{k: told[k] for k in ENTRY}, "stats_sha256": files.file_digest(stats)})
    wanted = {**{k: v for k, v in manifest.items() if k != "digest"}, "shards": shards, "rows": sum(s["rows"] for s in shards)}
    if shards != manifest["shards"]:
        files.write_json(path, {**wanted, "digest": files.digest(wanted)}, attempt)
