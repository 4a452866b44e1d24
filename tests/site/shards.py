"""Webdataset shards of scenes with their right captions: a clean set to train on and to judge by, without a web in between."""

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path

from tests.site.captions import captions
from tests.site.draw import render
from tests.site.scenes import scene


def write_shards(folder: Path, numbers: Sequence[int], *, seed: int = 0, texts: int = 5, rows: int = 1000) -> str:
    """The scenes with these numbers and `texts` captions each, `rows` a tar; the pattern that finds the tars.

    A folder that is there already is taken as it is.
    """
    if not folder.exists():
        beside = folder.with_name(folder.name + ".part")
        beside.mkdir(parents=True, exist_ok=True)
        for number, at in enumerate(range(0, len(numbers), rows)):
            with tarfile.open(beside / f"{number:05d}.tar", "w") as archive:
                for n in numbers[at : at + rows]:
                    _add(archive, n, seed, texts)
        beside.rename(folder)
    return str(folder / "*.tar")


def _add(archive: tarfile.TarFile, number: int, seed: int, texts: int) -> None:
    shown, picture = scene(seed, number), io.BytesIO()
    render(shown).save(picture, "JPEG", quality=90)
    said = captions(shown, texts)
    meta = {"uid": f"{number:032x}", "scene": number, "captions": said}
    for kind, data in (("jpg", picture.getvalue()), ("json", json.dumps(meta).encode()), ("txt", said[0].encode())):
        info = tarfile.TarInfo(f"{number:09d}.{kind}")
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))
