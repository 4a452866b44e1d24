"""Photographs with several captions each, in Flickr8k's layout: `PART.tsv` (image TAB caption, below a head) and `images/`."""

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path


def captions_of(folder: Path, part: str) -> dict[str, list[str]]:
    """File of a photograph → its captions, of `train` or `dev`."""
    found: dict[str, list[str]] = {}
    for line in (folder / f"{part}.tsv").read_text().splitlines()[1:]:
        image, text = line.split("\t")
        found.setdefault(image, []).append(text)
    return found


def write_photos(folder: Path, captions: Mapping[str, Sequence[str]], out: Path) -> str:
    """One webdataset tar of these photographs with all their captions; the pattern that finds it."""
    out.mkdir(parents=True, exist_ok=True)
    with tarfile.open(out / "00000.tar", "w") as archive:
        for n, (image, texts) in enumerate(captions.items()):
            meta = json.dumps({"uid": f"{n:032x}", "captions": texts}).encode()
            for kind, data in (("jpg", (folder / "images" / image).read_bytes()), ("json", meta)):
                info = tarfile.TarInfo(f"{n:09d}.{kind}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return str(out / "*.tar")
