"""`curate publish`: a run laid out as LAION and DataComp publish, in a folder or an object store.

    README.md croissant.json      the card, of exactly these files
    metadata/00000.parquet …      uid, url, caption, every measured scalar column; the run's own tables, byte for byte
    uids.npy                      DataComp's form of a subset: sorted pairs of uint64
    shards/…                      only with `--with-images`: tars, and the tables lie beside them instead of in metadata/
    SHA256SUMS                    of all of these, as `sha256sum -c` reads it
    manifest.json                 written last: where it is, the publication is whole

A publication that was interrupted goes on where it stopped and ends the same; a target that holds anything else is refused.
"""

import hashlib
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from curate import files
from curate.cards.card import Card, read_card
from curate.cards.check import mlcroissant_says, problems
from curate.cards.dataset import Dataset, conserved, finished, open_dataset
from curate.cards.settings import TODO
from curate.cards.target import Target, copy, target_of
from curate.errors import RunStopped, UserError
from curate.folder import Folder
from curate.shards import UID_BYTES, UID_PAIR, uid_bytes
from curate.store import Store

LAYOUT = "curate publication 1"
MANIFEST, PENDING, SUMS = "manifest.json", "manifest.pending.json", "SHA256SUMS"
PUBLISHED = "published.json"


@dataclass(frozen=True)
class Item:
    """One file to publish: from a file here, or from these bytes."""

    path: str
    bytes: int
    sha256: str
    local: Path | None = None
    content: memoryview | None = None
    rows: int | None = None


def check_card(root: Path) -> tuple[list[str], list[str]]:
    """What is wrong with a run's card as it lies there, and what mlcroissant warns of; a line each. Nothing for a good one."""
    folder = finished(root)
    places = {name: root / "card" / name for name in ("card.yaml", "README.md", "croissant.json")}
    for path in places.values():
        if not path.exists():
            raise UserError(f"there is no {path}; run `curate card {root}` first")
    card, dataset = read_card(folder), open_dataset(folder, with_images=True)
    wrong = [f"{places['card.yaml']}: '{name}' still says {TODO}" for name in card.settings.todos]
    wrong += [f"{places['README.md']}: '{name}' still says {TODO}" for name in card.todos if name not in card.settings.todos]
    if places["README.md"].read_bytes() != card.readme(dataset):
        wrong.append(f"{places['README.md']} is not what the run and card.yaml give now; run `curate card {root}` again")
    try:
        document = files.read_json(places["croissant.json"])
    except ValueError as error:
        return [*wrong, f"{places['croissant.json']} is no JSON: {error}"], []
    if document != json.loads(json.dumps(card.croissant(dataset))):
        wrong.append(f"{places['croissant.json']} is not what the run and card.yaml give now; run `curate card {root}` again")
    wrong += [f"{places['croissant.json']}: {line}" for line in problems(document, dataset)]
    if lost := conserved(folder, dataset):
        wrong.append(f"{root}: {lost}")
    errors, warned = mlcroissant_says(places["croissant.json"]) if isinstance(document, dict) else ([], [])
    return wrong + [f"{places['croissant.json']}: mlcroissant: {e}" for e in errors], warned


def publish(root: Path, to: str, *, with_images: bool, draft: bool, attempt: str) -> Iterator[str]:
    """Publish a finished run; lines that say what came out. Raises UserError, before anything is written, for a card that is
    not ready, rows that are not those kept, and a target that holds something else."""
    target = target_of(to, attempt)
    folder = finished(root)
    _refuse_inside(root, to)
    if not (root / "card" / "card.yaml").exists():
        raise UserError(f"{root} has no card yet; run `curate card {root}` and fill in what it asks for")
    with Store(root, attempt).lock():
        card, dataset = read_card(folder), open_dataset(folder, with_images)
        if card.todos and not draft:
            raise UserError(f"the card still waits for a human: {', '.join(card.todos)} say {TODO}; write them, or publish with "
                            "--draft")
        if with_images and dataset.manifest is None:
            raise UserError(f"--with-images: {root} has no shards")
        items = _items(folder, card, dataset, draft and bool(card.todos))
        manifest = _manifest(folder, card, dataset, items)
        skipped = _put_all(target, to, items, manifest)
        _note(root, to, manifest["digest"], attempt)
    yield f"{dataset.rows:,} rows, {len(items)} files, {sum(i.bytes for i in items):,} bytes: {to}"
    if skipped:
        yield f"{skipped} files were there already"
    if draft and card.todos:
        yield f"a draft: {', '.join(card.todos)} say {TODO}"


def _note(root: Path, to: str, digest: str, attempt: str) -> None:
    """published.json: where this run was published, so that a takedown can say who has copies."""
    known = files.read_json(root / PUBLISHED, [])
    entry = {"to": to, "digest": digest}
    if entry not in known:
        files.write_json(root / PUBLISHED, [*known, entry], attempt)


def _refuse_inside(root: Path, to: str) -> None:
    if "://" not in to and (Path(to).resolve() == root.resolve() or root.resolve() in Path(to).resolve().parents):
        raise UserError(f"--to {to} lies inside the run; give a folder of its own")


def _items(folder: Folder, card: Card, dataset: Dataset, draft: bool) -> list[Item]:
    """Every file of the publication but its manifest, checked: the card strictly, the tables against the rows kept."""
    document = card.croissant(dataset, draft)
    wrong = list(problems(document, dataset, draft))
    wrong += [lost] if (lost := conserved(folder, dataset)) else []
    if wrong:
        more = f" (and {len(wrong) - 1} more; `curate card {folder.root} --check` lists them)" if len(wrong) > 1 else ""
        raise UserError(f"not published: {wrong[0]}{more}")
    made = {"README.md": card.readme(dataset, draft), "croissant.json": _json(document)}
    items = [Item(f.path, f.bytes, f.sha256, local=f.local, rows=f.rows) for f in dataset.files]
    items += [_made(path, memoryview(content)) for path, content in made.items()]
    items.append(_made("uids.npy", _uids(dataset)))
    items.sort(key=lambda i: i.path)
    sums = "".join(f"{i.sha256}  {i.path}\n" for i in items)
    return [*items, _made(SUMS, memoryview(sums.encode()))]


def _made(path: str, content: memoryview) -> Item:
    return Item(path, content.nbytes, hashlib.sha256(content).hexdigest(), content=content)


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()


def _uids(dataset: Dataset) -> memoryview:
    """The uids as a `.npy` of sorted `u8,u8` pairs; takes about 50 bytes of memory a row while it is put together."""
    uids, at = np.empty(dataset.rows, UID_BYTES), 0
    for table in dataset.tables:
        with pq.ParquetFile(table.local) as parquet:
            for batch in parquet.iter_batches(columns=["uid"]):
                uids[at : at + len(batch)] = uid_bytes(batch.column(0).to_pylist())
                at += len(batch)
    uids.sort()
    if len(uids) > 1 and (uids[1:] == uids[:-1]).any():
        raise UserError("not published: a uid stands in the tables twice")
    out = io.BytesIO()
    np.save(out, uids.view(">u8").astype("<u8").view(UID_PAIR))
    return out.getbuffer()


def _manifest(folder: Folder, card: Card, dataset: Dataset, items: list[Item]) -> dict[str, Any]:
    """manifest.json: plain data, the same for the same run and card; what the run may say of benchmarks goes with its rows."""
    known = files.read_json(folder.root / "run.json").get("decontaminated")
    found = {"layout": LAYOUT, "name": card.settings.texts["name"], "version": card.settings.texts["version"],
             "rows": dataset.rows, "run": {"chain": folder.chain, "source": folder.source.digest},
             **({"decontaminated": known} if known else {}),
             "files": [{"path": i.path, "bytes": i.bytes, "sha256": i.sha256, **({} if i.rows is None else {"rows": i.rows})}
                       for i in items]}
    return {**found, "digest": files.digest(found)}


def _put_all(target: Target, to: str, items: list[Item], manifest: Mapping[str, Any]) -> int:
    """Bring the target to what the manifest says; how many files were there already.

    The plan goes in first, the manifest last. While the plan is there, a file of the right size is one that an interrupted
    attempt at the same plan wrote; locally it is hashed besides.
    """
    present = target.sizes()
    before = _ours(target, to, present)
    if before.get(MANIFEST) == manifest and _is_whole(target, items, present) and PENDING not in present:
        return len(items)
    going_on = before.get(PENDING) == manifest
    if not going_on:
        _put_bytes(target, PENDING, _json(manifest))
    if MANIFEST in present:
        target.remove(MANIFEST)
    wanted = {i.path for i in items} | {MANIFEST, PENDING}
    for path in present:
        if path not in wanted:
            target.remove(path)
    skipped = 0
    for item in items:
        if present.get(item.path) == item.bytes and _same(target, item, going_on):
            skipped += 1
        else:
            _put(target, item)
    _put_bytes(target, MANIFEST, _json(manifest))
    target.remove(PENDING)
    return skipped


def _ours(target: Target, to: str, present: Mapping[str, int]) -> dict[str, Any]:
    """The manifests of earlier publications there; refuses a target in which anything else lies."""
    found: dict[str, Any] = {}
    for name in (MANIFEST, PENDING):
        content = target.read(name) if name in present else None
        try:
            value = json.loads(content) if content else None
        except ValueError:
            value = None
        if isinstance(value, dict) and value.get("layout") == LAYOUT:
            found[name] = value
    known = {MANIFEST, PENDING} if found else {PENDING}
    strange = sorted(set(present) - known - {f["path"] for value in found.values() for f in value["files"]})
    if strange:
        more = f" and {len(strange) - 1} more" if strange[1:] else ""
        raise UserError(f"--to {to} holds '{strange[0]}'{more}, which no publication of curate put there; give an empty place")
    if found:
        target.tidy()
    return found


def _is_whole(target: Target, items: list[Item], present: Mapping[str, int]) -> bool:
    return all(present.get(i.path) == i.bytes and _same(target, i, True) for i in items)


def _same(target: Target, item: Item, trusted: bool) -> bool:
    """Whether a file of the right size is the one wanted: by its hash; where that is not to be had, if its plan was this one."""
    sha256 = target.sha256(item.path)
    return sha256 == item.sha256 if sha256 else trusted


def _put(target: Target, item: Item) -> None:
    if item.content is not None:
        _put_bytes(target, item.path, item.content)
        return
    assert item.local is not None
    with target.write(item.path) as out:
        if copy(item.local, out) != item.sha256:
            raise RunStopped(f"{item.local} changed while it was published; run the same command again")


def _put_bytes(target: Target, path: str, content: bytes | memoryview) -> None:
    with target.write(path) as out:
        out.write(content)
