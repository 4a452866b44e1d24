"""Thresholds that papers publish are of one model's scores: another model's score held against one is said."""

from pathlib import Path

import pytest

from curate.pipeline import load
from curate.scorers import PUBLISHED, warnings
from tests.running import write_pipeline, write_pool


def warned(folder: Path, model: str, keep: str, *, prefix: str = "") -> list[str]:
    """What a pipeline with this model and keep is told, without the place."""
    write_pool(folder, ["a"])
    name, of = (f"as: {prefix}, ", f": {{of: {prefix}}}") if prefix else ("", "")
    file = write_pipeline(folder, "download", f"clip_embed: {{{name}{model}}}", f"clip_score{of}", f"keep: {keep}")
    return [line.partition("pipeline.yaml:")[2] for line in warnings(load(file))]


B, L = "model: ViT-B-32, pretrained: openai", "model: ViT-L-14, pretrained: openai"


def test_another_model_under_a_published_threshold_is_said(tmp_path: Path) -> None:
    [line] = warned(tmp_path, L, "clip_cos > 0.28")
    assert line == ("6: clip_cos > 0.28: 0.28 is the threshold of LAION-2B-en, DataComp laion2b for ViT-B-32 openai; 'clip_cos' "
                    "is of ViT-L-14 openai, whose scores lie elsewhere")
    [line] = warned(tmp_path, L, "ref_clip_cos >= 0.3", prefix="ref")
    assert line.startswith("6: ref_clip_cos >= 0.3: 0.3 is the threshold of LAION-400M for ViT-B-32 openai; 'ref_clip_cos' is")
    assert len(warned(tmp_path, "model: ViT-B-32, pretrained: laion2b_s34b_b79k", "0.28 <= clip_cos")) == 1


@pytest.mark.parametrize(("model", "keep"), [(B, "clip_cos > 0.28"), (L, "clip_cos > 0.27"), (L, "clip_cos > 0.2 + 0.08"),
                                             (L, "{top: 0.3, by: clip_cos}"), (L, "num_bytes >= 0.28")])
def test_its_own_model_another_number_or_a_rank_is_not(model: str, keep: str, tmp_path: Path) -> None:
    assert warned(tmp_path, model, keep) == []


def test_every_published_number_stands_once_a_scorer() -> None:
    keys = [(p.column, p.value, p.model, p.pretrained) for p in PUBLISHED]
    assert len(set(keys)) == len(keys)
