"""`curate verify`: every file again, against the manifest it came with: a run's shards, any set of shards, or a publication.

A publication may lie in an object store; its files are then read there, whole and once, and nothing is kept of them.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from curate import files, shards
from curate.cards.publish import LAYOUT, MANIFEST
from curate.cards.target import Target, target_of
from curate.errors import UserError


def verify(place: str) -> tuple[str, list[str]]:
    """(what was verified, what is wrong with it, a line each). Raises UserError where there is no such place."""
    if "://" in place:
        return place, list(_publication(place))
    folder = Path(place)
    if not folder.is_dir():
        raise UserError(f"no folder {folder}")
    if _is_publication(folder):
        return place, list(_publication(place))
    found = folder / "shards" if (folder / "shards").is_dir() else folder
    return str(found), list(shards.verify(found))


def _is_publication(folder: Path) -> bool:
    try:
        manifest = files.read_json(folder / MANIFEST)
    except ValueError:
        return False
    return isinstance(manifest, dict) and manifest.get("layout") == LAYOUT


def _publication(to: str) -> Iterator[str]:
    """Every file there against the manifest: there, as long, the same bytes, and none besides."""
    target = target_of(to, "")
    sizes = target.sizes()
    if MANIFEST not in sizes:
        yield f"{to}: no {MANIFEST}: nothing was published there, or not to its end"
        return
    manifest = _manifest(target)
    if manifest is None:
        yield f"{to}/{MANIFEST}: not as it was written"
        return
    for entry in manifest["files"]:
        path, size = entry["path"], sizes.pop(entry["path"], None)
        if size is None:
            yield f"{to}/{path}: missing"
        elif size != entry["bytes"]:
            yield f"{to}/{path}: {size:,} bytes, the manifest says {entry['bytes']:,}"
        elif target.digest(path) != entry["sha256"]:
            yield f"{to}/{path}: sha256 differs from the manifest"
    yield from (f"{to}/{path}: not in the manifest" for path in sorted(sizes) if path != MANIFEST)


def _manifest(target: Target) -> dict[str, Any] | None:
    """The manifest of a publication; None where it is none of ours, or not as it was written."""
    try:
        manifest = json.loads(target.read(MANIFEST) or b"")
    except ValueError:
        return None
    if not isinstance(manifest, dict) or manifest.pop("digest", "") != files.digest(manifest) or manifest["layout"] != LAYOUT:
        return None
    return manifest
