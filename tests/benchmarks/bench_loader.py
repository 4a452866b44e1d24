"""Batches for a model of 224 pixels, from JPEGs in tars, with two workers: `make bench ONLY=loader`.

Ours are threads; the peer is webdataset with open_clip's transform, in two processes, batched as open_clip does it. Both decode,
crop, resize and tokenise each pair once. Photographs come from the folder CURATE_BENCH_PHOTOS (jpg files), or are drawn. The two
are timed in turns, so that what else the machine does hits both; a figure is the median of CURATE_BENCH_REPEATS turns.

`loader_pixels` says how equal the pixels are: the mean difference, of 255, to torchvision's crop of the same box, as open_clip's.
"""

import io
import os
import statistics
import tarfile
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from tests.benchmarks import Row
from tests.benchmarks.bench_download import drawn
from train.data import open_data
from train.data_settings import Data
from train.draws import CROP, uniform
from train.loader import Loader
from train.order import Order
from train.pictures import TrainCrop

SIZE, BATCH, WORKERS = 224, 64, 2
PAIRS = int(os.environ.get("CURATE_BENCH_PAIRS", "2000"))
REPEATS = int(os.environ.get("CURATE_BENCH_REPEATS", "5"))


def run() -> list[Row]:
    """Samples a second of both, and the pixels' difference."""
    with tempfile.TemporaryDirectory() as name:
        tars, mean_side = write_tars(Path(name))
        ours, theirs = Ours(tars), Peer(tars)
        rates: tuple[list[float], list[float]] = ([], [])
        for _ in range(REPEATS):
            for found, batches in zip(rates, (ours.batches(), theirs.batches()), strict=True):
                found.append(rate(batches))
        sizes = f"{PAIRS:,} JPEGs of {mean_side:.0f} px, batch {BATCH}, {WORKERS} workers, medians of {REPEATS}"
        return [Row("loader_224", "samples/s", statistics.median(rates[0]), statistics.median(rates[1]), limit="ratio >= 1.5",
                    sizes=sizes),
                Row("loader_pixels", "of 255", difference(ours), limit="ours <= 1", sizes="mean over 200 crops")]


def write_tars(folder: Path) -> tuple[list[str], float]:
    """Shards of 500 pairs, and the pictures' mean longer side in pixels."""
    given = os.environ.get("CURATE_BENCH_PHOTOS")
    files = sorted(path for path in Path(given).iterdir() if path.suffix.lower() in (".jpg", ".jpeg")) if given else []
    found = [path.read_bytes() for path in files] or [drawn(seed) for seed in range(200)]
    tars, sides = [], []
    for start in range(0, PAIRS, 500):
        tars.append(str(folder / f"{start // 500:05d}.tar"))
        with tarfile.open(tars[-1], "w") as tar:
            for n in range(start, min(PAIRS, start + 500)):
                body = found[n % len(found)]
                sides.append(max(Image.open(io.BytesIO(body)).size))
                for kind, data in (("jpg", body), ("txt", f"photograph number {n} of a benchmark".encode())):
                    info = tarfile.TarInfo(f"{n:09d}.{kind}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return tars, statistics.mean(sides)


def rate(batches: Iterator[Any]) -> float:
    """Samples a second from the second batch on: what starts up is not counted."""
    next(batches)
    start, seen = time.perf_counter(), 0
    for batch in batches:
        seen += len(batch)
    return seen / (time.perf_counter() - start)


class Ours:
    """Our loader over the tars, one epoch."""

    def __init__(self, tars: list[str]) -> None:
        import open_clip

        self.index = open_data(Data(shards=tuple(tars)))
        self.crop = TrainCrop(SIZE)
        self._tokenizer = open_clip.get_tokenizer("ViT-B-32")

    def batches(self) -> Iterator[torch.Tensor]:
        """The pixels of every batch."""
        order = Order(len(self.index), BATCH, 0)
        loader = Loader(self.index, order, self.crop, self._tokenizer, workers=WORKERS, cache_mb=0)
        return (batch.pixels_NHWC for batch in loader.batches(0, order.steps_per_epoch))


class Peer:
    """webdataset with open_clip's training transform, one epoch."""

    def __init__(self, tars: list[str]) -> None:
        import open_clip

        self._tars, self._transform = tars, open_clip.image_transform(SIZE, is_train=True)
        self._tokenizer = open_clip.get_tokenizer("ViT-B-32")

    def batches(self) -> Iterator[torch.Tensor]:
        """The pixels of every batch."""
        import webdataset as wds

        data = wds.DataPipeline(wds.SimpleShardList(self._tars), wds.split_by_worker, wds.tarfile_to_samples(), wds.shuffle(1000),
                                wds.decode("pilrgb"), wds.rename(image="jpg", text="txt"),
                                wds.map_dict(image=self._transform, text=lambda text: self._tokenizer(text)[0]),
                                wds.to_tuple("image", "text"), wds.batched(BATCH, partial=False))
        loader = wds.WebLoader(data, batch_size=None, shuffle=False, num_workers=WORKERS)
        return (images for images, _ in islice(loader, PAIRS // BATCH))


def difference(ours: Ours, crops: int = 200) -> float:
    """Mean absolute difference of our pixels to a crop by torchvision, as open_clip has it, of the box that we took."""
    from torchvision.transforms.v2 import functional as F

    found = []
    for n in range(min(crops, len(ours.index))):
        body, draws = ours.index.read(n), uniform(CROP, 0, n, np.arange(5))
        picture = Image.open(io.BytesIO(body)).convert("RGB")
        left, top, right, bottom = (round(edge) for edge in ours.crop.box(picture.size, draws))
        theirs = F.resized_crop(picture, top, left, bottom - top, right - left, [SIZE, SIZE], F.InterpolationMode.BICUBIC)
        found.append(np.abs(np.asarray(theirs, float) - ours.crop(ours.crop.decode(body), draws)).mean())
    return float(np.mean(found))
