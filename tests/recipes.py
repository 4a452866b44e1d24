"""The recipes in pipelines/, and toy stand-ins for the lists, heads, benchmarks and clusters that they name."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from curate.heads.layers import Linear
from tests.heads import write_head

PIPELINES = Path(__file__).resolve().parents[1] / "pipelines"
RECIPES = ("align", "cc3m", "cc12m", "laion400m", "laion2b_en", "coyo", "datacomp_basic", "datacomp_clip", "datacomp_text_based",
           "datacomp_image_based", "datacomp_1b", "metaclip", "blip_capfilt")
BENCHMARKS = ("imagenet", "imagenet21k", "flickr30k", "coco", "cc3m", "cc12m")
LABELS = ("circle", "square", "triangle", "star", "ring", "heart", "hexagon", "diamond", "cross", "moon", "hoop", "red", "blue")


def file_of(recipe: str) -> Path:
    """A recipe's pipeline file."""
    return PIPELINES / f"{recipe}.yaml"


def write_inputs(folder: Path, words: Sequence[str] = ("dog",), *, dim: int = 768, model: str = "ViT-L-14",
                 pretrained: str = "openai") -> None:
    """All files beside the rows that any recipe names; the heads are for that model and find everything harmless."""
    lists = {"wikipedia_counts.tsv": [f"{word}\t100" for word in words], "vader_lexicon.txt": ["good\t1.9\t0.9", "awful\t-3.9"],
             "profanity.txt": ["badword"], "imagenet21k_words.txt": LABELS, "domains.txt": ["blocked.example"],
             "labels.txt": LABELS,
             "persons.tsv": ["Ann Lee\t<PERSON>"], "hypernyms.tsv": ["Ann Lee\tactor"], "metadata.json": [json.dumps(LABELS)]}
    (folder / "lists").mkdir()
    for name, lines in lists.items():
        (folder / "lists" / name).write_text("\n".join(lines) + "\n")
    for number, name in enumerate(BENCHMARKS):
        (folder / "benchmarks" / name).mkdir(parents=True)
        pixels = np.random.default_rng(number).integers(0, 256, (6, 8, 3), np.uint8)
        Image.fromarray(pixels).resize((320, 240), Image.Resampling.BICUBIC).save(folder / "benchmarks" / name / "0.png")
    harmless = Linear(np.full((1, dim), 0.01, np.float32), np.array([-3], np.float32))
    for head, column in (("nsfw_l14", "nsfw_prob"), ("watermark_l14", "watermark_prob")):
        write_head(folder / "heads" / head, harmless, dim=dim, column=column, model=model, pretrained=pretrained)
    (folder / "clusters").mkdir()
    np.save(folder / "clusters/centroids.npy", np.random.default_rng(0).standard_normal((8, dim)).astype(np.float32))
    np.save(folder / "clusters/in1k.npy", np.arange(4))


def write_rows(folder: Path, urls: Sequence[str], captions: Sequence[str]) -> None:
    """The rows as web tables and as CommonPool's metadata name their columns."""
    for name in ("urls", "metadata"):
        (folder / name).mkdir()
    pq.write_table(pa.table({"URL": urls, "TEXT": captions}), folder / "urls/0.parquet")
    uids = [f"{n:032x}" for n in range(len(urls))]
    pq.write_table(pa.table({"uid": uids, "url": urls, "text": captions}), folder / "metadata/0.parquet")
