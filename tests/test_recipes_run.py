"""The recipes in pipelines/, each over the same faulty web, with small models for the published ones."""

import re
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.blips import write_blip
from tests.recipes import RECIPES, file_of, write_inputs, write_rows
from tests.running import run_here
from tests.site.faults import FAULTS
from tests.site.make import make
from tests.site.server import serve

STAND_IN = ("curate-conv-64", "random:0")
DROPS = {
    "align": ("num_words between 3 and 20", "status = 'ok'", "not contaminated"),
    "cc3m": ("lang = 'en'", "capital_word_ratio <= 0.6", "num_unlisted_words = 0", "status = 'ok'"),
    "cc12m": ("lang = 'en'", "num_words between 3 and 256", "num_unlisted_words = 0", "status = 'ok'"),
    "laion400m": ("lang = 'en'", "status = 'ok'", "ref_clip_cos >= 0.3"),
    "laion2b_en": ("lang = 'en'", "status = 'ok'", "b32_clip_cos >= 0.28"),
    "coyo": ("num_words between 3 and 256", "lang = 'en'", "status = 'ok'", "not contaminated"),
    "datacomp_basic": ("lang = 'en'", "num_words > 2", "status = 'ok'"), "datacomp_clip": ("status = 'ok'",),
    "datacomp_image_based": ("lang = 'en'", "num_words > 1", "status = 'ok'"),
    "datacomp_1b": ("status = 'ok'",), "datacomp_text_based": ("lang = 'en'", "num_list_words >= 1", "status = 'ok'"),
    "metaclip": ("num_concepts >= 1", "status = 'ok'", "not is_same_image"),
    "blip_capfilt": ("status = 'ok'", "num_captions >= 1"),
}
"""Reasons for which rows of the web must leave, by recipe."""


def write_web(folder: Path) -> None:
    """A faulty web of 100 rows whose pictures are large enough for every recipe, and the files beside it."""
    quick = {kind: share for kind, share in FAULTS.items() if kind not in ("drip", "endless", "mismatched")}
    make(folder / "site", 100, seed=3, mismatch=0.2, faults=quick)
    for path in sorted((folder / "site/site").glob("*.jpg")):
        try:
            with Image.open(path) as picture:
                larger = picture.convert("RGB").resize((4 * picture.width, 4 * picture.height))
        except OSError:
            continue
        larger.save(path, "JPEG", quality=80)
    truth = pq.read_table(folder / "site/truth.parquet").to_pylist()
    words = {word.strip(".,") for row in truth for word in row["caption"].lower().split()}
    write_inputs(folder, sorted(words - {"picture"}), dim=128, model=STAND_IN[0], pretrained=STAND_IN[1])
    write_blip(folder / "captioner", 0)
    write_blip(folder / "filter", 1)
    shown = next(row["url"].rpartition("/")[2] for row in truth if row["kind"] == "clean")
    shutil.copy(folder / "site/site" / shown, folder / "benchmarks/coco")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_recipe_runs_with_stand_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As they are shipped, over one faulty web; only models and addresses are set. Nothing is quarantined."""
    write_web(tmp_path)
    monkeypatch.chdir(tmp_path)
    with serve(tmp_path / "site") as site:
        pool = pq.read_table(site.pool).to_pylist()
        write_rows(tmp_path, [r["url"] for r in pool], [r["caption"][:1].upper() + r["caption"][1:] for r in pool])
        for name in RECIPES:
            found = run_here(file_of(name), tmp_path / name, sets=stand_ins(name)).funnel
            assert sum(entry["quarantined"] for entry in found) == 0, name
            left = {c["text"] for entry in found for c in entry.get("clauses", ()) if c["dropped"]}
            assert set(DROPS[name]) <= left, (name, left)
            assert (tmp_path / name / "shards/manifest.json").exists(), name


def stand_ins(name: str) -> list[str]:
    """What is set for a test: a small model and a head for the published ones, addresses of this machine, counts for few rows."""
    text, (model, pretrained) = file_of(name).read_text(), STAND_IN
    prefixes = re.findall(r"clip_embed: {as: (\w+)", text)
    models = [said for prefix in prefixes for said in (f"{prefix}.model={model}", f"{prefix}.pretrained={pretrained}")]
    head = ["nsfw.file=heads/nsfw_l14"] if "- nsfw: {of: ref}" in text else []
    balance = {"metaclip": ["balance.t=5"], "cc3m": ["entity_count.min_count=2"]}.get(name, [])
    blip = ["blip_caption.model=captioner", "blip_match.model=filter"] if name == "blip_capfilt" else []
    return [*models, *head, *balance, *blip, "download.allow_private=[127.0.0.0/8]"]
