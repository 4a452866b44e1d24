"""Small pictures with captions that fit them, the tars they come in, and models of a few thousand weights."""

import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import open_clip
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw

from train.config import Config, from_mapping

open_clip.add_model_config(Path(__file__).parent / "models")

COLOURS = {"red": (214, 40, 40), "blue": (38, 84, 214), "green": (42, 157, 72), "yellow": (240, 200, 40), "black": (30, 30, 30),
           "pink": (240, 130, 180)}
SHAPES = ("circle", "square", "triangle", "cross")
SMALL: dict[str, Any] = {"model": "toy-conv-32", "batch": 8, "samples_seen": "2 epochs", "lr": 1e-3, "weight_decay": 0.1,
                         "threads": 1, "log_every": 1, "tensorboard": False}


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the trainer catches it."""


def scene(number: int, side: int = 40) -> Image.Image:
    """Picture `number`: one shape in one colour, its place by the number."""
    picture = Image.new("RGB", (side, side), (245, 245, 245))
    draw = ImageDraw.Draw(picture)
    r, x, y = side // 4, side // 3 + number * 7 % (side // 3), side // 3 + number * 5 % (side // 3)
    colour, shape = COLOURS[colour_of(number)], shape_of(number)
    if shape == "circle":
        draw.ellipse((x - r, y - r, x + r, y + r), fill=colour)
    elif shape == "square":
        draw.rectangle((x - r, y - r, x + r, y + r), fill=colour)
    elif shape == "triangle":
        draw.polygon([(x, y - r), (x - r, y + r), (x + r, y + r)], fill=colour)
    else:
        draw.line((x - r, y - r, x + r, y + r), fill=colour, width=4)
        draw.line((x - r, y + r, x + r, y - r), fill=colour, width=4)
    return picture


def colour_of(number: int) -> str:
    """The colour in picture `number`."""
    return tuple(COLOURS)[number % len(COLOURS)]


def shape_of(number: int) -> str:
    """The shape in picture `number`."""
    return SHAPES[number // len(COLOURS) % len(SHAPES)]


def caption(number: int) -> str:
    """What picture `number` shows."""
    return f"a {colour_of(number)} {shape_of(number)}"


def encoded(picture: Image.Image, kind: str = "PNG") -> bytes:
    """The picture's file."""
    out = io.BytesIO()
    picture.save(out, kind)
    return out.getvalue()


def write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    """A plain tar of these members, in this order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def pairs(numbers: Iterable[int], captions: Mapping[int, str] | None = None) -> list[tuple[str, bytes]]:
    """Members of a shard: png and txt of each number."""
    return [member for n in numbers for member in ((f"{n:09d}.png", encoded(scene(n))),
                                                   (f"{n:09d}.txt", (captions or {}).get(n, caption(n)).encode()))]


def uid_pairs(numbers: Iterable[int], captions: Mapping[int, list[str]] | None = None) -> list[tuple[str, bytes]]:
    """Members of a shard: png and json of each number, its uid u0, u1, … and its captions c0, c1, … or those given."""
    return [member for n in numbers for member in (
        (f"{n:09d}.png", encoded(scene(n))),
        (f"{n:09d}.json", json.dumps({"uid": f"u{n}", "captions": (captions or {}).get(n, [f"c{n}"])}).encode()))]


def shard(path: Path, numbers: Iterable[int]) -> Path:
    """A shard with a right caption for each number."""
    return write_tar(path, pairs(numbers))


def img2dataset_shard(path: Path, numbers: Iterable[int]) -> Path:
    """A shard as img2dataset writes it: jpg, json, txt."""
    members = []
    for n in numbers:
        meta = {"url": f"http://example.org/{n}.jpg", "caption": caption(n), "key": f"{n:09d}", "status": "success",
                "error_message": None, "width": 40, "height": 40, "original_width": 40, "original_height": 40, "exif": "{}"}
        members += [(f"{n:09d}.jpg", encoded(scene(n), "JPEG")), (f"{n:09d}.json", json.dumps(meta).encode()),
                    (f"{n:09d}.txt", caption(n).encode())]
    return write_tar(path, members)


def table(folder: Path, numbers: Iterable[int], captions: Mapping[int, list[str]] | None = None) -> Path:
    """`images/toy/00000.tar` and `subset.parquet` below `folder`: a row a caption, with where its picture lies."""
    tar = folder / "images" / "toy" / "00000.tar"
    tar.parent.mkdir(parents=True, exist_ok=True)
    numbers, rows = list(numbers), []
    write_tar(tar, [(f"{n}.png", encoded(scene(n))) for n in numbers])
    with tarfile.open(tar) as archive:
        for n, info in zip(numbers, archive, strict=True):
            image = {"file": "images/toy/00000.tar", "offset": info.offset_data, "length": info.size}
            rows += [{"uid": f"{n:032x}", "caption": text, "image": image} for text in (captions or {}).get(n, [caption(n)])]
    schema = pa.schema([("uid", pa.string()), ("caption", pa.string()),
                        ("image", pa.struct([("file", pa.string()), ("offset", pa.int64()), ("length", pa.int64())]))])
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), folder / "subset.parquet")
    return folder / "subset.parquet"


def config(**settings: Any) -> Config:
    """Settings of a training that takes a second."""
    return from_mapping({**SMALL, **settings})


def logged(out: Path) -> list[dict[str, Any]]:
    """The lines of a training's log."""
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
