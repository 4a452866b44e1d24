"""`curate gc`: drops what a run's folder holds of earlier settings: columns, pictures, states, models of rounds that are gone.

What the present pipeline refers to stays, all rounds of its loop included: the same command measures nothing anew afterwards. A
folder is renamed before its files go, so a kill leaves it whole or as a temporary one that the next run sweeps.
"""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from curate import files
from curate.errors import UserError
from curate.folder import Folder
from curate.needs import needed
from curate.pages.figures import check_finished
from curate.pairs import captions_of, identity
from curate.report import funnel_of
from curate.store import Store
from curate.units import size

_KINDS = ("columns", "images", "kept")
"""Columns before their pictures: a column without its pictures would be a lie, pictures without a column are only left over."""
_MODEL = re.compile(r"[0-9a-f]{32}|pairs-[0-9a-f]{32}\.parquet")


def gc(root: Path, attempt: str, dry_run: bool = False) -> Iterator[str]:
    """Drop what a finished run no longer refers to (with `dry_run` only say it); a line a thing, then the bytes of all.

    Raises UserError where the run is not finished, or another process writes it.
    """
    Folder.open(root)       # refuses what is no run before a lock file is made
    store = Store(root, attempt)
    with store.lock():
        gone = left_over(root)
        if not dry_run:
            files.sweep(root)
        total = 0
        for path in gone:
            number = _bytes(path)
            total += number
            yield f"{size(number):>10}  {path.relative_to(root)}"
            if not dry_run:
                _drop(path, attempt)
    yield f"{size(total):>10}  {'to drop' if dry_run else 'dropped'} in {root}"


def left_over(root: Path) -> list[Path]:
    """What the present pipeline does not refer to, in the order in which it may go. Raises UserError where nobody can say."""
    funnel, folder = funnel_of(root), Folder.open(root)
    check_finished(folder, funnel)
    keep = needed(folder.store)
    if keep is None:
        raise UserError(f"{root} does not say what it needs: its last command did not come to its end, or was that of an earlier "
                        "version; run its pipeline again (what is measured stays)")
    below = [path for kind in _KINDS if (root / kind).is_dir() for path in sorted((root / kind).iterdir())]
    gone = [p for p in below if not p.name.startswith(".") and p.relative_to(root).as_posix() not in keep]
    return gone + list(_models(folder))


def _models(folder: Folder) -> Iterator[Path]:
    """Models and tables of pairs that no round of the present loop names; nothing where rounds.json is of another run."""
    rounds = files.read_json(folder.root / "rounds.json", [])
    packs = files.read_json(folder.root / "run.json").get("shards", {})
    present = identity(files.digest([folder.source.digest, folder.chain]),
                       captions_of(folder.columns, packs.get("caption", "caption")))
    if present not in {r["data"]["digest"] for r in rounds if r["promoted"]}:
        return
    keep = {f"pairs-{r['trained_on']}.parquet" for r in rounds}
    keep |= {Path(r["weights"]).parts[1] for r in rounds if r["weights"].startswith("models/")}
    for path in sorted((folder.root / "models").glob("*")):
        if _MODEL.fullmatch(path.name) and path.name not in keep:
            yield path


def _bytes(path: Path) -> int:
    found = path.rglob("*") if path.is_dir() else [path]
    return sum(p.stat().st_size for p in found if p.is_file() and not p.is_symlink())


def _drop(path: Path, attempt: str) -> None:
    if path.is_file():
        path.unlink()
        return
    doomed = path.with_name(f".{path.name}.{attempt}{files.TEMPORARY}")
    os.replace(path, doomed)
    files.sync_folder(path.parent)
    shutil.rmtree(doomed)
