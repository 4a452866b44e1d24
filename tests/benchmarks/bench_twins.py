"""Which edits of a picture are found again, and by what: `make bench ONLY=twins`.

The photographs of the folder CURATE_BENCH_PHOTOS (200 of them at most), or drawn ones, each beside one edit of it at a time, by
the names in EDITS: what another site makes of a picture it copies (the first five are those of a noisy web's duplicates), and
what hides one. Then `same_image` with 0 to 8 bits of phash, and `dedupe` by embeddings where there are weights:
CURATE_BENCH_WEIGHTS names a checkpoint of curate-conv-64; without, those that runs/quickstart promoted last. A table says of each
edit which share of the twins is found beside its original, and which share of the pairs that were called copies is one.
"""

import io
import json
import multiprocessing
import os
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageOps

from curate.measure import to_column
from curate.step import Chunks, vector
from curate.steps.dedupe import dedupe
from curate.steps.image_hash import image_hash
from curate.steps.same_image import same_image
from tests.benchmarks import ROOT, Row
from tests.benchmarks.bench_download import drawn

MOST, SIDE_PX, CORES = 200, 384, 2
"""Pictures are reduced to SIDE_PX first, as a download does it."""
BITS, COS = (0, 2, 4, 6, 8), (0.99, 0.96)
MODEL = "curate-conv-64"
Edit = Callable[[Image.Image, random.Random], bytes]
Links = list[tuple[int, int]]


def jpeg(picture: Image.Image, quality: int = 85) -> bytes:
    """Its file."""
    out = io.BytesIO()
    picture.convert("RGB").save(out, "JPEG", quality=quality)
    return out.getvalue()


def webp(picture: Image.Image, draw: random.Random) -> bytes:
    """WebP at quality 50."""
    out = io.BytesIO()
    picture.save(out, "WEBP", quality=50)
    return out.getvalue()


def resized(picture: Image.Image, scale: float) -> Image.Image:
    """Another size, the same aspect."""
    return picture.resize((max(8, int(picture.width * scale)), max(8, int(picture.height * scale))))


def cropped(picture: Image.Image, share: float) -> Image.Image:
    """Without that share of each side."""
    w, h = picture.size
    return picture.crop((int(w * share), int(h * share), int(w * (1 - share)), int(h * (1 - share))))


def written_on(picture: Image.Image) -> Image.Image:
    """With a line of white letters across the lower half."""
    marked = picture.copy()
    ImageDraw.Draw(marked).text((marked.width // 8, marked.height * 2 // 3), "(c) example.org", fill="white",
                                font_size=max(10, marked.height // 10))
    return marked


EDITS: dict[str, Edit] = {
    "exact_dup": lambda p, d: jpeg(p, 90),
    "resize 0.5 to 1.6": lambda p, d: jpeg(resized(p, d.uniform(0.5, 1.6))),
    "quality 60": lambda p, d: jpeg(p, 60),
    "crop 2 to 6 %": lambda p, d: jpeg(cropped(p, d.uniform(0.02, 0.06))),
    "bright 0.85 to 1.15": lambda p, d: jpeg(ImageEnhance.Brightness(p).enhance(d.uniform(0.85, 1.15))),
    "compress: JPEG 20": lambda p, d: jpeg(p, 20),
    "compress: WebP 50": webp,
    "resize to a quarter": lambda p, d: jpeg(resized(p, 0.25)),
    "blur, 2 px": lambda p, d: jpeg(p.filter(ImageFilter.GaussianBlur(2))),
    "grey": lambda p, d: jpeg(ImageOps.grayscale(p)),
    "watermark": lambda p, d: jpeg(written_on(p)),
    "frame of 5 %": lambda p, d: jpeg(ImageOps.expand(p, p.width // 20, "white")),
    "crop 10 %": lambda p, d: jpeg(cropped(p, 0.10)),
    "flip": lambda p, d: jpeg(ImageOps.mirror(p)),
    "rotate 90": lambda p, d: jpeg(p.transpose(Image.Transpose.ROTATE_90)),
    "rotate 3": lambda p, d: jpeg(p.rotate(3)),
}
WEB = tuple(EDITS)[:5]
"""What other sites make of a picture that they copy; the rest hides one."""


def run() -> list[Row]:
    """Recall and precision over the web's own edits, one row a way; the table of all edits is printed."""
    originals = photographs()
    with multiprocessing.get_context("spawn").Pool(CORES) as pool:
        hashed = pool.map(_measured, [(name, originals) for name in ("", *EDITS)], chunksize=1)
    ways = [*(f"phash {bits}" for bits in BITS), *(f"cos {cos}" for cos in COS if (weights := _weights()))]
    vectors = _embedded([data for _, data in hashed], weights) if weights else [np.empty((0, 0))] * len(hashed)
    found = {name: [*(by_hash(hashed[0][0], columns, bits) for bits in BITS),
                    *(by_embedding(vectors[0], emb, cos) for cos in COS if weights)]
             for name, (columns, _), emb in zip(EDITS, hashed[1:], vectors[1:], strict=True)}
    print(table(ways, found, len(originals)))
    sizes = f"{len(originals)} photographs under the first {len(WEB)} edits"
    rows = []
    for number, way in enumerate(ways):
        true, said = (sum(found[name][number][i] for name in WEB) for i in (0, 1))
        name = f"twins_{way.replace(' ', '_')}"
        rows += [Row(f"{name}_recall", "share", true / (len(WEB) * len(originals)), sizes=sizes,
                     limit="ours >= 0.9" if way == "phash 4" else ""),
                 Row(f"{name}_precision", "share", true / max(said, 1), sizes=sizes,
                     limit="ours >= 0.99" if way == "phash 4" else "")]
    return rows


def photographs() -> list[bytes]:
    """The originals, as a download stores them."""
    given = os.environ.get("CURATE_BENCH_PHOTOS")
    bodies = [p.read_bytes() for p in sorted(Path(given).iterdir())][:MOST] if given else [drawn(n) for n in range(MOST)]
    small = []
    for body in bodies:
        with Image.open(io.BytesIO(body)) as picture:
            picture = picture.convert("RGB")
            picture.thumbnail((SIDE_PX, SIDE_PX))
            small.append(jpeg(picture, 90))
    return small


def _measured(asked: tuple[str, Sequence[bytes]]) -> tuple[dict[str, list[str]], list[bytes]]:
    """(hashes, files) of all pictures under one edit; of the originals themselves with no name."""
    name, originals = asked
    files = list(originals)
    if name == "exact_dup" or not name:
        return dict(image_hash(files)), files
    files = []
    for number, data in enumerate(originals):
        with Image.open(io.BytesIO(data)) as picture:
            files.append(EDITS[name](picture.convert("RGB"), random.Random(f"{name} {number}")))
    return dict(image_hash(files)), files


def by_hash(one: dict[str, list[str]], other: dict[str, list[str]], bits: int) -> tuple[int, int]:
    """(twins found, pairs called copies) of originals and twins; a picture has the id of its place, larger ones are kept."""
    number = len(one["phash"])
    ids = [f"{n:032x}" for n in range(2 * number)]
    columns = {name: pa.array([*one[name], *other[name]]) for name in one}
    size = np.repeat([2, 1], number)
    step = same_image(*(Chunks(lambda column=column: iter([column])) for column in (  # type: ignore[misc]
        pa.array(ids), columns["image_sha256"], columns["pixel_hash"], columns["phash"], columns["thumb"], size)), max_bits=bits)
    same_as = next(step)["same_as"].to_pylist()
    return counted([(n, int(witness, 16)) for n, witness in enumerate(same_as) if witness], number)


def by_embedding(one: np.ndarray, other: np.ndarray, cos: float) -> tuple[int, int]:
    """The same by `dedupe`; originals are the better ones."""
    number = len(one)
    uids = pa.array([f"{n:032x}" for n in range(2 * number)])
    column, quality = to_column(np.concatenate([one, other]), vector), pa.array([1.0] * number + [0.0] * number)
    step = dedupe(Chunks(lambda: iter([column])), Chunks(lambda: iter([uids])), Chunks(lambda: iter([quality])), cos=cos)
    dup_of = next(step)["dup_of"].to_pylist()
    return counted([(n, int(witness, 16)) for n, witness in enumerate(dup_of) if witness], number)


def counted(links: Links, number: int) -> tuple[int, int]:
    """(twins beside their original, links at all)."""
    return sum(abs(a - b) == number for a, b in links), len(links)


def _weights() -> str:
    """A checkpoint of curate-conv-64, or nothing."""
    given, rounds = os.environ.get("CURATE_BENCH_WEIGHTS", ""), ROOT / "runs" / "quickstart" / "rounds.json"
    if given or not rounds.exists():
        return given
    promoted = [r["weights"] for r in json.loads(rounds.read_text()) if r["promoted"] and r["weights"].startswith("models/")]
    return str(rounds.parent / promoted[-1]) if promoted else ""


def _embedded(files: Sequence[Sequence[bytes]], weights: str) -> list[np.ndarray]:
    from train.models.clip import embed_images
    from train.models.weights import load

    loaded = load(MODEL, weights)

    def embed(some: Sequence[bytes]) -> Iterator[np.ndarray]:
        for start in range(0, len(some), 64):
            yield embed_images(loaded, [Image.open(io.BytesIO(data)).convert("RGB") for data in some[start : start + 64]])

    return [np.concatenate(list(embed(some))) for some in files]


def table(ways: Sequence[str], found: dict[str, list[tuple[int, int]]], number: int) -> str:
    """Markdown: an edit a line, a way a column: recall, and precision where it is not 1."""
    lines = [f"| edit | {' | '.join(ways)} |", f"| --- |{' --- |' * len(ways)}"]
    for name, values in found.items():
        cells = [f"{100 * true / number:.0f} %" + (f" ({100 * true / said:.0f})" if said > true else "") for true, said in values]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join([*lines, f"{number} pictures each; recall, and in brackets precision where it is below 100 %"])
