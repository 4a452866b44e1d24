"""Photographs with several captions each, in Flickr8k's layout: `PART.tsv` (image TAB caption, below a head) and `images/`."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.train.toys import write_tar


def captions_of(folder: Path, part: str) -> dict[str, list[str]]:
    """File of a photograph → its captions, of `train` or `dev`."""
    found: dict[str, list[str]] = {}
    for line in (folder / f"{part}.tsv").read_text().splitlines()[1:]:
        image, text = line.split("\t")
        found.setdefault(image, []).append(text)
    return found


def write_photos(folder: Path, captions: Mapping[str, Sequence[str]], out: Path) -> str:
    """One webdataset tar of these photographs with all their captions; the pattern that finds it."""
    members = (member for n, (image, texts) in enumerate(captions.items()) for member in (
        (f"{n:09d}.jpg", (folder / "images" / image).read_bytes()),
        (f"{n:09d}.json", json.dumps({"uid": f"{n:032x}", "captions": texts}).encode())))
    write_tar(out / "00000.tar", members)
    return str(out / "*.tar")
